//! The device.

use super::BalloonMetrics;
use super::discard::{PAGE_BYTES, Run, discard};
use super::metrics::STATISTICS;
use crate::virtio::hosted::{Chain, Driver, End, Model};
use crate::virtio::queue::{Buffers, QueueError};
use crate::virtio::{Loaded, read_bytes};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};

const INFLATE: usize = 0;
const DEFLATE: usize = 1;
const STATISTICS_QUEUE: usize = 2;
/// Reporting is queue 4 (§5.5.2). Linux numbers the queues that it uses without gaps, so that
/// with no free-page hinting offered it is 3 there; whichever is kicked is it.
const REPORTING: [usize; 2] = [3, 4];
/// Linux reports 32 ranges in one chain and wants room for them.
const QUEUE_SIZES: &[u16] = &[128, 128, 8, 64, 64];

const F_STATISTICS: u64 = 1 << 1;
const F_DEFLATE_ON_OOM: u64 = 1 << 2;
const F_REPORTING: u64 = 1 << 5;

/// `struct virtio_balloon_config`: `num_pages`, `actual`; what follows is not offered.
const CONFIG_BYTES: usize = 8;
const ACTUAL: usize = 4;
/// Page numbers in one chain: Linux sends 256. More than this is not a driver's need.
const MAX_NUMBERS: usize = 4096;
/// `struct virtio_balloon_stat`: a tag of 16 bits, a value of 64, packed.
const STATISTIC_BYTES: usize = 10;

/// The balloon.
pub struct BalloonModel {
    pub(super) config: [u8; CONFIG_BYTES],
    /// The buffer of statistics that is kept until new ones are wanted.
    statistics: Option<u16>,
    metrics: Arc<BalloonMetrics>,
}

impl BalloonModel {
    /// An empty balloon of which `target_mib` are wanted.
    pub fn new(target_mib: u32) -> Self {
        let mut model = Self {
            config: [0; CONFIG_BYTES],
            statistics: None,
            metrics: Arc::default(),
        };
        model.set_target(target_mib);
        model
    }

    /// Its counters.
    pub fn metrics(&self) -> Arc<BalloonMetrics> {
        Arc::clone(&self.metrics)
    }

    /// Asks for a size; the driver must be told that its configuration changed.
    pub fn set_target(&mut self, target_mib: u32) {
        let pages = target_mib.saturating_mul(256);
        self.config[..ACTUAL].copy_from_slice(&pages.to_le_bytes());
        self.show_sizes();
    }

    pub(super) fn show_sizes(&self) {
        let bytes = |at: usize| {
            let mut word = [0; 4];
            word.copy_from_slice(&self.config[at..at + 4]);
            u64::from(u32::from_le_bytes(word)) * PAGE_BYTES
        };
        let metrics = &self.metrics;
        metrics.target_bytes.store(bytes(0), Ordering::Relaxed);
        metrics.actual_bytes.store(bytes(ACTUAL), Ordering::Relaxed);
    }

    /// Asks the guest for new statistics, for the next time that somebody looks.
    pub fn refresh(&mut self, driver: &mut Driver) -> Result<(), QueueError> {
        match self.statistics.take() {
            Some(head) => driver.give_back(STATISTICS_QUEUE, head),
            None => Ok(()),
        }
    }

    /// Page numbers: what they name is discarded, or only counted.
    fn take_numbers(&self, index: usize, driver: &mut Driver) -> Result<End, QueueError> {
        let ram = driver.ram.clone();
        let mut numbers = vec![0u8; 4 * MAX_NUMBERS];
        driver.drain(index, |_, buffers| {
            if buffers.readable_bytes() > numbers.len() {
                return Err(QueueError::Protocol("names too many pages at once"));
            }
            let count = buffers.read_at(0, &mut numbers);
            let pages = numbers[..count].chunks_exact(4).map(|number| {
                u64::from(u32::from_le_bytes([
                    number[0], number[1], number[2], number[3],
                ]))
            });
            if index == DEFLATE {
                let bytes = pages.count() as u64 * PAGE_BYTES;
                self.metrics
                    .deflated_bytes
                    .fetch_add(bytes, Ordering::Relaxed);
                return Ok(Chain::Done(0));
            }
            let mut run = Run::default();
            for page in pages {
                if let Some(range) = run.add(page * PAGE_BYTES) {
                    self.discard(&ram, range, &self.metrics.inflated_bytes);
                }
            }
            if let Some(range) = run.end() {
                self.discard(&ram, range, &self.metrics.inflated_bytes);
            }
            Ok(Chain::Done(0))
        })
    }

