//! storaged: serves volumes to VMMs over vhost-user-blk, on io_uring.
//!
//! ```text
//!  ocs-node ── JSON, control.sock ──▶ control ──▶ volumes (volumes.json, files)
//!                                                    │ attach
//!  ocs-vmm ◀── vhost-user messages ── connect, session │ one thread a volume
//!     │                                  │ start queue, stop queue
//!     └── rings in shared memory ──▶ shard: one thread, one io_uring ──▶ files
//! ```
//!
//! The message threads sleep; all I/O is done by the shards. Start reading at
//! [`shard`] for the data path, at [`cow`] for what lies between it and files, and at
//! [`volumes`] for what is kept.

pub mod config;
pub mod connection;
pub mod control;
pub mod cow;
pub mod crypt;
pub mod daemon;
pub mod dirty;
pub mod disk;
pub mod handover;
pub mod inflight;
pub mod locked;
pub mod memory;
pub mod qos;
pub mod queue;
pub mod request;
pub mod sandbox;
pub mod scrub;
pub mod serve;
pub mod session;
pub mod shard;
pub mod volumes;
