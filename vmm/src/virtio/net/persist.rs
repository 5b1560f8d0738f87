//! An interface in a snapshot: its configuration, and where its queues stand.

use super::device::Config;
use super::{Active, RX, TX};
use crate::virtio::{Loaded, Position};

impl Active {
    /// Receive queue, then transmit queue.
    pub(super) fn positions(&self) -> Vec<Option<Position>> {
        let mut positions = vec![None; 2];
        positions[RX] = Some(self.rx.position());
        positions[TX] = Some(self.tx.position());
        positions
    }

    /// Lets the worker look at both queues.
    pub(super) fn wake(&self) -> Result<(), String> {
        for kick in [self.rx.kick(), self.tx.kick()] {
            kick.write(1)
                .map_err(|e| format!("the worker cannot be woken: {e}"))?;
        }
        Ok(())
    }
}

/// A clone has an address of its own (bytes 0 to 5); all else must be what the driver knows.
pub(super) fn compare(config: &Config, saved: &[u8]) -> Result<Loaded, String> {
    let saved = Config::try_from(saved)
        .map_err(|_| format!("has a network configuration of {} bytes", saved.len()))?;
    if saved[6..] != config[6..] {
        return Err(format!(
            "has link, queues and MTU {:02x?}, and this interface {:02x?}",
            &saved[6..],
            &config[6..]
        ));
    }
    Ok(match saved == *config {
        true => Loaded::Same,
        false => Loaded::ConfigChanged,
    })
}
