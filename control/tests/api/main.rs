//! The API as callers see it: the real binary, real sockets, a fake node.

mod bad_requests;
mod fidelity;
mod grpc;
mod lifecycle;
mod support;
