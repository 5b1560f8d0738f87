//! What would become of a packet, and by which mapping, rule or flow.
//!
//! The packet is judged by the code that the programs run, over what their maps hold at
//! this moment: nothing is counted, charged or remembered. Names come from the policy that
//! was compiled into those maps; where the two disagree the answer says so.

mod frame;
mod view;

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use ocs_dataplane_shared::layout::{
    ATOM, Direction as Way, Endpoint, PORT_IPV6, RESPONDER_SLOT, ROUTE_EGRESS_ONLY, ROUTE_NETWORK,
    ROUTE_NEXT_HOP, ROUTE_OUTSIDE, Reason, Route, RuleKey, UPLINK_SLOT,
};
use ocs_dataplane_shared::{Action, guest, ipv6};

use super::error::FabricError;
use super::maps::KernelMaps;
use crate::compiler::{Numbers, Slots};
use crate::model::{Direction, GroupId, Peer, Policy, Port, PortId, Rule, Traffic, Vni};
use crate::reference::{NOBODY, Question, applies, groups};
use view::{Seen, View};

pub use frame::Packet;

/// What would become of a packet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Explanation {
    /// [`Reason::label`].
    pub verdict: &'static str,
    /// Whether it passes.
    pub passes: bool,
    /// What decided, in the order in which it was asked.
    pub steps: Vec<Step>,
}

/// One thing that decided.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Step {
    /// `route`, `mapping`, `acl`, `egress` or `ingress`.
    pub stage: &'static str,
    /// What was found.
    pub found: String,
}

/// Everything that names what the maps hold.
pub(super) struct Names<'a> {
    pub(super) policy: &'a Policy,
    pub(super) numbers: &'a Numbers,
    pub(super) slots: &'a Slots,
}

/// Judges a packet of a port.
pub(super) fn explain(
    maps: &KernelMaps,
    names: &Names<'_>,
    id: &PortId,
    packet: Packet,
    now: u64,
) -> Result<Explanation, FabricError> {
    let port = names
        .policy
        .ports
        .get(id)
        .ok_or_else(|| FabricError::UnknownPort { port: id.0.clone() })?;
    let view = View::new(maps, now);
    let mut frame = frame::frame(port, packet)?;
    let mut action = guest::receive(&mut frame, &view, port.ifindex);
    if let Action::Stage { stage, .. } = action {
        action = match stage {
            PORT_IPV6 => ipv6::receive(&mut frame, &view, port.ifindex),
            _ => guest::translate(&mut frame, &view, port.ifindex),
        };
    }
    if let Action::Stage { .. } = action {
        action = ipv6::outside::send(&mut frame, &view, port.ifindex);
    }
    let (seen, reason) = view.end()?;
    let story = Story {
        names,
        id,
        port,
        packet,
        seen: &seen,
        reason,
        action,
    };
    Ok(Explanation {
        verdict: reason.unwrap_or(Reason::Forwarded).label(),
        passes: matches!(action, Action::Redirect { .. }),
        steps: story.steps(),
    })
}

struct Story<'a> {
    names: &'a Names<'a>,
    id: &'a PortId,
    port: &'a Port,
    packet: Packet,
    seen: &'a [Seen],
    reason: Option<Reason>,
    action: Action,
}

/// One side's port, and the other end as its rules see it.
struct Side<'a> {
    way: Way,
    own: &'a Port,
    slot: u32,
    peer: IpAddr,
    peer_groups: &'a BTreeSet<GroupId>,
}

