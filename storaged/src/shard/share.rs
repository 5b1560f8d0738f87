//! How much of the disk a device may hold at once: all of it alone, its share beside
//! others.
//!
//! A disk serves what it holds in an order of its own, so what lies on it decides who
//! waits: a request behind 2 MiB of a neighbour's takes milliseconds, whatever the turns
//! were. So as long as several devices use the disk, on whatever shards, each may hold
//! [`PER_DEVICE`] times their number, by weight, and one piece at least. A guest with
//! one request at a time then waits for two of each neighbour's pieces and not for
//! their queues, and the shares of two that always have more are by weight (Little's law).

use crate::qos::turns::QUANTUM;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the ring may hold at once, in [`crate::qos::cost`]'s bytes' worth: some hundred
/// small requests or two dozen whole pieces, enough for a fast disk, and what a
/// newcomer's first request waits for at most.
pub const DEPTH: u64 = 2 << 20;
/// What each of several devices adds to what they may hold together.
const PER_DEVICE: u64 = 2 * QUANTUM as u64;
/// Who used the disk is reckoned with for so long: longer than a guest with one request
/// at a time pauses between two.
const LINGER_NS: u64 = 20_000_000;

/// One shard's devices on the disk, for the others to see.
#[derive(Debug, Default)]
struct Entry {
    /// How many, and their weights' sum above 32 bits.
    devices: AtomicU64,
    /// Until when that holds.
    until_ns: AtomicU64,
}

/// The disk as its shards share it.
#[derive(Clone, Debug)]
pub struct Share {
    entries: Arc<[Entry]>,
    own: usize,
    /// Devices of this shard that used the disk of late: key, weight and until when.
    active: Vec<(usize, u32, u64)>,
    swept_ns: u64,
    /// All shards' devices, and their weights.
    total: (u64, u64),
}

impl Share {
    /// One for each of `shards` shards.
    #[must_use]
    pub fn new(shards: usize) -> Vec<Self> {
        let entries: Arc<[Entry]> = (0..shards).map(|_| Entry::default()).collect();
        (0..shards)
            .map(|own| Self {
                entries: Arc::clone(&entries),
                own,
                active: Vec::new(),
                swept_ns: 0,
                total: (0, 0),
            })
            .collect()
    }

    /// Looks at who uses the disk, a new round having begun.
    pub fn look(&mut self, now_ns: u64) {
        if now_ns != self.swept_ns {
            self.swept_ns = now_ns;
            self.active.retain(|(_, _, until_ns)| now_ns < *until_ns);
            self.tell(now_ns);
        }
        self.total = (0, 0);
        for entry in &*self.entries {
            if now_ns < entry.until_ns.load(Ordering::Relaxed) {
                let devices = entry.devices.load(Ordering::Relaxed);
                self.total.0 += devices & u64::from(u32::MAX);
                self.total.1 += devices >> 32;
            }
        }
    }

    /// Device `key` of this shard uses the disk; asked once a device and time.
    pub fn used(&mut self, key: usize, weight: u32, now_ns: u64) {
        let until_ns = now_ns + LINGER_NS;
        match self.active.iter_mut().find(|(known, ..)| *known == key) {
            Some(known) => *known = (key, weight, until_ns),
            None => {
                self.active.push((key, weight, until_ns));
                self.total.0 += 1;
                self.total.1 += u64::from(weight);
            }
        }
        self.tell(now_ns);
    }

    /// Begins a piece of a device of `weight` that holds `held`, or does it wait?
    #[must_use]
    pub fn admits(&self, held: u64, weight: u32) -> bool {
        let (devices, weights) = self.total;
        if devices <= 1 {
            return true;
        }
        let depth = DEPTH.min(PER_DEVICE * devices);
        // A device that was active before it was found idle is in no sum.
        let weights = weights.max(u64::from(weight));
        held == 0 || held < depth * u64::from(weight) / weights
    }

    /// Do several devices use the disk?
    #[must_use]
    pub fn is_contended(&self) -> bool {
        self.total.0 > 1
    }

    fn tell(&self, now_ns: u64) {
        let Some(entry) = self.entries.get(self.own) else {
            return;
        };
        let weights: u64 = self.active.iter().map(|(_, w, _)| u64::from(*w)).sum();
        let devices = (weights.min(u64::from(u32::MAX)) << 32) | self.active.len() as u64;
        entry.devices.store(devices, Ordering::Relaxed);
        let until_ns = if self.active.is_empty() {
            0
        } else {
            now_ns + LINGER_NS
        };
        entry.until_ns.store(until_ns, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much a device of `weight` comes to hold.
    fn holds(share: &Share, weight: u32, piece: u64) -> u64 {
        let mut held = 0;
        while held < DEPTH && share.admits(held, weight) {
            held += piece;
        }
        held
    }

    #[test]
    fn alone_the_disk_is_ones_own_and_beside_others_it_is_shared_by_weight() {
        let mut shares = Share::new(2);
        let (a, b) = shares.split_at_mut(1);
        let (a, b) = (&mut a[0], &mut b[0]);
        a.look(1);
        a.used(3, 100, 1);
        assert_eq!(holds(a, 100, 4096), DEPTH);
        b.look(1);
        b.used(0, 100, 1);
        a.look(2);
        assert!(a.is_contended() && b.is_contended());
        assert_eq!(holds(a, 100, QUANTUM as u64), PER_DEVICE);
        // Another one on the first shard, three times as heavy: of three devices' depth
        // it has three fifths.
        a.used(4, 300, 2);
        b.look(3);
        for share in [&*a, &*b] {
            assert_eq!(holds(share, 100, 1), PER_DEVICE * 3 / 5);
            assert_eq!(holds(share, 300, 1), PER_DEVICE * 9 / 5);
        }
        // Whoever weighs little still gets a piece.
        assert_eq!(holds(a, 1, 4096), 4096);
    }

    #[test]
    fn who_is_gone_is_reckoned_with_for_a_while() {
        let mut shares = Share::new(2);
        shares[0].used(0, 100, 0);
        shares[1].used(0, 100, 0);
        shares[0].look(LINGER_NS - 1);
        assert!(shares[0].is_contended());
        shares[0].used(0, 100, LINGER_NS - 1);
        shares[0].look(LINGER_NS + 1);
        assert!(!shares[0].is_contended());
        assert_eq!(holds(&shares[0], 100, 1), DEPTH);
    }
}
