//! How fast a port may send and receive.
//!
//! ```text
//!          ┌─ peak      what it may never exceed, but for a moment
//! packet ──┼─ baseline  what it may always have; what it leaves unused it saves as credits
//!          └─ packets   so many a second, whatever their size
//! ```
//! All three must have something left (EC2 User Guide, "Amazon EC2 instance network
//! bandwidth": baseline, burst and network I/O credits, an account for each direction,
//! full when the port is new).
//!
//! An [`Allowance`] is kept as the time until which it is spent: what passes moves that
//! time on by what it costs, and what is saved lets it lie in the past. So there is
//! nothing to refill, one word is the whole of the state, and CPUs add to it without
//! locks. A packet passes while the time is not in the future, whatever its size: what it
//! overdraws is paid before the next.

use crate::layout::{Direction, FIRST_PORT_SLOT, Reason};
use crate::maps::{Action, Maps};
use crate::packet::Packet;
use crate::word::Word;

/// Times are jiffies with so many bits of fraction: 60 ps at 250 Hz, and room for 2^38
/// jiffies.
const TIME_FRACTION_BITS: u32 = 26;
/// Costs are times with so many more.
const COST_FRACTION_BITS: u32 = 16;
/// The least rate, which keeps the product of a cost and any frame within 64 bits.
pub const RATE_LEAST_PER_S: u64 = 1_000;

/// So many units a second, of which some may be saved; all zeros: unlimited.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Allowance {
    /// Time that a unit costs.
    cost: u64,
    /// Time that may be saved.
    saved: u64,
}

impl Allowance {
    /// `rate` units a second, of which `depth` may be saved, where jiffies run at `hz`.
    #[must_use]
    pub fn new(rate_per_s: u64, depth: u64, hz: u32) -> Self {
        let rate = u128::from(rate_per_s.max(RATE_LEAST_PER_S));
        let second = u128::from(hz) << TIME_FRACTION_BITS;
        let cost = ((second << COST_FRACTION_BITS) + rate / 2) / rate;
        let saved = u128::from(depth) * second / rate;
        Self {
            cost: u64::try_from(cost).unwrap_or(u64::MAX),
            saved: u64::try_from(saved).unwrap_or(u64::MAX),
        }
    }

    #[inline(always)]
    fn is_unlimited(&self) -> bool {
        self.cost == 0
    }

    /// Time that so many units cost, to the nearest.
    #[inline(always)]
    fn price(&self, units: u64) -> u64 {
        (units * self.cost + (1 << (COST_FRACTION_BITS - 1))) >> COST_FRACTION_BITS
    }
}

/// Until when an allowance is spent; shared by CPUs. Zero: all of it is saved.
#[repr(transparent)]
#[derive(Debug, Default)]
pub struct Spent(Word);

impl Spent {
    #[inline(always)]
    fn has_left(&self, allowance: &Allowance, time: u64) -> bool {
        allowance.is_unlimited() || self.0.load() <= time
    }

    /// Pays. Where another CPU pays at the same time both are charged.
    #[inline(always)]
    fn pay(&self, allowance: &Allowance, time: u64, units: u64) {
        if allowance.is_unlimited() {
            return;
        }
        let oldest = time.saturating_sub(allowance.saved);
        let until = self.0.load();
        if until < oldest {
            // If that fails another CPU has just done it.
            let _same = self.0.replace(until, oldest);
        }
        self.0.add(allowance.price(units));
    }
}

/// `LIMITS`: one direction's allowances.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limit {
    /// Bytes of frames, at most.
    pub peak: Allowance,
    /// Bytes of frames, always; what is saved are credits.
    pub baseline: Allowance,
    /// Packets.
    pub packets: Allowance,
}

impl Limit {
    /// Whether nothing is limited, so that nothing is to be metered.
    #[inline(always)]
    #[must_use]
    pub fn is_none(&self) -> bool {
        self.peak.cost | self.baseline.cost | self.packets.cost == 0
    }
}

