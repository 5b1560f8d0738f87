//! The driver's side of a disk.

use super::{Active, BlockStatus, QUEUE_SIZE, Shared};
use crate::virtio::{Activation, VirtioDevice, read_bytes};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// One disk.
pub struct BlockDevice {
    shared: Arc<Shared>,
}

impl BlockDevice {
    pub(super) fn new(shared: Arc<Shared>) -> Self {
        Self { shared }
    }

    /// The connection's state.
    pub fn status(&self) -> BlockStatus {
        BlockStatus(Arc::clone(&self.shared))
    }

    fn wake(&self) -> Result<(), String> {
        self.shared
            .wake
            .write(1)
            .map_err(|e| format!("the worker cannot be woken: {e}"))
    }
}

impl VirtioDevice for BlockDevice {
    fn kind(&self) -> u16 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE]
    }

    fn features(&self) -> u64 {
        self.shared.offer().features
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let offer = *self.shared.offer();
        read_bytes(&offer.config, offset, data);
    }

    fn activate(&mut self, mut activation: Activation) -> Result<(), String> {
        let queue = activation
            .queues
            .first_mut()
            .and_then(Option::take)
            .ok_or("queue 0 is not enabled")?;
        let active = Active {
            queue,
            features: activation.features,
            ram: activation.ram,
            fault: activation.fault,
        };
        self.shared.is_reset.store(false, Ordering::SeqCst);
        self.shared.wishes().activate = Some(active);
        self.wake()
    }

    fn reset(&mut self) {
        if self.shared.is_reset.load(Ordering::SeqCst) {
            return;
        }
        let mut wishes = self.shared.wishes();
        wishes.activate = None;
        wishes.reset = true;
        drop(wishes);
        if let Err(error) = self.wake() {
            tracing::error!(error, "a disk cannot be reset");
        }
    }

    fn is_reset(&self) -> bool {
        self.shared.is_reset.load(Ordering::SeqCst)
    }
}
