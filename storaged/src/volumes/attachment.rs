//! Keeps one volume connected to its VMM: connects, serves, and connects again.

use crate::connection;
use crate::memory::Trust;
use crate::session::Served;
use crate::shard::Shard;
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const RETRY_MIN: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(250);
const STACK_BYTES: usize = 256 * 1024;

/// A thread that keeps a volume served, until stopped.
pub struct Attachment {
    stop: Sender<()>,
    stream: Arc<Mutex<Option<UnixStream>>>,
    thread: JoinHandle<()>,
}

/// Gives what is served, anew for each connection.
pub type Serve = Box<dyn Fn() -> std::io::Result<Served> + Send>;

impl Attachment {
    /// Starts to serve to whoever listens on `socket`.
    pub fn start(
        name: &str,
        socket: PathBuf,
        shard: Shard,
        connected: Arc<AtomicBool>,
        serve: Serve,
    ) -> std::io::Result<Self> {
        let (stop, stopped) = channel();
        let stream = Arc::new(Mutex::new(None));
        let shared = Arc::clone(&stream);
        let volume = name.to_owned();
        let thread = std::thread::Builder::new()
            .name(name.chars().take(15).collect())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                run(
                    &volume, &socket, &shard, &connected, &serve, &shared, &stopped,
                )
            })?;
        Ok(Self {
            stop,
            stream,
            thread,
        })
    }

    /// Hangs up; returns once nothing is in flight.
    pub fn stop(self) {
        let _ = self.stop.send(());
        let stream = self
            .stream
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(stream) = stream {
            let _ = stream.shutdown(Shutdown::Both);
        }
        let _ = self.thread.join();
    }
}

fn run(
    volume: &str,
    socket: &std::path::Path,
    shard: &Shard,
    connected: &AtomicBool,
    serve: &Serve,
    shared: &Mutex<Option<UnixStream>>,
    stopped: &Receiver<()>,
) {
    let mut retry = RETRY_MIN;
    let mut logged = false;
    while matches!(stopped.recv_timeout(retry), Err(RecvTimeoutError::Timeout)) {
        retry = (retry * 2).min(RETRY_MAX);
        let Ok(stream) = UnixStream::connect(socket) else {
            continue;
        };
        let clone = match stream.try_clone() {
            Ok(clone) => clone,
            Err(error) => {
                tracing::error!(volume, %error, "connection not kept");
                continue;
            }
        };
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = Some(clone);
        // Told to stop after the last look and before the stream could be shut down.
        if !matches!(
            stopped.try_recv(),
            Err(std::sync::mpsc::TryRecvError::Empty)
        ) {
            return;
        }
        let began = Instant::now();
        let outcome = serve()
            .map_err(vhost::vhost_user::Error::ReqHandlerError)
            .and_then(|served| {
                connection::serve(stream, shard.clone(), served, Trust::SealedOnly, connected)
            });
        *shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
        connected.store(false, Ordering::Relaxed);
        // A peer that errs again and again is asked ever more rarely, and logged once.
        if began.elapsed() > Duration::from_secs(1) {
            (retry, logged) = (RETRY_MIN, false);
        }
        if let Err(error) = outcome
            && !std::mem::replace(&mut logged, true)
        {
            tracing::warn!(volume, %error, "connection ended");
        }
    }
}
