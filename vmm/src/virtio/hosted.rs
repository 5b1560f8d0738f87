//! Devices that this process serves on the event thread: all but net and block.
//!
//! ```text
//!  vCPU threads ─ registers ─▶ Front ─┐                ┌─ drain(queue) ─▶ guest memory
//!                                     ├─ lock: Model ──┤
//!  event thread ─ kicks, fds ─▶ Back ─┘                └─ host side: ring, entropy, sockets
//! ```
//! A [`Model`] says what the device is and does with one chain; taking queues over, giving
//! up on a driver that breaks the rules, pausing and bounded turns are here, once. The lock is
//! held for one turn at most.

use super::queue::{Buffers, QueueError, VirtQueue};
use super::{
    Activation, F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Fault, Loaded, Saved, VirtioDevice,
};
use crate::error::{Result, host};
use crate::events::{Epoll, Handler, HandlerId};
use crate::irq::{borrow, new_event};
use crate::memory::GuestRam;
use rustix::event::epoll::EventFlags;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vmm_sys_util::eventfd::EventFd;

/// Chains handled before other devices get their turn.
const TURN: usize = 64;
/// Sources below this are kicks, by queue; the model's own begin here.
pub const OWN_SOURCE: u32 = 64;
const SOURCE_AGAIN: u32 = u32::MAX;

/// What is special about a device. Called with the device's lock held, so never to wait.
pub trait Model: Send + 'static {
    /// Device type (§5).
    fn kind(&self) -> u16;
    /// The largest size of each queue.
    fn queue_sizes(&self) -> &'static [u16];
    /// How many of them, from the first on, a driver must enable.
    fn needed_queues(&self) -> usize {
        self.queue_sizes().len()
    }
    /// Features beside those that all devices here have.
    fn features(&self) -> u64 {
        0
    }
    /// Reads the device's own configuration.
    fn read_config(&self, _offset: usize, data: &mut [u8]) {
        data.fill(0);
    }
    /// Writes it; false where there is nothing to write.
    fn write_config(&mut self, _offset: usize, _data: &[u8]) -> bool {
        false
    }
    /// Looks at queue `index`, which was kicked.
    fn serve(&mut self, index: usize, driver: &mut Driver) -> std::result::Result<End, QueueError>;
    /// One of the model's own descriptors is ready; or, with no flags, all may be.
    fn ready(
        &mut self,
        _source: Option<u32>,
        _flags: EventFlags,
        _driver: Option<&mut Driver>,
    ) -> std::result::Result<End, QueueError> {
        Ok(End::Dry)
    }
    /// Gives back chains that it kept, before the machine's state is saved.
    fn let_go(&mut self, _driver: &mut Driver) -> std::result::Result<(), QueueError> {
        Ok(())
    }
    /// The driver is gone, with its queues.
    fn reset(&mut self) {}
    /// The state that the driver could notice.
    fn save(&self) -> Vec<u8>;
    /// Takes it over, before any driver; it is not trusted.
    fn load(&mut self, own: &[u8]) -> std::result::Result<Loaded, String>;
}

/// Why a turn ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Nothing more to do until something happens.
    Dry,
    /// There is more; others first.
    Spent,
}

/// What a model did with a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Chain {
    /// It is done, with so many bytes written.
    Done(u32),
    /// It stays in the ring: there is nothing for it now.
    Wait,
    /// The model keeps it and gives it back by [`Driver::give_back`].
    Kept,
}

/// A driver that is ready: its queues.
pub struct Driver {
    /// Guest memory.
    pub ram: GuestRam,
    /// Features that it accepted.
    pub features: u64,
    queues: Vec<Option<VirtQueue>>,
    buffers: Buffers,
    fault: Fault,
}

impl Driver {
    /// Hands the chains of queue `index` to `act`, in order, as long as it takes them.
    pub fn drain(
        &mut self,
        index: usize,
        mut act: impl FnMut(u16, &mut Buffers) -> std::result::Result<Chain, QueueError>,
    ) -> std::result::Result<End, QueueError> {
        let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) else {
            return Ok(End::Dry);
        };
        let mut done = false;
        let mut end = End::Spent;
        for _ in 0..TURN {
            let Some(head) = queue.pop(&mut self.buffers)? else {
                if queue.enable_kicks()? {
                    continue;
                }
                end = End::Dry;
                break;
            };
            match act(head, &mut self.buffers)? {
                Chain::Done(written) => {
                    queue.push(head, written)?;
                    done = true;
                }
                Chain::Wait => {
                    queue.undo_pop();
                    end = End::Dry;
                    break;
                }
                Chain::Kept => {}
            }
        }
        if done {
            queue.notify()?;
        }
        Ok(end)
    }

    /// Gives a chain back that was kept.
    pub fn give_back(&mut self, index: usize, head: u16) -> std::result::Result<(), QueueError> {
        if let Some(queue) = self.queues.get_mut(index).and_then(Option::as_mut) {
            queue.push(head, 0)?;
            queue.notify()?;
        }
        Ok(())
    }

    /// Did the driver enable queue `index`?
    pub fn has(&self, index: usize) -> bool {
        matches!(self.queues.get(index), Some(Some(_)))
    }
}

struct Inner<M> {
    model: M,
    driver: Option<Driver>,
    paused: bool,
}

