//! `disk` and `bench disk`; the orders of one disk run one after another.

use super::{Board, Done, bench};
use crate::console::say;
use crate::virtio::disk::{CHUNK_BYTES, Disk, DiskError};
use crate::{clock, executor};
use alloc::collections::VecDeque;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::fmt;
use ocs_probe_logic::order::DiskWork;
use ocs_probe_logic::pattern;

/// Requests in flight of a pass.
const DEPTH: usize = 4;

/// Why a pass over a disk ended early.
enum PassError {
    Disk(DiskError),
    Mismatch(u64),
}

impl From<DiskError> for PassError {
    fn from(error: DiskError) -> Self {
        Self::Disk(error)
    }
}

impl fmt::Display for PassError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk(error) => write!(f, "error={error}"),
            Self::Mismatch(at) => write!(f, "MISMATCH at={at}"),
        }
    }
}

/// Runs one disk's orders in sequence.
pub async fn run(board: Rc<Board>, index: u8, work: Vec<(DiskWork, Done)>) {
    for (work, done) in work {
        if work == DiskWork::Await {
            executor::wait(|| board.disk(index)).await;
            done.set(true);
            continue;
        }
        let Some(disk) = &board.disk(index) else {
            say!("disk: {index} error=no-such-disk");
            done.set(true);
            continue;
        };
        let start_us = clock::now_us();
        let result = match work {
            DiskWork::Await => Ok(()),
            DiskWork::Grown { size_bytes } => {
                executor::wait(|| {
                    disk.refresh();
                    (disk.size_bytes() >= size_bytes).then_some(())
                })
                .await;
                let (size_bytes, generation) = (disk.size_bytes(), disk.generation());
                say!("disk: {index} grown size_bytes={size_bytes} generation={generation}");
                Ok(())
            }
            DiskWork::Fill { size_bytes, seed } => fill(disk, size_bytes, seed).await.map(|()| {
                let us = clock::now_us() - start_us;
                say!("disk: {index} fill bytes={size_bytes} us={us}");
            }),
            DiskWork::Verify { size_bytes, seed } => {
                verify(disk, size_bytes, seed).await.map(|()| {
                    let us = clock::now_us() - start_us;
                    say!("disk: {index} verify bytes={size_bytes} ok us={us}");
                })
            }
            DiskWork::Loop { size_bytes } => {
                rounds(disk, index, size_bytes, board.report_us.get()).await;
                Ok(())
            }
            DiskWork::Bench(load) => bench::disk(disk, index, load)
                .await
                .map_err(PassError::from),
        };
        if let Err(error) = result {
            let kind = match work {
                DiskWork::Fill { .. } => "fill",
                DiskWork::Verify { .. } => "verify",
                DiskWork::Loop { .. } => "loop",
                DiskWork::Await => "await",
                DiskWork::Grown { .. } => "grown",
                DiskWork::Bench(_) => "bench",
            };
            say!("disk: {index} {kind} {error}");
        }
        done.set(true);
    }
}

/// The pieces of a pass: offset and length.
fn pieces(size_bytes: u64) -> impl Iterator<Item = (u64, usize)> {
    (0..size_bytes).step_by(CHUNK_BYTES).map(move |at| {
        let len = usize::try_from(size_bytes - at).map_or(CHUNK_BYTES, |n| n.min(CHUNK_BYTES));
        (at, len)
    })
}

async fn fill(disk: &Disk, size_bytes: u64, seed: u64) -> Result<(), PassError> {
    let mut in_flight = VecDeque::with_capacity(DEPTH);
    let mut result = fill_pieces(disk, size_bytes, seed, &mut in_flight).await;
    for slot in in_flight {
        result = result.and(disk.finish(slot, |_| ()).await);
    }
    result?;
    Ok(disk.flush().await?)
}

async fn fill_pieces(
    disk: &Disk,
    size_bytes: u64,
    seed: u64,
    in_flight: &mut VecDeque<usize>,
) -> Result<(), DiskError> {
    for (at, len) in pieces(size_bytes) {
        if in_flight.len() == DEPTH
            && let Some(oldest) = in_flight.pop_front()
        {
            disk.finish(oldest, |_| ()).await?;
        }
        let make = |bytes: &mut [u8]| pattern::fill(bytes, seed, at);
        in_flight.push_back(disk.start_write(at, len, make).await?);
    }
    Ok(())
}

async fn verify(disk: &Disk, size_bytes: u64, seed: u64) -> Result<(), PassError> {
    let mut in_flight = VecDeque::with_capacity(DEPTH);
    let result = verify_pieces(disk, size_bytes, seed, &mut in_flight).await;
    for (slot, _) in in_flight {
        // The first error counts; the others only give their buffers back.
        let _ = disk.finish(slot, |_| ()).await;
    }
    result
}

async fn verify_pieces(
    disk: &Disk,
    size_bytes: u64,
    seed: u64,
    in_flight: &mut VecDeque<(usize, u64)>,
) -> Result<(), PassError> {
    let mut ahead = pieces(size_bytes);
    loop {
        while in_flight.len() < DEPTH {
            let Some((at, len)) = ahead.next() else {
                break;
            };
            in_flight.push_back((disk.start_read(at, len).await?, at));
        }
        let Some((slot, at)) = in_flight.pop_front() else {
            return Ok(());
        };
        let compare = |bytes: &[u8]| pattern::first_mismatch(bytes, seed, at);
        if let Some(at) = disk.finish(slot, compare).await? {
            return Err(PassError::Mismatch(at));
        }
    }
}

/// Fills with a new seed and verifies, for ever; reports totals.
async fn rounds(disk: &Disk, index: u8, size_bytes: u64, report_us: u64) {
    let mut rounds = 0u64;
    let mut errors = 0u64;
    let mut report_at_us = 0;
    loop {
        let seed = clock::entropy();
        let result = match fill(disk, size_bytes, seed).await {
            Ok(()) => verify(disk, size_bytes, seed).await,
            error => error,
        };
        let failed = result.is_err();
        if let Err(error) = result {
            errors += 1;
            say!("disk: {index} loop {error}");
        }
        rounds += 1;
        let now_us = clock::now_us();
        if now_us >= report_at_us {
            report_at_us = now_us + report_us;
            say!("disk: {index} loop rounds={rounds} errors={errors}");
        }
        if disk.is_gone() {
            return;
        }
        if failed {
            // A disk that fails at once must not spin.
            executor::sleep_until(now_us + report_us).await;
        }
    }
}
