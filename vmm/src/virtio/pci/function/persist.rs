//! A virtio function in a snapshot: configuration space, MSI-X, registers, the device.

use super::{Inner, UNMAPPED, VirtioPci};
use crate::lifecycle::Lifecycle;
use crate::memory::dirty::BackendLog;
use crate::pci::msix::MsixState;
use crate::persist::State;
use crate::virtio::pci::common::CommonState;
use crate::virtio::{Activation, Loaded, Position, Saved};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const STATE_VERSION: u16 = 1;

#[derive(Debug, Serialize, Deserialize)]
struct FunctionState {
    config: Vec<u8>,
    msix: MsixState,
    common: CommonState,
    /// KVM watches the kicks.
    ready: bool,
    device: Saved,
}

impl Lifecycle for VirtioPci {
    fn pause(&self) -> Result<(), String> {
        let mut inner = self.lock();
        inner.device.pause()?;
        inner.finish_reset();
        Ok(())
    }

    fn save(&self) -> Result<State, String> {
        let mut inner = self.lock();
        if inner.resetting {
            return Err("is being reset".to_owned());
        }
        let device = inner.device.save()?;
        let state = FunctionState {
            config: inner.config.bytes().to_vec(),
            msix: inner.msix.save(),
            common: inner.common.save(),
            ready: inner.ready,
            device,
        };
        State::encode(STATE_VERSION, &state)
    }

    fn load(&self, state: &State) -> Result<(), String> {
        let state: FunctionState = state.decode(STATE_VERSION)?;
        let mut inner = self.lock();
        let inner = &mut *inner;
        inner.device.pause()?;
        inner.config.load(&state.config)?;
        let bar = inner.config.bar().unwrap_or(UNMAPPED);
        self.mapped_at.store(bar, Ordering::SeqCst);
        let loaded = inner.device.load(&state.device.own)?;
        let features = inner.features();
        inner.common.load(&state.common, features)?;
        inner.msix.load(&state.msix)?;
        if let Some(positions) = &state.device.queues {
            self.activate_at(inner, positions)?;
        }
        self.set_ready(inner, state.ready);
        if loaded == Loaded::ConfigChanged {
            inner.common.generation = inner.common.generation.wrapping_add(1);
            inner.config_changed = true;
        }
        Ok(())
    }

    fn resume(&self) {
        self.lock().device.resume();
    }

    fn hand_over(&self) -> Option<(Vec<u8>, OwnedFd)> {
        self.lock().device.hand_over()
    }

    fn take_over(&self, info: &[u8], fd: OwnedFd) -> Result<(), String> {
        self.lock().device.take_over(info, fd)
    }

    fn log_dirty(&self, log: Option<&Arc<BackendLog>>) -> Result<(), String> {
        self.lock().device.log_dirty(log)
    }
}

impl Inner {
    /// Interrupts once more, by queue `index` or for the configuration.
    fn repeat(&mut self, index: Option<usize>) -> Result<(), String> {
        let vector = match index {
            Some(index) => self.common.queues[index].vector,
            None => self.common.config_vector,
        };
        if self.notify_register.is_none() {
            return self.msix.repeat(vector);
        }
        // All vectors are one pin; a register says what it is about.
        self.config_changed |= index.is_none();
        let event = match index {
            Some(_) => self.msix.event(vector),
            None => self.config_event(),
        };
        event.map_or(Ok(()), |event| event.write(1).map_err(|e| e.to_string()))
    }
}

impl VirtioPci {
    /// Gives the device its queues where they stood. Each interrupts once more, and so does the
    /// configuration: an interrupt may have been on its way in KVM, and a spurious one is harmless.
    fn activate_at(&self, inner: &mut Inner, positions: &[Option<Position>]) -> Result<(), String> {
        let mut queues = self.collect_queues(inner)?;
        if positions.len() != queues.len() {
            return Err(format!(
                "has the positions of {} queues, not of {}",
                positions.len(),
                queues.len()
            ));
        }
        for (index, (queue, position)) in queues.iter_mut().zip(positions).enumerate() {
            match (queue, position) {
                (Some(queue), Some(position)) => {
                    queue.set_position(*position);
                    inner.repeat(Some(index))?;
                }
                (None, None) => {}
                _ => return Err(format!("has queue {index} both enabled and not")),
            }
        }
        inner.repeat(None)?;
        let activation = Activation {
            ram: self.ram.clone(),
            features: inner.common.driver_features,
            queues,
            fault: self.fault(inner),
        };
        inner.device.activate(activation)
    }
}
