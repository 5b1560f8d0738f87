//! virtio-console (virtio 1.3 §5.3): one port, `hvc0` in Linux.
//!
//! ```text
//!  guest ─ transmit queue ─▶ console ring, shared with COM1         a kick a write, not an exit a byte
//!  guest ◀─ receive queue ── the spec's `input` descriptor, if any
//!  device.rs   both directions      metrics.rs  counters      persist.rs  what a snapshot holds
//! ```
//! Output is bounded by the ring, which forgets the oldest; input is read only into
//! buffers that the guest has given, so what is not wanted waits in the descriptor.

mod device;
mod metrics;
mod persist;

pub use device::ConsoleModel;
pub use metrics::ConsoleMetrics;

#[cfg(test)]
mod tests;
