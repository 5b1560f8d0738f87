//! The limits that a machine's interfaces share, and whose turn it is when they hold.
//!
//! ```text
//!  held back ─▶ [ front … back ] ─ the front alone may go, until it is held back again
//!                   ▲                                              │ has had its turn
//!                   └────────────────── to the back ◀──────────────┘
//! ```
//! Each interface that waits has a timer, and comes again when it fires: it goes, waits
//! further, or leaves because it has nothing to send. So the line needs nobody to call it up,
//! and one that is reset, paused or unplugged holds up nobody. A turn is what the limits let
//! go in the time of a wait, and two of the largest frames at least, so that what another's
//! frame was too large for is no turn: shares are alike whatever the frames' size.

use super::shaper::{Cost, Shaper};
use crate::cpu::monotonic_ns;
use ocs_vmm_spec::TransmitLimits;
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Those who wait come again so often where the limits name no time.
const COME_AGAIN_NS: u64 = 250_000;

/// An interface, to the line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ticket(u64);

/// The limits and those who wait for them.
#[derive(Default)]
pub struct Line {
    limits: Shaper,
    waiting: VecDeque<Ticket>,
    /// Bytes that the front has sent in its turn.
    turn_bytes: u64,
    /// Of the frames that have been asked for.
    largest_frame_bytes: u64,
    tickets: u64,
}

/// One line for all interfaces of a machine.
#[derive(Clone, Default)]
pub struct SharedLine(Arc<Mutex<Line>>);

impl SharedLine {
    /// For as long as one takes a batch of frames.
    pub fn lock(&self) -> MutexGuard<'_, Line> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Other limits from now on; buckets start full. Who waits comes again by its timer.
    pub fn limit(&self, limits: &TransmitLimits) {
        self.lock().limits = Shaper::new(limits, monotonic_ns());
    }

    /// See [`Shaper::credits`]; now.
    pub fn credits(&self) -> Option<u64> {
        let limits = &mut self.lock().limits;
        limits.refill(monotonic_ns());
        limits.credits()
    }
}

impl Line {
    /// For an interface that is new.
    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        Ticket(self.tickets)
    }

    /// See [`Shaper::is_limited`].
    pub fn is_limited(&self) -> bool {
        self.limits.is_limited()
    }

    /// See [`Shaper::refill`].
    pub fn refill(&mut self, now_ns: u64) {
        self.limits.refill(now_ns);
    }

    /// In how many ns the interface has to come again; 0: its frame may go now.
    pub fn wait_ns(&mut self, ticket: Ticket, frame: impl Into<Cost>) -> u64 {
        let frame = frame.into();
        let wait_ns = self.limits.wait_ns(frame);
        self.largest_frame_bytes = self.largest_frame_bytes.max(frame.bytes);
        let front = self.waiting.front().copied();
        if front.is_none_or(|front| front == ticket) {
            if wait_ns == 0 {
                return 0;
            }
            if front.is_none() || self.turn_bytes >= 2 * self.largest_frame_bytes {
                self.turn_bytes = 0;
                self.waiting.pop_front();
                self.waiting.push_back(ticket);
            }
            return wait_ns;
        }
        if !self.waiting.contains(&ticket) {
            self.waiting.push_back(ticket);
        }
        wait_ns.max(COME_AGAIN_NS)
    }

    /// Takes what a frame costs that goes.
    pub fn spend(&mut self, ticket: Ticket, frame: impl Into<Cost>) {
        let frame = frame.into();
        self.limits.spend(frame);
        if self.waiting.front() == Some(&ticket) {
            self.turn_bytes += frame.bytes;
        }
    }

    /// The interface has nothing to send, or may not for a reason of its own.
    pub fn leave(&mut self, ticket: Ticket) {
        if self.waiting.front() == Some(&ticket) {
            self.turn_bytes = 0;
        }
        self.waiting.retain(|other| *other != ticket);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocs_vmm_spec::RateLimit;
    use proptest::prelude::*;

    /// An interface that always has a frame of this size.
    struct Sender {
        ticket: Ticket,
        frame: u64,
        wakes_ns: u64,
        sent: u64,
    }

    /// Lets `frames.len()` interfaces send for `end_ns`, at the limit's `per_s` bytes.
    fn run(line: &mut Line, frames: &[u64], end_ns: u64) -> Vec<Sender> {
        let mut senders: Vec<Sender> = frames
            .iter()
            .map(|frame| Sender {
                ticket: line.ticket(),
                frame: *frame,
                wakes_ns: 0,
                sent: 0,
            })
            .collect();
        loop {
            let next = senders.iter_mut().min_by_key(|s| s.wakes_ns).unwrap();
            let now = next.wakes_ns;
            if now >= end_ns {
                return senders;
            }
            line.refill(now);
            let wait_ns = loop {
                match line.wait_ns(next.ticket, next.frame) {
                    0 => {
                        line.spend(next.ticket, next.frame);
                        next.sent += next.frame;
                    }
                    wait_ns => break wait_ns,
                }
            };
            next.wakes_ns = now + wait_ns;
        }
    }

    fn line(per_s: u64, burst: u64) -> Line {
        let limits = TransmitLimits {
            bytes: Some(RateLimit { per_s, burst }),
            ..TransmitLimits::default()
        };
        Line {
            limits: Shaper::new(&limits, 0),
            ..Line::default()
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(32) })]

        /// Whatever their frames' size: together they send what the limit says, each of them
        /// about as much as any other, and none is starved.
        #[test]
        fn interfaces_share_a_limit_alike(
            per_s in 1_000_000u64..100_000_000,
            frames in proptest::collection::vec(60u64..1_515, 1..5),
        ) {
            let burst = per_s / 200;
            let mut line = line(per_s, burst);
            let senders = run(&mut line, &frames, 200_000_000);
            let all: u64 = senders.iter().map(|s| s.sent).sum();
            let allowed = per_s / 5 + burst;
            prop_assert!(all <= allowed + 1_514 && all + burst + 1_514 >= allowed, "{} of {}", all, allowed);
            let least = senders.iter().map(|s| s.sent).min().unwrap();
            let share = (all - burst) / frames.len() as u64;
            prop_assert!(least + burst >= share / 3, "{} of {}", least, share);
        }
    }

    #[test]
    fn equal_interfaces_have_equal_shares() {
        let mut line = line(10_000_000, 100_000);
        let sent: Vec<u64> = run(&mut line, &[1_514; 3], 10_000_000_000)
            .iter()
            .map(|sender| sender.sent)
            .collect();
        let (least, most) = (sent.iter().min().unwrap(), sent.iter().max().unwrap());
        assert!((most - least) * 50 <= *most, "{sent:?}");
    }

    #[test]
    fn who_leaves_holds_up_nobody() {
        let mut line = line(1_000, 1_000);
        let (one, two) = (line.ticket(), line.ticket());
        assert_eq!(line.wait_ns(one, 1_000), 0);
        line.spend(one, 1_000);
        assert!(line.wait_ns(one, 100) > 0);
        line.refill(500_000_000);
        // It is the other's turn, though there is enough.
        assert_eq!(line.wait_ns(two, 100), COME_AGAIN_NS);
        line.leave(one);
        assert_eq!(line.wait_ns(two, 100), 0);
    }
}
