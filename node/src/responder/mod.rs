//! `ocs-responder`: DHCP and the instance metadata service (IMDS) for guests.
//!
//! ```text
//!  guest ─ tap ─ XDP (source := the ENI's service address) ─▶ svc1, netns `svc`
//!                                                               │ UDP 67, TCP 80
//!    run/responder/169.254.x.y.json ◀── node              ┌─────▼─────┐
//!        [record]   └────────── read per request ────────▶│ peer addr │ identifies the ENI
//!                                                         └───────────┘
//! ```
//! The responder trusts nothing in a request but its peer's address. It needs no
//! process above it: what it may tell is in the records, and the key of its
//! tokens is on disk.

pub mod record;
