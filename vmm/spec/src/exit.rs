//! The exit record: one JSON object that the VMM writes last.
//!
//! A run directory with an empty record belongs to a VMM that runs or was killed.

use serde::{Deserialize, Serialize};

/// Why a VMM ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
pub struct ExitRecord {
    /// The cause.
    pub reason: ExitReason,
    /// One sentence for a person.
    pub message: String,
    /// What was left of [`crate::Spec::transmit`]'s credits, in bytes, where it has a baseline;
    /// whoever starts the machine again may give them to it as
    /// [`crate::TransmitLimits::credits`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub transmit_credits: Option<u64>,
}

/// The cause of a VMM's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(test, derive(schemars::JsonSchema))]
#[serde(rename_all = "snake_case")]
pub enum ExitReason {
    /// The guest powered itself off (ACPI S5).
    GuestShutdown,
    /// The guest asked for a reset (ACPI, i8042, triple fault): start it again.
    GuestReset,
    /// [`crate::control::Request::Stop`] or SIGTERM.
    Stopped,
    /// The machine goes on in another process ([`crate::control::Request::Migrate`]).
    Migrated,
    /// The VMM could not start or go on.
    Error,
}
