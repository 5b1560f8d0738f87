//! TCP connections as tasks use them.

use super::{Handle, Net, ring};
use crate::executor;
use alloc::rc::Rc;
use core::net::SocketAddr;
use ocs_probe_logic::fold::Outcome;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::IpEndpoint;

/// A peer that opens a connection and then says nothing is dropped after this long.
const OPENING_S: u64 = 5;
/// An accepted connection: how long the peer may be silent, and how often it is probed.
const SILENCE_S: u64 = 45;
const KEEP_ALIVE_S: u64 = 15;

/// A connection. Dropping it forgets it without a word to the peer.
pub struct Stream {
    handle: Handle,
}

/// The connection is gone: reset, timed out or closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gone;

fn socket(buffer_bytes: usize) -> Socket<'static> {
    let mut socket = Socket::new(
        SocketBuffer::new(ring(buffer_bytes)),
        SocketBuffer::new(ring(buffer_bytes)),
    );
    socket.set_nagle_enabled(false);
    socket
}

impl Stream {
    /// Connects; ends when the peer answers or the caller stops waiting.
    pub async fn connect(
        net: &Rc<Net>,
        to: SocketAddr,
        buffer_bytes: usize,
    ) -> Result<Self, Outcome> {
        let handle = net.add(socket(buffer_bytes)).ok_or(Outcome::Unsent)?;
        let port = net.ephemeral_port();
        let remote = IpEndpoint::new(to.ip().into(), to.port());
        handle
            .with_context(|s: &mut Socket, context| s.connect(context, remote, port))
            .map_err(|_| Outcome::Unsent)?;
        let stream = Self { handle };
        let open = executor::wait(|| match stream.state() {
            State::SynSent | State::SynReceived => None,
            State::Closed => Some(false),
            _ => Some(true),
        })
        .await;
        if open {
            Ok(stream)
        } else {
            Err(Outcome::Reset)
        }
    }

    /// A socket that serves one connection after another.
    pub fn listener(net: &Rc<Net>, buffer_bytes: usize) -> Option<Self> {
        Some(Self {
            handle: net.add(socket(buffer_bytes))?,
        })
    }

    /// Waits for the next connection; what was before is dropped.
    pub async fn accept(&self, port: u16) -> Option<IpEndpoint> {
        self.with(|s| {
            s.abort();
            s.set_timeout(Some(Duration::from_secs(OPENING_S)));
            s.set_keep_alive(None);
            s.listen(port)
        })
        .ok()?;
        executor::wait(|| match self.state() {
            State::Listen | State::SynReceived => None,
            _ => Some(()),
        })
        .await;
        self.set_limits(SILENCE_S, KEEP_ALIVE_S);
        self.with(|s| s.remote_endpoint())
    }

    /// Gives up when the peer is silent for this long; probes it meanwhile.
    pub fn set_limits(&self, timeout_s: u64, keep_alive_s: u64) {
        self.with(|s| {
            s.set_timeout(Some(Duration::from_secs(timeout_s)));
            s.set_keep_alive(Some(Duration::from_secs(keep_alive_s)));
        });
    }

    fn with<R>(&self, f: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        self.handle.with(f)
    }

    /// State of the connection.
    pub fn state(&self) -> State {
        self.with(|s| s.state())
    }

    /// Sends what there is room for.
    pub fn try_send(&self, data: &[u8]) -> Result<usize, Gone> {
        self.with(|s| s.send_slice(data).map_err(|_| Gone))
    }

    /// Takes what has come: `Some(0)` is the end, `None` is nothing yet.
    pub fn try_recv(&self, data: &mut [u8]) -> Result<Option<usize>, Gone> {
        self.with(|s| {
            if s.can_recv() {
                s.recv_slice(data).map(Some).map_err(|_| Gone)
            } else if s.may_recv() {
                Ok(None)
            } else if s.is_open() {
                Ok(Some(0))
            } else {
                Err(Gone)
            }
        })
    }

    /// Sends all.
    pub async fn send_all(&self, mut data: &[u8]) -> Result<(), Gone> {
        while !data.is_empty() {
            let sent = executor::wait(|| match self.try_send(data) {
                Ok(0) => None,
                other => Some(other),
            })
            .await?;
            data = &data[sent..];
        }
        Ok(())
    }

    /// Waits for some bytes; 0 is the end.
    pub async fn recv(&self, data: &mut [u8]) -> Result<usize, Gone> {
        executor::wait(|| self.try_recv(data).transpose()).await
    }

    /// Ends our side and waits for `limit_us` until all is sent and the peer has ended
    /// its own; then breaks it off.
    pub async fn close(&self, limit_us: u64) {
        self.with(Socket::close);
        let over = executor::wait(|| {
            matches!(self.state(), State::Closed | State::TimeWait).then_some(())
        });
        let at_us = crate::clock::now_us() + limit_us;
        if executor::until(at_us, over).await.is_none() {
            self.with(Socket::abort);
            executor::yield_now().await;
        }
    }
}
