//! Control: EC2's semantics over a durable store, and the fronts to them.
//!
//! ```text
//!   fronts (EC2 Query, gRPC) ─▶ ec2 (semantics) ─▶ core (view, transactions) ─▶ store
//!        │ wire (tables, codec)                        ▲
//!   accounts (keys, sealed)                     gateway ─ nodes (mTLS)
//! ```
//!
//! Start reading at [`ec2`]; [`rows`] says what there is, [`core`] how it
//! changes, [`gateway`] how it becomes real.

pub mod accounts;
pub mod admin;
pub mod audit;
pub mod catalogue;
pub mod config;
pub mod core;
pub mod ec2;
pub mod fronts;
pub mod gateway;
pub mod janitor;
pub mod rows;
pub mod serve;
pub mod store;
pub mod view;
pub mod wire;
