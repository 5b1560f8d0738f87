//! The policy's meaning, said as plainly as possible: the judge of everything faster.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use crate::model::{Direction, Group, GroupId, Peer, Policy, Port, PortId, Rule, Traffic, Vni};

/// The first packet of a flow, as rules see it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Question {
    /// IP protocol.
    pub protocol: u8,
    /// Destination port of TCP and UDP; type and code of ICMP; else 0.
    pub port: u16,
}

/// Who refuses.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Nobody: it goes to this port.
    Passes(PortId),
    /// Nobody has that address.
    NoEndpoint,
    /// The sender.
    EgressDenied,
    /// The receiver.
    IngressDenied(PortId),
}

/// What becomes of a flow that `from` begins towards `to`, when nothing is tracked.
/// `None`: `from` has no such address.
#[must_use]
pub fn ask(
    policy: &Policy,
    from: &PortId,
    source: Ipv4Addr,
    to: Ipv4Addr,
    question: Question,
) -> Option<Answer> {
    let sender = policy.ports.get(from)?;
    if !sender.addresses.contains(&IpAddr::V4(source)) {
        return None;
    }
    let Some((id, receiver)) = owner(policy, sender.vni, to).filter(|(id, _)| *id != from) else {
        return Some(Answer::NoEndpoint);
    };
    if !allows(policy, sender, Direction::Egress, receiver, to, question) {
        return Some(Answer::EgressDenied);
    }
    if !allows(
        policy,
        receiver,
        Direction::Ingress,
        sender,
        source,
        question,
    ) {
        return Some(Answer::IngressDenied(id.clone()));
    }
    Some(Answer::Passes(id.clone()))
}

fn owner(policy: &Policy, vni: Vni, address: Ipv4Addr) -> Option<(&PortId, &Port)> {
    policy
        .ports
        .iter()
        .find(|(_, port)| port.vni == vni && port.addresses.contains(&IpAddr::V4(address)))
}

/// Whether any rule of any group of `port` allows it.
fn allows(
    policy: &Policy,
    port: &Port,
    direction: Direction,
    peer: &Port,
    peer_address: Ipv4Addr,
    question: Question,
) -> bool {
    port.groups
        .iter()
        .filter_map(|group| policy.groups.get(group))
        .flat_map(|Group { rules }| rules)
        .any(|rule| applies(rule, direction, &peer.groups, peer_address, question))
}

/// Whether a rule allows it, with a peer in these groups.
pub(crate) fn applies(
    rule: &Rule,
    direction: Direction,
    peer_groups: &BTreeSet<GroupId>,
    peer_address: Ipv4Addr,
    question: Question,
) -> bool {
    rule.direction == direction
        && covers(&rule.traffic, question)
        && match &rule.peer {
            Peer::Cidr(prefix) => prefix.contains(&IpAddr::V4(peer_address)),
            Peer::Group(group) => peer_groups.contains(group),
        }
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
