//! Folds a fast series of equal outcomes into a line per change and a running total.

use core::fmt;

/// How one attempt ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered.
    Ok,
    /// Nothing came back in time.
    Timeout,
    /// The peer refused (RST) or broke off.
    Reset,
    /// What came back is not what was sent.
    Mismatch,
    /// It could not be sent: no address, no route, no free socket.
    Unsent,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ok => "ok",
            Self::Timeout => "timeout",
            Self::Reset => "reset",
            Self::Mismatch => "mismatch",
            Self::Unsent => "unsent",
        })
    }
}

/// Totals of one order and when it last spoke.
#[derive(Debug)]
pub struct Fold {
    interval_us: u64,
    last: Option<Outcome>,
    speak_at_us: u64,
    /// Attempts that ended in [`Outcome::Ok`].
    pub ok_total: u64,
    /// All others.
    pub failed_total: u64,
}

impl Fold {
    /// Speaks at every change of outcome, and every `interval_us` without one.
    #[must_use]
    pub fn new(interval_us: u64) -> Self {
        Self {
            interval_us,
            last: None,
            speak_at_us: 0,
            ok_total: 0,
            failed_total: 0,
        }
    }

    /// Counts one outcome; true when a line is due.
    pub fn record(&mut self, outcome: Outcome, now_us: u64) -> bool {
        if outcome == Outcome::Ok {
            self.ok_total += 1;
        } else {
            self.failed_total += 1;
        }
        let due = self.last != Some(outcome) || now_us >= self.speak_at_us;
        if due {
            self.last = Some(outcome);
            self.speak_at_us = now_us.saturating_add(self.interval_us);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_speaks_at_once_and_sameness_each_interval() {
        let mut fold = Fold::new(1_000_000);
        let mut spoken = alloc::vec::Vec::new();
        for (step, outcome) in [Outcome::Timeout; 15]
            .into_iter()
            .chain([Outcome::Ok; 25])
            .enumerate()
        {
            if fold.record(outcome, step as u64 * 100_000) {
                spoken.push(step);
            }
        }
        assert_eq!(spoken, [0, 10, 15, 25, 35]);
        assert_eq!((fold.ok_total, fold.failed_total), (25, 15));
    }
}
