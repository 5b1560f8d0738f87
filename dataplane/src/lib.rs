//! The packet path's user-space half: what the BPF programs are told, and by whom.
//!
//! ```text
//!  node ── model::Policy (what shall be) ──▶ compiler ──▶ maps ◀── XDP programs
//! ```
//! Start reading at [`model`].

pub mod model;
