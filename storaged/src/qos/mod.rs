//! Quality of service: what a volume may use, and whose turn it is.
//!
//! ```text
//!  volume's limits ─┐ token buckets: operations, bytes, burst credits   [`Bucket`]
//!  group's limits ──┤ counted as EC2 counts                             [`Meter`]
//!                   ▼
//!  a device may begin a request ──▶ its turn, by cost and weight        [`Turns`]
//!                                   in pieces of at most 64 KiB
//! ```
//! A request that must wait stays in its guest's queue: it costs no memory here, and
//! the shard sleeps until the first one's time. All of this is arithmetic on times
//! that the caller passes in.

pub mod bucket;
pub mod group;
pub mod meter;
pub mod turns;

pub use bucket::Bucket;
pub use group::Group;
pub use meter::{Direction, Meter};
pub use turns::Turns;

use ocs_storaged_api::{Credits, IO_BYTES, Limits, Rate, VolumeLimits};
use std::num::NonZeroU64;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most bytes of a request that are moved at once; the rest waits for its next turn.
pub const PIECE_BYTES: usize = 64 * 1024;
/// A bucket holds what its rate gives in this part of a second: what a shard that was
/// held up may catch up with, and how far a rate is exceeded at its beginning.
const DEPTH_PARTS: u64 = 25;
/// An operation costs a disk as much as moving this many bytes does: about what lies
/// between its random and its sequential rate.
const OPERATION_BYTES: u64 = 16 * 1024;

/// What a piece of work costs the device that serves it, in bytes' worth.
#[must_use]
pub const fn cost(bytes: u64) -> u64 {
    OPERATION_BYTES + bytes
}

/// Nanoseconds of the system's monotonic clock.
///
/// By libc, which found the vDSO before the sandbox was entered: rustix looks for it at
/// its first call, is refused, and makes a system call of each.
#[must_use]
pub fn now_ns() -> u64 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: `now` is ours to be written; this clock always exists, so it is written.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// One rate and its credits.
#[derive(Debug)]
struct Paced {
    rate: Bucket,
    credits: Option<Bucket>,
}

impl Paced {
    fn new(rate: &Rate, now_ns: u64) -> Option<Self> {
        let (top, credits) = Self::buckets(rate)?;
        Some(Self {
            rate: Bucket::new(top, depth(top), now_ns),
            credits: credits.map(|(per_s, most)| Bucket::new(per_s, most, now_ns)),
        })
    }

    /// The highest rate; the rate and number of credits.
    fn buckets(rate: &Rate) -> Option<(NonZeroU64, Option<(NonZeroU64, u64)>)> {
        let sustained = NonZeroU64::new(rate.per_s)?;
        Some(match rate.burst {
            Some(burst) => (
                NonZeroU64::new(burst.per_s)?,
                Some((sustained, burst.credits)),
            ),
            None => (sustained, None),
        })
    }

    /// Goes on with what is left under another rate.
    fn change(this: &mut Option<Self>, rate: Option<&Rate>, now_ns: u64) {
        let fresh = rate.and_then(|rate| Self::new(rate, now_ns));
        *this = match (this.take(), fresh, rate.and_then(Self::buckets)) {
            (Some(mut old), Some(fresh), Some((top, credits))) => {
                old.rate.change(top, depth(top), now_ns);
                old.credits = match (old.credits, credits) {
                    (Some(mut kept), Some((per_s, most))) => {
                        kept.change(per_s, most, now_ns);
                        Some(kept)
                    }
                    _ => fresh.credits,
                };
                Some(old)
            }
            (_, fresh, _) => fresh,
        };
    }

    /// Credits left, less what can be spent in `reserve_s`.
    fn credits(&mut self, reserve_s: u64, now_ns: u64) -> Option<u64> {
        let reserve = self.rate.per_s().get().saturating_mul(reserve_s);
        let credits = self.credits.as_mut()?;
        Some(credits.tokens(now_ns).saturating_sub(reserve))
    }

    fn keep(&mut self, credits: Option<u64>) {
        if let (Some(bucket), Some(credits)) = (&mut self.credits, credits) {
            bucket.keep(credits);
        }
    }

    fn grant(&mut self, credits: Option<u64>, now_ns: u64) {
        if let (Some(bucket), Some(credits)) = (&mut self.credits, credits) {
            bucket.grant(credits, now_ns);
        }
    }

    fn ready_at(&mut self, now_ns: u64) -> Option<u64> {
        let credits = self.credits.as_mut().and_then(|c| c.ready_at(now_ns));
        self.rate.ready_at(now_ns).max(credits)
    }

    fn charge(&mut self, tokens: u64, now_ns: u64) -> u64 {
        self.rate.charge(tokens, now_ns);
        if let Some(credits) = &mut self.credits {
            credits.charge(tokens, now_ns);
        }
        let ns = u128::from(tokens) * 1_000_000_000 / u128::from(self.rate.per_s().get());
        u64::try_from(ns).unwrap_or(u64::MAX)
    }
}

fn depth(per_s: NonZeroU64) -> u64 {
    (per_s.get() / DEPTH_PARTS).max(1)
}

/// One set of limits at work.
#[derive(Debug)]
struct Throttle {
    meter: Meter,
    iops: Option<Paced>,
    bytes: Option<Paced>,
}

impl Throttle {
    fn new(limits: &Limits, now_ns: u64) -> Self {
        Self {
            meter: Meter::new(u64::from(limits.io_bytes.unwrap_or(IO_BYTES))),
            iops: limits.iops.and_then(|r| Paced::new(&r, now_ns)),
            bytes: limits.bytes.and_then(|r| Paced::new(&r, now_ns)),
        }
    }

