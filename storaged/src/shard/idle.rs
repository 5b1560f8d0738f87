//! A shard without work: polls, asks for kicks, sleeps.

use super::worker::Worker;
use io_uring::types::{SubmitArgs, Timespec};
use std::time::{Duration, Instant};

/// Looks for work between two looks at the clock, which cost more.
const LOOKS: u32 = 8;
/// `IORING_ENTER_GETEVENTS`: run deferred completions.
const ENTER_GETEVENTS: u32 = 1;

impl Worker {
    /// Nothing is ready: polls for a while, if that has been worth it, then sleeps.
    pub(super) fn idle(&mut self) -> std::io::Result<()> {
        let began = Instant::now();
        // While the disk works, sleeping costs less than its time.
        if self.on_ring == 0 && self.window.get() > Duration::ZERO {
            self.enter(None)?;
            while began.elapsed() < self.window.get() {
                for _ in 0..LOOKS {
                    if self.work_came() {
                        self.window.learn(began.elapsed());
                        return self.enter(None);
                    }
                    std::hint::spin_loop();
                }
            }
        }
        let idle = self.on_ring == 0;
        if !self.enable_kicks() {
            let until = self.sleepers.next();
            self.enter(Some(until))?;
        }
        if idle {
            self.window.learn(began.elapsed());
        }
        Ok(())
    }

    /// Is there a completion, or did a driver that was not told to kick offer more?
    fn work_came(&mut self) -> bool {
        for at in 0..self.parked.len() {
            let (device, queue) = self.parked[at];
            if self
                .slot_queue(device, queue)
                .is_some_and(|r| r.queue.has_more())
            {
                self.make_ready(device, queue);
            }
        }
        self.has_work() || self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Asks all drivers to kick; true if one offered something meanwhile.
    fn enable_kicks(&mut self) -> bool {
        while let Some((device, queue)) = self.parked.pop() {
            if let Some(running) = self.slot_queue(device, queue) {
                running.parked = false;
                if running.queue.enable_kicks() {
                    self.make_ready(device, queue);
                }
            }
        }
        self.has_work()
    }

    /// Submits what is queued and takes what has completed; may wait for a completion,
    /// and that for a time at most.
    pub(super) fn enter(&mut self, wait: Option<Option<Duration>>) -> std::io::Result<()> {
        if let Some(Some(most)) = wait {
            let most = Timespec::from(most);
            let args = SubmitArgs::new().timespec(&most);
            self.ring.submitter().submit_with_args(1, &args)?;
            return Ok(());
        }
        let (queued, due) = {
            let queue = self.ring.submission();
            (queue.len(), queue.taskrun())
        };
        if queued == 0 && !due && wait.is_none() {
            return Ok(());
        }
        // SAFETY: the entries queued hold what `push` demands; no argument is passed.
        unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(
                queued as u32,
                u32::from(wait.is_some()),
                ENTER_GETEVENTS,
                None,
            )?;
        }
        Ok(())
    }
}
