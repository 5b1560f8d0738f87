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
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::sync::{Arc, Mutex};
use vmm_sys_util::eventfd::EventFd;

mod rings;
mod thread;

pub use thread::WorkerThread;

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
