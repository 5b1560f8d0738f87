//! Addresses: which of a block are taken, and Elastic IPs.

use super::{AddressAssociationId, AllocationId, InterfaceId, SubnetId, SubnetReservationId, Tags};
use ipnet::{IpNet, Ipv4Net};
use serde::{Deserialize, Serialize};
use std::net::Ipv4Addr;

/// Which addresses of a subnet, or of a public block, are taken: one value, compared
/// and swapped.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Addresses {
    /// The subnet.
    pub subnet: SubnetId,
    /// Its addresses.
    pub cidr: Ipv4Net,
    /// Offsets from the network's address that are held, in order.
    #[serde(with = "runs")]
    pub taken: Vec<u32>,
    /// A public block, all of which is given out, in turn from this offset: what was
    /// given back rests as long as it can. Nothing: a subnet.
    #[serde(default)]
    pub next: Option<u32>,
    /// Blocks from which none is given unasked, and whether one may be named: what the
    /// subnet's reservations say, for who takes addresses.
    #[serde(skip)]
    pub reserved: Vec<(Ipv4Net, bool)>,
}

/// Numbers in order, written as runs `[FIRST, LENGTH]`: a launch in a full subnet writes few
/// bytes, not all that are held. Before schema 2 each number stood for itself.
mod runs {
    use serde::{Deserialize, Deserializer, Serializer};

    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Written {
        Run(u32, u32),
        One(u32),
    }

    pub fn serialize<S: Serializer>(numbers: &[u32], serializer: S) -> Result<S::Ok, S::Error> {
        let runs = numbers.chunk_by(|a, b| a.checked_add(1) == Some(*b));
        serializer.collect_seq(runs.map(|run| (run[0], run.len())))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u32>, D::Error> {
        let mut numbers = Vec::new();
        for written in Vec::<Written>::deserialize(deserializer)? {
            match written {
                Written::One(number) => numbers.push(number),
                Written::Run(first, length) => {
                    let end = first.checked_add(length);
                    let end = end.ok_or_else(|| serde::de::Error::custom("a run without end"))?;
                    numbers.extend(first..end);
                }
            }
        }
        Ok(numbers)
    }
}

/// Addresses that EC2 keeps at the start and at the end of each subnet.
const KEPT: (u32, u32) = (4, 1);

impl Addresses {
    /// The offsets that may be given.
    fn range(&self) -> std::ops::Range<u32> {
        let size = 1 << (32 - u32::from(self.cidr.prefix_len()).max(1));
        match self.next {
            Some(_) => 0..size,
            None => KEPT.0..size.saturating_sub(KEPT.1),
        }
    }

    /// How many are free.
    pub fn free(&self) -> u32 {
        let taken = u32::try_from(self.taken.len()).unwrap_or(u32::MAX);
        (self.range().len() as u32).saturating_sub(taken)
    }

    /// How many may be given unasked.
    pub fn free_unasked(&self) -> u32 {
        let kept = self.reserved.iter().map(|(block, _)| {
            let first = u32::from(block.network()).wrapping_sub(u32::from(self.cidr.network()));
            let last = u32::from(block.broadcast()).wrapping_sub(u32::from(self.cidr.network()));
            let range = self.range();
            let inside = first.max(range.start)..(last + 1).min(range.end);
            let taken = self.taken.iter().filter(|offset| inside.contains(offset));
            inside.len() - taken.count()
        });
        let kept = u32::try_from(kept.sum::<usize>()).unwrap_or(u32::MAX);
        self.free().saturating_sub(kept)
    }

    fn address(&self, offset: u32) -> Ipv4Addr {
        Ipv4Addr::from(u32::from(self.cidr.network()).wrapping_add(offset))
    }

    /// Takes the lowest free one; of a public block, the next.
    pub fn take(&mut self) -> Option<Ipv4Addr> {
        let range = self.range();
        let first = self.next.unwrap_or(range.start).min(range.end);
        let (offset, place) = self
            .free_in(first..range.end)
            .or_else(|| self.free_in(range.start..first))?;
        self.taken.insert(place, offset);
        if self.next.is_some() {
            self.next = Some(offset + 1);
        }
        Some(self.address(offset))
    }

    /// The lowest free offset of a range, and its place among those taken.
    fn free_in(&self, range: std::ops::Range<u32>) -> Option<(u32, usize)> {
        let mut offset = range.start;
        let mut place = self.taken.partition_point(|taken| *taken < offset);
        while offset < range.end {
            if self.taken.get(place) == Some(&offset) {
                (offset, place) = (offset + 1, place + 1);
            } else if let Some(block) = self.reservation(self.address(offset)) {
                offset = u32::from(block.0.broadcast()) - u32::from(self.cidr.network()) + 1;
                place = self.taken.partition_point(|taken| *taken < offset);
            } else {
                return Some((offset, place));
            }
        }
        None
    }

    /// The reserved block that has an address.
    fn reservation(&self, address: Ipv4Addr) -> Option<&(Ipv4Net, bool)> {
        let mut blocks = self.reserved.iter();
        blocks.find(|(block, _)| block.contains(&address))
    }

    /// Whether an address is of a block from which none is taken by naming it, either.
    pub fn is_kept(&self, address: Ipv4Addr) -> bool {
        self.reservation(address).is_some_and(|(_, named)| !named)
    }

    /// Takes a certain one; false if it is taken, kept or elsewhere.
    pub fn take_this(&mut self, address: Ipv4Addr) -> bool {
        if !self.cidr.contains(&address) {
            return false;
        }
        let offset = u32::from(address) - u32::from(self.cidr.network());
        match self.taken.binary_search(&offset) {
            Err(place) if self.range().contains(&offset) => {
                self.taken.insert(place, offset);
                true
            }
            _ => false,
        }
    }

