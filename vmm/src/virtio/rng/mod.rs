//! virtio-rng (virtio 1.3 §5.4): the host's entropy, at a bounded rate.
//!
//! ```text
//!  device.rs   fills a request from getrandom(2), as the limit allows; else waits on a timer
//!  metrics.rs  counters      persist.rs   nothing: no two machines shall share randomness
//! ```
//! The limit is the host's CPU, not its entropy: Linux's generator does not run dry. A
//! timer runs only while a guest waits.

mod device;
mod metrics;
mod persist;

pub use device::RngModel;
pub use metrics::RngMetrics;

#[cfg(test)]
mod tests;