impl Story<'_> {
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend(self.route());
        steps.extend(self.mapping());
        steps.extend(self.acl(Way::Egress));
        steps.extend(self.egress().and_then(|side| self.side(&side)));
        steps.extend(self.acl(Way::Ingress));
        steps.extend(self.ingress().and_then(|side| self.side(&side)));
        steps.extend(self.public());
        steps
    }

    /// The route table's number and what it said, where it was asked.
    fn found_route(&self) -> Option<(u32, Option<Route>)> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Route(table, route) => Some((*table, *route)),
            _ => None,
        })
    }

    fn route(&self) -> Option<Step> {
        let (table, route) = self.found_route()?;
        let name = self.port.table.as_ref().map_or("unnamed", |id| &id.0);
        let way = match route {
            None => "no route leads there".to_owned(),
            Some(route) => match route.kind {
                ROUTE_NETWORK => format!("to network {}", route.vni),
                ROUTE_NEXT_HOP => format!("by {}", hop(route)),
                ROUTE_OUTSIDE => "out of the host".to_owned(),
                ROUTE_EGRESS_ONLY => "out of the host, and nothing new back".to_owned(),
                _ => "nowhere (blackhole)".to_owned(),
            },
        };
        Some(Step {
            stage: "route",
            found: format!("table {name} ({table}): {way}"),
        })
    }

    /// What a network ACL said, where it was asked.
    fn acl(&self, way: Way) -> Option<Step> {
        let allowed = self.seen.iter().find_map(|seen| match seen {
            Seen::Acl(direction, allowed) if *direction == way => Some(*allowed),
            _ => None,
        })?;
        let whose = match way {
            Way::Egress => "the sender's",
            Way::Ingress => "the receiver's",
        };
        Some(Step {
            stage: "acl",
            found: format!(
                "{whose} subnet: {}",
                if allowed { "passes" } else { "denied" }
            ),
        })
    }

    /// In which network whom the packet goes to next has which address. `None`: it leaves
    /// the host.
    fn next(&self) -> Option<(u32, IpAddr)> {
        let to = self.packet.destination;
        let own = self.port.vni.0;
        match self.found_route().and_then(|(_, route)| route) {
            Some(route) => match route.kind {
                ROUTE_OUTSIDE | ROUTE_EGRESS_ONLY => None,
                ROUTE_NEXT_HOP => Some((route.vni, hop(route).into())),
                ROUTE_NETWORK => Some((route.vni, to)),
                _ => Some((own, to)),
            },
            None => Some((own, to)),
        }
    }

    /// Who has an address, where that was asked.
    fn endpoint(&self, vni: u32, address: IpAddr) -> Option<Option<&Endpoint>> {
        self.seen.iter().find_map(|seen| match seen {
            Seen::Endpoint(of, at, endpoint) if (*of, *at) == (vni, address) => {
                Some(endpoint.as_ref())
            }
            _ => None,
        })
    }

    fn mapping(&self) -> Option<Step> {
        let to_services = matches!(
            self.action,
            Action::Redirect {
                slot: RESPONDER_SLOT,
                ..
            }
        );
        let found = if to_services {
            "the host's own services answer".to_owned()
        } else {
            let (vni, to) = self.next()?;
            match self.endpoint(vni, to)? {
                Some(endpoint) => {
                    let name = self.name_of(endpoint);
                    let mac = endpoint.mac.map(|byte| format!("{byte:02x}")).join(":");
                    let slot = endpoint.slot;
                    format!("network {vni}: {to} is {name} (slot {slot}, {mac})")
                }
                None => format!("network {vni}: nobody has {to}"),
            }
        };
        Some(Step {
            stage: "mapping",
            found,
        })
    }

    /// The public address that a packet leaves from, where that was asked.
    fn public(&self) -> Option<Step> {
        if self.next().is_some() {
            return None;
        }
        let from = self.packet.source;
        let public = self.endpoint(self.port.vni.0, from)?;
        let found = match public.map(|endpoint| endpoint.public) {
            Some(public) if public != 0 => {
                format!("{from} leaves as {}", Ipv4Addr::from(public.to_ne_bytes()))
            }
            _ if from.is_ipv6() => format!("{from} leaves as {from}"),
            _ => format!("no public address stands for {from}"),
        };
        Some(Step {
            stage: "mapping",
            found,
        })
    }

    fn egress(&self) -> Option<Side<'_>> {
        let to = self.packet.destination;
        let route = self.found_route().and_then(|(_, route)| route);
        let by_hop = route.is_some_and(|route| route.kind == ROUTE_NEXT_HOP);
        let peer_groups = match self.next() {
            Some((vni, _)) if !by_hop => groups(self.names.policy, Vni(vni), to),
            // Whom others forward to is known by its address alone.
            _ => &NOBODY,
        };
        Some(Side {
            way: Way::Egress,
            own: self.port,
            slot: self.names.slots.of(self.id)?,
            peer: to,
            peer_groups,
        })
    }

    fn ingress(&self) -> Option<Side<'_>> {
        let (vni, address) = self.next()?;
        let slot = self.endpoint(vni, address)??.slot;
        let id = self.names.slots.port(slot)?;
        let from = self.packet.source;
        let is_own = self.port.addresses.contains(&from);
        Some(Side {
            way: Way::Ingress,
            own: self.names.policy.ports.get(id)?,
            slot,
            peer: from,
            peer_groups: if is_own { &self.port.groups } else { &NOBODY },
        })
    }

    fn name_of(&self, endpoint: &Endpoint) -> String {
        if endpoint.slot == UPLINK_SLOT {
            let host = Ipv4Addr::from(endpoint.host.to_ne_bytes());
            return format!("on host {host}");
        }
        let port = self.names.slots.port(endpoint.slot);
        port.map_or("unnamed", |id| &id.0).to_owned()
    }

    /// What one side's flow table and rules said, where they were asked.
    fn side(&self, side: &Side<'_>) -> Option<Step> {
        let (stage, direction, denied) = match side.way {
            Way::Ingress => ("ingress", Direction::Ingress, Reason::IngressDenied),
            Way::Egress => ("egress", Direction::Egress, Reason::EgressDenied),
        };
        let flows = |seen: &Seen| matches!(seen, Seen::Flows(slot) if *slot == side.slot);
        let first = self.seen.iter().position(flows)?;
        let hit = self.seen[first + 1..]
            .iter()
            .map_while(|seen| match seen {
                Seen::Rule(key, hit) => Some((key, *hit)),
                _ => None,
            })
            .find(|(_, hit)| *hit);
        let rules = self.rules(direction, side);
        let found = match hit {
            Some((key, _)) if key.direction != side.way as u8 => {
                "belongs to a flow that is open the other way".to_owned()
            }
            Some(_) if rules.is_empty() => {
                "allowed by the maps, but by no rule of the policy".to_owned()
            }
            Some((key, _)) => format!("allowed by {}{}", rules.join("; "), self.entry(key)),
            None if self.reason != Some(denied) => "belongs to a flow that is tracked".to_owned(),
            None if rules.is_empty() => {
                format!("no rule of {} allows it", listed(&side.own.groups))
            }
            None => format!(
                "denied by the maps, although {} allows it",
                rules.join("; ")
            ),
        };
        Some(Step { stage, found })
    }

    fn rules(&self, direction: Direction, side: &Side<'_>) -> Vec<String> {
        let question = Question {
            protocol: self.packet.protocol,
            port: self.packet.destination_port,
        };
        let mut found = Vec::new();
        for group in &side.own.groups {
            let rules = self.names.policy.groups.get(group);
            for rule in rules.into_iter().flat_map(|group| &group.rules) {
                if applies(rule, direction, side.peer_groups, side.peer, question) {
                    found.push(format!("{}: {}", group.0, written(rule)));
                }
            }
        }
        found
    }

    /// The entry that was hit, by its numbers' names.
    fn entry(&self, key: &RuleKey) -> String {
        let set = |number| {
            let found = self.names.numbers.sets().find(|(_, of)| *of == number);
            found.map_or_else(String::new, |((_, groups), _)| listed(groups))
        };
        let peer = if key.peer & ATOM != 0 {
            let found = self.names.numbers.atoms().find(|(_, of)| *of == key.peer);
            found.map_or_else(String::new, |((_, prefix), _)| prefix.to_string())
        } else {
            set(key.peer)
        };
        format!(
            " (policy {} of {{{}}}, peer {:#x} {{{peer}}})",
            key.policy,
            set(key.policy),
            key.peer
        )
    }
}

