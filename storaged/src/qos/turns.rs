//! Whose turn it is: deficit round robin with a lane for newcomers, as `fq_codel`
//! has it (RFC 8290 §4), over devices instead of flows and cost instead of bytes.
//!
//! A device that was idle goes first, for one quantum; those with work all the time
//! take turns behind. So a guest that reads a block now and then waits for one piece
//! of its neighbours' work, not for their queues, and no guest gains by pausing.

use std::collections::VecDeque;

/// Cost that a device of weight [`WEIGHT`] may spend a turn: the dearest piece of
/// work, so that every turn begins at least one.
pub const QUANTUM: i64 = super::cost(super::PIECE_BYTES as u64) as i64;
/// A device's weight unless it is given another.
pub const WEIGHT: u32 = 100;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Lane {
    Out,
    New,
    Old,
}

#[derive(Clone, Copy, Debug)]
struct Flow {
    lane: Lane,
    deficit: i64,
    quantum: i64,
}

/// The order of devices with work.
#[derive(Debug, Default)]
pub struct Turns {
    flows: Vec<Flow>,
    new: VecDeque<usize>,
    old: VecDeque<usize>,
}

impl Turns {
    /// Makes room for device `key`, which has no work; its share is by `weight`.
    pub fn join(&mut self, key: usize, weight: u32) {
        if self.flows.len() <= key {
            let idle = Flow {
                lane: Lane::Out,
                deficit: 0,
                quantum: QUANTUM,
            };
            self.flows.resize(key + 1, idle);
        }
        self.weigh(key, weight);
    }

    /// Changes a device's share.
    pub fn weigh(&mut self, key: usize, weight: u32) {
        if let Some(flow) = self.flows.get_mut(key) {
            flow.quantum = (QUANTUM * i64::from(weight.max(1)) / i64::from(WEIGHT)).max(1);
        }
    }

    /// `key` has work.
    pub fn wake(&mut self, key: usize) {
        if let Some(flow) = self.flows.get_mut(key)
            && flow.lane == Lane::Out
        {
            (flow.lane, flow.deficit) = (Lane::New, flow.quantum);
            self.new.push_back(key);
        }
    }

    /// `key`, which left with work, may go on with it: behind the others.
    pub fn resume(&mut self, key: usize) {
        if let Some(flow) = self.flows.get_mut(key)
            && flow.lane == Lane::Out
        {
            flow.lane = Lane::Old;
            self.old.push_back(key);
        }
    }

    /// Whose turn it is. The caller begins a piece of its work and says so by
    /// [`Self::spend`], or by [`Self::rest`] or [`Self::leave`] why not.
    pub fn whose(&mut self) -> Option<usize> {
        loop {
            let key = *self.new.front().or_else(|| self.old.front())?;
            let flow = &mut self.flows[key];
            if flow.deficit > 0 {
                return Some(key);
            }
            flow.deficit += flow.quantum;
            if flow.lane == Lane::New {
                flow.lane = Lane::Old;
                self.new.pop_front();
                self.old.push_back(key);
            } else if self.old.len() > 1 {
                self.old.rotate_left(1);
            }
        }
    }

    /// The device whose turn it is began a piece of that cost; true if it may go on.
    pub fn spend(&mut self, key: usize, cost: u64) -> bool {
        let flow = &mut self.flows[key];
        flow.deficit -= i64::try_from(cost).unwrap_or(i64::MAX);
        flow.deficit > 0
    }

    /// The device whose turn it is has no more work.
    pub fn rest(&mut self, key: usize) {
        let flow = &mut self.flows[key];
        match flow.lane {
            // Once round behind the others, lest it be new again at once.
            Lane::New if !self.old.is_empty() => {
                self.new.pop_front();
                flow.lane = Lane::Old;
                self.old.push_back(key);
            }
            _ => self.leave(key),
        }
    }

    /// `key` has to wait for something else than its turn, or is gone.
    pub fn leave(&mut self, key: usize) {
        let Some(flow) = self.flows.get_mut(key) else {
            return;
        };
        let lane = match std::mem::replace(&mut flow.lane, Lane::Out) {
            Lane::Out => return,
            Lane::New => &mut self.new,
            Lane::Old => &mut self.old,
        };
        if lane.front() == Some(&key) {
            lane.pop_front();
        } else {
            lane.retain(|k| *k != key);
        }
    }

    /// Does nobody have work?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.new.is_empty() && self.old.is_empty()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qos::{PIECE_BYTES, cost};
    use proptest::prelude::*;

    #[test]
    fn a_newcomer_goes_first_once_and_then_waits_its_turn() {
        let mut turns = Turns::default();
        (0..3).for_each(|key| turns.join(key, WEIGHT));
        let whole = cost(PIECE_BYTES as u64);
        turns.wake(0);
        turns.wake(1);
        for _ in 0..4 {
            let key = turns.whose().unwrap();
            turns.spend(key, whole);
        }
        turns.wake(2);
        assert_eq!(turns.whose(), Some(2));
        assert!(turns.spend(2, cost(4096)));
        assert_eq!(turns.whose(), Some(2));
        turns.rest(2);
        // Out only once the others had their turn.
        turns.wake(2);
        let order: Vec<_> = (0..3)
            .map(|_| {
                let key = turns.whose().unwrap();
                turns.spend(key, whole);
                key
            })
            .collect();
        assert_eq!(order.iter().filter(|k| **k == 2).count(), 1);
        assert_ne!(order[0], 2);
    }

    #[test]
    fn who_leaves_is_not_asked_and_resumes_behind() {
        let mut turns = Turns::default();
        (0..2).for_each(|key| turns.join(key, WEIGHT));
        turns.wake(0);
        turns.wake(1);
        turns.leave(1);
        turns.leave(1);
        assert_eq!(turns.whose(), Some(0));
        turns.spend(0, QUANTUM as u64);
        turns.resume(1);
        assert_eq!(turns.whose(), Some(1));
        turns.leave(1);
        turns.rest(0);
        assert_eq!(turns.whose(), None);
        assert!(turns.is_empty());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Devices that always have work share the cost by weight, whatever the size
        /// of their requests, to within a quantum and a piece each.
        #[test]
        fn shares_are_by_weight(
            flows in prop::collection::vec((1u32..400, 512u64..=PIECE_BYTES as u64), 2..8),
            rounds in 200usize..2000,
        ) {
            let mut turns = Turns::default();
            for (key, (weight, _)) in flows.iter().enumerate() {
                turns.join(key, *weight);
                turns.wake(key);
            }
            let mut spent = vec![0u64; flows.len()];
            for _ in 0..rounds {
                let key = turns.whose().unwrap();
                let cost = cost(flows[key].1);
                spent[key] += cost;
                turns.spend(key, cost);
            }
            // Naive reference: the ideal share of each after the same total.
            let round = |key: usize| spent[key] as f64 / f64::from(flows[key].0);
            let slack = |key: usize| {
                (QUANTUM as f64 * f64::from(flows[key].0) / 100.0 * 2.0 + cost(flows[key].1) as f64)
                    / f64::from(flows[key].0)
            };
            for a in 0..flows.len() {
                for b in 0..flows.len() {
                    prop_assert!(
                        round(a) - round(b) <= slack(a) + slack(b),
                        "{a}: {} and {b}: {} of {flows:?}", round(a), round(b)
                    );
                }
            }
        }
    }
}
