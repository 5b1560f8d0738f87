//! The protocol between control and node: `proto/node.proto`, compiled.
//!
//! A node dials control and keeps one bidirectional stream: desired state and
//! questions come down, reports and answers go up.

#![allow(missing_docs, reason = "generated; the documentation is in node.proto")]
#![allow(clippy::all, reason = "generated")]

tonic::include_proto!("ocs.node.v1");

/// How control answers a node that has been removed: nothing is desired of it any more.
pub const REMOVED: tonic::Code = tonic::Code::NotFound;
