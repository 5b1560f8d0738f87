//! Snapshots of a machine: taken, restored, cloned, migrated.
//!
//! ```text
//!                 pause ─▶ save parts ─▶ memory file ─▶ state file ─▶ resume        [take.rs]
//!   machine ─────────────────────────────────────────────────────────────────▶ machine
//!      │          state file ─▶ check ─▶ map memory file privately ─▶ load parts  [restore.rs]
//!      │
//!      └── pages, pages again, … ─▶ pause ─▶ last pages, state, disks' regions
//!                              [migrate.rs] ─▶ [stream.rs] ─▶ [incoming.rs]
//! ```
//! *Two files.* The state ([`crate::persist`]) is a few dozen KiB and read whole. The memory
//! ([`memory_file`]) is mapped, and read page by page when the guest touches it; a differential
//! one holds the pages that changed since its parent and is mapped on top of it. The state names
//! the memory that it belongs to.
//!
//! *Identity.* A machine restored from files is a clone, even if its original is gone: it gets a
//! new generation id ([`crate::boot::acpi`]) before it runs, so that its kernel reseeds what it
//! takes for randomness, and the MAC addresses of its own spec. A migrated machine is the same
//! machine and keeps them.
//!
//! *Who does it.* One thread, [`worker`], for all that stops the machine or takes long: the event
//! thread goes on serving frames and requests.

pub mod incoming;
pub mod memory_file;
pub mod migrate;
pub mod restore;
pub mod stream;
pub mod take;
pub mod worker;

use memory_file::SnapshotId;
use serde::{Deserialize, Serialize};

/// The section that says what machine this is.
pub const MACHINE_SECTION: &str = "machine";
/// Of [`MachineState`].
pub const MACHINE_VERSION: u16 = 1;

/// What the parts do not say.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MachineState {
    /// How many.
    pub vcpus: u8,
    /// Of guest memory.
    pub memory_bytes: u64,
    /// The memory file that belongs to this state.
    pub memory: SnapshotId,
}

/// Why a machine could not be saved or continued.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// The state's own words.
    #[error("restore.state: {0}")]
    State(#[from] crate::persist::PersistError),
    /// A part cannot stop, or cannot be saved.
    #[error("{part} {problem}")]
    Part {
        /// The part.
        part: String,
        /// Its words.
        problem: String,
    },
    /// A memory file that cannot be mapped.
    #[error("restore.memory[{index}]: {problem}")]
    Memory {
        /// Its place in the spec.
        index: usize,
        /// What is wrong.
        problem: String,
    },
    /// The spec describes another machine than the state.
    #[error("{field}: the state is of a machine with {state}, and the spec says {spec}")]
    Differs {
        /// The spec's field.
        field: &'static str,
        /// The state's value.
        state: u64,
        /// The spec's.
        spec: u64,
    },
    /// The files could not be written or read.
    #[error("the {what} cannot be written or read: {source}")]
    File {
        /// Which.
        what: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
    /// The logs that tell what changed.
    #[error("{0}")]
    Dirty(String),
    /// The other VMM.
    #[error("the migration failed: {0}")]
    Migration(String),
}

/// As people read it.
#[must_use]
pub fn hex(id: &SnapshotId) -> String {
    use std::fmt::Write;
    id.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// A new name; the system's generator does not fail once it has started.
pub fn new_id() -> std::io::Result<SnapshotId> {
    let mut id = SnapshotId::default();
    let got = rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())?;
    if got != id.len() {
        return Err(std::io::Error::other("the system gave no random bytes"));
    }
    Ok(id)
}
