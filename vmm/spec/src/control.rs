//! The control socket: one JSON [`Request`] a line in, one JSON [`Reply`] a line out.
//!
//! Versioned with [`PROTOCOL_VERSION`]: node N drives VMM N-1, so members are
//! only ever added, and an unknown command answers [`Reply::Error`].

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The version that [`Reply::Status`] states.
pub const PROTOCOL_VERSION: u32 = 1;
/// A longer line ends the connection.
pub const MAX_LINE_BYTES: usize = 64 * 1024;

/// What a caller may ask of a running VMM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "cmd", rename_all = "snake_case")]
pub enum Request {
    /// Answers [`Reply::Status`].
    Status,
    /// Stops all vCPUs; idempotent.
    Pause,
    /// Lets them run again; idempotent.
    Resume,
    /// Presses the power button (ACPI), EC2's graceful stop. Answers at once.
    PowerButton,
    /// Ends the VMM cleanly: vCPUs stopped, rings stopped, exit record written.
    Stop,
    /// Answers [`Reply::Metrics`].
    Metrics,
}

/// What the VMM answers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reply", rename_all = "snake_case")]
pub enum Reply {
    /// The command took effect.
    Ok,
    /// The command was refused, and why in one sentence.
    Error {
        /// One sentence.
        message: String,
    },
    /// To [`Request::Status`].
    Status {
        /// [`PROTOCOL_VERSION`].
        protocol: u32,
        /// [`crate::Spec::id`].
        id: String,
        /// The run state now.
        state: RunState,
        /// Block devices by id: is a backend connected now?
        block_connected: BTreeMap<String, bool>,
        /// `CLOCK_MONOTONIC` at entry of the process, in ns.
        started_ns: u64,
        /// `CLOCK_MONOTONIC` when the first vCPU was first told to run, in ns.
        first_run_ns: u64,
    },
    /// To [`Request::Metrics`]: counters by dotted name, such as `net.eni-1.rx_frames`.
    Metrics {
        /// Monotonic counters since start.
        counters: BTreeMap<String, u64>,
    },
}

/// A VMM's run state.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RunState {
    /// The guest was not started yet: a block device's backend has never connected (see
    /// [`Reply::Status`]'s `block_connected`). There is no time-out; a caller sets its own.
    Waiting,
    /// vCPUs run.
    Running,
    /// vCPUs are held.
    Paused,
    /// On its way out.
    Stopping,
}
