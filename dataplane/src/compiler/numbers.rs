//! Numbers for sets of groups, atoms of address space, route tables and network ACLs,
//! stable from one policy to the next and never used twice, so that an entry of an old
//! policy means nothing in a new one.
//!
//! What is numbered is named by its content: a table that changes is another table, whose
//! entries are all there before a port turns to it.
//!
//! A number is a mere label: whoever gives a set the number that a predecessor gave it
//! finds that set's entries in the maps already.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv6Net};
use ocs_dataplane_shared::ipv6::layout::MAX_NUMBER;
use ocs_dataplane_shared::layout::ATOM;

use crate::model::{Acl, GroupId, RouteTable, Vni};

/// A set of groups of one network.
pub(crate) type Set = (Vni, BTreeSet<GroupId>);
/// A rule's prefix of one network.
pub(crate) type Atom = (Vni, IpNet);
/// An IPv6 prefix that one network sees as one, of an address the longest.
pub(crate) type Numbered = (Vni, Ipv6Net);
/// A route table of one network.
pub(crate) type Table = (Vni, RouteTable);

/// Names, some with the number that they should have if they have none.
pub(crate) type Suggested<Name> = BTreeMap<Name, Option<u32>>;

/// All names of a policy.
#[derive(Default)]
pub(crate) struct Names {
    pub sets: Suggested<Set>,
    pub atoms: Suggested<Atom>,
    pub tables: Suggested<Table>,
    pub acls: Suggested<Acl>,
    pub addresses: Suggested<Numbered>,
}

/// The numbers in use, and the next ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    sets: BTreeMap<Set, u32>,
    atoms: BTreeMap<Atom, u32>,
    tables: BTreeMap<Table, u32>,
    acls: BTreeMap<Acl, u32>,
    addresses: BTreeMap<Numbered, u32>,
    next: u32,
    next_address: u32,
}

impl Numbers {
    /// Numbers above all that the maps hold. `last` is the highest of those, without its
    /// [`ATOM`] bit. Addresses are numbered from `address` on: what the maps' flows still
    /// know by an old number is not found out, so the caller begins elsewhere each time.
    #[must_use]
    pub fn after(last: u32, address: u32) -> Self {
        Self {
            sets: BTreeMap::new(),
            atoms: BTreeMap::new(),
            tables: BTreeMap::new(),
            acls: BTreeMap::new(),
            addresses: BTreeMap::new(),
            next: last.saturating_add(1),
            next_address: address % MAX_NUMBER,
        }
    }

    /// Forgets what is not named, and numbers what is new: as suggested, if nothing else
    /// has that number.
    pub(crate) fn keep(&mut self, names: Names) {
        self.sets.retain(|name, _| names.sets.contains_key(name));
        self.atoms.retain(|name, _| names.atoms.contains_key(name));
        self.tables
            .retain(|name, _| names.tables.contains_key(name));
        self.acls.retain(|name, _| names.acls.contains_key(name));
        self.number_addresses(names.addresses);
        let mut choice = Choice {
            used: self
                .sets
                .values()
                .chain(self.atoms.values())
                .chain(self.tables.values())
                .chain(self.acls.values())
                .copied()
                .collect(),
            next: &mut self.next,
        };
        choice.number(&mut self.sets, names.sets, 0);
        choice.number(&mut self.atoms, names.atoms, ATOM);
        choice.number(&mut self.tables, names.tables, 0);
        choice.number(&mut self.acls, names.acls, 0);
    }

    /// Numbers addresses, in a space of their own.
    fn number_addresses(&mut self, names: Suggested<Numbered>) {
        self.addresses.retain(|name, _| names.contains_key(name));
        let mut used: BTreeSet<u32> = self.addresses.values().copied().collect();
        let mut next = self.next_address;
        for (name, suggested) in names {
            self.addresses.entry(name).or_insert_with(|| {
                if let Some(number) = suggested
                    && used.insert(number)
                {
                    return number;
                }
                // There are 80 for each that a host can have.
                loop {
                    next = (next + 1) % MAX_NUMBER;
                    if next != 0 && used.insert(next) {
                        return next;
                    }
                }
            });
        }
        self.next_address = next;
    }

    /// An address's number; 0 if it has none.
    pub(crate) fn address(&self, address: &Numbered) -> u32 {
        self.addresses.get(address).copied().unwrap_or(0)
    }

    /// All numbered addresses and their numbers.
    pub(crate) fn addresses(&self) -> impl Iterator<Item = (&Numbered, u32)> {
        let all = self.addresses.iter();
        all.map(|(address, number)| (address, *number))
    }

    /// A set's number; 0 if it has none.
    pub(crate) fn set(&self, set: &Set) -> u32 {
        self.sets.get(set).copied().unwrap_or(0)
    }

    /// An atom's number; 0 if it has none.
    pub(crate) fn atom(&self, atom: &Atom) -> u32 {
        self.atoms.get(atom).copied().unwrap_or(0)
    }

    /// A route table's number; 0 if it has none.
    pub(crate) fn table(&self, table: &Table) -> u32 {
        self.tables.get(table).copied().unwrap_or(0)
    }

    /// An ACL's number; 0 if it has none.
    pub(crate) fn acl(&self, acl: &Acl) -> u32 {
        self.acls.get(acl).copied().unwrap_or(0)
    }

    /// All sets and their numbers.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (&Set, u32)> {
        self.sets.iter().map(|(set, number)| (set, *number))
    }

    /// All atoms and their numbers.
    pub(crate) fn atoms(&self) -> impl Iterator<Item = (&Atom, u32)> {
        self.atoms.iter().map(|(atom, number)| (atom, *number))
    }

    /// All route tables and their numbers.
    pub(crate) fn tables(&self) -> impl Iterator<Item = (&Table, u32)> {
        self.tables.iter().map(|(table, number)| (table, *number))
    }

    /// All ACLs and their numbers.
    pub(crate) fn acls(&self) -> impl Iterator<Item = (&Acl, u32)> {
        self.acls.iter().map(|(acl, number)| (acl, *number))
    }
}

/// Chooses numbers that nothing has.
struct Choice<'a> {
    used: BTreeSet<u32>,
    next: &'a mut u32,
}

impl Choice<'_> {
    /// Numbers what has none.
    fn number<Name: Ord>(
        &mut self,
        numbers: &mut BTreeMap<Name, u32>,
        names: Suggested<Name>,
        kind: u32,
    ) {
        for (name, suggested) in names {
            if let std::collections::btree_map::Entry::Vacant(entry) = numbers.entry(name) {
                entry.insert(self.choose(suggested, kind));
            }
        }
    }

    /// A number that nothing has, with these high bits. There are 2^31 - 1, more than any
    /// host has names; they are taken in turn.
    fn choose(&mut self, suggested: Option<u32>, kind: u32) -> u32 {
        if let Some(number) = suggested
            && number & ATOM == kind
            && number & !ATOM != 0
            && self.used.insert(number)
        {
            return number;
        }
        loop {
            let number = *self.next;
            *self.next = if number >= ATOM - 1 { 1 } else { number + 1 };
            if number != 0 && number < ATOM && self.used.insert(number | kind) {
                return number | kind;
            }
        }
    }
}
