//! The wire: AWS's tables, and the one codec that they drive.
//!
//! ```text
//!   form parameters ──query──▶ ┌───────┐           ┌───────┐ ──xml──▶ EC2's XML
//!                              │ Value │─semantics▶│ Shown │
//!   gRPC message ──fronts::grpc▶       │           │       │ ──fronts::grpc──▶ message
//!                              └───┬───┘           └───────┘
//!                               validate: required, enumerations, bounds
//! ```
//!
//! A request between front and semantics is a [`serde_json::Value`] whose objects carry the
//! model's member names, an answer a [`Shown`], into which a `Value` turns; timestamps are
//! RFC 3339 strings and blobs base64, as in XML and in proto3's JSON mapping alike.

pub mod error;
pub mod instant;
pub mod query;
pub mod shapes;
pub mod shown;
pub mod validate;
pub mod xml;

pub use error::ApiError;
pub use serde_json::Value;
pub use shapes::{Model, ShapeId, ec2, sts};
pub use shown::{Shown, Tree};

#[cfg(test)]
mod tests;
