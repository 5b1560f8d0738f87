//! COM1, a 16550A whose output goes to the console ring. There is no input.

use super::ring::MappedRing;
use ocs_vmm_spec::console::RingWriter;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use vm_superio::Trigger;
use vm_superio::serial::SerialEvents;
use vmm_sys_util::eventfd::EventFd;

/// Counters of the port.
#[derive(Debug, Default)]
pub struct SerialMetrics {
    /// Bytes written by the guest.
    pub written_bytes: AtomicU64,
    /// Bytes that the ring file did not take.
    pub lost_bytes: AtomicU64,
}

/// The port.
pub struct SerialPort {
    uart: Mutex<vm_superio::Serial<IrqLine, Counted, Ring>>,
    metrics: Arc<SerialMetrics>,
}

struct IrqLine(EventFd);

impl Trigger for IrqLine {
    type E = io::Error;
    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

struct Counted(Arc<SerialMetrics>);

impl SerialEvents for Counted {
    fn buffer_read(&self) {}
    fn out_byte(&self) {
        self.0.written_bytes.fetch_add(1, Ordering::Relaxed);
    }
    fn tx_lost_byte(&self) {
        self.0.lost_bytes.fetch_add(1, Ordering::Relaxed);
    }
    fn in_buffer_empty(&self) {}
}

struct Ring(MappedRing);

impl io::Write for Ring {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)?;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl SerialPort {
    /// A port that writes to `ring` and interrupts through `line`.
    pub fn new(ring: RingWriter, line: EventFd) -> io::Result<Self> {
        let ring = MappedRing::new(ring)?;
        let metrics = Arc::new(SerialMetrics::default());
        Ok(Self {
            uart: Mutex::new(vm_superio::Serial::with_events(
                IrqLine(line),
                Counted(Arc::clone(&metrics)),
                Ring(ring),
            )),
            metrics,
        })
    }

    /// A guest's read of register `offset`.
    pub fn read(&self, offset: u8) -> u8 {
        self.uart
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .read(offset)
    }

    /// A guest's write; what the ring does not take is counted.
    pub fn write(&self, offset: u8, value: u8) {
        let mut uart = self.uart.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(error) = uart.write(offset, value) {
            tracing::debug!(?error, "serial output lost");
        }
    }

    /// Its counters.
    pub fn metrics(&self) -> &SerialMetrics {
        &self.metrics
    }
}
