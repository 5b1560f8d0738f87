//! The driver's side of the interface.

use super::offloads::{OFFERED, Offloads};
use super::ring::BATCH;
use super::{Active, Chain, Inner, QUEUE_SIZE, RX, Shared, TX, persist};
use crate::virtio::{
    Activation, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Loaded, Saved, VirtioDevice, read_bytes,
};
use std::sync::{MutexGuard, PoisonError};

const F_MTU: u64 = 1 << 3;
const F_MAC: u64 = 1 << 5;
const F_STATUS: u64 = 1 << 16;
/// `struct virtio_net_config`: the link is up.
const LINK_UP: u16 = 1;

/// One interface.
pub struct NetDevice {
    /// MAC, status, max_virtqueue_pairs, MTU (§5.1.4).
    config: Config,
    offered: u64,
    shared: Shared,
}

/// `struct virtio_net_config` as far as it is offered.
pub(super) type Config = [u8; 12];

impl NetDevice {
    /// An interface with this address, MTU and offer of offloads, whose queues go to the worker
    /// through `shared`.
    pub(super) fn new(mac: [u8; 6], mtu: u16, offloads: bool, shared: Shared) -> Self {
        let mut config = [0; 12];
        config[..6].copy_from_slice(&mac);
        config[6..8].copy_from_slice(&LINK_UP.to_le_bytes());
        config[8..10].copy_from_slice(&1u16.to_le_bytes());
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        let base = F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC | F_MAC | F_MTU | F_STATUS;
        Self {
            config,
            offered: if offloads { base | OFFERED } else { base },
            shared,
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
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
        self.offered
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
            chains: std::iter::repeat_with(Chain::default).take(BATCH).collect(),
            offloads: Offloads::new(activation.features),
            is_new: true,
            ahead: BATCH,
        };
        // The worker looks at both queues, whatever was kicked or arrived before.
        self.lock().active.insert(active).wake()
    }

    fn reset(&mut self) {
        self.lock().active = None;
    }

    fn pause(&mut self) -> Result<(), String> {
        // The worker holds the lock while it moves frames, so now it does not.
        self.lock().paused = true;
        Ok(())
    }

    fn resume(&mut self) {
        let mut inner = self.lock();
        inner.paused = false;
        if let Some(active) = &inner.active
            && let Err(error) = active.wake()
        {
            tracing::error!(error, "an interface cannot go on");
        }
    }

    fn save(&mut self) -> Result<Saved, String> {
        let queues = self.lock().active.as_ref().map(Active::positions);
        let own = self.config.to_vec();
        Ok(Saved { queues, own })
    }

    fn load(&mut self, own: &[u8]) -> Result<Loaded, String> {
        persist::compare(&self.config, own)
    }
}
