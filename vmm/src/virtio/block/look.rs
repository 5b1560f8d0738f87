//! A disk is read before its guest runs: for the kernel that it holds ([`crate::boot::disk`]).
//!
//! ```text
//!  backend connects ─▶ our ring, in a bounce region ─▶ reads ─▶ ring stopped ─▶ as ever
//! ```
//! The guest's memory is not shown to the backend for it, and the guest finds the disk as if
//! nobody had used it.

use super::bounce::{Bounce, DATA_BYTES, SECTOR_BYTES};
use crate::boot::disk::DiskBytes;
use crate::error::{Result, host};
use crate::outcome::Outcome;
use ocs_vmm_spec::exit::ExitReason;
use std::collections::HashMap;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Blocks of [`DATA_BYTES`] that are kept: 4 MiB, what a file system's own tables take.
const MAX_KEPT: usize = 64;

type With = Box<dyn FnMut(Box<dyn DiskBytes>) -> Result<()> + Send>;

/// What is to be done with a disk at its backend's first connection.
pub struct Look {
    bounce: Arc<Mutex<Bounce>>,
    outcome: Arc<Outcome>,
    with: With,
}

/// How it went.
pub(super) enum Seen {
    /// The machine may go on.
    All,
    /// The backend went away: again, with the next.
    Lost,
    /// The machine has ended.
    Bad,
}

impl Look {
    /// Calls `with` for it, whose error is the end of the machine.
    pub fn new(
        outcome: Arc<Outcome>,
        with: impl FnMut(Box<dyn DiskBytes>) -> Result<()> + Send + 'static,
    ) -> Result<Self> {
        let bounce = Bounce::new().map_err(host("make a region to read a disk through"))?;
        Ok(Self {
            bounce: Arc::new(Mutex::new(bounce)),
            outcome,
            with: Box::new(with),
        })
    }

    /// The ring that is used.
    pub(super) fn bounce(&self) -> MutexGuard<'_, Bounce> {
        lock(&self.bounce)
    }

    /// Reads a disk of `bytes` whose backend is at the other end of `line` and has the ring.
    pub(super) fn take(&mut self, bytes: u64, line: &Arc<UnixStream>) -> Seen {
        let lost = Arc::new(AtomicBool::new(false));
        let reader = Reader {
            bounce: Arc::clone(&self.bounce),
            line: Arc::clone(line),
            lost: Arc::clone(&lost),
            bytes,
            kept: HashMap::new(),
        };
        match (self.with)(Box::new(reader)) {
            Ok(()) => Seen::All,
            Err(_) if lost.load(Ordering::Relaxed) => Seen::Lost,
            Err(error) => {
                self.outcome.end(ExitReason::Error, error.to_string());
                Seen::Bad
            }
        }
    }
}

fn lock(bounce: &Mutex<Bounce>) -> MutexGuard<'_, Bounce> {
    bounce.lock().unwrap_or_else(PoisonError::into_inner)
}

struct Reader {
    bounce: Arc<Mutex<Bounce>>,
    line: Arc<UnixStream>,
    /// The backend is gone.
    lost: Arc<AtomicBool>,
    bytes: u64,
    kept: HashMap<u64, Vec<u8>>,
}

impl Reader {
    /// The block that begins at `start`.
    fn block(&mut self, start: u64) -> io::Result<&[u8]> {
        if self.kept.len() >= MAX_KEPT && !self.kept.contains_key(&start) {
            self.kept.clear();
        }
        let vacant = match self.kept.entry(start) {
            std::collections::hash_map::Entry::Occupied(kept) => return Ok(kept.into_mut()),
            std::collections::hash_map::Entry::Vacant(vacant) => vacant,
        };
        let left = usize::try_from(self.bytes - start).unwrap_or(usize::MAX);
        let mut block = vec![0; left.min(DATA_BYTES)];
        let sector = start / SECTOR_BYTES as u64;
        let mut bounce = lock(&self.bounce);
        if !bounce.read(sector, &mut block, self.line.as_fd())? {
            self.lost.store(true, Ordering::Relaxed);
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(vacant.insert(block))
    }
}

impl DiskBytes for Reader {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn read_at(&mut self, mut at: u64, mut into: &mut [u8]) -> io::Result<()> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(io::Error::other(format!(
                "{at:#x} is behind the disk's end"
            )));
        }
        while !into.is_empty() {
            let inside = (at % DATA_BYTES as u64) as usize;
            let block = self.block(at - inside as u64)?;
            let count = (block.len() - inside).min(into.len());
            let (now, later) = into.split_at_mut(count);
            now.copy_from_slice(&block[inside..inside + count]);
            (at, into) = (at + count as u64, later);
        }
        Ok(())
    }
}