    /// Gives one back.
    pub fn give_back(&mut self, address: Ipv4Addr) {
        let offset = u32::from(address).wrapping_sub(u32::from(self.cidr.network()));
        if let Ok(place) = self.taken.binary_search(&offset) {
            self.taken.remove(place);
        }
    }
}

/// A range of a subnet from which no address is given unasked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubnetReservation {
    /// Its id.
    pub id: SubnetReservationId,
    /// Its subnet.
    pub subnet: SubnetId,
    /// The range, of either IP.
    pub cidr: IpNet,
    /// Addresses are taken by naming them; else they are for prefixes.
    pub explicit: bool,
    /// `Description`.
    pub description: String,
    /// Its tags.
    pub tags: Tags,
}

/// An Elastic IP address's association.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddressAssociation {
    /// Its id.
    pub id: AddressAssociationId,
    /// The interface whose private address it stands for.
    pub interface: InterfaceId,
    /// The private address; nothing: the primary one.
    #[serde(default)]
    pub private_ip: Option<Ipv4Addr>,
}

/// An Elastic IP address.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// Its id.
    pub id: AllocationId,
    /// The address.
    pub public_ip: Ipv4Addr,
    /// What it is associated with.
    pub association: Option<AddressAssociation>,
    /// Its tags.
    pub tags: Tags,
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    fn subnet(prefix: u8) -> Addresses {
        let cidr = Ipv4Net::new_assert(Ipv4Addr::new(172, 31, 16, 0), prefix);
        Addresses {
            subnet: SubnetId::random(),
            cidr,
            taken: Vec::new(),
            next: None,
            reserved: Vec::new(),
        }
    }

    #[test]
    fn held_addresses_are_written_as_runs_and_read_from_schema_1() {
        let mut map = subnet(20);
        map.taken = vec![4, 5, 6, 9];
        let mut written = serde_json::to_value(&map).unwrap();
        assert_eq!(written["taken"], serde_json::json!([[4, 3], [9, 1]]));
        written["taken"] = serde_json::json!([4, 5, 6, 9]);
        assert_eq!(serde_json::from_value::<Addresses>(written).unwrap(), map);
    }

    #[test]
    fn a_public_block_is_given_whole_and_in_turn() {
        let mut map = Addresses {
            next: Some(0),
            ..subnet(30)
        };
        let base = map.cidr.network();
        assert_eq!((map.free(), map.take()), (4, Some(base)));
        map.give_back(base);
        let given: Vec<_> = std::iter::from_fn(|| map.take()).collect();
        let offsets: Vec<_> = given
            .iter()
            .map(|ip| u32::from(*ip) - u32::from(base))
            .collect();
        assert_eq!(offsets, [1, 2, 3, 0]);
        map.give_back(given[0]);
        assert!(map.take_this(given[0]) && !map.take_this(given[0]));
    }

    #[test]
    fn what_is_reserved_is_given_by_name_alone_or_not_at_all() {
        let block = |text: &str| text.parse::<Ipv4Net>().unwrap();
        let mut map = subnet(28);
        map.reserved = vec![
            (block("172.31.16.0/29"), true),
            (block("172.31.16.12/30"), false),
        ];
        assert_eq!((map.free(), map.free_unasked()), (11, 4));
        let ip = |last| Ipv4Addr::new(172, 31, 16, last);
        assert!(map.take_this(ip(6)) && !map.is_kept(ip(6)) && map.is_kept(ip(13)));
        assert_eq!((map.free(), map.free_unasked()), (10, 4));
        let given: Vec<_> = std::iter::from_fn(|| map.take()).collect();
        assert_eq!(given, [8, 9, 10, 11].map(ip));
        assert_eq!((map.free(), map.free_unasked()), (6, 0));
        map.reserved.clear();
        assert_eq!(map.take(), Some(ip(4)));
    }

    #[test]
    fn a_subnet_runs_out_at_eleven_of_sixteen() {
        let mut map = subnet(28);
        let given: Vec<_> = std::iter::from_fn(|| map.take()).collect();
        assert_eq!(given.len(), 11);
        assert_eq!(given[0], Ipv4Addr::new(172, 31, 16, 4));
        assert_eq!(given[10], Ipv4Addr::new(172, 31, 16, 14));
        assert_eq!(map.free(), 0);
        assert!(!map.take_this(Ipv4Addr::new(172, 31, 16, 15)));
        assert!(!map.take_this(Ipv4Addr::new(172, 31, 17, 5)));
    }

    proptest! {
        #[test]
        fn no_address_is_given_twice(steps in prop::collection::vec((0_u8..3, 0_u32..40), 0..200)) {
            let mut map = subnet(27);
            let mut held = BTreeSet::new();
            for (step, n) in steps {
                let this = Ipv4Addr::from(u32::from(map.cidr.network()) + n);
                match step {
                    0 => if let Some(address) = map.take() {
                        prop_assert!(held.insert(address));
                    },
                    1 => if map.take_this(this) {
                        prop_assert!(held.insert(this));
                    },
                    _ => {
                        map.give_back(this);
                        held.remove(&this);
                    }
                }
                prop_assert_eq!(map.taken.len(), held.len());
                let written = serde_json::to_string(&map).unwrap();
                prop_assert_eq!(&serde_json::from_str::<Addresses>(&written).unwrap(), &map);
                prop_assert_eq!(usize::try_from(map.free()).unwrap(), 27 - held.len());
            }
        }
    }
}
