//! The device.

use super::RngMetrics;
use crate::cpu::monotonic_ns;
use crate::error::{Result, host};
use crate::events::{Epoll, HandlerId};
use crate::virtio::Loaded;
use crate::virtio::hosted::{Chain, Driver, End, Model, OWN_SOURCE};
use crate::virtio::net::shaper::Bucket;
use crate::virtio::queue::QueueError;
use ocs_vmm_spec::RateLimit;
use rustix::event::epoll::EventFlags;
use rustix::rand::{GetRandomFlags, getrandom};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const QUEUE_SIZES: &[u16] = &[64];
/// At most so much at a time; a driver asks again (§5.4.6.1).
const MAX_BYTES: usize = 4096;
/// Until the kernel is asked again that gave nothing.
const RETRY_NS: u64 = 10_000_000;

/// The entropy device.
pub struct RngModel {
    limit: Bucket,
    /// Armed while a request waits for the limit.
    timer: OwnedFd,
    metrics: Arc<RngMetrics>,
}

impl RngModel {
    /// Gives `bytes_per_s` at most, and as much in one burst.
    pub fn new(bytes_per_s: u32) -> Result<Self> {
        let limit = RateLimit {
            per_s: bytes_per_s.into(),
            burst: bytes_per_s.into(),
        };
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = timerfd_create(TimerfdClockId::Monotonic, flags)
            .map_err(host("make the entropy device's timer"))?;
        Ok(Self {
            limit: Bucket::new(limit, monotonic_ns()),
            timer,
            metrics: Arc::default(),
        })
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<RngMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Watches the timer on behalf of `handler`.
    pub fn watch(&self, epoll: &Epoll, handler: HandlerId) -> Result<()> {
        let edge = EventFlags::IN | EventFlags::ET;
        epoll
            .add(handler, OWN_SOURCE, &self.timer, edge)
            .map_err(host("watch the entropy device's timer"))
    }

    fn wait(&self, ns: u64) {
        self.metrics.throttled.fetch_add(1, Ordering::Relaxed);
        let spec = Itimerspec {
            it_interval: Timespec::default(),
            it_value: Timespec {
                tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                tv_nsec: i64::try_from(ns % 1_000_000_000).unwrap_or(0),
            },
        };
        // Setting it again forgets an expiry that was not read.
        if let Err(error) = timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &spec) {
            tracing::error!(%error, "the entropy device's timer cannot be set");
        }
    }
}

impl Model for RngModel {
    fn kind(&self) -> u16 {
        4
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn serve(&mut self, index: usize, driver: &mut Driver) -> std::result::Result<End, QueueError> {
        driver.drain(index, |_, buffers| {
            let wanted = buffers.writable_bytes().min(MAX_BYTES);
            if wanted == 0 {
                return Err(QueueError::Protocol("gives no room"));
            }
            self.limit.refill(monotonic_ns());
            match self.limit.wait_ns(wanted as u64) {
                0 => self.limit.spend(wanted as u64),
                ns => {
                    self.wait(ns);
                    return Ok(Chain::Wait);
                }
            }
            let mut bytes = [0u8; MAX_BYTES];
            // A long request may be cut short by a signal (getrandom(2)): a short answer then.
            let filled = match getrandom(&mut bytes[..wanted], GetRandomFlags::empty()) {
                Ok(filled) if filled > 0 => filled,
                _ => {
                    self.wait(RETRY_NS);
                    return Ok(Chain::Wait);
                }
            };
            let written = buffers.write_at(0, &bytes[..filled]);
            self.metrics.requests.fetch_add(1, Ordering::Relaxed);
            self.metrics
                .bytes
                .fetch_add(written as u64, Ordering::Relaxed);
            Ok(Chain::Done(u32::try_from(written).unwrap_or(0)))
        })
    }

    fn ready(
        &mut self,
        _source: Option<u32>,
        _flags: EventFlags,
        driver: Option<&mut Driver>,
    ) -> std::result::Result<End, QueueError> {
        driver.map_or(Ok(End::Dry), |driver| self.serve(0, driver))
    }

    fn save(&self) -> Vec<u8> {
        Self::saved()
    }

    fn load(&mut self, own: &[u8]) -> std::result::Result<Loaded, String> {
        Self::take(own)
    }
}
