//! How long a shard looks for work before it sleeps.
//!
//! Waking a sleeping CPU costs more than many requests do. So a shard whose guests
//! answer quickly polls their rings for a while, and tells them that it needs no
//! kick; one whose guests pause stops at once, and begins again in small steps.

use std::time::Duration;

const MIN: Duration = Duration::from_micros(4);
const MAX: Duration = Duration::from_micros(20);

/// The time to poll, learned from the pauses between work.
#[derive(Debug, Default)]
pub struct Window(Duration);

impl Window {
    /// Poll for so long; zero: not at all.
    #[must_use]
    pub fn get(&self) -> Duration {
        self.0
    }

    /// Work came after a pause of `gap`.
    pub fn learn(&mut self, gap: Duration) {
        self.0 = if gap <= MAX {
            (self.0 * 2).clamp(MIN, MAX)
        } else {
            Duration::ZERO
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quick_work_is_awaited_and_slow_work_is_slept_for() {
        let mut window = Window::default();
        assert_eq!(window.get(), Duration::ZERO);
        window.learn(Duration::from_micros(10));
        assert_eq!(window.get(), MIN);
        for _ in 0..5 {
            window.learn(Duration::from_micros(1));
        }
        assert_eq!(window.get(), MAX);
        window.learn(Duration::from_millis(1));
        assert_eq!(window.get(), Duration::ZERO);
    }
}
