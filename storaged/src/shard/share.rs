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
//! for what the others hold at every one of its requests. As long as some device is
//! *light*, never held up by what it may hold, the others hold no more together than lets
//! it come as often as its part of all weights says, if a piece takes as long as its
//! request does alone: one piece beside one of two, nine beside nine of ten.

use crate::qos::turns::QUANTUM;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// What the ring may hold at once, in [`crate::qos::cost`]'s bytes' worth: some hundred
/// small requests or two dozen whole pieces, enough for a fast disk, and what a
/// newcomer's first request waits for at most.
pub const DEPTH: u64 = 2 << 20;
/// A whole piece's cost.
const PIECE: u64 = QUANTUM as u64;
/// What each of several devices adds to what they may hold together.
const PER_DEVICE: u64 = 2 * PIECE;
/// Who used the disk is reckoned with for so long: longer than a guest with one request
/// at a time pauses between two. Who was held up is not light for so long.
const LINGER_NS: u64 = 20_000_000;
/// For so long others hold less for a light device that does not come again.
const LIGHT_LINGER_NS: u64 = 3_000_000;

/// So many devices, and their weights together.
#[derive(Clone, Copy, Debug, Default)]
struct Sum {
    devices: u64,
    weights: u64,
}

impl Sum {
    fn of<'a>(users: impl Iterator<Item = &'a User>) -> Self {
        users.fold(Self::default(), |sum, user| Self {
            devices: sum.devices + 1,
            weights: sum.weights + u64::from(user.weight),
        })
    }

    fn add(&mut self, packed: &AtomicU64) {
        let packed = packed.load(Ordering::Relaxed);
        self.devices += packed & u64::from(u32::MAX);
        self.weights += packed >> 32;
    }

    fn store(self, packed: &AtomicU64) {
        let weights = self.weights.min(u64::from(u32::MAX));
        packed.store(weights << 32 | self.devices, Ordering::Relaxed);
    }
}

/// One shard's devices on the disk, for the others to see; sums as [`Sum`] packs them.
#[derive(Debug, Default)]
struct Entry {
    /// All of them.
    all: AtomicU64,
    /// Those that are not light.
    greedy: AtomicU64,
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
    /// All shards' devices.
    all: Sum,
    /// Those that are not light.
    greedy: Sum,
    /// A light one came of late.
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
                all: Sum::default(),
                greedy: Sum::default(),
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
        (self.all, self.greedy, self.light) = (Sum::default(), Sum::default(), false);
        for entry in &*self.entries {
            if now_ns < entry.until_ns.load(Ordering::Relaxed) {
                self.all.add(&entry.all);
                self.greedy.add(&entry.greedy);
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
                self.all.devices += 1;
                self.all.weights += u64::from(weight);
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
        if self.all.devices <= 1 {
            return true;
        }
        let (together, weights) = if self.light {
            (self.beside_light(), self.greedy.weights)
        } else {
            (PER_DEVICE * self.all.devices, self.all.weights)
        };
        // A device that was active before it was found idle is in no sum.
        let weights = weights.max(u64::from(weight)).max(1);
        held == 0 || held < DEPTH.min(together) * u64::from(weight) / weights
    }

    /// What those that are not light may hold together beside those that are.
    fn beside_light(&self) -> u64 {
        let light = self.all.devices.saturating_sub(self.greedy.devices).max(1);
        let weights = self.all.weights.saturating_sub(self.greedy.weights).max(1);
        // Over the mean weight of a light one, less itself.
        (PIECE * self.all.weights * light / weights).saturating_sub(PIECE)
    }

    fn tell(&self, now_ns: u64) {
        let Some(entry) = self.entries.get(self.own) else {
            return;
        };
        let is_greedy = |user: &&User| now_ns < user.greedy_until_ns;
        Sum::of(self.users.iter()).store(&entry.all);
        Sum::of(self.users.iter().filter(is_greedy)).store(&entry.greedy);
        let until_ns = if self.users.is_empty() {
            0
        } else {
            now_ns + LINGER_NS
        };
        entry.until_ns.store(until_ns, Ordering::Relaxed);
        let light = self.users.iter().filter(|user| !is_greedy(user));
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
    fn beside_a_light_one_of_two_one_piece_is_held() {
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
    fn beside_light_ones_as_much_is_held_as_leaves_each_its_part() {
        let holds_beside = |weights: &[u32], greedy: &[usize], who: usize| {
            let mut share = Share::new(1).remove(0);
            for (key, weight) in weights.iter().enumerate() {
                share.used(key, *weight, 1);
            }
            greedy.iter().for_each(|key| share.held_up(*key));
            share.look(2);
            share.look(3);
            holds(&share, weights[who], PIECE) / PIECE
        };
        assert_eq!(holds_beside(&[100, 100], &[0], 0), 1);
        assert_eq!(holds_beside(&[300, 100], &[0], 0), 3);
        assert_eq!(holds_beside(&[100; 10], &[0], 0), 9);
        assert_eq!(holds_beside(&[100; 10], &[0, 1, 2], 1), 3);
        // One that weighs much more than who is light gets what is left, by pieces.
        assert_eq!(holds_beside(&[100, 300], &[0], 0), 1);
        // All are light yet.
        assert!(holds_beside(&[100; 10], &[], 0) > 1);
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
