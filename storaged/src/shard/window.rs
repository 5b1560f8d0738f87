//! How long a shard looks for work before it sleeps.
//!
//! Waking a sleeping CPU costs more than many requests do. So a shard whose guests
//! answer quickly polls their rings for a while, and tells them that it needs no
//! kick; one whose guests pause stops at once, since looking in vain costs a system
//! call and time, and begins again after some quick answers in a row.

use std::time::Duration;

const LENGTH: Duration = Duration::from_micros(20);
/// Quick answers in a row that polling begins after: at first, and at most.
const ROW: u32 = 4;
const LONGEST_ROW: u32 = 512;

/// Whether to poll, learned from the pauses between work.
#[derive(Debug)]
pub struct Window {
    quick: u32,
    row: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { quick: 0, row: ROW }
    }
}

impl Window {
    /// Poll for so long; zero: not at all.
    #[must_use]
    pub fn get(&self) -> Duration {
        if self.quick >= self.row {
            LENGTH
        } else {
            Duration::ZERO
        }
    }

    /// Work came after a pause of `gap`.
    pub fn learn(&mut self, gap: Duration) {
        if gap <= LENGTH {
            self.quick = self.quick.saturating_add(1);
            // It has paid for many vain looks.
            if self.quick / 8 > self.row {
                self.row = ROW;
            }
            return;
        }
        if self.quick >= self.row {
            self.row = (self.row * 2).min(LONGEST_ROW);
        }
        self.quick = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_work_is_awaited_and_slow_work_is_slept_for() {
        let mut window = Window::default();
        assert_eq!(window.get(), Duration::ZERO);
        for _ in 0..ROW {
            assert_eq!(window.get(), Duration::ZERO);
            window.learn(Duration::from_micros(10));
        }
        assert_eq!(window.get(), LENGTH);
        let slow = Duration::from_millis(1);
        window.learn(slow);
        assert_eq!(window.get(), Duration::ZERO);
        // One that pauses again and again is ever more rarely looked for.
        let mut vain = 0;
        for n in 0..100_000 {
            vain += u32::from(n % 5 == 4 && window.get() > Duration::ZERO);
            window.learn(if n % 5 == 4 { slow } else { Duration::ZERO });
        }
        assert!(vain <= 1, "{vain} looks in vain");
    }
}
