//! What would become of a packet, and by which mapping, rule or flow.
//!
//! The packet is judged by the code that the programs run, over what their maps hold at
//! this moment: nothing is counted, charged or remembered. Names come from the policy that
//! was compiled into those maps; where the two disagree the answer says so.

mod view;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use ocs_dataplane_shared::layout::{
    ATOM, Direction as Way, Endpoint, EndpointKey, ROUTE_NETWORK, ROUTE_NEXT_HOP, ROUTE_OUTSIDE,
    Reason, RuleKey, UPLINK_SLOT,
};
use ocs_dataplane_shared::{Action, guest};

use super::error::FabricError;
use super::maps::KernelMaps;
use crate::compiler::{Numbers, Slots, raw};
use crate::model::{Direction, GroupId, Peer, Policy, Port, PortId, Rule, Traffic};
use crate::reference::{Question, applies};
use view::{Seen, View};

/// A packet that might be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Packet {
    /// One of the port's addresses.
    pub source: Ipv4Addr,
    /// Whom it is for.
    pub destination: Ipv4Addr,
    /// IP protocol.
    pub protocol: u8,
    /// Source port of TCP and UDP.
    pub source_port: u16,
    /// Destination port of TCP and UDP; type and code of ICMP; else 0.
    pub destination_port: u16,
}

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
    let mut frame = frame(port, packet);
    let action = guest::receive(&mut frame, &view, port.ifindex);
    let (seen, reason) = view.end()?;
    let passes = matches!(action, Action::Redirect { .. });
    let story = Story {
        names,
        port,
        packet,
        seen: &seen,
        reason,
        passes,
    };
    Ok(Explanation {
        verdict: reason.unwrap_or(Reason::Forwarded).label(),
        passes,
        steps: story.steps(),
    })
}

struct Story<'a> {
    names: &'a Names<'a>,
    port: &'a Port,
    packet: Packet,
    seen: &'a [Seen],
    reason: Option<Reason>,
    passes: bool,
}

