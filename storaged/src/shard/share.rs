//! How much of the disk a device may hold at once: all of it alone, its share beside
//! others.
//!
//! A disk serves what it holds in an order of its own, so what lies on it decides who
//! waits: a request behind 2 MiB of a neighbour's takes milliseconds, whatever the turns
//! were. So as long as several devices use the disk, on whatever shards, each may hold
//! [`PER_DEVICE`] times their number, by weight, and one piece at least; the shares of two
//! that always have more are by weight (Little's law).
//!
//! A guest with one request at a time cannot have its share of a queue that way: it waits
//! for what the others hold at every one of its requests. So as long as some device is
//! *light*, never held up by what it may hold, the others hold one piece each: the least
//! with which they go on, and what a light one's request waits for.

use crate::qos::turns::QUANTUM;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the ring may hold at once, in [`crate::qos::cost`]'s bytes' worth: some hundred
/// small requests or two dozen whole pieces, enough for a fast disk, and what a
/// newcomer's first request waits for at most.
pub const DEPTH: u64 = 2 << 20;
/// What each of several devices adds to what they may hold together.
const PER_DEVICE: u64 = 2 * PER_DEVICE_BESIDE_LIGHT;
/// The same while one of them is light.
const PER_DEVICE_BESIDE_LIGHT: u64 = QUANTUM as u64;
/// Who used the disk is reckoned with for so long: longer than a guest with one request
/// at a time pauses between two. Who was held up is not light for so long.
const LINGER_NS: u64 = 20_000_000;
/// For so long others hold less for a light device that does not come again.
const LIGHT_LINGER_NS: u64 = 3_000_000;

/// One shard's devices on the disk, for the others to see.
#[derive(Debug, Default)]
struct Entry {
    /// How many, and their weights' sum above 32 bits.
    devices: AtomicU64,
    /// Until when that holds.
    until_ns: AtomicU64,
    /// Until when a light one is among them.
    light_until_ns: AtomicU64,
}

/// A device that used the disk of late.
#[derive(Clone, Debug)]
struct User {
    key: usize,
    weight: u32,
    used_ns: u64,
    /// It was held up, and is not light until then.
    greedy_until_ns: u64,
}

/// The disk as its shards share it.
#[derive(Clone, Debug)]
pub struct Share {
    entries: Arc<[Entry]>,
    own: usize,
    /// Devices of this shard.
    users: Vec<User>,
    swept_ns: u64,
    /// All shards' devices, and their weights.
    total: (u64, u64),
    /// One of them is light.
    light: bool,
}

/// Sees whether the disk is used.
#[derive(Clone, Debug)]
pub struct Watch(Arc<[Entry]>);

