//! Entries that say how fast a port may be.

use ocs_dataplane_shared::layout::Direction;
use ocs_dataplane_shared::limit::{Allowance, Limit, Limits};

use crate::model::Rate;

/// What a guest may send above its rate, in percent: the VMM shapes it to the rate, and
/// this holds when the VMM does not.
const BACKSTOP_PERCENT: u64 = 5;
/// How long a port may stay silent and then have what it missed at once: above what
/// schedulers and batches delay, far below what a queue would feel.
const SAVED_MS: u64 = 50;
/// Of which at least so much is left at low rates that a window of TCP segments fits.
const SAVED_LEAST_BYTES: u64 = 16 * 1024;

/// A port's limits, where jiffies run at `hz`; `None`: it has none.
pub(super) fn limits(rate: Rate, hz: u32) -> Option<Limits> {
    if rate == Rate::default() {
        return None;
    }
    let mut limits = Limits::default();
    limits.directions[Direction::Ingress as usize] = limit(rate, 0, hz);
    limits.directions[Direction::Egress as usize] = limit(rate, BACKSTOP_PERCENT, hz);
    Some(limits)
}

fn limit(rate: Rate, more_percent: u64, hz: u32) -> Limit {
    let more = |value: u64| value.saturating_add(value / 100 * more_percent);
    let bytes = |bps: u64, credits: u64| {
        let rate = more(bps) / 8;
        let depth = (rate / 1_000 * SAVED_MS).max(SAVED_LEAST_BYTES);
        allowance(rate, depth.max(credits), hz)
    };
    let packets = more(rate.packets_per_s);
    Limit {
        peak: bytes(rate.peak_bps, 0),
        baseline: bytes(rate.baseline_bps, rate.credit_bytes),
        packets: allowance(packets, packets.saturating_mul(SAVED_MS) / 1_000, hz),
    }
}

fn allowance(rate_per_s: u64, depth: u64, hz: u32) -> Allowance {
    match rate_per_s {
        0 => Allowance::default(),
        rate => Allowance::new(rate, depth, hz),
    }
}
