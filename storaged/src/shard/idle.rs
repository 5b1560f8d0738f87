//! A shard that may begin nothing: polls, gathers completions, asks for kicks, sleeps.

use super::worker::Worker;
use io_uring::types::{SubmitArgs, Timespec};
use std::time::{Duration, Instant};

/// Looks for work between two looks at the clock, which cost more.
const LOOKS: u32 = 8;
/// With so many pieces on the ring, completions are awaited several at a time.
const DEEP: usize = 8;
/// Of a deep queue so many completions are shown before the rest, and so many operations
/// submitted: a disk that answers in batches would idle until a whole one is made ready. The
/// latter costs a system call, so half a batch at least is worth it.
pub(super) const SHOWN_EARLY: usize = 8;
const SUBMITTED_EARLY: usize = 16;
/// How long a driver that was just given completions is expected to offer more.
const REFILL: Duration = Duration::from_micros(4);
/// How long several completions are awaited: longer than a fast disk takes, and what
/// a request that comes meanwhile waits at most.
const GATHER: Duration = Duration::from_micros(100);
/// `IORING_ENTER_GETEVENTS`: run deferred completions.
const ENTER_GETEVENTS: u32 = 1;

impl Worker {
    /// Nothing may begin: polls for a while, if that has been worth it, then sleeps.
    pub(super) fn idle(&mut self) -> std::io::Result<()> {
        if self.on_ring >= DEEP && self.gathers {
            return self.gather();
        }
        let began = Instant::now();
        // While the disk works, sleeping costs less than its time.
        if self.on_ring == 0 && self.window.get() > Duration::ZERO {
            self.enter(None)?;
            if self.poll(self.window.get(), Self::work_came) {
                self.window.learn(began.elapsed());
                return self.enter(None);
            }
        }
        let idle = self.on_ring == 0;
        if !self.enable_kicks() {
            let until = self.sleepers.next();
            self.enter(Some((1, until)))?;
        }
        if idle {
            self.window.learn(began.elapsed());
        }
        self.gathers = true;
        Ok(())
    }

    /// The disk has plenty to do: takes what drivers offer in answer to what they were
    /// given, then awaits several completions for one wake-up, with no kicks between.
    fn gather(&mut self) -> std::io::Result<()> {
        if !self.parked.is_empty() && self.poll(REFILL, Self::was_offered) {
            return Ok(());
        }
        let want = self.on_ring / 2;
        self.early = SUBMITTED_EARLY;
        let most = self.sleepers.next().map_or(GATHER, |due| due.min(GATHER));
        match self.enter(Some((want, Some(most)))) {
            // A slow disk: one completion at a time, and kicks, until it is fast again.
            Err(error) if error.raw_os_error() == Some(libc::ETIME) => {
                self.gathers = !self.ring.completion().is_empty();
                Ok(())
            }
            other => other,
        }
    }

    /// Looks for `work` for `time`; true if it came.
    fn poll(&mut self, time: Duration, work: fn(&mut Self) -> bool) -> bool {
        let began = Instant::now();
        loop {
            for _ in 0..LOOKS {
                if work(self) {
                    return true;
                }
                std::hint::spin_loop();
            }
            if began.elapsed() >= time {
                return false;
            }
        }
    }

    /// Did a driver that was not told to kick offer more?
    pub(super) fn was_offered(&mut self) -> bool {
        for at in 0..self.parked.len() {
            let (device, queue) = self.parked[at];
            if self
                .slot_queue(device, queue)
                .is_some_and(|r| r.queue.has_more())
            {
                self.make_ready(device, queue);
            }
        }
        self.has_work()
    }

    /// Did it, or is there a completion?
    fn work_came(&mut self) -> bool {
        self.was_offered() || self.ring.submission().taskrun() || !self.ring.completion().is_empty()
    }

    /// Asks all drivers to kick; true if one offered something meanwhile.
    pub(super) fn enable_kicks(&mut self) -> bool {
        while let Some((device, queue)) = self.parked.pop() {
            if let Some(running) = self.slot_queue(device, queue) {
                running.parked = false;
                let offered = running.queue.enable_kicks();
                running.log_used();
                if offered {
                    self.make_ready(device, queue);
                }
            }
        }
        self.has_work()
    }

    /// Submits what is queued and takes what has completed; may wait for that many
    /// completions, and that for a time at most.
    pub(super) fn enter(&mut self, wait: Option<(usize, Option<Duration>)>) -> std::io::Result<()> {
        // Confirmations complete at once and are not what is awaited: each would end the
        // sleep that it is submitted with. One that does not, for its eventfd is full, may
        // not keep others waiting.
        let wait = match (std::mem::take(&mut self.confirms), wait) {
            (confirms @ 1.., Some((want, most))) => {
                let most = most.map_or(GATHER, |most| most.min(GATHER));
                Some((want + confirms, Some(most)))
            }
            (_, wait) => wait,
        };
        if let Some((want, Some(most))) = wait {
            let most = Timespec::from(most);
            let args = SubmitArgs::new().timespec(&most);
            self.ring.submitter().submit_with_args(want, &args)?;
            return Ok(());
        }
        let (queued, due) = {
            let queue = self.ring.submission();
            (queue.len(), queue.taskrun())
        };
        if queued == 0 && !due && wait.is_none() {
            return Ok(());
        }
        let want = wait.map_or(0, |(want, _)| want as u32);
        // SAFETY: the entries queued hold what `push` demands; no argument is passed.
        unsafe {
            self.ring.submitter().enter::<libc::sigset_t>(
                queued as u32,
                want,
                ENTER_GETEVENTS,
                None,
            )?;
        }
        Ok(())
    }
}
