//! The policy's meaning, said as plainly as possible: the judge of everything faster.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::model::{
    AclId, Direction, Group, GroupId, Peer, Policy, Port, PortId, Rule, Target, Traffic, Vni,
};

/// The first packet of a flow, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// IP protocol.
    pub protocol: u8,
    /// Destination port of TCP and UDP; type and code of ICMP; else 0.
    pub port: u16,
}

/// What becomes of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// It goes to this port.
    Passes(PortId),
    /// It goes to this host.
    ToHost(Ipv4Addr),
    /// It goes to this NAT gateway, which is asked next.
    ToNat(PortId),
    /// It leaves, from this public address; of IPv6, from its own.
    Leaves(IpAddr),
    /// Nobody has that address.
    NoEndpoint,
    /// No route leads there.
    NoRoute,
    /// The route leads nowhere.
    Blackhole,
    /// The next hop hears for its own addresses only.
    SourceDestCheck,
    /// It would leave, but has no public address.
    NoPublicAddress,
    /// The ACL of the sender's subnet refuses.
    EgressAclDenied,
    /// The sender refuses.
    EgressDenied,
    /// The ACL of the receiver's subnet refuses.
    IngressAclDenied(PortId),
    /// The receiver refuses.
    IngressDenied(PortId),
}

/// An end of a packet's way, as rules see it.
struct End<'a> {
    address: IpAddr,
    groups: &'a BTreeSet<GroupId>,
}

/// In no group.
pub(crate) static NOBODY: BTreeSet<GroupId> = BTreeSet::new();

/// Who has an address.
enum Owner<'a> {
    Port(&'a PortId, &'a Port),
    Nat(&'a PortId),
    Host(Ipv4Addr),
}

/// What becomes of a flow that `from` begins towards `to`, when nothing is tracked.
/// `None`: `from` may not send from such an address.
#[must_use]
pub fn ask(
    policy: &Policy,
    from: &PortId,
    source: impl Into<IpAddr>,
    to: impl Into<IpAddr>,
    question: Question,
) -> Option<Answer> {
    let (source, to) = (source.into(), to.into());
    let sender = policy.ports.get(from)?;
    let own = sender.addresses.contains(&source);
    // Nobody forwards IPv6.
    if !own && (sender.source_dest_check || source.is_ipv6()) {
        return None;
    }
    let target = target(policy, sender, to);
    let hop = match target {
        Some(Target::NextHop(hop)) => hop,
        _ => to,
    };
    let network = match target {
        None => return Some(Answer::NoRoute),
        Some(Target::Blackhole | Target::NextHop(IpAddr::V6(_))) => {
            return Some(Answer::Blackhole);
        }
        Some(Target::EgressOnly) if to.is_ipv4() => return Some(Answer::Blackhole),
        // Nor does any go to another network.
        Some(Target::NextHop(_) | Target::Peer(_)) if to.is_ipv6() => {
            return Some(Answer::Blackhole);
        }
        Some(Target::Peer(peer)) => Some(peer),
        Some(Target::Local | Target::NextHop(_)) => Some(sender.vni),
        Some(Target::Outside | Target::EgressOnly) => None,
    };
    let by_hop = matches!(target, Some(Target::NextHop(_)));
    let owner = match network {
        Some(vni) => match owner(policy, vni, hop) {
            None => return Some(Answer::NoEndpoint),
            Some(Owner::Port(id, _)) if id == from => return Some(Answer::NoEndpoint),
            Some(Owner::Nat(_)) if !by_hop => return Some(Answer::NoEndpoint),
            owner => owner,
        },
        None => None,
    };
    if by_hop && !forwards(policy, sender.vni, hop) {
        return Some(Answer::SourceDestCheck);
    }
    let crosses = network != Some(sender.vni) || !is_near(sender, hop);
    if crosses && !acl_allows(policy, sender.acl.as_ref(), Direction::Egress, to, question) {
        return Some(Answer::EgressAclDenied);
    }
    // One that is forwarded to or for is known by its address alone.
    let there = End {
        address: to,
        groups: match network {
            Some(vni) if !by_hop => groups(policy, vni, to),
            _ => &NOBODY,
        },
    };
    let here = End {
        address: source,
        groups: if own { &sender.groups } else { &NOBODY },
    };
    if !allows(policy, sender, Direction::Egress, &there, question) {
        return Some(Answer::EgressDenied);
    }
    Some(match owner {
        Some(Owner::Port(id, receiver)) => {
            let id = id.clone();
            let crosses = !is_near(receiver, source);
            let acl = receiver.acl.as_ref();
            if crosses && !acl_allows(policy, acl, Direction::Ingress, source, question) {
                Answer::IngressAclDenied(id)
            } else if allows(policy, receiver, Direction::Ingress, &here, question) {
                Answer::Passes(id)
            } else {
                Answer::IngressDenied(id)
            }
        }
        Some(Owner::Nat(id)) => Answer::ToNat(id.clone()),
        Some(Owner::Host(host)) => Answer::ToHost(host),
        None => match source {
            IpAddr::V4(source) if own => match sender.publics.get(&source) {
                Some(public) => Answer::Leaves((*public).into()),
                None => Answer::NoPublicAddress,
            },
            IpAddr::V6(_) if own => Answer::Leaves(source),
            _ => Answer::NoPublicAddress,
        },
    })
}

