//! The node gateway: one stream a node, desired state down, observed state up.
//!
//! ```text
//!   store ─ watch ─▶ session ─ desired.rs ─▶ Snapshot, Delta ─▶ node
//!   store ◀─ transaction ─ reports.rs ◀──── Report ◀──────────── node
//!   API ─ console ─▶ fleet ─ Query ─▶ node ─ Answer ─▶ fleet ─▶ API
//!   fronts/tunnel.rs ─▶ fleet ─ Query ─▶ node ─ Tunnel ─▶ fleet ─▶ fronts/tunnel.rs
//! ```
//!
//! A node is who its certificate's common name says it is, until it is removed (`removal.rs`).

pub mod desired;
pub mod endpoints;
pub mod fleet;
mod heard;
pub mod machine;
pub mod networks;
pub mod removal;
pub mod reports;
pub mod session;

pub use fleet::Fleet;
