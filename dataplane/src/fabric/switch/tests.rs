//! After every single write, nobody may send what neither policy allows.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{Direction as Way, EndpointKey, Identity, Tap};
use proptest::collection::{btree_set, vec};
use proptest::prelude::*;

use super::super::contents::{Change, Contents, Tables};
use super::super::error::{FabricError, system};
use super::switch;
use crate::compiler::{Entries, Numbers, Slots, compile, raw};
use crate::model::{
    Direction, Group, GroupId, Mac, Peer, Policy, Port, PortId, Rate, Rule, Tracking, Traffic, Vni,
};
use crate::reference::{Answer, Question, ask};

const PORTS: u8 = 3;
const GROUPS: u8 = 3;

fn address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, index)
}

fn address_ipv6(index: u8) -> Ipv6Addr {
    Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, u16::from(index))
}

fn group(index: u8) -> GroupId {
    GroupId(format!("g{index}"))
}

/// Ports 0 to 2, each there or not, in any groups; groups with any rules of all traffic.
fn policies() -> impl Strategy<Value = Policy> {
    let peer = prop_oneof![
        (0..GROUPS).prop_map(|index| Peer::Group(group(index))),
        (0..PORTS, 30..=32u8).prop_map(|(index, length)| {
            let prefix = ipnet::Ipv4Net::new(address(index), length).expect("a prefix");
            Peer::Cidr(prefix.trunc().into())
        }),
        (0..PORTS, 126..=128u8).prop_map(|(index, length)| {
            let prefix = ipnet::Ipv6Net::new(address_ipv6(index), length).expect("a prefix");
            Peer::Cidr(prefix.trunc().into())
        }),
    ];
    let rule = (any::<bool>(), peer).prop_map(|(ingress, peer)| Rule {
        direction: if ingress {
            Direction::Ingress
        } else {
            Direction::Egress
        },
        traffic: Traffic::All,
        peer,
    });
    let members = vec(
        proptest::option::weighted(0.9, btree_set(0..GROUPS, 0..3)),
        usize::from(PORTS),
    );
    let rules = vec(btree_set(rule, 0..5), usize::from(GROUPS));
    (members, rules).prop_map(|(members, rules)| Policy {
        ports: (0..PORTS)
            .zip(members)
            .filter_map(|(index, groups)| Some((index, groups?)))
            .map(|(index, groups)| (PortId(format!("p{index}")), port(index, &groups)))
            .collect(),
        groups: (0..GROUPS)
            .zip(rules)
            .map(|(index, rules)| (group(index), Group { rules }))
            .collect(),
        ..Policy::default()
    })
}

fn port(index: u8, groups: &BTreeSet<u8>) -> Port {
    Port {
        ifindex: u32::from(index) + 1,
        vni: Vni(1),
        mac: Mac([2, 0, 0, 0, 0, index]),
        addresses: [address(index).into(), address_ipv6(index).into()].into(),
        subnet: "10.0.0.0/24".parse().expect("a prefix"),
        ipv6_subnet: Some("fd00:0:0:1::/64".parse().expect("a prefix")),
        groups: groups.iter().map(|index| group(*index)).collect(),
        service_address: Ipv4Addr::new(169, 254, 1, index + 1),
        resolver: None,
        meter: None,
        rate: Rate {
            packets_per_s: 1_000 * (groups.len() as u64),
            ..Rate::default()
        },
        table: None,
        acl: None,
        source_dest_check: true,
        publics: BTreeMap::new(),
        tracking: Tracking::default(),
        mtu: 1500,
    }
}

/// Whether it is IPv6, from whom, to whom.
type Pairs = BTreeSet<(bool, u8, u8)>;

/// Pairs of which the first may send to the second.
fn allowed_by(policy: &Policy) -> Pairs {
    let question = Question {
        protocol: 6,
        port: 80,
    };
    pairs(|v6, from, to| {
        let id = PortId(format!("p{from}"));
        let of = |index| -> IpAddr {
            if v6 {
                address_ipv6(index).into()
            } else {
                address(index).into()
            }
        };
        let answer = ask(policy, &id, of(from), of(to), question);
        matches!(answer, Some(Answer::Passes(_)))
    })
}

fn pairs(allowed: impl Fn(bool, u8, u8) -> bool) -> Pairs {
    [false, true]
        .into_iter()
        .flat_map(|v6| (0..PORTS).map(move |from| (v6, from)))
        .flat_map(|(v6, from)| (0..PORTS).map(move |to| (v6, from, to)))
        .filter(|(v6, from, to)| from != to && allowed(*v6, *from, *to))
        .collect()
}

