//! virtio-vsock (virtio 1.3 §5.10), its host side in this process over one Unix socket.
//!
//! ```text
//!  guest ⇄ queues ⇄ device.rs ⇄ connection.rs (credit, buffers) ⇄ streams ⇄ host programs
//!                     │ packet.rs: 44 bytes in and out
//!                     └ host.rs: programs that connected and said what they want
//! ```
//! The socket listens, inherited; this process never connects anywhere. A host program
//! connects and writes one line, then waits for the answer, after which its stream *is* the
//! connection:
//!
//! | line | meaning | answer |
//! |---|---|---|
//! | `CONNECT port` | connect to the guest's `port` | `OK host-port` when the guest accepted; closed if it did not |
//! | `ACCEPT port` | take one connection that the guest makes to the host's `port` | `OK guest-port` when it made one |
//!
//! A program that serves a port keeps several streams in `ACCEPT`. One that ends with its
//! streams leaves nothing behind. A guest's connection to a port that nobody accepts is reset.
//!
//! Everything is bounded: connections, waiting streams, bytes held for a stream that does not
//! read ([`connection::BUFFER_BYTES`], the credit that the guest is given), replies not yet
//! taken by the guest (then its transmit queue waits).

mod connection;
mod device;
mod host;
mod metrics;
pub mod packet;
mod persist;
#[cfg(test)]
mod tests;

pub use device::VsockModel;
pub use metrics::VsockMetrics;
