//! The log's only writer: one frame in flight, what comes meanwhile goes together.
//!
//! The request whose operation writes a frame is its *leader*; the others of the frame
//! wait, and are woken with its outcome. So a frame is written after all before it,
//! and a request completes after its frame.

use super::log::{Entry, MAX_ENTRIES, Tail, frame};
use crate::disk::FileBacking;
use crate::shard::op::{Op, Vector};
use std::collections::VecDeque;

struct Wanted {
    entry: Entry,
    request: u32,
}

/// The writer.
pub(super) struct Writer {
    pub(super) file: FileBacking,
    tail: Tail,
    next: Tail,
    waiting: VecDeque<Wanted>,
    batch: Vec<Wanted>,
    entries: Vec<Entry>,
    frame: Vec<u8>,
    iov: Box<libc::iovec>,
    written: usize,
    busy: bool,
    /// Number of the last frame with changes that was written.
    pub(super) changed: u64,
    /// Changes through this frame are committed, durably.
    pub(super) committed: u64,
}

/// What came of a frame's operation.
pub(super) enum Written {
    /// More of it is to be written.
    Rest(Op),
    /// It is written, or failed with this `-errno`.
    Over(i32),
}

// SAFETY: the pointers are into the writer's own buffers, and used by the one thread
// that has the writer, or by the kernel while that thread waits for it.
unsafe impl Send for Writer {}

impl Writer {
    /// A writer behind `tail`.
    pub fn new(file: FileBacking, tail: Tail, committed: u64) -> Self {
        Self {
            file,
            tail,
            next: tail,
            waiting: VecDeque::new(),
            batch: Vec::new(),
            entries: Vec::new(),
            frame: Vec::new(),
            iov: Box::new(libc::iovec {
                iov_base: std::ptr::null_mut(),
                iov_len: 0,
            }),
            written: 0,
            busy: false,
            changed: tail.seq - 1,
            committed,
        }
    }

    /// Wants `entry` logged for `request`; true if that request is to lead now.
    pub fn want(&mut self, entry: Entry, request: u32) -> bool {
        self.waiting.push_back(Wanted { entry, request });
        !std::mem::replace(&mut self.busy, true)
    }

    /// The leader's operation: a frame of what waits.
    pub fn lead(&mut self) -> Op {
        self.batch.clear();
        self.entries.clear();
        while let Some(wanted) = self.waiting.front()
            && self.entries.len() < MAX_ENTRIES
            && self.entries.first().is_none_or(|e| e.joins(wanted.entry))
        {
            self.entries.push(wanted.entry);
            self.batch.extend(self.waiting.pop_front());
        }
        self.next = frame(self.tail, &self.entries, &mut self.frame);
        self.written = 0;
        self.operation()
    }

    fn operation(&mut self) -> Op {
        let rest = &mut self.frame[self.written..];
        *self.iov = libc::iovec {
            iov_base: rest.as_mut_ptr().cast(),
            iov_len: rest.len(),
        };
        Op::Writev(Vector {
            direct: false,
            dsync: false,
            iov: &raw const *self.iov,
            count: 1,
            offset: self.tail.at + self.written as u64,
        })
    }

    /// The leader's operation ended with `result`.
    pub fn wrote(&mut self, result: i32) -> Written {
        if result == -libc::EINTR || result == -libc::EAGAIN {
            return Written::Rest(self.operation());
        }
        if result <= 0 {
            return Written::Over(if result == 0 { -libc::EIO } else { result });
        }
        self.written += result.unsigned_abs() as usize;
        if self.written < self.frame.len() {
            return Written::Rest(self.operation());
        }
        if matches!(self.entries.first(), Some(Entry::Change { .. })) {
            self.changed = self.tail.seq;
        }
        self.tail = self.next;
        Written::Over(0)
    }

    /// What the frame said.
    pub fn said(&self) -> &[Entry] {
        &self.entries
    }

    /// Those who wait for the frame.
    pub fn followers(&self) -> impl Iterator<Item = u32> + '_ {
        self.batch.iter().map(|wanted| wanted.request)
    }

    /// The next leader, who must be told; if there is none, the writer rests.
    pub fn hand_on(&mut self) -> Option<u32> {
        let next = self.waiting.front().map(|wanted| wanted.request);
        self.busy = next.is_some();
        next
    }
}
