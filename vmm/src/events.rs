//! The event thread: one epoll, handlers in turn.
//!
//! ```text
//!  tap, kicks ─▶ net worker      listener, connections ─▶ control
//!  signalfd, "ended" ─▶ machine
//! ```
//! A handler must never block. Nothing here has a timer: an idle machine sleeps.

use crate::error::{Result, host};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

/// Something that waits for descriptors.
pub trait Handler {
    /// One of its descriptors, that it added as `source`, has `flags`.
    /// False ends the loop.
    fn ready(&mut self, source: u32, flags: EventFlags) -> bool;
}

/// The set of descriptors waited for.
pub struct Epoll(OwnedFd);

/// A handler's name in the set.
#[derive(Clone, Copy, Debug)]
pub struct HandlerId(u32);

impl Epoll {
    /// Adds `fd` on behalf of `handler`.
    pub fn add(
        &self,
        handler: HandlerId,
        source: u32,
        fd: impl AsFd,
        flags: EventFlags,
    ) -> std::io::Result<()> {
        let token = u64::from(handler.0) << 32 | u64::from(source);
        Ok(epoll::add(&self.0, fd, EventData::new_u64(token), flags)?)
    }

    /// Changes what is waited for.
    pub fn modify(
        &self,
        handler: HandlerId,
        source: u32,
        fd: impl AsFd,
        flags: EventFlags,
    ) -> std::io::Result<()> {
        let token = u64::from(handler.0) << 32 | u64::from(source);
        Ok(epoll::modify(
            &self.0,
            fd,
            EventData::new_u64(token),
            flags,
        )?)
    }
}

/// The loop.
pub struct EventLoop {
    epoll: Arc<Epoll>,
    handlers: Vec<Box<dyn Handler>>,
}

/// Events taken at a time.
const BATCH: usize = 32;

impl EventLoop {
    /// An empty loop.
    pub fn new() -> Result<Self> {
        let fd = epoll::create(CreateFlags::CLOEXEC).map_err(host("make an epoll"))?;
        Ok(Self {
            epoll: Arc::new(Epoll(fd)),
            handlers: Vec::new(),
        })
    }

    /// The set, for handlers that add descriptors later.
    pub fn epoll(&self) -> Arc<Epoll> {
        Arc::clone(&self.epoll)
    }

    /// The id that the next handler gets.
    pub fn next_id(&self) -> HandlerId {
        HandlerId(u32::try_from(self.handlers.len()).unwrap_or(u32::MAX))
    }

    /// Adds a handler.
    pub fn push(&mut self, handler: Box<dyn Handler>) {
        self.handlers.push(handler);
    }

    /// Runs until a handler ends it.
    pub fn run(&mut self) -> Result<()> {
        let mut events: Vec<Event> = Vec::with_capacity(BATCH);
        loop {
            events.clear();
            match epoll::wait(&self.epoll.0, spare_capacity(&mut events), None) {
                Ok(_) | Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(host("wait for events")(error)),
            }
            for event in &events {
                let (token, flags) = (event.data.u64(), event.flags);
                let source = u32::try_from(token & u64::from(u32::MAX)).unwrap_or(u32::MAX);
                let index = usize::try_from(token >> 32).unwrap_or(usize::MAX);
                let goes_on = self
                    .handlers
                    .get_mut(index)
                    .is_none_or(|handler| handler.ready(source, flags));
                if !goes_on {
                    return Ok(());
                }
            }
        }
    }
}
