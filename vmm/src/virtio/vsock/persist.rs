//! The socket device in a snapshot: its address. Connections end with the machine that made
//! them, and the driver is told so (§5.10.6.7.1): it resets its sockets and reads its address again.

use super::VsockModel;
use crate::virtio::Loaded;

impl VsockModel {
    pub(super) fn saved(&self) -> Vec<u8> {
        self.guest_cid.to_le_bytes().to_vec()
    }

    pub(super) fn take(&mut self, own: &[u8]) -> Result<Loaded, String> {
        let saved = <[u8; 8]>::try_from(own)
            .map_err(|_| format!("has an address of {} bytes", own.len()))?;
        self.transport_reset = true;
        Ok(match saved == self.guest_cid.to_le_bytes() {
            true => Loaded::Same,
            false => Loaded::ConfigChanged,
        })
    }
}
