//! The host agent's library: the node's reconcilers and the responder.

pub mod agent;
pub mod responder;
