//! The packet path's user-space half: what the BPF programs are told, and by whom.
//!
//! ```text
//!  node ── model::Policy (what shall be)
//!            │
//!        compiler ── numbers for sets of groups and for prefixes, then map entries
//!            │
//!         fabric ─── namespaces, taps, programs; makes the maps equal, in a safe order
//!            │
//!          maps ◀──── XDP programs (dataplane-ebpf/), logic in dataplane/shared/
//! ```
//!
//! [`reference`](mod@reference) says the same as all of them, naively; tests hold them to
//! it. Start reading at [`model`], then [`fabric`].

pub mod compiler;
pub mod fabric;
pub mod model;
mod object;
pub mod reference;

pub use ocs_dataplane_shared as shared;
