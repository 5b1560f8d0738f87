//! The thread of one disk: waits for the backend, the driver and the machine's end.

use super::bounce::Bounce;
use super::inflight::Inflight;
use super::look::{Look, Seen};
use super::plan::Plan;
use super::session::{Session, SessionError};
use super::{Active, BlockDevice, BlockMetrics, Positions, Rest, Shared};
use crate::error::{Result, host};
use crate::inherit;
use crate::irq::{borrow, new_event};
use crate::memory::dirty::BackendLog;
use crate::outcome::{LastWord, Outcome};
use crate::virtio::F_VERSION_1;
use ocs_vmm_spec::Block;
use rustix::event::{PollFd, PollFlags, poll};
use std::convert::Infallible;
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Instant;
use vmm_sys_util::eventfd::EventFd;

/// The disk's connection side, before its thread starts.
pub struct BlockWorker {
    id: String,
    queues: u16,
    listener: UnixListener,
    backend_uid: u32,
    shared: Arc<Shared>,
    metrics: Arc<BlockMetrics>,
    /// Signalled when a backend first connects or brings a larger disk, and at the thread's end.
    news: EventFd,
    no_call: EventFd,
    broken: EventFd,
    inflight: Option<Inflight>,
    session: Option<Session>,
    active: Option<Active>,
    /// Paused: no ring runs, whoever connects or activates.
    resting: bool,
    /// Meanwhile: where a backend stopped the rings, which `active` does not know.
    stopped_at: Option<Positions>,
    /// For a guest whose memory no backend sees.
    bounce: Option<Bounce>,
    log: Option<Arc<BackendLog>>,
    /// Until somebody has read the disk who must before the guest runs.
    look: Option<Look>,
}

/// How a disk differs from one of a machine that starts.
#[derive(Clone, Copy, Debug, Default)]
pub struct DiskKind {
    /// No backend sees guest memory.
    pub bounced: bool,
    /// It is paused until it was loaded; no backend is heard before that.
    pub restored: bool,
}

/// A running worker.
pub struct WorkerThread {
    handle: JoinHandle<()>,
    /// Disconnected when the thread ends.
    ended: Receiver<Infallible>,
    shared: Arc<Shared>,
}

impl WorkerThread {
    /// Asks for the ring's stop and the thread's end.
    pub fn ask_to_stop(&self) {
        self.shared.wishes().stop = true;
        if let Err(error) = self.shared.wake.write(1) {
            tracing::error!(%error, "a disk's thread cannot be woken");
        }
    }

    /// Has the thread let go of everything?
    pub fn has_ended(&self) -> bool {
        matches!(self.ended.try_recv(), Err(TryRecvError::Disconnected))
    }

    /// Waits for the end that was asked for. A backend that has not let go by `deadline` is
    /// hung up on: it may be stopped or stuck, and the machine's end cannot wait for that.
    pub fn join(self, deadline: Instant) {
        let left = deadline.saturating_duration_since(Instant::now());
        if let Err(RecvTimeoutError::Timeout) = self.ended.recv_timeout(left) {
            tracing::warn!("hanging up on a block backend that does not answer");
            if let Some(line) = self.shared.line().upgrade()
                && let Err(error) = line.shutdown(Shutdown::Both)
            {
                tracing::error!(%error, "a block backend cannot be hung up on");
            }
        }
        if self.handle.join().is_err() {
            tracing::error!("a disk's thread panicked");
        }
    }
}

impl BlockWorker {
    /// The two halves of a disk; `news` is signalled when a backend first connects, and when
    /// the thread has ended.
    pub fn new(
        spec: &Block,
        listener: UnixListener,
        kind: DiskKind,
        news: EventFd,
    ) -> Result<(BlockDevice, Self)> {
        let shared = Arc::new(Shared {
            wishes: Mutex::default(),
            wake: new_event()?,
            offer: Mutex::default(),
            is_reset: AtomicBool::new(true),
            connected: AtomicBool::new(false),
            ever_connected: AtomicBool::new(false),
            region: Mutex::default(),
            can_log: AtomicBool::new(false),
            offered: AtomicBool::new(false),
            grown: AtomicBool::new(false),
            line: Mutex::default(),
        });
        let device = BlockDevice::new(Arc::clone(&shared), spec.queues, kind.bounced);
        let worker = Self {
            id: spec.id.clone(),
            queues: spec.queues,
            listener,
            backend_uid: spec.backend_uid,
            shared,
            metrics: Arc::default(),
            news,
            no_call: new_event()?,
            broken: new_event()?,
            inflight: None,
            session: None,
            active: None,
            resting: kind.restored,
            stopped_at: None,
            bounce: match kind.bounced {
                true => Some(Bounce::new().map_err(host("make a bounce region"))?),
                false => None,
            },
            log: None,
            look: None,
        };
        Ok((device, worker))
    }