impl Story<'_> {
    fn steps(&self) -> Vec<Step> {
        let mut steps = Vec::new();
        steps.extend(self.route());
        steps.push(self.mapping());
        steps.extend(self.acls());
        let Some(receiver) = self.receiver() else {
            return steps;
        };
        steps.push(self.side(Way::Egress, self.port, receiver, self.packet.destination));
        if self.reason != Some(Reason::EgressDenied) {
            steps.push(self.side(Way::Ingress, receiver, self.port, self.packet.source));
        }
        steps
    }

    /// What the subnet's route table said, where it was asked.
    fn route(&self) -> Option<Step> {
        let (key, route) = self.seen.iter().find_map(|seen| match seen {
            Seen::Route(key, route) => Some((key, route)),
            _ => None,
        })?;
        let name = self.port.table.as_ref().map_or("unnamed", |id| &id.0);
        let hop = |address: u32| Ipv4Addr::from(address.to_ne_bytes());
        let way = match route {
            None => "no route leads there".to_owned(),
            Some(route) => match route.kind {
                ROUTE_NETWORK => format!("to network {}", route.vni),
                ROUTE_NEXT_HOP => format!("by {}", hop(route.address)),
                ROUTE_OUTSIDE => "out of the host".to_owned(),
                _ => "nowhere (blackhole)".to_owned(),
            },
        };
        Some(Step {
            stage: "route",
            found: format!("table {name} ({}): {way}", key.scope),
        })
    }

    /// What network ACLs said, where they were asked.
    fn acls(&self) -> Vec<Step> {
        let asked = self.seen.iter().filter_map(|seen| match seen {
            Seen::Acl(direction, allowed) => Some((direction, allowed)),
            _ => None,
        });
        asked
            .map(|(direction, allowed)| Step {
                stage: "acl",
                found: format!(
                    "{} subnet: {}",
                    match direction {
                        Way::Egress => "the sender's",
                        Way::Ingress => "the receiver's",
                    },
                    if *allowed { "passes" } else { "denied" },
                ),
            })
            .collect()
    }

    fn mapping(&self) -> Step {
        let to = self.packet.destination;
        let vni = self.port.vni.0;
        let found = match self.endpoint() {
            Some(endpoint) => {
                let name = self.name_of(endpoint.slot);
                let mac = endpoint.mac.map(|byte| format!("{byte:02x}")).join(":");
                format!(
                    "network {vni}: {to} is {name} (slot {}, {mac})",
                    endpoint.slot
                )
            }
            None => format!("network {vni}: nobody has {to}"),
        };
        Step {
            stage: "mapping",
            found,
        }
    }

    fn endpoint(&self) -> Option<&Endpoint> {
        let wanted = EndpointKey {
            vni: self.port.vni.0,
            address: raw(self.packet.destination),
        };
        self.seen.iter().find_map(|seen| match seen {
            Seen::Endpoint(key, endpoint) if *key == wanted => endpoint.as_ref(),
            _ => None,
        })
    }

    fn receiver(&self) -> Option<&Port> {
        let slot = self.endpoint()?.slot;
        let id = self.names.slots.port(slot)?;
        self.names.policy.ports.get(id)
    }

    fn name_of(&self, slot: u32) -> &str {
        if slot == UPLINK_SLOT {
            return "on another host";
        }
        self.names.slots.port(slot).map_or("unnamed", |id| &id.0)
    }

    /// What one side's flow table and rules said.
    fn side(&self, way: Way, own: &Port, peer: &Port, peer_address: Ipv4Addr) -> Step {
        let asked: Vec<(&RuleKey, bool)> = self
            .seen
            .iter()
            .filter_map(|seen| match seen {
                Seen::Rule(key, hit) if key.direction == way as u8 => Some((key, *hit)),
                _ => None,
            })
            .collect();
        let (stage, direction) = match way {
            Way::Ingress => ("ingress", Direction::Ingress),
            Way::Egress => ("egress", Direction::Egress),
        };
        let rules = self.rules(direction, own, peer, peer_address);
        let groups = own.groups.iter().map(|group| group.0.as_str());
        let groups = groups.collect::<Vec<_>>().join(", ");
        let by_flow = asked.is_empty() && (self.passes || way == Way::Egress);
        let found = match asked.iter().find(|(_, hit)| *hit) {
            Some(_) if rules.is_empty() => {
                "allowed by the maps, but by no rule of the policy".to_owned()
            }
            Some((key, _)) => format!("allowed by {}{}", rules.join("; "), self.entry(key)),
            None if by_flow => "belongs to a flow that is tracked".to_owned(),
            None if rules.is_empty() => format!("no rule of {groups} allows it"),
            None => format!(
                "denied by the maps, although {} allows it",
                rules.join("; ")
            ),
        };
        Step { stage, found }
    }

    fn rules(
        &self,
        direction: Direction,
        own: &Port,
        peer: &Port,
        peer_address: Ipv4Addr,
    ) -> Vec<String> {
        let question = Question {
            protocol: self.packet.protocol,
            port: self.packet.destination_port,
        };
        let mut found = Vec::new();
        for group in &own.groups {
            let rules = self.names.policy.groups.get(group);
            for rule in rules.into_iter().flat_map(|group| &group.rules) {
                if applies(rule, direction, &peer.groups, peer_address.into(), question) {
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

/// The first packet of a flow, as the guest would send it to its router.
fn frame(port: &Port, packet: Packet) -> Vec<u8> {
    let ports = [
        packet.source_port.to_be_bytes(),
        packet.destination_port.to_be_bytes(),
    ]
    .concat();
    let above = match packet.protocol {
        // A SYN (RFC 9293 §3.1).
        6 => [&ports[..], &[0; 8], &[0x50, 0x02, 0xff, 0xff, 0, 0, 0, 0]].concat(),
        17 => [&ports[..], &[0, 8, 0, 0]].concat(),
        1 => [&ports[2..], &[0; 6]].concat(),
        _ => vec![0; 8],
    };
    let length = u16::try_from(20 + above.len()).unwrap_or(u16::MAX);
    let mut frame = Vec::new();
    frame.extend_from_slice(&ocs_dataplane_shared::layout::ROUTER_MAC);
    frame.extend_from_slice(&port.mac.0);
    frame.extend_from_slice(&[0x08, 0x00, 0x45, 0]);
    frame.extend_from_slice(&length.to_be_bytes());
    frame.extend_from_slice(&[0, 0, 0x40, 0, 64, packet.protocol, 0, 0]);
    frame.extend_from_slice(&packet.source.octets());
    frame.extend_from_slice(&packet.destination.octets());
    frame.extend_from_slice(&above);
    frame
}
