//! The API as callers see it: the real binary, real sockets, a fake node.

mod actions;
mod bad_requests;
mod copies;
mod credits;
mod crowd;
mod evidence;
mod fidelity;
mod grpc;
mod hosts;
mod ipv6;
mod lifecycle;
mod linear;
mod memory;
mod nat;
mod networks;
mod prefix_lists;
mod questions;
mod shape;
mod storage;
mod support;
mod templates;
mod unauthorised;
mod world;
