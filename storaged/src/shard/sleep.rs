//! Devices that wait for their limits: asleep until a time, at no cost.

use super::worker::Worker;
use crate::disk::Stats;
use crate::qos;
use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

/// Shorter waits are not worth a wake-up: what may begin gathers meanwhile.
const SHORTEST_NS: u64 = 200_000;

/// A device asleep.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Sleeper {
    until_ns: u64,
    since_ns: u64,
    device: usize,
    generation: u32,
}

/// All of a shard's.
#[derive(Debug, Default)]
pub struct Sleepers {
    by_time: BinaryHeap<Reverse<Sleeper>>,
    due: Vec<Sleeper>,
}

impl Sleepers {
    /// How long from now until the first is due; `None` if there is none.
    pub fn next(&self) -> Option<Duration> {
        let first = self.by_time.peek()?;
        let now_ns = qos::now_ns();
        Some(Duration::from_nanos(
            first.0.until_ns.saturating_sub(now_ns),
        ))
    }
}

impl Worker {
    /// Puts a device to sleep if its limits say so.
    pub(super) fn must_wait(&mut self, device: usize) -> bool {
        let now_ns = *self.now_ns.get_or_insert_with(qos::now_ns);
        let Some(dev) = self.devices[device].as_mut() else {
            return true;
        };
        let Some(ready_ns) = dev.disk.qos.ready_at(now_ns) else {
            return false;
        };
        Stats::bump(&dev.disk.stats.throttled);
        dev.asleep = true;
        if dev.since_ns == 0 {
            dev.since_ns = now_ns;
        }
        self.sleepers.by_time.push(Reverse(Sleeper {
            until_ns: ready_ns.max(now_ns + SHORTEST_NS),
            since_ns: dev.since_ns,
            device,
            generation: dev.generation,
        }));
        true
    }

    /// Wakes the devices whose time has come, those that waited longest first: of a
    /// group, none is served twice before another that waits.
    pub(super) fn wake_sleepers(&mut self) {
        if self.sleepers.by_time.is_empty() {
            return;
        }
        let now_ns = qos::now_ns();
        while let Some(first) = self.sleepers.by_time.peek_mut()
            && first.0.until_ns <= now_ns
        {
            let Reverse(sleeper) = std::collections::binary_heap::PeekMut::pop(first);
            self.sleepers.due.push(sleeper);
        }
        self.wake_due();
    }

    /// Limits have changed: everyone asks anew.
    pub(super) fn limits_changed(&mut self) {
        for (key, dev) in self.devices.iter().enumerate() {
            if let Some(dev) = dev {
                self.turns[dev.lane as usize].weigh(key, dev.disk.qos.weight());
            }
        }
        let all = self.sleepers.by_time.drain().map(|Reverse(s)| s);
        self.sleepers.due.extend(all);
        self.wake_due();
    }

    fn wake_due(&mut self) {
        self.sleepers
            .due
            .sort_unstable_by_key(|s| (s.since_ns, s.device));
        for sleeper in self.sleepers.due.drain(..) {
            if let Some(dev) = self.devices[sleeper.device].as_mut()
                && dev.generation == sleeper.generation
            {
                dev.asleep = false;
                if dev.waiting.is_none() {
                    self.turns[dev.lane as usize].resume(sleeper.device);
                }
            }
        }
    }
}
