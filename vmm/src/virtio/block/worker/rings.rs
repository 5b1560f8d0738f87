//! The rings of a disk: started where backend and driver are both there, stopped when either
//! goes or the machine is paused, and moved by hand where no backend sees the guest's memory.

use super::super::plan::Plan;
use super::super::session::SessionError;
use super::super::{Active, Positions};
use super::BlockWorker;
use crate::irq::borrow;
use rustix::event::{PollFd, PollFlags, poll};
use std::sync::PoisonError;
use std::sync::atomic::Ordering;

impl BlockWorker {
    /// Moves bounced requests; with `more`, begins what the guest offers.
    pub(super) fn pump(&mut self, more: bool) {
        let (Some(bounce), Some(active)) = (&mut self.bounce, &mut self.active) else {
            return;
        };
        // Reading only clears the events.
        let _ = bounce.call().read();
        if more {
            for (_, queue) in active.queues() {
                let _ = queue.kick().read();
            }
        }
        match bounce.pump(&mut active.queues, more) {
            Ok(pumped) => {
                self.metrics
                    .bounced_requests
                    .fetch_add(pumped.requests, Ordering::Relaxed);
                self.metrics
                    .bounced_bytes
                    .fetch_add(pumped.bytes, Ordering::Relaxed);
            }
            Err(error) => {
                active.fault.raise(&error.to_string());
                self.stop_ring();
            }
        }
    }

    /// Waits until no bounced request is under way.
    pub(super) fn drain(&mut self) -> std::result::Result<(), String> {
        while let (Some(bounce), Some(session)) = (&self.bounce, &self.session)
            && !bounce.is_idle()
        {
            let backend = session.fd();
            let mut fds = [
                PollFd::from_borrowed_fd(borrow(bounce.call()), PollFlags::IN),
                PollFd::new(&backend, PollFlags::IN),
            ];
            match poll(&mut fds, None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.to_string()),
            }
            if !fds[1].revents().is_empty() {
                self.disconnect("the backend went away");
                return Err("its backend is away, and may have requests in flight".to_owned());
            }
            self.pump(false);
        }
        Ok(())
    }

    /// Stops the rings, keeping the driver: where they stand, `None` without a driver.
    ///
    /// They may rest already: a pause that follows a resume at once takes the place of a wish
    /// that this thread has not seen yet, and finds the rings where the pause before left them.
    pub(super) fn rest(&mut self) -> std::result::Result<Option<Positions>, String> {
        if self.active.is_none() || self.resting {
            self.resting = true;
            self.share_region();
            let active = self.active.as_ref();
            return Ok(active.map(|active| {
                let stopped_at = self.stopped_at.clone();
                stopped_at.unwrap_or_else(|| active.positions())
            }));
        }
        self.drain()?;
        let rings = self.rings();
        let session = self
            .session
            .as_mut()
            .ok_or("its backend is away, and may have requests in flight")?;
        let stopped = session.stop(&rings);
        let positions = match (stopped, &self.active, &self.bounce) {
            (Ok(_), Some(active), Some(_)) => Ok(active.positions()),
            (Ok(bases), Some(active), None) => active.stopped_at(&bases),
            (Ok(_), None, _) => return Ok(None),
            (Err(error), _, _) => Err(error),
        };
        match positions {
            Ok(positions) => {
                (self.resting, self.stopped_at) = (true, Some(positions.clone()));
                self.share_region();
                Ok(Some(positions))
            }
            Err(error) => {
                self.note_failed_ring("stop", &error);
                let why = error.to_string();
                self.disconnect("the backend failed");
                Err(why)
            }
        }
    }

    /// Leaves a handle of the in-flight region for whoever may take the disk over.
    pub(super) fn share_region(&self) {
        let shared = self
            .inflight
            .as_ref()
            .and_then(|region| region.share().ok());
        let mut place = self
            .shared
            .region
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *place = shared;
    }

    /// Starts the ring where both sides are there.
    pub(super) fn start_ring(&mut self, resumed: bool) {
        let (Some(session), Some(active), false) = (&mut self.session, &self.active, self.resting)
        else {
            return;
        };
        let plan = match &self.bounce {
            Some(bounce) => Ok(Plan::bounced(active.features, bounce)),
            None => Plan::direct(active, resumed, &self.no_call, self.log.as_deref()),
        };
        if let Err(error) = plan.and_then(|plan| session.start(&plan, &self.broken)) {
            self.note_failed_ring("start", &error);
            self.disconnect("the backend failed");
        } else if self.bounce.is_some() {
            self.pump(true);
        }
    }

    /// The numbers of the rings that the backend serves.
    pub(super) fn rings(&self) -> Vec<u16> {
        if self.bounce.is_some() {
            return vec![0];
        }
        let queues = self.active.iter().flat_map(Active::queues);
        queues.map(|(index, _)| index).collect()
    }

    /// Ends the driver's use of the rings: what was in flight is nobody's any more.
    pub(super) fn stop_ring(&mut self) {
        if self.take_ring() {
            if let Some(inflight) = &self.inflight
                && let Err(error) = inflight.clear()
            {
                tracing::error!(device = self.id, %error, "the inflight region cannot be cleared");
            }
            if let Some(bounce) = &mut self.bounce {
                bounce.reset();
            }
        }
        self.shared.is_reset.store(true, Ordering::SeqCst);
    }

    /// Takes the rings from the backend; were there any?
    pub(super) fn take_ring(&mut self) -> bool {
        let rings = self.rings();
        self.stopped_at = None;
        if self.active.take().is_none() {
            return false;
        }
        if let Some(session) = &mut self.session
            && !self.resting
            && let Err(error) = session.stop(&rings)
        {
            self.note_failed_ring("stop", &error);
            self.disconnect("the backend failed");
        }
        true
    }

    /// Counted, and logged the first time only: a guest could make it happen in a loop.
    pub(super) fn note_failed_ring(&self, what: &str, error: &SessionError) {
        if self.metrics.failed_rings.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(device = self.id, what, %error, "the backend failed a ring");
        }
    }

    /// The backend found the driver breaking the queue's rules.
    pub(super) fn fail_driver(&self) {
        // Reading only clears the event.
        let _ = self.broken.read();
        if let Some(active) = &self.active {
            active.fault.raise("the backend cannot use the queue");
        }
    }
}