    /// Has the disk read before the machine may run.
    pub fn look_first(&mut self, look: Look) {
        self.look = Some(look);
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<BlockMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Starts the thread, whose unexpected end is the machine's.
    pub fn spawn(
        mut self,
        outcome: Arc<Outcome>,
        prepare: fn() -> std::io::Result<()>,
    ) -> Result<WorkerThread> {
        let shared = Arc::clone(&self.shared);
        let (alive, ended) = mpsc::channel();
        let word = LastWord::new(outcome, format!("disk {}", self.id));
        let handle = std::thread::Builder::new()
            .name(format!("blk-{}", self.id))
            .stack_size(256 * 1024)
            .spawn(move || {
                let alive = alive;
                if let Err(error) = prepare() {
                    tracing::error!(device = self.id, %error, "a disk's thread cannot be confined");
                    drop(word);
                } else if self.run() {
                    word.unsaid();
                }
                let news = self.close();
                drop(alive);
                // A full counter already means "news".
                let _ = news.write(1);
            })
            .map_err(host("start a disk's thread"))?;
        Ok(WorkerThread {
            handle,
            ended,
            shared,
        })
    }

    /// Closes listener and connection.
    fn close(self) -> EventFd {
        self.news
    }

    /// Serves the disk; true if it was asked to stop.
    fn run(&mut self) -> bool {
        loop {
            let [wake, listener, broken, backend, kicked] = match self.wait() {
                Ok(ready) => ready,
                Err(error) => {
                    tracing::error!(device = self.id, %error, "a disk cannot wait for events");
                    return false;
                }
            };
            // A lost backend first, so that its successor in the listener finds room.
            if backend {
                self.disconnect("the backend went away");
            }
            if broken {
                self.fail_driver();
            }
            if wake && !self.heed_wishes() {
                return true;
            }
            if listener {
                self.accept();
            }
            if kicked {
                self.pump(true);
            }
        }
    }

    /// Sleeps until one of: the wake event, the listener, the ring's error event, the backend,
    /// either side of the bounce region.
    fn wait(&self) -> std::io::Result<[bool; 5]> {
        let wake = borrow(&self.shared.wake);
        let listening = match self.resting {
            true => PollFlags::empty(),
            false => PollFlags::IN,
        };
        let mut fds = vec![
            PollFd::new(&wake, PollFlags::IN),
            // A backend that comes meanwhile waits: what it is to be told is not known yet.
            PollFd::new(&self.listener, listening),
            PollFd::from_borrowed_fd(borrow(&self.broken), PollFlags::IN),
        ];
        let backend = self.session.as_ref().map(Session::fd);
        let has_backend = backend.is_some();
        if let Some(backend) = &backend {
            fds.push(PollFd::new(backend, PollFlags::IN));
        }
        let bounce = fds.len();
        if let (Some(bounce), Some(active), true, false) =
            (&self.bounce, &self.active, has_backend, self.resting)
        {
            let kicks = active.queues().map(|(_, queue)| queue.kick());
            for event in std::iter::once(bounce.call()).chain(kicks) {
                fds.push(PollFd::from_borrowed_fd(borrow(event), PollFlags::IN));
            }
        }
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        let kicked = (bounce..fds.len()).any(ready);
        Ok([
            ready(0),
            ready(1),
            ready(2),
            has_backend && ready(3),
            kicked,
        ])
    }

    /// Moves bounced requests; with `more`, begins what the guest offers.
    fn pump(&mut self, more: bool) {
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
    fn drain(&mut self) -> std::result::Result<(), String> {
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

    /// Does what the vCPUs asked for; false at the machine's end.
    fn heed_wishes(&mut self) -> bool {
        // Reading only clears the event; the wishes themselves are behind the lock.
        let _ = self.shared.wake.read();
        let wishes = std::mem::take(&mut *self.shared.wishes());
        if wishes.reset {
            self.stop_ring();
        }
        if wishes.stop {
            // The region stays as it is: another process may serve the disk with it by now.
            self.take_ring();
            return false;
        }
        if let Some(region) = wishes.region {
            self.inflight = Some(region);
        }
        if let Some(log) = wishes.log {
            self.log = log;
        }
        if let Some(active) = wishes.activate {
            // A driver that loads from a snapshot goes on; a new one begins at 0 either way.
            let resumed = self.resting;
            self.active = Some(active);
            self.shared.is_reset.store(false, Ordering::SeqCst);
            self.start_ring(resumed);
        }
        match wishes.rest {
            Some(Rest::Begin(answer)) => {
                // The device's half may have gone with its machine.
                let _ = answer.send(self.rest());
            }
            Some(Rest::End) => {
                (self.resting, self.stopped_at) = (false, None);
                self.start_ring(true);
            }
            None => {}
        }
        true
    }

    /// Stops the rings, keeping the driver: where they stand, `None` without a driver.
    ///
    /// They may rest already: a pause that follows a resume at once takes the place of a wish
    /// that this thread has not seen yet, and finds the rings where the pause before left them.
    fn rest(&mut self) -> std::result::Result<Option<Positions>, String> {
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
    fn share_region(&self) {
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

    fn accept(&mut self) {
        let stream = match self.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::debug!(device = self.id, %error, "accept failed");
                return;
            }
        };
        match self.admit(stream) {
            Ok(()) => {}
            Err(error) => {
                BlockMetrics::count(&self.metrics.failed_handshakes);
                tracing::warn!(device = self.id, %error, "backend refused");
            }
        }
    }

    fn admit(&mut self, stream: UnixStream) -> std::result::Result<(), SessionError> {
        let peer = inherit::peer_uid(&stream)?;
        if peer != self.backend_uid {
            BlockMetrics::count(&self.metrics.refused_peers);
            return Err(SessionError::Lacks(format!(
                "runs as uid {peer}, not {}",
                self.backend_uid
            )));
        }
        if self.session.is_some() {
            return Err(SessionError::Lacks(
                "has a predecessor connected".to_owned(),
            ));
        }
        stream.set_nonblocking(false)?;
        let first = !self.shared.ever_connected.load(Ordering::SeqCst);
        let known = self.shared.offered.load(Ordering::SeqCst);
        let before = known.then(|| *self.shared.offer());
        let stream = Arc::new(stream);
        *self.shared.line() = Arc::downgrade(&stream);
        let session = Session::open(stream, before, self.queues, &mut self.inflight)?;
        if known {
            // A backend hangs up to say that the disk has grown: a driver that knows
            // the disk hears it from the event thread, once the configuration says so.
            if self.shared.offer().grow(&session.offer) {
                self.shared.grown.store(true, Ordering::SeqCst);
                self.news.write(1)?;
            }
        } else {
            *self.shared.offer() = session.offer;
            self.shared.offered.store(true, Ordering::SeqCst);
        }
        let can_log = session.can_log();
        self.shared.can_log.store(can_log, Ordering::SeqCst);
        self.session = Some(session);
        BlockMetrics::count(&self.metrics.connects);
        self.shared.connected.store(true, Ordering::SeqCst);
        if !self.look()? {
            return Ok(());
        }
        self.shared.ever_connected.store(true, Ordering::SeqCst);
        tracing::info!(device = self.id, first, "backend connected");
        if first {
            self.news.write(1)?;
        }
        self.start_ring(true);
        Ok(())
    }

    /// Reads the disk if that is still to be done; false if the machine does not go on now.
    fn look(&mut self) -> std::result::Result<bool, SessionError> {
        let (Some(mut look), Some(session)) = (self.look.take(), &mut self.session) else {
            return Ok(true);
        };
        let started = {
            let mut bounce = look.bounce();
            bounce.reset();
            session.start(&Plan::bounced(F_VERSION_1, &bounce), &self.broken)
        };
        let seen = match started {
            Ok(()) => look.take(session.offer.bytes(), &session.line()),
            Err(_) => Seen::Lost,
        };
        let stopped = started.and_then(|()| session.stop(&[0]));
        match (seen, stopped, &self.inflight) {
            (Seen::Bad, ..) => Ok(false),
            (Seen::All, Ok(_), Some(inflight)) => {
                inflight.clear()?;
                Ok(true)
            }
            (_, stopped, _) => {
                self.look = Some(look);
                self.disconnect("the backend failed before the guest ran");
                stopped.map(|_| false)
            }
        }
    }

    /// Starts the ring where both sides are there.
    fn start_ring(&mut self, resumed: bool) {
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
    fn rings(&self) -> Vec<u16> {
        if self.bounce.is_some() {
            return vec![0];
        }
        let queues = self.active.iter().flat_map(Active::queues);
        queues.map(|(index, _)| index).collect()
    }

    /// Ends the driver's use of the rings: what was in flight is nobody's any more.
    fn stop_ring(&mut self) {
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
    fn take_ring(&mut self) -> bool {
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
    fn note_failed_ring(&self, what: &str, error: &SessionError) {
        if self.metrics.failed_rings.fetch_add(1, Ordering::Relaxed) == 0 {
            tracing::warn!(device = self.id, what, %error, "the backend failed a ring");
        }
    }

    /// The backend found the driver breaking the queue's rules.
    fn fail_driver(&self) {
        // Reading only clears the event.
        let _ = self.broken.read();
        if let Some(active) = &self.active {
            active.fault.raise("the backend cannot use the queue");
        }
    }

    fn disconnect(&mut self, why: &str) {
        if self.session.take().is_some() {
            BlockMetrics::count(&self.metrics.disconnects);
            self.shared.connected.store(false, Ordering::SeqCst);
            tracing::info!(device = self.id, why, "backend disconnected");
        }
    }
}

#[cfg(test)]
mod tests;
