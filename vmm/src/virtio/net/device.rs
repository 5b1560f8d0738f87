//! The driver's side of the interface.

use super::{Active, QUEUE_SIZE, RX, Shared, TX};
use crate::virtio::queue::Buffers;
use crate::virtio::{
    Activation, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, VirtioDevice, read_bytes,
};
use std::sync::PoisonError;

const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_STATUS: u64 = 1 << 16;
/// `struct virtio_net_config`: the link is up.
const LINK_UP: u16 = 1;

/// One interface.
pub struct NetDevice {
    /// MAC, status, max_virtqueue_pairs, MTU (§5.1.4).
    config: [u8; 12],
    shared: Shared,
}

impl NetDevice {
    /// An interface with this address and MTU, whose queues go to the worker through `shared`.
    pub(super) fn new(mac: [u8; 6], mtu: u16, shared: Shared) -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        Self { config, shared }
    }
}

impl VirtioDevice for NetDevice {
    fn kind(&self) -> u16 {
        1
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE, QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_MAC | F_MTU | F_STATUS
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), String> {
        let mut take = |index: usize| {
            activation
                .queues
                .get_mut(index)
                .and_then(Option::take)
                .ok_or_else(|| format!("queue {index} is not enabled"))
        };
        let active = Active {
            rx: take(RX)?,
            tx: take(TX)?,
            fault: activation.fault,
            buffers: Buffers::default(),
        };
        let mut shared = self.shared.lock().unwrap_or_else(PoisonError::into_inner);
        let active = shared.insert(active);
        // The worker looks at both queues, whatever was kicked or arrived before.
        for kick in [active.rx.kick(), active.tx.kick()] {
            kick.write(1)
                .map_err(|e| format!("the worker cannot be woken: {e}"))?;
        }
        Ok(())
    }

    fn reset(&mut self) {
        *self.shared.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}