    fn discard(
        &self,
        ram: &crate::memory::GuestRam,
        (at, bytes): (u64, u64),
        counter: &std::sync::atomic::AtomicU64,
    ) {
        match discard(ram, at, bytes) {
            Ok(done) => {
                counter.fetch_add(done, Ordering::Relaxed);
            }
            Err(error) => {
                self.metrics.failed_discards.fetch_add(1, Ordering::Relaxed);
                tracing::debug!(at, bytes, %error, "a range cannot be discarded");
            }
        }
    }

    /// Reported ranges are the chain's buffers themselves (§5.5.6.7).
    fn take_report(&self, index: usize, driver: &mut Driver) -> Result<End, QueueError> {
        let ram = driver.ram.clone();
        driver.drain(index, |_, buffers| {
            for buffer in &buffers.writable {
                if let Some(at) = guest_address(&ram, buffer) {
                    let range = (at, buffer.iov_len as u64);
                    self.discard(&ram, range, &self.metrics.reported_bytes);
                }
            }
            Ok(Chain::Done(0))
        })
    }

    fn take_statistics(&mut self, driver: &mut Driver) -> Result<End, QueueError> {
        driver.drain(STATISTICS_QUEUE, |head, buffers| {
            self.read_statistics(buffers);
            match self.statistics.replace(head) {
                None => Ok(Chain::Kept),
                Some(_) => Err(QueueError::Protocol("has two buffers of statistics")),
            }
        })
    }

    fn read_statistics(&self, buffers: &Buffers) {
        let mut bytes = [0u8; STATISTIC_BYTES * 32];
        let count = buffers.read_at(0, &mut bytes);
        for statistic in bytes[..count].chunks_exact(STATISTIC_BYTES) {
            let tag = u16::from_le_bytes([statistic[0], statistic[1]]);
            let mut value = [0; 8];
            value.copy_from_slice(&statistic[2..]);
            if let Some(place) = self.metrics.guest.get(usize::from(tag)) {
                place.store(u64::from_le_bytes(value), Ordering::Relaxed);
            }
        }
        if count >= STATISTIC_BYTES {
            self.metrics.guest_reports.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Where a buffer that a queue's walk found lies in the guest's memory.
fn guest_address(ram: &crate::memory::GuestRam, buffer: &libc::iovec) -> Option<u64> {
    let at = buffer.iov_base as u64;
    ram.iter().find_map(|region| {
        let offset = at.checked_sub(region.as_ptr() as u64)?;
        (offset < region.len()).then(|| region.start_addr().0 + offset)
    })
}

impl Model for BalloonModel {
    fn kind(&self) -> u16 {
        5
    }

    fn queue_sizes(&self) -> &'static [u16] {
        QUEUE_SIZES
    }

    fn needed_queues(&self) -> usize {
        2
    }

    fn features(&self) -> u64 {
        F_STATISTICS | F_DEFLATE_ON_OOM | F_REPORTING
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        if offset != ACTUAL || data.len() != 4 {
            return false;
        }
        self.config[ACTUAL..].copy_from_slice(data);
        self.show_sizes();
        true
    }

    fn serve(&mut self, index: usize, driver: &mut Driver) -> Result<End, QueueError> {
        match index {
            INFLATE | DEFLATE => self.take_numbers(index, driver),
            STATISTICS_QUEUE if driver.features & F_STATISTICS != 0 => self.take_statistics(driver),
            index if REPORTING.contains(&index) && driver.features & F_REPORTING != 0 => {
                self.take_report(index, driver)
            }
            _ => Ok(End::Dry),
        }
    }

    fn let_go(&mut self, driver: &mut Driver) -> Result<(), QueueError> {
        self.refresh(driver)
    }

    fn reset(&mut self) {
        self.statistics = None;
        self.config[ACTUAL..].fill(0);
        self.show_sizes();
    }

    fn save(&self) -> Vec<u8> {
        self.saved()
    }

    fn load(&mut self, own: &[u8]) -> Result<Loaded, String> {
        self.take(own)
    }
}

const _: () = assert!(STATISTICS.len() == 10, "tags of §5.5.6.4");
