//! The fronts: translations between a wire and the semantics in `ec2`.
//!
//! ```text
//!   HTTP ─ query.rs ─┐                                  ┌─ xml ─▶
//!                    ├─ sigv4 ─ decode ─ call::execute ─┤
//!   gRPC ─ grpc.rs ──┘                                  └─ proto ─▶
//!   WebSocket ─ tunnel.rs ─ sigv4 ─▶ the node of an instance-connect endpoint
//! ```

pub mod call;
pub mod grpc;
pub mod listen;
pub mod query;
pub mod sigv4;
pub mod throttle;
pub mod tunnel;
