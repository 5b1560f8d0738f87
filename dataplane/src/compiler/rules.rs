//! Entries that say what is allowed.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use ocs_dataplane_shared::layout::{
    self, MAX_RULES, RULE_BITS, RULE_BITS_ANY, RULE_BITS_PROTOCOL, RULE_OPEN, RULE_TRACKED,
    RuleKey, TRACKS_ALL,
};

use super::open::{Open, TCP, UDP};
use super::{CompileError, Entries, Numbers, Prefixes};
use crate::model::{Direction, GroupId, Peer, Policy, Rule, Traffic, Vni};

/// All prefixes that rules of a network's ports name.
pub(super) fn prefixes(policy: &Policy) -> Prefixes {
    let mut found = Prefixes::new();
    let mut seen = BTreeSet::new();
    for port in policy.ports.values() {
        for group in &port.groups {
            if !seen.insert((port.vni, group)) {
                continue;
            }
            let rules = policy.groups.get(group).into_iter().flat_map(|g| &g.rules);
            for rule in rules {
                if let Peer::Cidr(prefix) = rule.peer {
                    found.entry(port.vni).or_default().insert(prefix.trunc());
                }
            }
        }
    }
    found
}

/// The narrowest network that covers a prefix, of those that there are.
pub(super) fn narrowest(is_there: impl Fn(&IpNet) -> bool, prefix: IpNet) -> Option<IpNet> {
    std::iter::successors(Some(prefix.trunc()), IpNet::supernet).find(is_there)
}

/// Adds the entries of all policies that hold for a port here.
pub(super) fn add(
    entries: &mut Entries,
    policy: &Policy,
    prefixes: &Prefixes,
    numbers: &Numbers,
) -> Result<(), CompileError> {
    let peers = Peers::new(policy, prefixes, numbers);
    let held: BTreeSet<(Vni, &BTreeSet<GroupId>)> = policy
        .ports
        .values()
        .map(|port| (port.vni, &port.groups))
        .collect();
    for ((vni, groups), number) in numbers.sets() {
        if !held.contains(&(*vni, groups)) {
            continue;
        }
        let rules = || {
            let known = groups
                .iter()
                .filter_map(|id| Some((id, policy.groups.get(id)?)));
            known.flat_map(|(id, group)| group.rules.iter().map(move |rule| (id, rule)))
        };
        let open = Open::of(rules().map(|(_, rule)| rule));
        for (group, rule) in rules() {
            let matches = matches(group, &rule.traffic)?;
            for peer in peers.of(*vni, rule) {
                add_rule(entries, number, *peer, rule.direction, &matches, &open)?;
            }
        }
    }
    Ok(())
}

/// Marks the ports here whose rules leave nothing open both ways.
pub(super) fn mark_tracking(entries: &mut Entries) {
    let open = entries.rules.iter();
    let open: BTreeSet<u32> = open
        .filter(|(_, value)| **value == RULE_OPEN)
        .map(|((key, _), _)| key.policy)
        .collect();
    for tap in entries.taps.values_mut() {
        if !open.contains(&tap.identity.set) {
            tap.flags |= TRACKS_ALL;
        }
    }
    for endpoint in entries.endpoints.values_mut() {
        if endpoint.host == 0 && !open.contains(&endpoint.identity.set) {
            endpoint.flags |= TRACKS_ALL;
        }
    }
}

/// Numbers that a rule's peer stands for.
struct Peers {
    by_group: BTreeMap<(Vni, GroupId), Vec<u32>>,
    by_prefix: BTreeMap<(Vni, IpNet), Vec<u32>>,
}

impl Peers {
    fn new(policy: &Policy, prefixes: &Prefixes, numbers: &Numbers) -> Self {
        // Networks that see each network's ports: itself and its peers.
        let mut seen_by: BTreeMap<Vni, BTreeSet<Vni>> = BTreeMap::new();
        for vni in super::own_networks(policy) {
            seen_by.entry(vni).or_default().insert(vni);
            let network = policy.networks.get(&vni);
            for peer in network
                .into_iter()
                .flat_map(|network| network.peers.values())
            {
                seen_by.entry(*peer).or_default().insert(vni);
            }
        }
        let mut by_group = BTreeMap::<_, Vec<u32>>::new();
        for ((vni, groups), number) in numbers.sets() {
            for seer in seen_by.get(vni).into_iter().flatten() {
                for group in groups {
                    by_group
                        .entry((*seer, group.clone()))
                        .or_default()
                        .push(number);
                }
            }
        }
        let mut by_prefix = BTreeMap::<_, Vec<u32>>::new();
        for ((vni, atom), number) in numbers.atoms() {
            let named = prefixes.get(vni);
            let mut covering = *atom;
            while let Some(prefix) = narrowest(
                |net| named.is_some_and(|named| named.contains(net)),
                covering,
            ) {
                by_prefix.entry((*vni, prefix)).or_default().push(number);
                match prefix.supernet() {
                    Some(wider) => covering = wider,
                    None => break,
                }
            }
        }
        Self {
            by_group,
            by_prefix,
        }
    }

