//! Who may change what: one request a name, of a volume or a snapshot, at a time.

use super::Volumes;
use std::collections::BTreeSet;
use std::sync::PoisonError;

/// The right to change what has a name, or shall have it.
pub(super) struct Claim<'a>(&'a Volumes, &'a str);

impl Drop for Claim<'_> {
    fn drop(&mut self) {
        self.0.live().claimed.remove(self.1);
        self.0.released.notify_all();
    }
}

impl Volumes {
    /// Waits for the right to `name`.
    pub(super) fn claim<'a>(&'a self, name: &'a str) -> Claim<'a> {
        let mut live = self.live();
        while !live.claimed.insert(name.to_owned()) {
            live = self
                .released
                .wait(live)
                .unwrap_or_else(PoisonError::into_inner);
        }
        Claim(self, name)
    }

    /// Waits for the rights to all of these. Everyone takes them in the same order, so no
    /// two wait for each other.
    pub(super) fn claim_all<'a>(
        &'a self,
        names: impl IntoIterator<Item = &'a str>,
    ) -> Vec<Claim<'a>> {
        let names: BTreeSet<&str> = names.into_iter().collect();
        names.into_iter().map(|name| self.claim(name)).collect()
    }
}