    fn change(&mut self, limits: &Limits, now_ns: u64) {
        self.meter = Meter::new(u64::from(limits.io_bytes.unwrap_or(IO_BYTES)));
        Paced::change(&mut self.iops, limits.iops.as_ref(), now_ns);
        Paced::change(&mut self.bytes, limits.bytes.as_ref(), now_ns);
    }

    fn credits(&mut self, reserve_s: u64, now_ns: u64) -> Credits {
        let of = |paced: &mut Option<Paced>| paced.as_mut()?.credits(reserve_s, now_ns);
        Credits {
            iops: of(&mut self.iops),
            bytes: of(&mut self.bytes),
        }
    }

    fn keep(&mut self, credits: &Credits) {
        if let Some(iops) = &mut self.iops {
            iops.keep(credits.iops);
        }
        if let Some(bytes) = &mut self.bytes {
            bytes.keep(credits.bytes);
        }
    }

    fn grant(&mut self, credits: &Credits, now_ns: u64) {
        if let Some(iops) = &mut self.iops {
            iops.grant(credits.iops, now_ns);
        }
        if let Some(bytes) = &mut self.bytes {
            bytes.grant(credits.bytes, now_ns);
        }
    }

    fn is_limited(&self) -> bool {
        self.iops.is_some() || self.bytes.is_some()
    }

    fn ready_at(&mut self, now_ns: u64) -> Option<u64> {
        let iops = self.iops.as_mut().and_then(|p| p.ready_at(now_ns));
        let bytes = self.bytes.as_mut().and_then(|p| p.ready_at(now_ns));
        iops.max(bytes)
    }

    /// Charges a transfer; how long, in ns, the highest rate takes to give for it.
    fn charge(&mut self, direction: Direction, offset: u64, len: u64, now_ns: u64) -> u64 {
        let operations = self.meter.count(direction, offset, len);
        let charge = |paced: &mut Option<Paced>, tokens| match paced {
            Some(paced) => paced.charge(tokens, now_ns),
            None => 0,
        };
        let iops_ns = charge(&mut self.iops, operations);
        iops_ns.max(charge(&mut self.bytes, len))
    }
}

#[derive(Debug)]
struct State {
    own: Throttle,
    group: Option<Arc<Group>>,
}

/// What one volume may use; shared by those who set it and the shard that holds the
/// volume to it.
#[derive(Debug)]
pub struct Qos {
    limited: AtomicBool,
    weight: AtomicU32,
    state: Mutex<State>,
}

impl Default for Qos {
    fn default() -> Self {
        Self::new(&VolumeLimits::default(), None, 0)
    }
}

impl Qos {
    /// A volume with these limits, of that group.
    #[must_use]
    pub fn new(limits: &VolumeLimits, group: Option<Arc<Group>>, now_ns: u64) -> Self {
        let qos = Self {
            limited: AtomicBool::new(false),
            weight: AtomicU32::new(turns::WEIGHT),
            state: Mutex::new(State {
                own: Throttle::new(&limits.limits, now_ns),
                group: None,
            }),
        };
        qos.change(limits, group, now_ns);
        qos
    }

    /// Goes on with other limits, or in another group. Who waits is not told.
    pub fn change(&self, limits: &VolumeLimits, group: Option<Arc<Group>>, now_ns: u64) {
        let mut state = lock(&self.state);
        state.own.change(&limits.limits, now_ns);
        state.group = group;
        let limited = state.own.is_limited() || state.group.is_some();
        self.limited.store(limited, Ordering::Relaxed);
        let weight = limits.weight.unwrap_or(turns::WEIGHT);
        self.weight.store(weight, Ordering::Relaxed);
    }

    /// Burst credits left of its own limits, less what can be spent in `reserve_s` seconds.
    #[must_use]
    pub fn credits(&self, reserve_s: u64, now_ns: u64) -> Credits {
        lock(&self.state).own.credits(reserve_s, now_ns)
    }

    /// Leaves at most so many of its own credits.
    pub fn keep(&self, credits: &Credits) {
        lock(&self.state).own.keep(credits);
    }

    /// Adds to its own credits.
    pub fn grant(&self, credits: &Credits, now_ns: u64) {
        lock(&self.state).own.grant(credits, now_ns);
    }

    /// Is there anything to ask? False spares the clock.
    #[must_use]
    pub fn is_limited(&self) -> bool {
        self.limited.load(Ordering::Relaxed)
    }

    /// Its share beside others.
    #[must_use]
    pub fn weight(&self) -> u32 {
        self.weight.load(Ordering::Relaxed)
    }

    /// When the next request may begin: `None` if at once.
    #[must_use]
    pub fn ready_at(&self, now_ns: u64) -> Option<u64> {
        let mut state = lock(&self.state);
        // Whom its own limits hold does not wait for the group: no other gives way to it.
        state.own.ready_at(now_ns).or_else(|| {
            let group = state.group.as_ref()?;
            group.ready_at(self.key(), now_ns)
        })
    }

    /// A transfer begins.
    pub fn charge(&self, direction: Direction, offset: u64, len: u64, now_ns: u64) {
        let mut state = lock(&self.state);
        state.own.charge(direction, offset, len, now_ns);
        if let Some(group) = &state.group {
            group.charge((self.key(), self.weight()), direction, offset, len, now_ns);
        }
    }

    /// What a group knows it by: where it lies, shared by all who hold it.
    fn key(&self) -> usize {
        std::ptr::from_ref(self).addr()
    }
}

/// Whoever panicked with it had charged a request or not; either is a sound state.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
