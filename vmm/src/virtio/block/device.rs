//! The driver's side of a disk.

use super::{Active, BlockStatus, QUEUE_SIZE, Rest, Shared, persist};
use crate::memory::dirty::BackendLog;
use crate::virtio::{Activation, Loaded, Position, Saved, VirtioDevice, read_bytes};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

/// One disk.
pub struct BlockDevice {
    shared: Arc<Shared>,
    /// Paused; where its ring stands if there is one.
    rests: Option<Option<Position>>,
    bounced: bool,
}

impl BlockDevice {
    pub(super) fn new(shared: Arc<Shared>, bounced: bool) -> Self {
        Self {
            shared,
            rests: None,
            bounced,
        }
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
        if let Some(position) = &mut self.rests {
            *position = Some(active.queue.position());
        }
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

    fn pause(&mut self) -> Result<(), String> {
        if self.rests.is_some() {
            return Ok(());
        }
        let (answer, answered) = mpsc::sync_channel(1);
        self.shared.wishes().rest = Some(Rest::Begin(answer));
        self.wake()?;
        let position = answered
            .recv()
            .map_err(|_| "the worker has ended".to_owned())??;
        self.rests = Some(position);
        Ok(())
    }

    fn resume(&mut self) {
        if self.rests.take().is_none() {
            return;
        }
        self.shared.wishes().rest = Some(Rest::End);
        if let Err(error) = self.wake() {
            tracing::error!(error, "a disk cannot go on");
        }
    }

    fn save(&mut self) -> Result<Saved, String> {
        let position = self.rests.ok_or("is not paused")?;
        Ok(Saved {
            queues: position.map(|position| vec![Some(position)]),
            own: persist::encode(&self.shared.offer()),
        })
    }

    fn log_dirty(&mut self, log: Option<&Arc<BackendLog>>) -> Result<(), String> {
        // What bounces is stored by this process.
        if self.bounced {
            return Ok(());
        }
        let has_backend = self.shared.connected.load(Ordering::SeqCst);
        if log.is_some() && has_backend && !self.shared.can_log.load(Ordering::SeqCst) {
            return Err("has a backend that cannot tell what it writes".to_owned());
        }
        self.shared.wishes().log = Some(log.map(Arc::clone));
        self.wake()
    }

    fn load(&mut self, own: &[u8]) -> Result<Loaded, String> {
        *self.shared.offer() = persist::decode(own)?;
        self.shared.offered.store(true, Ordering::SeqCst);
        Ok(Loaded::Same)
    }
}
