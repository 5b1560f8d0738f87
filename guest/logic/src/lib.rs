//! What the probe can do without a machine, so that it is tested on the host.
//!
//! ```text
//!  user data ──▶ order (size, url) ──▶ the tasks ──▶ fold ──▶ console lines
//!  firmware  ──▶ acpi ──▶ where ECAM, CPUs, power registers are
//!  servers   ──▶ http (heads), dns     disks, bodies ◀──▶ pattern
//! ```
//!
//! Everything here reads bytes that a tenant, a network or a host wrote, so nothing
//! panics on any input. Start reading at [`order`].

#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod acpi;
pub mod dhcp6;
pub mod dns;
pub mod fold;
pub mod http;
pub mod latency;
pub mod order;
pub mod pace;
pub mod pattern;
pub mod size;
pub mod url;
