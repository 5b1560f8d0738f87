//! What the operator says to the node.

use super::layout::Layout;
use std::path::PathBuf;
use std::time::Duration;

/// Offsets from `--uid-base`, as ARCHITECTURE.md's table of processes has them.
const RESPONDER: u32 = 2;
const STORAGED: u32 = 3;
const FIRST_VMM: u32 = 100;

/// The node's settings.
#[derive(Clone, Debug)]
pub struct Config {
    /// Where state lies.
    pub layout: Layout,
    /// First of the user ids that this installation owns.
    pub uid_base: u32,
    /// The `ocs-vmm` to start.
    pub vmm: PathBuf,
    /// How long a guest may take to obey its power button.
    pub stop_grace: Duration,
}

impl Config {
    /// The responder's group.
    #[must_use]
    pub fn responder_gid(&self) -> u32 {
        self.uid_base + RESPONDER
    }

    /// storaged's user.
    #[must_use]
    pub fn storaged_uid(&self) -> u32 {
        self.uid_base + STORAGED
    }

    /// The user of the VMM in `slot`.
    #[must_use]
    pub fn vmm_uid(&self, slot: u32) -> u32 {
        self.uid_base + FIRST_VMM + slot
    }
}