/// Whether an address is of a port's subnet.
fn is_near(port: &Port, address: IpAddr) -> bool {
    match address {
        IpAddr::V4(_) => port.subnet.contains(&address),
        IpAddr::V6(address) => port.ipv6_subnet.is_some_and(|net| net.contains(&address)),
    }
}

/// Where the sender's route table leads.
fn target(policy: &Policy, sender: &Port, to: IpAddr) -> Option<Target> {
    if is_near(sender, to) {
        return Some(Target::Local);
    }
    let Some(table) = &sender.table else {
        return Some(Target::Local);
    };
    let routes = &policy.tables.get(table)?.routes;
    routes
        .iter()
        .filter(|(prefix, _)| prefix.contains(&to))
        .max_by_key(|(prefix, _)| prefix.prefix_len())
        .map(|(_, target)| *target)
}

fn owner(policy: &Policy, vni: Vni, ip: IpAddr) -> Option<Owner<'_>> {
    let port = policy
        .ports
        .iter()
        .find(|(_, port)| port.vni == vni && port.addresses.contains(&ip))
        .map(|(id, port)| Owner::Port(id, port));
    let nat = || {
        let is = |nat: &crate::model::Nat| nat.vni == vni && IpAddr::V4(nat.address) == ip;
        let found = policy.nats.iter().find(|(_, nat)| is(nat));
        found.map(|(id, _)| Owner::Nat(id))
    };
    let host = || {
        let remote = policy.remotes.get(&(vni, ip))?;
        Some(Owner::Host(remote.host))
    };
    port.or_else(nat).or_else(host)
}

fn forwards(policy: &Policy, vni: Vni, address: IpAddr) -> bool {
    match owner(policy, vni, address) {
        Some(Owner::Port(_, port)) => !port.source_dest_check,
        Some(Owner::Nat(_)) => true,
        Some(Owner::Host(_)) => policy
            .remotes
            .get(&(vni, address))
            .is_some_and(|remote| remote.forwards),
        None => false,
    }
}

/// Groups of whoever has an address.
pub(crate) fn groups(policy: &Policy, vni: Vni, address: IpAddr) -> &BTreeSet<GroupId> {
    match owner(policy, vni, address) {
        Some(Owner::Port(_, port)) => &port.groups,
        Some(Owner::Host(_)) => policy
            .remotes
            .get(&(vni, address))
            .map_or(&NOBODY, |remote| &remote.groups),
        Some(Owner::Nat(_)) | None => &NOBODY,
    }
}

/// Whether any rule of any group of `port` allows it.
fn allows(
    policy: &Policy,
    port: &Port,
    direction: Direction,
    other: &End<'_>,
    question: Question,
) -> bool {
    port.groups
        .iter()
        .filter_map(|group| policy.groups.get(group))
        .flat_map(|Group { rules }| rules)
        .any(|rule| applies(rule, direction, other.groups, other.address, question))
}

/// Whether a rule allows it, with a peer in these groups.
pub(crate) fn applies(
    rule: &Rule,
    direction: Direction,
    peer_groups: &BTreeSet<GroupId>,
    peer_address: IpAddr,
    question: Question,
) -> bool {
    rule.direction == direction
        && covers(&rule.traffic, question)
        && match &rule.peer {
            Peer::Cidr(prefix) => prefix.contains(&peer_address),
            Peer::Group(group) => peer_groups.contains(group),
        }
}

/// What the first entry that matches says.
fn acl_allows(
    policy: &Policy,
    acl: Option<&AclId>,
    direction: Direction,
    other: IpAddr,
    question: Question,
) -> bool {
    let Some(acl) = acl else {
        return true;
    };
    let entries = policy.acls.get(acl).map(|acl| &acl.entries);
    entries
        .into_iter()
        .flatten()
        .filter(|((way, _), _)| *way == direction)
        .find(|(_, entry)| entry.cidr.contains(&other) && covers(&entry.traffic, question))
        .is_some_and(|(_, entry)| entry.allow)
}

fn covers(traffic: &Traffic, question: Question) -> bool {
    match *traffic {
        Traffic::All => true,
        Traffic::Protocol(protocol) => protocol == question.protocol,
        Traffic::Ports { protocol, from, to } => {
            protocol == question.protocol && (from..=to).contains(&question.port)
        }
        Traffic::Icmp {
            protocol,
            kind,
            code,
        } => {
            let [asked_kind, asked_code] = question.port.to_be_bytes();
            protocol == question.protocol
                && kind.is_none_or(|kind| kind == asked_kind)
                && code.is_none_or(|code| code == asked_code)
        }
    }
}
