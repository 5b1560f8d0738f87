//! The balloon in a snapshot: the size asked for and the size it has.

use super::BalloonModel;
use crate::virtio::Loaded;

/// `num_pages` and `actual`, as the driver reads them.
const STATE_BYTES: usize = 8;

impl BalloonModel {
    pub(super) fn saved(&self) -> Vec<u8> {
        self.config[..STATE_BYTES].to_vec()
    }

    pub(super) fn take(&mut self, own: &[u8]) -> Result<Loaded, String> {
        let own: [u8; STATE_BYTES] = own
            .try_into()
            .map_err(|_| format!("has {} bytes instead of {STATE_BYTES}", own.len()))?;
        self.config[..STATE_BYTES].copy_from_slice(&own);
        self.show_sizes();
        Ok(Loaded::Same)
    }
}