/// Maps that judge themselves after each write.
struct Judge {
    held: Contents,
    limit: Pairs,
    excess: Vec<Pairs>,
    /// Fails once this many writes are done.
    writes_left: usize,
}

impl Judge {
    fn allows(&self, own: Identity, way: Way, peer: Identity) -> bool {
        own.set != 0
            && self.held.entries.rules.keys().any(|(rule, _)| {
                rule.policy == own.set
                    && rule.direction == way as u8
                    && rule.peer != 0
                    && (rule.peer == peer.set || rule.peer == peer.atom)
            })
    }

    fn allowed(&self) -> Pairs {
        pairs(|v6, from, to| {
            let sender = self.held.entries.taps.get(&(u32::from(from) + 1));
            if v6 {
                return sender.is_some_and(|tap| self.allowed_ipv6(tap, from, to));
            }
            let key = EndpointKey {
                vni: 1,
                address: raw(address(to)),
            };
            let (Some(tap), Some(endpoint)) = (sender, self.held.entries.endpoints.get(&key))
            else {
                return false;
            };
            self.allows(tap.identity, Way::Egress, endpoint.identity)
                && self.allows(endpoint.identity, Way::Ingress, tap.identity)
        })
    }

    /// The set is the tap's, the atom the address's.
    fn allowed_ipv6(&self, tap: &Tap, from: u8, to: u8) -> bool {
        let entries = &self.held.entries;
        let find = |index| {
            let key = ipv6::EndpointKey {
                vni: 1,
                address: ipv6::address(address_ipv6(index).octets()),
            };
            entries.endpoints_ipv6.get(&key)
        };
        let (Some(own), Some(there)) = (find(from), find(to)) else {
            return false;
        };
        own.is.slot == tap.slot
            && entries.ports_ipv6.contains_key(&tap.slot)
            && self.allows(tap.identity, Way::Egress, there.is.identity)
            && self.allows(there.is.identity, Way::Ingress, own.is.identity)
    }

    fn wrote(&mut self) -> Result<(), FabricError> {
        let excess: Pairs = self.allowed().difference(&self.limit).copied().collect();
        if !excess.is_empty() {
            self.excess.push(excess);
        }
        match self.writes_left.checked_sub(1) {
            Some(left) => self.writes_left = left,
            None => {
                self.writes_left = usize::MAX;
                return Err(system("write")(io::Error::from(io::ErrorKind::OutOfMemory)));
            }
        }
        Ok(())
    }
}

/// A write that fails has not been done, so failures come before.
impl Tables for Judge {
    fn make(&mut self, change: &Change) -> Result<(), FabricError> {
        self.wrote()?;
        self.held.note(*change);
        Ok(())
    }
}

/// A host on which `old` is in force, about to become `new`.
struct Turn {
    contents: Contents,
    judge: Judge,
    target: Entries,
}

fn turn(old: &Policy, new: &Policy) -> Turn {
    let (mut numbers, mut slots) = (Numbers::after(0, 0), Slots::default());
    let mut entries =
        |policy| compile(policy, &mut numbers, &mut slots, 100).expect("a valid policy");
    let before = entries(old);
    let target = entries(new);
    let contents = Contents {
        tables: before.devices.keys().copied().collect(),
        entries: before,
    };
    let judge = Judge {
        held: contents.clone(),
        limit: &allowed_by(old) | &allowed_by(new),
        excess: Vec::new(),
        writes_left: usize::MAX,
    };
    Turn {
        contents,
        judge,
        target,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn fuzz_no_step_allows_what_neither_policy_does(old in policies(), new in policies()) {
        let Turn { mut contents, mut judge, target } = turn(&old, &new);
        prop_assert_eq!(judge.allowed(), allowed_by(&old));
        switch(&mut contents, &mut judge, &target).expect("no write fails");
        prop_assert_eq!(&judge.excess, &Vec::<Pairs>::new());
        prop_assert_eq!(judge.allowed(), allowed_by(&new));
        prop_assert_eq!(&judge.held.entries, &target);
        prop_assert_eq!(&contents.entries, &target);
    }

    #[test]
    fn fuzz_a_failed_write_leaves_the_old_policy(
        old in policies(),
        new in policies(),
        fails_at in 0..40usize,
    ) {
        let Turn { mut contents, mut judge, target } = turn(&old, &new);
        let before = contents.entries.clone();
        judge.writes_left = fails_at;
        let result = switch(&mut contents, &mut judge, &target);
        prop_assert_eq!(&judge.excess, &Vec::<Pairs>::new());
        let expected = if result.is_ok() { target } else { before };
        prop_assert_eq!(&judge.held.entries, &expected);
        prop_assert_eq!(&contents.entries, &expected);
    }
}