/// `LIMITS`: by [`Direction`].
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Limits {
    /// One for each direction.
    pub directions: [Limit; 2],
    /// The slot on whose meters it is spent: that of one of those that spend together.
    pub meter: u32,
    /// Zero.
    pub reserved: u32,
}

/// `METERS`: what is spent of a [`Limit`].
#[repr(C)]
#[derive(Debug, Default)]
pub struct Meter {
    peak: Spent,
    baseline: Spent,
    packets: Spent,
}

/// `METERS`: by [`Direction`].
#[repr(C)]
#[derive(Debug, Default)]
pub struct Meters {
    /// One for each direction.
    pub directions: [Meter; 2],
}

/// Words of [`Meters`].
pub const METER_WORDS: usize = size_of::<Meters>() / 8;

impl From<[u64; METER_WORDS]> for Meters {
    /// A copy, as the map gives it.
    fn from(words: [u64; METER_WORDS]) -> Self {
        let spent = |index: usize| Spent(Word::new(words[index]));
        Self {
            directions: [0, 3].map(|first| Meter {
                peak: spent(first),
                baseline: spent(first + 1),
                packets: spent(first + 2),
            }),
        }
    }
}

impl Meter {
    /// Lets a frame through and charges it, or says what it exceeds. `packets` is 1 unless
    /// the frame is to be cut into segments.
    #[inline(always)]
    pub fn admit(&self, limit: &Limit, now: u64, bytes: u64, packets: u64) -> Result<(), Reason> {
        let time = now << TIME_FRACTION_BITS;
        if !self.packets.has_left(&limit.packets, time) {
            return Err(Reason::OverPackets);
        }
        if !(self.peak.has_left(&limit.peak, time) && self.baseline.has_left(&limit.baseline, time))
        {
            return Err(Reason::OverBandwidth);
        }
        self.peak.pay(&limit.peak, time, bytes);
        self.baseline.pay(&limit.baseline, time, bytes);
        self.packets.pay(&limit.packets, time, packets);
        Ok(())
    }

    /// Bytes that could pass at the peak rate before the baseline rate is all there is;
    /// `None`: no end.
    #[must_use]
    pub fn credit_bytes(&self, limit: &Limit, now: u64) -> Option<u64> {
        let Allowance { cost, saved } = limit.baseline;
        if cost == 0 {
            return None;
        }
        let time = now << TIME_FRACTION_BITS;
        let until = self.baseline.0.load().max(time.saturating_sub(saved));
        let left = u128::from(time.saturating_sub(until)) << COST_FRACTION_BITS;
        u64::try_from(left / u128::from(cost)).ok()
    }
}

/// Lets a frame of a port's pass in one direction, or says what it exceeds.
#[inline(always)]
pub(crate) fn police(
    packet: &(impl Packet + ?Sized),
    maps: &impl Maps,
    slot: u32,
    direction: Direction,
) -> Result<(), Reason> {
    let Some(limits) = maps.limits(slot) else {
        return Ok(());
    };
    let limit = &limits.directions[direction as usize];
    if limit.is_none() {
        return Ok(());
    }
    match maps.meter(limits.meter, direction) {
        Some(meter) => {
            let bytes = packet.segments_len();
            meter.admit(limit, maps.now(), bytes, packet.segments())
        }
        None => Ok(()),
    }
}

/// The receiver's limits, asked last: only what would reach it is charged to it, and shown
/// to one who watches it. What is the host's own has none.
#[inline(always)]
pub(crate) fn deliver(packet: &(impl Packet + ?Sized), maps: &impl Maps, action: Action) -> Action {
    let Action::Redirect { slot, .. } = action else {
        return action;
    };
    if slot < FIRST_PORT_SLOT {
        return action;
    }
    match police(packet, maps, slot, Direction::Ingress) {
        Ok(()) => {
            packet.capture(slot, Direction::Ingress);
            action
        }
        Err(reason) => {
            maps.count(slot, Direction::Ingress, reason);
            Action::Drop
        }
    }
}
