//! Keeps one volume connected to its VMM: connects, serves, and connects again.

use crate::connection::{Connection, Ended};
use crate::handover::Moved;
use crate::memory::Trust;
use crate::session::Served;
use crate::shard::Shard;
use rustix::event::{EventfdFlags, eventfd};
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::AtomicBool;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const RETRY_MIN: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(250);
/// How long a peer may hold up its session's freezing by half a message.
const FREEZE: Duration = Duration::from_secs(2);
const STACK_BYTES: usize = 256 * 1024;

/// A thread that keeps a volume served, until stopped.
pub struct Attachment {
    stop: Sender<()>,
    told: Arc<OwnedFd>,
    stream: Arc<Mutex<Option<UnixStream>>>,
    frozen: Receiver<Option<Moved>>,
    thread: JoinHandle<()>,
}

/// Gives what is served, anew for each connection.
pub type Serve = Box<dyn Fn() -> std::io::Result<Served> + Send>;

/// What an attachment's thread works with.
struct Kept {
    volume: String,
    socket: PathBuf,
    shard: Shard,
    connected: Arc<AtomicBool>,
    serve: Serve,
    stream: Arc<Mutex<Option<UnixStream>>>,
    stopped: Receiver<()>,
    told: Arc<OwnedFd>,
    frozen: Sender<Option<Moved>>,
}

impl Attachment {
    /// Starts to serve to whoever listens on `socket`: on the connection that `moved`
    /// is, as long as that lasts.
    pub fn start(
        name: &str,
        socket: PathBuf,
        shard: Shard,
        connected: Arc<AtomicBool>,
        serve: Serve,
        moved: Option<Moved>,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let (freeze, frozen) = channel();
        let stream = Arc::new(Mutex::new(None));
        let told = Arc::new(eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?);
        let kept = Kept {
            volume: name.to_owned(),
            socket,
            shard,
            connected,
            serve,
            stream: Arc::clone(&stream),
            stopped,
            told: Arc::clone(&told),
            frozen: freeze,
        };
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .stack_size(STACK_BYTES)
            .spawn(move || kept.run(moved))?;
        Ok(Self {
            stop,
            told,
            stream,
            frozen,
            thread,
        })
    }

    /// Hangs up; returns once nothing is in flight.
    pub fn stop(self) {
        let _ = self.stop.send(());
        self.hang_up();
        let _ = self.thread.join();
    }

    /// Lays the session down, if there is one that lets itself be laid down; returns
    /// once nothing is in flight.
    pub fn freeze(self) -> Option<Moved> {
        let _ = self.stop.send(());
        let _ = rustix::io::write(&self.told, &1u64.to_ne_bytes());
        let moved = self.frozen.recv_timeout(FREEZE).ok().flatten();
        if moved.is_none() {
            self.hang_up();
        }
        let _ = self.thread.join();
        moved
    }

    fn hang_up(&self) {
        let stream = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(stream) = stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }
}

impl Kept {
    fn run(self, mut moved: Option<Moved>) {
        let mut retry = RETRY_MIN;
        let mut logged = false;
        loop {
            if moved.is_none() {
                if !matches!(
                    self.stopped.recv_timeout(retry),
                    Err(RecvTimeoutError::Timeout)
                ) {
                    break;
                }
                retry = (retry * 2).min(RETRY_MAX);
            }
            let (stream, frozen) = match moved.take() {
                Some(moved) => (moved.stream, Some(moved.frozen)),
                None => match UnixStream::connect(&self.socket) {
                    Ok(stream) => (stream, None),
                    Err(_) => continue,
                },
            };
            let clones = stream
                .try_clone()
                .and_then(|a| Ok((a, stream.try_clone()?)));
            let (shared, kept) = match clones {
                Ok(clones) => clones,
                Err(error) => {
                    tracing::error!(volume = self.volume, %error, "connection not kept");
                    continue;
                }
            };
            *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = Some(shared);
            // Told to stop after the last look and before the stream could be shut down.
            if !matches!(self.stopped.try_recv(), Err(TryRecvError::Empty)) {
                break;
            }
            let began = Instant::now();
            let outcome = (self.serve)()
                .map_err(vhost::vhost_user::Error::ReqHandlerError)
                .and_then(|served| {
                    let connection = Connection {
                        stream,
                        shard: self.shard.clone(),
                        served,
                        trust: Trust::SealedOnly,
                        connected: &self.connected,
                    };
                    connection.run(frozen, Some(self.told.as_fd()))
                });
            *self.stream.lock().unwrap_or_else(PoisonError::into_inner) = None;
            // A peer that errs again and again is asked ever more rarely, and logged once.
            if began.elapsed() > Duration::from_secs(1) {
                (retry, logged) = (RETRY_MIN, false);
            }
            match outcome {
                Ok(Ended::Frozen(frozen)) => {
                    let _ = self.frozen.send(Some(Moved {
                        stream: kept,
                        frozen,
                    }));
                    return;
                }
                Ok(Ended::Disconnected) => {}
                Err(error) if !std::mem::replace(&mut logged, true) => {
                    tracing::warn!(volume = self.volume, %error, "connection ended");
                }
                Err(_) => {}
            }
        }
        let _ = self.frozen.send(None);
    }
}
