//! virtio-balloon (virtio 1.3 §5.5): memory that a guest does not use goes back to the host.
//!
//! ```text
//!  control: balloon target ─▶ config ─▶ guest ─ inflate queue ───┐
//!                                       guest ─ report queue ────┴▶ discard.rs ─▶ host has it back
//!                                       guest ─ statistics queue ─▶ metrics
//!  device.rs   queues and configuration     persist.rs  what a snapshot holds
//! ```
//! *Free-page reporting* needs no target: the guest names what it has not touched for a
//! while, and gets zeros when it does. Both take pages out of the shared memory file, so
//! disk backends let go of them too. A guest can ask for any page of its own to be
//! discarded, and loses what it held.

mod device;
mod discard;
mod metrics;
mod persist;

pub use device::BalloonModel;
pub use metrics::BalloonMetrics;

#[cfg(test)]
mod tests;
