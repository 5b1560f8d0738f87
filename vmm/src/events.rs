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
use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Something that waits for descriptors.
pub trait Handler {
    /// One of its descriptors, that it added as `source`, has `flags`.
    /// False ends the loop.
    fn ready(&mut self, source: u32, flags: EventFlags) -> bool;
}

/// The set of descriptors waited for, and where handlers come and go.
pub struct Epoll {
    set: OwnedFd,
    next: AtomicU32,
    changes: Mutex<Vec<Change>>,
}

/// What the loop does to its handlers between two events.
enum Change {
    Add(HandlerId, Box<dyn Handler + Send>),
    Remove(HandlerId),
}

/// A handler's name in the set.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HandlerId(u32);

impl Epoll {
    /// A name that no handler has had.
    pub fn new_id(&self) -> HandlerId {
        HandlerId(self.next.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands `id`'s handler to the loop.
    pub fn push(&self, id: HandlerId, handler: Box<dyn Handler + Send>) {
        self.change(Change::Add(id, handler));
    }

    /// Has the loop drop a handler, whose descriptors go with it.
    pub fn remove(&self, id: HandlerId) {
        self.change(Change::Remove(id));
    }

    fn change(&self, change: Change) {
        self.changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(change);
    }

    /// Adds `fd` on behalf of `handler`.
    pub fn add(
        &self,
        handler: HandlerId,
        source: u32,
        fd: impl AsFd,
        flags: EventFlags,
    ) -> std::io::Result<()> {
        let token = u64::from(handler.0) << 32 | u64::from(source);
        Ok(epoll::add(&self.set, fd, EventData::new_u64(token), flags)?)
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
            &self.set,
            fd,
            EventData::new_u64(token),
            flags,
        )?)
    }
}

/// The loop.
pub struct EventLoop {
    epoll: Arc<Epoll>,
    handlers: BTreeMap<HandlerId, Box<dyn Handler + Send>>,
    events: Vec<Event>,
}

/// Events taken at a time.
const BATCH: usize = 32;

impl EventLoop {
    /// An empty loop.
    pub fn new() -> Result<Self> {
        let set = epoll::create(CreateFlags::CLOEXEC).map_err(host("make an epoll"))?;
        Ok(Self {
            epoll: Arc::new(Epoll {
                set,
                next: AtomicU32::new(0),
                changes: Mutex::default(),
            }),
            handlers: BTreeMap::new(),
            events: Vec::with_capacity(BATCH),
        })
    }

    /// The set, through which handlers add descriptors and handlers.
    pub fn epoll(&self) -> Arc<Epoll> {
        Arc::clone(&self.epoll)
    }

    /// Runs until a handler ends it.
    pub fn run(&mut self) -> Result<()> {
        while self.turn()? {}
        Ok(())
    }

    /// Waits for events and lets their handlers act; false when one ended the loop.
    pub fn turn(&mut self) -> Result<bool> {
        self.apply_changes();
        self.events.clear();
        match epoll::wait(&self.epoll.set, spare_capacity(&mut self.events), None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(host("wait for events")(error)),
        }
        for event in &self.events {
            let (token, flags) = (event.data.u64(), event.flags);
            let source = u32::try_from(token & u64::from(u32::MAX)).unwrap_or(u32::MAX);
            let id = HandlerId(u32::try_from(token >> 32).unwrap_or(u32::MAX));
            let goes_on = self
                .handlers
                .get_mut(&id)
                .is_none_or(|handler| handler.ready(source, flags));
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn apply_changes(&mut self) {
        let mut changes = self
            .epoll
            .changes
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        for change in changes.drain(..) {
            match change {
                Change::Add(id, handler) => {
                    self.handlers.insert(id, handler);
                }
                Change::Remove(id) => {
                    self.handlers.remove(&id);
                }
            }
        }
    }
}
