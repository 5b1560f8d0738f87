//! The host agent: makes what control desires of this host true, and says what is.
//!
//! ```text
//!            control ◀── gRPC, mTLS ──▶ session ◀── outbox ──┐
//!                                          │ desired         │ observed
//!   DIR/node/slice.json ◀── desired ◀──────▼─────────────────┴──┐
//!   DIR/node/instances/ID.json ◀─ ledger ◀── engine             │
//!                                             │ per instance:   │
//!                                 plan(want, seen) → Step ── machine ─┐
//!                                                                     ▼
//!                        blocks (storaged) · network (Fabric) · spawn (ocs-vmm)
//! ```
//!
//! Crash-only: there is no shutdown path that matters. Every effect may be cut
//! off at any instant and is found again by reading `run/instances/*/owner.json`,
//! `node/instances/*.json` and `/proc`; the planner then says what is next.
//! Start reading at [`plan`], then [`machine`].

pub mod blocks;
pub mod capacity;
pub mod cgroup;
pub mod cleanup;
pub mod config;
pub mod connect;
mod cpu_credits;
pub mod desired;
mod disks;
mod drivers;
pub mod durable;
pub mod engine;
pub mod error;
pub mod evidence;
mod hotplug;
mod launch;
pub mod layout;
pub mod ledger;
pub mod lock;
pub mod machine;
pub mod netns;
pub mod network;
mod nics;
pub mod outbox;
pub mod owner;
pub mod plan;
pub mod policy;
pub mod privilege;
pub mod process;
pub mod session;
mod shaping;
mod snapshots;
pub mod spawn;
mod units;
pub mod vmm;
mod volumes;
