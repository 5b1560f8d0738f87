//! COM1, a 16550A whose output goes to the console ring. There is no input.

use super::ring::ConsoleRing;
use crate::lifecycle::Lifecycle;
use crate::persist::State;
use std::io;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vm_superio::serial::SerialEvents;
use vm_superio::{SerialState, Trigger};
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
    /// Taken only while `load` makes another.
    uart: Mutex<Option<Uart>>,
    line: Arc<EventFd>,
    metrics: Arc<SerialMetrics>,
}

type Uart = vm_superio::Serial<IrqLine, Counted, Ring>;

struct IrqLine(Arc<EventFd>);

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

struct Ring(ConsoleRing);

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
    pub fn new(ring: ConsoleRing, line: EventFd) -> Self {
        let metrics = Arc::new(SerialMetrics::default());
        let line = Arc::new(line);
        let uart = Uart::with_events(
            IrqLine(Arc::clone(&line)),
            Counted(Arc::clone(&metrics)),
            Ring(ring),
        );
        Self {
            uart: Mutex::new(Some(uart)),
            line,
            metrics,
        }
    }

    /// A guest's read of register `offset`.
    pub fn read(&self, offset: u8) -> u8 {
        self.lock().as_mut().map_or(0xff, |uart| uart.read(offset))
    }

    /// A guest's write; what the ring does not take is counted.
    pub fn write(&self, offset: u8, value: u8) {
        if let Some(uart) = self.lock().as_mut()
            && let Err(error) = uart.write(offset, value)
        {
            tracing::debug!(?error, "serial output lost");
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Uart>> {
        self.uart.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Its counters.
    pub fn metrics(&self) -> &SerialMetrics {
        &self.metrics
    }
}

/// Version of [`Registers`].
const STATE_VERSION: u16 = 1;
/// Interrupt identification: none is pending (bit clear: one is).
const IIR_NONE: u8 = 1;

/// The registers, in the order of `vm_superio::SerialState`; output is in the ring already.
#[derive(serde::Serialize, serde::Deserialize)]
struct Registers {
    divisor: [u8; 2],
    interrupt_enable: u8,
    interrupt_identification: u8,
    line_control: u8,
    line_status: u8,
    modem_control: u8,
    modem_status: u8,
    scratch: u8,
    input: Vec<u8>,
}

impl Lifecycle for SerialPort {
    fn save(&self) -> Result<State, String> {
        let guard = self.lock();
        let uart = guard.as_ref().ok_or("is being loaded")?;
        let state = uart.state();
        let registers = Registers {
            divisor: [state.baud_divisor_low, state.baud_divisor_high],
            interrupt_enable: state.interrupt_enable,
            interrupt_identification: state.interrupt_identification,
            line_control: state.line_control,
            line_status: state.line_status,
            modem_control: state.modem_control,
            modem_status: state.modem_status,
            scratch: state.scratch,
            input: state.in_buffer,
        };
        State::encode(STATE_VERSION, &registers)
    }

    fn load(&self, state: &State) -> Result<(), String> {
        let registers: Registers = state.decode(STATE_VERSION)?;
        let state = SerialState {
            baud_divisor_low: registers.divisor[0],
            baud_divisor_high: registers.divisor[1],
            interrupt_enable: registers.interrupt_enable,
            interrupt_identification: registers.interrupt_identification,
            line_control: registers.line_control,
            line_status: registers.line_status,
            modem_control: registers.modem_control,
            modem_status: registers.modem_status,
            scratch: registers.scratch,
            in_buffer: registers.input,
        };
        let mut guard = self.lock();
        let old = guard.take().ok_or("failed to load before")?;
        let uart = Uart::from_state(
            &state,
            IrqLine(Arc::clone(&self.line)),
            Counted(Arc::clone(&self.metrics)),
            old.into_writer(),
        )
        .map_err(|e| format!("is no state of a serial port: {e:?}"))?;
        *guard = Some(uart);
        if registers.interrupt_identification & IIR_NONE == 0 {
            self.line.write(1).map_err(|e| e.to_string())?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::legacy::ring::MappedRing;
    use ocs_vmm_spec::console::RingWriter;

    fn port() -> SerialPort {
        let ring = RingWriter::open(tempfile::tempfile().unwrap(), 4096).unwrap();
        let ring = ConsoleRing::new(MappedRing::new(ring).unwrap());
        SerialPort::new(ring, EventFd::new(libc::EFD_NONBLOCK).unwrap())
    }

    #[test]
    fn its_registers_round_trip() {
        const INTERRUPT_ENABLE: u8 = 1;
        const SCRATCH: u8 = 7;
        let (used, fresh) = (port(), port());
        used.write(INTERRUPT_ENABLE, 2);
        used.write(SCRATCH, 0x5a);
        crate::lifecycle::assert_round_trip(&used, &fresh);
        fresh.write(0, b'x');
        assert_eq!(fresh.metrics().written_bytes.load(Ordering::Relaxed), 1);
        assert_eq!(fresh.read(SCRATCH), 0x5a);
    }
}
