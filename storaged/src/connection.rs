//! Runs one session on a connected socket.

use crate::memory::Trust;
use crate::session::{Served, Session};
use crate::shard::Shard;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error};

/// Serves until the peer hangs up or errs; returns once nothing is in flight.
/// `connected` is true from the peer's first good message to the end.
pub fn serve(
    stream: UnixStream,
    shard: Shard,
    served: Served,
    trust: Trust,
    connected: &AtomicBool,
) -> Result<(), Error> {
    let session = Arc::new(Mutex::new(Session::new(shard, served, trust)));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    let outcome = loop {
        match handler.handle_request() {
            Ok(()) => connected.store(true, Ordering::Relaxed),
            Err(Error::Disconnected) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    connected.store(false, Ordering::Relaxed);
    session.lock().unwrap_or_else(PoisonError::into_inner).end();
    outcome
}
