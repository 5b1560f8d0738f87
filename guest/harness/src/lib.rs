//! Runs the probe's image under QEMU's emulated CPU, which is faithful to the manuals
//! where PVM is not, and reads its console.
//!
//! ```text
//!  test ── Guest::start(orders, devices) ──▶ qemu ── serial ──▶ lines
//!                                             │ user network: DHCP by QEMU itself,
//!                                             └ services: a shell command a connection
//! ```
//!
//! Needs no privilege and touches nothing outside of its temporary folder. Start reading
//! at [`Guest`].

mod guest;
mod services;

pub use guest::{Guest, Network, disk_image};