fn hop(route: Route) -> Ipv4Addr {
    Ipv4Addr::from(route.address.to_ne_bytes())
}

fn listed(groups: &BTreeSet<GroupId>) -> String {
    let names: Vec<&str> = groups.iter().map(|group| group.0.as_str()).collect();
    names.join(", ")
}

/// A rule as an operator reads it.
fn written(rule: &Rule) -> String {
    let protocol = |number: u8| match number {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        other => format!("protocol {other}"),
    };
    let traffic = match rule.traffic {
        Traffic::All => "all".to_owned(),
        Traffic::Protocol(number) => protocol(number),
        Traffic::Ports {
            protocol: number,
            from,
            to,
        } => format!("{} {from}-{to}", protocol(number)),
        Traffic::Icmp {
            protocol: number,
            kind,
            code,
        } => {
            let any = |part: Option<u8>| part.map_or_else(|| "any".to_owned(), |n| n.to_string());
            format!("{} type {} code {}", protocol(number), any(kind), any(code))
        }
    };
    let peer = match &rule.peer {
        Peer::Cidr(prefix) => prefix.to_string(),
        Peer::Group(group) => group.0.clone(),
    };
    match rule.direction {
        Direction::Ingress => format!("{traffic} from {peer}"),
        Direction::Egress => format!("{traffic} to {peer}"),
    }
}