    fn of(&self, vni: Vni, rule: &Rule) -> &[u32] {
        let numbers = match &rule.peer {
            Peer::Group(group) => self.by_group.get(&(vni, group.clone())),
            Peer::Cidr(prefix) => self.by_prefix.get(&(vni, prefix.trunc())),
        };
        numbers.map_or(&[], Vec::as_slice)
    }
}

/// Leading bits of (protocol, port).
struct Match {
    protocol: u8,
    port: u16,
    bits: u32,
}

fn add_rule(
    entries: &mut Entries,
    policy: u32,
    peer: u32,
    direction: Direction,
    matches: &[Match],
    open: &Open,
) -> Result<(), CompileError> {
    let way = layout::Direction::from(direction) as u8;
    let mut put = |protocol, port: u16, bits, value| {
        let key = RuleKey {
            policy,
            peer,
            direction: way,
            protocol,
            port: port.to_be(),
        };
        entries.rules.insert((key, bits), value);
    };
    for one in matches {
        let Match {
            protocol,
            port,
            bits,
        } = *one;
        if bits == RULE_BITS_ANY {
            put(0, 0, bits, RULE_TRACKED);
            for protocol in [TCP, UDP] {
                if open.covers(direction, protocol, 0, u16::MAX) {
                    put(protocol, 0, RULE_BITS_PROTOCOL, RULE_OPEN);
                }
            }
            continue;
        }
        let (first, last) = one.span();
        let value = if open.covers(direction, protocol, first, last) {
            RULE_OPEN
        } else {
            RULE_TRACKED
        };
        put(protocol, port, bits, value);
    }
    super::check_size("RULES", entries.rules.len(), MAX_RULES)
}

impl From<Direction> for layout::Direction {
    fn from(direction: Direction) -> Self {
        match direction {
            Direction::Ingress => Self::Ingress,
            Direction::Egress => Self::Egress,
        }
    }
}

impl Match {
    /// The ports that it stands for.
    fn span(&self) -> (u16, u16) {
        let free = RULE_BITS.saturating_sub(self.bits.max(RULE_BITS_PROTOCOL));
        let size = (1u32 << free) - 1;
        let last = u32::from(self.port) | size;
        (self.port, u16::try_from(last).unwrap_or(u16::MAX))
    }
}

/// A traffic's prefixes.
fn matches(group: &GroupId, traffic: &Traffic) -> Result<Vec<Match>, CompileError> {
    let invalid = || CompileError::Traffic {
        group: group.0.clone(),
        traffic: format!("{traffic:?}"),
    };
    let found = match *traffic {
        Traffic::All => vec![Match {
            protocol: 0,
            port: 0,
            bits: RULE_BITS_ANY,
        }],
        Traffic::Protocol(protocol) => vec![Match {
            protocol,
            port: 0,
            bits: RULE_BITS_PROTOCOL,
        }],
        Traffic::Ports { protocol, from, to } => {
            if !matches!(protocol, 6 | 17) || from > to {
                return Err(invalid());
            }
            port_prefixes(from, to)
                .map(|(port, bits)| Match {
                    protocol,
                    port,
                    bits: RULE_BITS_PROTOCOL + bits,
                })
                .collect()
        }
        Traffic::Icmp {
            protocol,
            kind,
            code,
        } => {
            if !matches!(protocol, 1 | 58) {
                return Err(invalid());
            }
            icmp_prefixes(protocol, kind, code)
        }
    };
    Ok(found)
}

fn icmp_prefixes(protocol: u8, kind: Option<u8>, code: Option<u8>) -> Vec<Match> {
    let kinds = match (kind, code) {
        (None, None) => {
            return vec![Match {
                protocol,
                port: 0,
                bits: RULE_BITS_PROTOCOL,
            }];
        }
        (None, Some(_)) => 0..=u8::MAX,
        (Some(kind), _) => kind..=kind,
    };
    kinds
        .map(|kind| Match {
            protocol,
            port: u16::from_be_bytes([kind, code.unwrap_or(0)]),
            bits: match code {
                Some(_) => RULE_BITS,
                None => RULE_BITS_PROTOCOL + 8,
            },
        })
        .collect()
}

/// The fewest prefixes that make up `from..=to`: at most 30.
pub(super) fn port_prefixes(from: u16, to: u16) -> impl Iterator<Item = (u16, u32)> {
    let end = u32::from(to) + 1;
    let mut start = u32::from(from);
    std::iter::from_fn(move || {
        if start >= end {
            return None;
        }
        let aligned = if start == 0 {
            16
        } else {
            start.trailing_zeros()
        };
        let fits = (end - start).ilog2();
        let size_bits = aligned.min(fits).min(16);
        let port = u16::try_from(start).ok()?;
        start += 1 << size_bits;
        Some((port, 16 - size_bits))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn fuzz_port_prefixes_make_up_exactly_the_range(a: u16, b: u16) {
            let (from, to) = (a.min(b), a.max(b));
            let prefixes: Vec<_> = port_prefixes(from, to).collect();
            prop_assert!(prefixes.len() <= 30);
            let mut next = u32::from(from);
            for (port, bits) in prefixes {
                prop_assert_eq!(u32::from(port), next);
                let size = 1u32 << (16 - bits);
                prop_assert_eq!(u32::from(port) % size, 0);
                next += size;
            }
            prop_assert_eq!(next, u32::from(to) + 1);
        }
    }
}
