//! The device.

use super::ConsoleMetrics;
use crate::error::{Result, host};
use crate::events::{Epoll, HandlerId};
use crate::legacy::ring::ConsoleRing;
use crate::virtio::Loaded;
use crate::virtio::hosted::{Chain, Driver, End, Model, OWN_SOURCE};
use crate::virtio::queue::{Buffers, QueueError};
use rustix::event::epoll::EventFlags;
use std::fs::File;
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const QUEUE_SIZES: &[u16] = &[64, 64];
const RX: usize = 0;
const TX: usize = 1;
/// `VIRTIO_CONSOLE_F_EMERG_WRITE`: a byte can be written without a queue.
const F_EMERGENCY_WRITE: u64 = 1 << 2;
/// `struct virtio_console_config`: columns, rows, ports; then `emerg_wr`.
const EMERGENCY_WRITE: usize = 8;
/// Output copied at a time.
const CHUNK_BYTES: usize = 4096;

/// The console.
pub struct ConsoleModel {
    ring: ConsoleRing,
    /// Non-blocking; none at its end.
    input: Option<File>,
    metrics: Arc<ConsoleMetrics>,
}

impl ConsoleModel {
    /// A port that writes to `ring` and reads from `input`, which is non-blocking.
    pub fn new(ring: ConsoleRing, input: Option<File>) -> Self {
        Self {
            ring,
            input,
            metrics: Arc::default(),
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<ConsoleMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Watches the input on behalf of `handler`.
    pub fn watch(&self, epoll: &Epoll, handler: HandlerId) -> Result<()> {
        let Some(input) = &self.input else {
            return Ok(());
        };
        let edge = EventFlags::IN | EventFlags::ET;
        match epoll.add(handler, OWN_SOURCE, input, edge) {
            // A regular file is always ready, and cannot be watched: the guest's buffers pace it.
            Err(error) if error.kind() == ErrorKind::PermissionDenied => Ok(()),
            watched => watched.map_err(host("watch the console's input")),
        }
    }

    fn write(&self, bytes: &[u8]) {
        let metrics = &self.metrics;
        let count = bytes.len() as u64;
        metrics.written_bytes.fetch_add(count, Ordering::Relaxed);
        if let Err(error) = self.ring.write(bytes) {
            metrics.lost_bytes.fetch_add(count, Ordering::Relaxed);
            tracing::debug!(%error, "console output lost");
        }
    }

    fn transmit(&self, buffers: &Buffers) -> Chain {
        let mut chunk = [0u8; CHUNK_BYTES];
        // A driver may give buffers of any size; the ring keeps the end of it.
        let mut at = 0;
        loop {
            let count = buffers.read_at(at, &mut chunk);
            if count == 0 {
                return Chain::Done(0);
            }
            self.write(&chunk[..count]);
            at += count;
        }
    }

    /// Fills one chain from the input.
    fn receive(&mut self, buffers: &Buffers) -> std::result::Result<Chain, QueueError> {
        if buffers.writable_bytes() == 0 {
            return Err(QueueError::Protocol("gives no room"));
        }
        let Some(input) = &self.input else {
            return Ok(Chain::Wait);
        };
        let count = libc::c_int::try_from(buffers.writable.len()).unwrap_or(0);
        // SAFETY: the vectors were made by the queue's walk over guest memory that is mapped
        // writable for as long as the caller's queue exists; the kernel alone stores to them.
        let read = unsafe { libc::readv(input.as_raw_fd(), buffers.writable.as_ptr(), count) };
        match u32::try_from(read) {
            Ok(0) => {
                self.input = None;
                Ok(Chain::Wait)
            }
            Ok(bytes) => {
                let read = &self.metrics.read_bytes;
                read.fetch_add(bytes.into(), Ordering::Relaxed);
                Ok(Chain::Done(bytes))
            }
            Err(_) => {
                let error = io::Error::last_os_error();
                if !matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted) {
                    tracing::warn!(%error, "the console's input ended");
                    self.input = None;
                }
                Ok(Chain::Wait)
            }
        }
    }
}

impl Model for ConsoleModel {
    fn kind(&self) -> u16 {
        3
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        F_EMERGENCY_WRITE
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        match data.first() {
            Some(byte) if offset == EMERGENCY_WRITE => {
                self.write(&[*byte]);
                true
            }
            _ => false,
        }
    }

    fn serve(&mut self, index: usize, driver: &mut Driver) -> std::result::Result<End, QueueError> {
        match index {
            TX => driver.drain(TX, |_, buffers| Ok(self.transmit(buffers))),
            _ => driver.drain(RX, |_, buffers| self.receive(buffers)),
        }
    }

    fn ready(
        &mut self,
        _source: Option<u32>,
        _flags: EventFlags,
        driver: Option<&mut Driver>,
    ) -> std::result::Result<End, QueueError> {
        driver.map_or(Ok(End::Dry), |driver| self.serve(RX, driver))
    }

    fn save(&self) -> Vec<u8> {
        Self::saved()
    }

    fn load(&mut self, own: &[u8]) -> std::result::Result<Loaded, String> {
        Self::take(own)
    }
}
