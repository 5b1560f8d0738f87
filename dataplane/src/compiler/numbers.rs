//! Numbers for sets of groups and for atoms of address space, stable from one policy to
//! the next and never used twice, so that an entry of an old policy means nothing in a
//! new one.
//!
//! A number is a mere label: whoever gives a set the number that a predecessor gave it
//! finds that set's entries in the maps already.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::Ipv4Net;
use ocs_dataplane_shared::layout::ATOM;

use crate::model::{GroupId, Vni};

/// A set of groups of one network.
pub(crate) type Set = (Vni, BTreeSet<GroupId>);
/// A rule's prefix of one network.
pub(crate) type Atom = (Vni, Ipv4Net);

/// Names, some with the number that they should have if they have none.
pub(crate) type Suggested<Name> = BTreeMap<Name, Option<u32>>;

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

    /// Forgets what is not named, and numbers what is new: as suggested, if nothing else
    /// has that number.
    pub(crate) fn keep(&mut self, sets: Suggested<Set>, atoms: Suggested<Atom>) {
        self.sets.retain(|set, _| sets.contains_key(set));
        self.atoms.retain(|atom, _| atoms.contains_key(atom));
        let mut used: BTreeSet<u32> = self.sets.values().copied().collect();
        used.extend(self.atoms.values());
        for (set, suggested) in sets {
            if !self.sets.contains_key(&set) {
                let number = self.choose(&mut used, suggested, 0);
                self.sets.insert(set, number);
            }
        }
        for (atom, suggested) in atoms {
            if !self.atoms.contains_key(&atom) {
                let number = self.choose(&mut used, suggested, ATOM);
                self.atoms.insert(atom, number);
            }
        }
    }

    /// A number that nothing has, with these high bits. There are 2^31 - 1, more than any
    /// host has sets or atoms; they are taken in turn.
    fn choose(&mut self, used: &mut BTreeSet<u32>, suggested: Option<u32>, kind: u32) -> u32 {
        if let Some(number) = suggested
            && number & ATOM == kind
            && number & !ATOM != 0
            && used.insert(number)
        {
            return number;
        }
        loop {
            let number = self.next;
            self.next = if number >= ATOM - 1 { 1 } else { number + 1 };
            if number != 0 && number < ATOM && used.insert(number | kind) {
                return number | kind;
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
