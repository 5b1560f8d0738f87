//! What a policy leaves open both ways, and so does not track.
//!
//! A flow of TCP or UDP is not tracked if one rule permits it from or to everywhere and
//! another permits all answers to everywhere (EC2 User Guide, "Untracked connections").
//! Then each of its packets is judged by the rules in force.

use crate::model::{Direction, Peer, Rule, Traffic};

pub(super) const TCP: u8 = 6;
pub(super) const UDP: u8 = 17;

/// Ports that are open to everywhere, by direction and protocol: in order and apart.
pub(super) struct Open {
    ingress: [Vec<(u16, u16)>; 2],
    egress: [Vec<(u16, u16)>; 2],
}

impl Open {
    pub(super) fn of<'a>(rules: impl Iterator<Item = &'a Rule>) -> Self {
        let mut open = Self {
            ingress: Default::default(),
            egress: Default::default(),
        };
        for rule in rules {
            if !matches!(&rule.peer, Peer::Cidr(prefix) if prefix.prefix_len() == 0) {
                continue;
            }
            // What is open for IPv6 is tracked all the same.
            if matches!(rule.peer, Peer::Cidr(ipnet::IpNet::V6(_))) {
                continue;
            }
            for (index, protocol) in [TCP, UDP].into_iter().enumerate() {
                let span = match rule.traffic {
                    Traffic::All => (0, u16::MAX),
                    Traffic::Protocol(named) if named == protocol => (0, u16::MAX),
                    Traffic::Ports {
                        protocol: named,
                        from,
                        to,
                    } if named == protocol => (from, to),
                    _ => continue,
                };
                let spans = match rule.direction {
                    Direction::Ingress => open.ingress.get_mut(index),
                    Direction::Egress => open.egress.get_mut(index),
                };
                spans.into_iter().for_each(|spans| spans.push(span));
            }
        }
        for spans in open.ingress.iter_mut().chain(&mut open.egress) {
            merge(spans);
        }
        open
    }

    /// Whether all of these ports are open, and all answers.
    pub(super) fn covers(&self, direction: Direction, protocol: u8, from: u16, to: u16) -> bool {
        let index = match protocol {
            TCP => 0,
            UDP => 1,
            _ => return false,
        };
        let (there, back) = match direction {
            Direction::Ingress => (&self.ingress, &self.egress),
            Direction::Egress => (&self.egress, &self.ingress),
        };
        let within = |spans: Option<&Vec<(u16, u16)>>, from, to| {
            let mut spans = spans.into_iter().flatten();
            spans.any(|(first, last)| *first <= from && to <= *last)
        };
        within(there.get(index), from, to) && within(back.get(index), 0, u16::MAX)
    }
}

fn merge(spans: &mut Vec<(u16, u16)>) {
    spans.sort_unstable();
    let mut merged: Vec<(u16, u16)> = Vec::new();
    for (from, to) in spans.drain(..) {
        match merged.last_mut() {
            Some((_, last)) if u32::from(from) <= u32::from(*last) + 1 => *last = to.max(*last),
            _ => merged.push((from, to)),
        }
    }
    *spans = merged;
}