impl Watch {
    /// Did a guest's request use it of late?
    #[must_use]
    pub fn in_use(&self, now_ns: u64) -> bool {
        let used = |entry: &Entry| now_ns < entry.until_ns.load(Ordering::Relaxed);
        self.0.iter().any(used)
    }
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
                users: Vec::new(),
                swept_ns: 0,
                total: (0, 0),
                light: false,
            })
            .collect()
    }

    /// For those who take no part and make way.
    #[must_use]
    pub fn watch(&self) -> Watch {
        Watch(Arc::clone(&self.entries))
    }

    /// Looks at who uses the disk, a new round having begun.
    pub fn look(&mut self, now_ns: u64) {
        if now_ns != self.swept_ns {
            self.swept_ns = now_ns;
            self.users.retain(|user| now_ns < user.used_ns + LINGER_NS);
            self.tell(now_ns);
        }
        (self.total, self.light) = ((0, 0), false);
        for entry in &*self.entries {
            if now_ns < entry.until_ns.load(Ordering::Relaxed) {
                let devices = entry.devices.load(Ordering::Relaxed);
                self.total.0 += devices & u64::from(u32::MAX);
                self.total.1 += devices >> 32;
                self.light |= now_ns < entry.light_until_ns.load(Ordering::Relaxed);
            }
        }
    }

    /// Device `key` of this shard uses the disk; asked once a device and time.
    pub fn used(&mut self, key: usize, weight: u32, now_ns: u64) {
        match self.users.iter_mut().find(|user| user.key == key) {
            Some(user) => (user.weight, user.used_ns) = (weight, now_ns),
            None => {
                self.users.push(User {
                    key,
                    weight,
                    used_ns: now_ns,
                    greedy_until_ns: 0,
                });
                self.total.0 += 1;
                self.total.1 += u64::from(weight);
                self.light = true;
            }
        }
        self.tell(now_ns);
    }

    /// Device `key` has more work than it may begin.
    pub fn held_up(&mut self, key: usize) {
        if let Some(user) = self.users.iter_mut().find(|user| user.key == key) {
            user.greedy_until_ns = user.used_ns + LINGER_NS;
        }
    }

    /// Begins a piece of a device of `weight` that holds `held`, or does it wait?
    #[must_use]
    pub fn admits(&self, held: u64, weight: u32) -> bool {
        let (devices, weights) = self.total;
        if devices <= 1 {
            return true;
        }
        let each = if self.light {
            PER_DEVICE_BESIDE_LIGHT
        } else {
            PER_DEVICE
        };
        let depth = DEPTH.min(each * devices);
        // A device that was active before it was found idle is in no sum.
        let weights = weights.max(u64::from(weight));
        held == 0 || held < depth * u64::from(weight) / weights
    }

    fn tell(&self, now_ns: u64) {
        let Some(entry) = self.entries.get(self.own) else {
            return;
        };
        let weights: u64 = self.users.iter().map(|user| u64::from(user.weight)).sum();
        let devices = (weights.min(u64::from(u32::MAX)) << 32) | self.users.len() as u64;
        entry.devices.store(devices, Ordering::Relaxed);
        let until_ns = if self.users.is_empty() {
            0
        } else {
            now_ns + LINGER_NS
        };
        entry.until_ns.store(until_ns, Ordering::Relaxed);
        let light = |user: &&User| user.greedy_until_ns <= now_ns;
        let light = self.users.iter().filter(light);
        let light_until_ns = light.map(|user| user.used_ns + LIGHT_LINGER_NS).max();
        entry
            .light_until_ns
            .store(light_until_ns.unwrap_or(0), Ordering::Relaxed);
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

    /// Two that always have more.
    fn greedy(shares: &mut [Share], now_ns: u64) {
        for share in shares {
            for user in 0..share.users.len() {
                share.held_up(share.users[user].key);
            }
            share.tell(now_ns);
            share.look(now_ns);
        }
    }

    #[test]
    fn alone_the_disk_is_ones_own_and_beside_others_it_is_shared_by_weight() {
        let mut shares = Share::new(2);
        shares[0].look(1);
        shares[0].used(3, 100, 1);
        assert_eq!(holds(&shares[0], 100, 4096), DEPTH);
        shares[1].look(1);
        shares[1].used(0, 100, 1);
        greedy(&mut shares, 1);
        greedy(&mut shares, 1);
        assert_eq!(holds(&shares[0], 100, QUANTUM as u64), PER_DEVICE);
        assert_eq!(holds(&shares[1], 100, QUANTUM as u64), PER_DEVICE);
        // Another one on the first shard, three times as heavy: of three devices' depth
        // it has three fifths.
        shares[0].used(4, 300, 2);
        greedy(&mut shares, 2);
        greedy(&mut shares, 2);
        for share in &shares {
            assert_eq!(holds(share, 100, 1), PER_DEVICE * 3 / 5);
            assert_eq!(holds(share, 300, 1), PER_DEVICE * 9 / 5);
        }
        // Whoever weighs little still gets a piece.
        assert_eq!(holds(&shares[0], 1, 4096), 4096);
    }

    #[test]
    fn beside_a_light_one_each_holds_a_piece() {
        let mut shares = Share::new(2);
        shares[0].used(0, 100, 1);
        shares[1].used(0, 100, 1);
        let now_ns = 1_000_000;
        for share in &mut shares {
            share.look(now_ns);
        }
        shares[0].held_up(0);
        shares[0].used(0, 100, now_ns);
        shares[1].used(0, 100, now_ns);
        shares[0].look(now_ns);
        assert_eq!(holds(&shares[0], 100, QUANTUM as u64), QUANTUM as u64);
        // It does not come again; later it is not reckoned with at all.
        let now_ns = now_ns + LIGHT_LINGER_NS;
        shares[0].used(0, 100, now_ns);
        shares[0].look(now_ns);
        assert_eq!(holds(&shares[0], 100, QUANTUM as u64), PER_DEVICE);
        let now_ns = now_ns + LINGER_NS;
        shares[0].used(0, 100, now_ns);
        shares[0].look(now_ns);
        assert_eq!(holds(&shares[0], 100, 4096), DEPTH);
    }

    #[test]
    fn who_is_gone_is_reckoned_with_for_a_while() {
        let mut shares = Share::new(2);
        let watch = shares[0].watch();
        shares[0].used(0, 100, 0);
        shares[1].used(0, 100, 0);
        shares[0].look(LINGER_NS - 1);
        assert!(holds(&shares[0], 100, 1) < DEPTH);
        shares[0].used(0, 100, LINGER_NS - 1);
        shares[0].look(LINGER_NS + 1);
        assert_eq!(holds(&shares[0], 100, 1), DEPTH);
        assert!(watch.in_use(LINGER_NS + 1));
        assert!(!watch.in_use(3 * LINGER_NS));
    }
}
