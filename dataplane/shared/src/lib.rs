//! What the BPF programs do, as plain functions over a packet and the maps.
//!
//! ```text
//!            Packet (bytes)      Maps (tables)
//!                  │                 │
//!  guest's frame ──▶ guest::receive ─┤── arp      answered in place
//!                                    ├── service  rewritten, to the responder
//!                                    └── forward  route, egress rules, then
//!                                          ├ deliver  ingress rules, to a tap
//!                                          ├ vxlan    wrapped, to another host
//!                                          ├ outside  from its public address
//!                                          └ nat      from a NAT gateway's
//!                    └── ipv6     by numbers of addresses, to the same forward
//!  responder's ────▶ responder::receive ────────── rewritten, to a tap
//!  from a host ────▶ uplink::receive ─┬─ vxlan    unwrapped, to deliver or nat
//!  from outside ──▶ outside::receive ─┴─ outside  to deliver, by nat or not
//! ```
//!
//! The programs give [`Packet`] and [`Maps`] the kernel's packet and maps; tests give
//! them slices and hash maps. Both compile this very code. Start reading at
//! [`guest::receive`].
//!
//! Addresses and ports are kept as they lie in the packet: an address is the `u32`, a
//! port the `u16` whose bytes in memory are the bytes on the wire. Nothing is swapped
//! on the way to a map.

#![no_std]
#![cfg_attr(
    target_arch = "bpf",
    feature(asm_experimental_arch, core_intrinsics),
    allow(internal_features, reason = "compare-and-swap: see `word`")
)]

#[cfg(not(target_arch = "bpf"))]
extern crate alloc;

pub mod acl;
pub mod arp;
pub mod capture;
pub mod checksum;
pub mod deliver;
pub mod directory;
pub mod flow;
pub mod forward;
pub mod guest;
pub mod ipv6;
pub mod judge;
pub mod layout;
pub mod limit;
pub mod log;
pub mod maps;
pub mod nat;
pub mod outside;
pub mod packet;
pub mod parse;
pub mod responder;
mod rewrite;
pub mod route;
pub mod service;
pub mod too_long;
pub mod tracker;
pub mod uplink;
pub mod verifier;
pub mod vxlan;
mod word;

pub use maps::{Action, Maps};
pub use packet::Packet;
