//! Numbers for sets of groups and for atoms of address space, stable from one policy to
//! the next and never used twice, so that an entry of an old policy means nothing in a
//! new one.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use ocs_dataplane_shared::layout::ATOM;

use crate::model::{GroupId, Vni};

/// A set of groups of one network.
pub(crate) type Set = (Vni, BTreeSet<GroupId>);
/// A rule's prefix of one network.
pub(crate) type Atom = (Vni, Ipv4Net);

/// The numbers in use, and the next ones.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Numbers {
    sets: BTreeMap<Set, u32>,
    atoms: BTreeMap<Atom, u32>,
    next: u32,
}

impl Numbers {
    /// Numbers above all that the maps hold. `last` is the highest of those, without its
    /// [`ATOM`] bit.
    #[must_use]
    pub fn after(last: u32) -> Self {
        Self {
            sets: BTreeMap::new(),
            atoms: BTreeMap::new(),
            next: last.saturating_add(1),
        }
    }

    /// Forgets what is not named, and numbers what is new.
    pub(crate) fn keep(&mut self, sets: BTreeSet<Set>, atoms: BTreeSet<Atom>) {
        self.sets.retain(|set, _| sets.contains(set));
        self.atoms.retain(|atom, _| atoms.contains(atom));
        for set in sets {
            if !self.sets.contains_key(&set) {
                let number = self.take();
                self.sets.insert(set, number);
            }
        }
        for atom in atoms {
            if !self.atoms.contains_key(&atom) {
                let number = self.take() | ATOM;
                self.atoms.insert(atom, number);
            }
        }
    }

    /// The next number that nothing has: 2^31 of them, then around.
    fn take(&mut self) -> u32 {
        loop {
            let number = self.next;
            self.next = if number >= ATOM - 1 { 1 } else { number + 1 };
            let in_use = self
                .sets
                .values()
                .chain(self.atoms.values())
                .any(|used| used & !ATOM == number);
            if number != 0 && number < ATOM && !in_use {
                return number;
            }
        }
    }

    /// A set's number; 0 if it has none.
    pub(crate) fn set(&self, set: &Set) -> u32 {
        self.sets.get(set).copied().unwrap_or(0)
    }

    /// An atom's number; 0 if it has none.
    pub(crate) fn atom(&self, atom: &Atom) -> u32 {
        self.atoms.get(atom).copied().unwrap_or(0)
    }

    /// All sets and their numbers.
    pub(crate) fn sets(&self) -> impl Iterator<Item = (&Set, u32)> {
        self.sets.iter().map(|(set, number)| (set, *number))
    }

    /// All atoms and their numbers.
    pub(crate) fn atoms(&self) -> impl Iterator<Item = (&Atom, u32)> {
        self.atoms.iter().map(|(atom, number)| (atom, *number))
    }
}
