//! Runs one session on a connected socket.

use crate::memory::Trust;
use crate::session::{Served, Session};
use crate::shard::Shard;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::vhost_user::{BackendReqHandler, Error};

/// Serves until the peer hangs up or errs; returns once nothing is in flight.
pub fn serve(stream: UnixStream, shard: Shard, served: Served, trust: Trust) -> Result<(), Error> {
    let session = Arc::new(Mutex::new(Session::new(shard, served, trust)));
    let mut handler = BackendReqHandler::from_stream(stream, Arc::clone(&session));
    let outcome = loop {
        match handler.handle_request() {
            Ok(()) => {}
            Err(Error::Disconnected) => break Ok(()),
            Err(error) => break Err(error),
        }
    };
    session.lock().unwrap_or_else(PoisonError::into_inner).end();
    outcome
}