/// A device and the two threads' ways to it.
pub struct Hosted<M> {
    inner: Arc<Mutex<Inner<M>>>,
    again: Arc<EventFd>,
}

impl<M> Clone for Hosted<M> {
    fn clone(&self) -> Self {
        Self {
            inner: Arc::clone(&self.inner),
            again: Arc::clone(&self.again),
        }
    }
}

impl<M: Model> Hosted<M> {
    /// Around `model`.
    pub fn new(model: M) -> Result<Self> {
        let inner = Inner {
            model,
            driver: None,
            paused: false,
        };
        Ok(Self {
            inner: Arc::new(Mutex::new(inner)),
            again: Arc::new(new_event()?),
        })
    }

    /// Watches the kicks on behalf of `handler`, which is a clone of this value.
    pub fn watch(&self, epoll: &Epoll, handler: HandlerId, kicks: &[Arc<EventFd>]) -> Result<()> {
        let edge = EventFlags::IN | EventFlags::ET;
        let again = (SOURCE_AGAIN, borrow(&self.again));
        let kicks = (0..).zip(kicks.iter().map(|kick| borrow(kick)));
        for (source, event) in kicks.chain([again]) {
            epoll
                .add(handler, source, event, edge)
                .map_err(host("watch a device"))?;
        }
        Ok(())
    }

    /// Runs `act` on the model and on its driver, if there is one and it does not stand still; a
    /// rule that the driver broke stops the device.
    pub fn with<T>(
        &self,
        act: impl FnOnce(&mut M, Option<&mut Driver>) -> std::result::Result<T, QueueError>,
    ) -> Option<T> {
        let mut inner = self.lock();
        let Inner {
            model,
            driver,
            paused,
        } = &mut *inner;
        let result = act(model, driver.as_mut().filter(|_| !*paused));
        match result {
            Ok(value) => Some(value),
            Err(error) => {
                if let Some(driver) = driver.take() {
                    model.reset();
                    driver.fault.raise(&error.to_string());
                }
                None
            }
        }
    }

    /// Lets the event thread look at everything.
    fn wake(&self) {
        // A full counter already means "again".
        let _ = self.again.write(1);
    }

    fn lock(&self) -> MutexGuard<'_, Inner<M>> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<M: Model> Handler for Hosted<M> {
    fn ready(&mut self, source: u32, flags: EventFlags) -> bool {
        if self.lock().paused {
            // `resume` looks at everything.
            return true;
        }
        let end = self.with(|model, mut driver| {
            if (OWN_SOURCE..SOURCE_AGAIN).contains(&source) {
                return model.ready(Some(source), flags, driver);
            }
            let mut end = End::Dry;
            let sources = if source == SOURCE_AGAIN {
                end = model.ready(None, EventFlags::empty(), driver.as_deref_mut())?;
                0..model.queue_sizes().len()
            } else {
                let index = source as usize;
                index..index + 1
            };
            if let Some(driver) = driver {
                for index in sources {
                    if model.serve(index, driver)? == End::Spent {
                        end = End::Spent;
                    }
                }
            }
            Ok(end)
        });
        if end == Some(End::Spent) {
            self.wake();
        }
        true
    }
}

impl<M: Model> VirtioDevice for Hosted<M> {
    fn kind(&self) -> u16 {
        self.lock().model.kind()
    }

    fn queue_sizes(&self) -> &[u16] {
        self.lock().model.queue_sizes()
    }

    fn features(&self) -> u64 {
        let own = self.lock().model.features();
        own | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        self.lock().model.read_config(offset, data);
    }

    fn write_config(&mut self, offset: usize, data: &[u8]) -> bool {
        self.lock().model.write_config(offset, data)
    }

    fn activate(&mut self, activation: Activation) -> std::result::Result<(), String> {
        let mut inner = self.lock();
        for index in 0..inner.model.needed_queues() {
            if !matches!(activation.queues.get(index), Some(Some(_))) {
                return Err(format!("queue {index} is not enabled"));
            }
        }
        inner.driver = Some(Driver {
            ram: activation.ram,
            features: activation.features,
            queues: activation.queues,
            buffers: Buffers::default(),
            fault: activation.fault,
        });
        drop(inner);
        self.wake();
        Ok(())
    }

    fn reset(&mut self) {
        let mut inner = self.lock();
        inner.driver = None;
        inner.model.reset();
    }

    fn pause(&mut self) -> std::result::Result<(), String> {
        // A driver that breaks the rules here is stopped, and then holds nothing either.
        self.with(|model, driver| driver.map_or(Ok(()), |driver| model.let_go(driver)));
        self.lock().paused = true;
        Ok(())
    }

    fn resume(&mut self) {
        self.lock().paused = false;
        self.wake();
    }

    fn save(&mut self) -> std::result::Result<Saved, String> {
        let inner = self.lock();
        let queues = inner.driver.as_ref().map(|driver| {
            let position = |queue: &Option<VirtQueue>| queue.as_ref().map(VirtQueue::position);
            driver.queues.iter().map(position).collect()
        });
        let own = inner.model.save();
        Ok(Saved { queues, own })
    }

    fn load(&mut self, own: &[u8]) -> std::result::Result<Loaded, String> {
        self.lock().model.load(own)
    }
}

#[cfg(test)]
pub(crate) mod tests;
