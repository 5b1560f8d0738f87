//! The driver's side of a disk.

use super::inflight::Inflight;
use super::session::F_MQ;
use super::{Active, BlockStatus, Positions, QUEUE_SIZE, Rest, Shared, persist};
use crate::memory::dirty::BackendLog;
use crate::virtio::{Activation, Loaded, Saved, VirtioDevice, read_bytes};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc;

/// One disk.
pub struct BlockDevice {
    shared: Arc<Shared>,
    sizes: Vec<u16>,
    /// Paused; where its rings stand if there are any.
    rests: Option<Option<Positions>>,
    bounced: bool,
}

impl BlockDevice {
    pub(super) fn new(shared: Arc<Shared>, queues: u16, bounced: bool) -> Self {
        Self {
            shared,
            sizes: vec![QUEUE_SIZE; usize::from(queues)],
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
        &self.sizes
    }

    fn features(&self) -> u64 {
        self.shared.offer().features
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        let offer = *self.shared.offer();
        read_bytes(&offer.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), String> {
        let places = activation.queues.len();
        let queues: Vec<_> = (0..)
            .zip(activation.queues)
            .filter_map(|(index, queue)| Some((index, queue?)))
            .collect();
        if !matches!(queues.first(), Some((0, _))) {
            return Err("queue 0 is not enabled".to_owned());
        }
        // A driver without MQ uses one; nobody may use more than the configuration says.
        let most = match activation.features & F_MQ {
            0 => 1,
            _ => self.shared.offer().queues(),
        };
        if let Some((index, _)) = queues.iter().find(|(index, _)| *index >= most) {
            return Err(format!("queue {index} of {most} is enabled"));
        }
        let active = Active {
            queues,
            places,
            features: activation.features,
            ram: activation.ram,
            fault: activation.fault,
        };
        self.shared.is_reset.store(false, Ordering::SeqCst);
        if let Some(positions) = &mut self.rests {
            *positions = Some(active.positions());
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
        let positions = answered
            .recv()
            .map_err(|_| "the worker has ended".to_owned())??;
        self.rests = Some(positions);
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
        let positions = self.rests.clone().ok_or("is not paused")?;
        Ok(Saved {
            queues: positions,
            own: persist::encode(&self.shared.offer()),
        })
    }

    fn hand_over(&mut self) -> Option<(Vec<u8>, OwnedFd)> {
        let mut region = self.shared.region.lock();
        let region = region
            .as_mut()
            .map_or_else(|e| e.get_mut().take(), |r| r.take());
        region.map(|(info, fd)| (persist::encode_region(&info), fd))
    }

    fn take_over(&mut self, info: &[u8], fd: OwnedFd) -> Result<(), String> {
        let info = persist::decode_region(info)?;
        let region = Inflight::new(info, fd.into()).map_err(|e| e.to_string())?;
        self.shared.wishes().region = Some(region);
        self.wake()
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
