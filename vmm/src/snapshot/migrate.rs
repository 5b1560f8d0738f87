//! The source's side of a live migration: the guest runs while its memory is sent, and stands
//! still for the rest.
//!
//! ```text
//!  logs on ─▶ all pages ─▶ changed pages ─▶ … ─▶ few enough for the downtime? ─▶ pause
//!                              ▲───── no ─────────────────┘
//!  pause ─▶ last pages, in-flight regions, state ─▶ Loaded? ─▶ Go, end
//!             any failure before Go: resume, as if nothing had been
//! ```
//! "Few enough" is measured: what changed, at the rate of the round before, takes no longer than
//! the bound. A guest that writes faster than can be sent is given up after [`MAX_ROUNDS`].

use super::SnapshotError;
use super::stream::{Channel, Kind};
use super::take::{next_data, save};
use crate::machine::Machine;
use crate::memory::dirty::{DirtyLogs, DirtyPages, bytes};
use crate::memory::log::runs;
use crate::memory::{self, GuestRam};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};
use vm_memory::{Bytes, GuestMemoryBackend, GuestMemoryRegion, MemoryRegionAddress};

/// Of [`Hello`] and [`Region`].
pub const PROTOCOL: u32 = 1;
/// Rounds of changed pages before the guest counts as too busy.
const MAX_ROUNDS: u32 = 30;
/// A peer may be silent for this long.
const PATIENCE: Duration = Duration::from_secs(30);
/// Pages of one frame.
const FRAME_BYTES: usize = super::memory_file::MAX_EXTENT_BYTES;

/// Who is coming.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// How many.
    pub vcpus: u8,
    /// Of guest memory.
    pub memory_bytes: u64,
}

/// A part's descriptor, with what it says of it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Region {
    /// The part's section.
    pub part: String,
    /// Its own words.
    pub info: Vec<u8>,
}

/// How it went.
#[derive(Clone, Copy, Debug)]
pub struct Moved {
    /// Rounds of pages while the guest ran.
    pub rounds: u32,
    /// Bytes of memory sent.
    pub sent_bytes: u64,
    /// How long the guest stood still.
    pub paused_us: u64,
}

/// Moves `machine` to the VMM at the other end of `stream`; its guest stands still for about
/// `downtime`. On success the machine is the other's, and must not run here again.
pub fn send(
    machine: &Machine,
    stream: UnixStream,
    downtime: Duration,
) -> Result<Moved, SnapshotError> {
    let was_paused = machine.is_paused();
    let moved = Sender::begin(machine, stream).and_then(|mut sender| sender.run(downtime));
    if moved.is_err() {
        // Logs of devices cannot be turned off but while they rest; a failure leaves them on, and
        // what they note is read by nobody.
        if machine.pause().is_ok()
            && let Err(error) = machine.log_devices(None)
        {
            tracing::warn!(%error, "a device goes on logging");
        }
        if !was_paused {
            machine.resume();
        }
    }
    moved
}

struct Sender<'a> {
    machine: &'a Machine,
    channel: Channel,
    logs: DirtyLogs,
    sent_bytes: u64,
    buffer: Vec<u8>,
}

impl<'a> Sender<'a> {
    /// Agrees with the peer and turns the logs on.
    fn begin(machine: &'a Machine, stream: UnixStream) -> Result<Self, SnapshotError> {
        let mut channel = Channel::new(stream, PATIENCE).map_err(failed)?;
        let hello = Hello {
            protocol: PROTOCOL,
            vcpus: machine.vcpu_count(),
            memory_bytes: memory::bytes(machine.ram()),
        };
        send_value(&mut channel, Kind::Hello, &hello).map_err(failed)?;
        channel.expect(Kind::Accept).map_err(failed)?;
        let was_paused = machine.is_paused();
        machine.pause()?;
        let logs = DirtyLogs::start(machine.vm(), machine.ram()).map_err(failed)?;
        machine.log_devices(Some(logs.backend()))?;
        if !was_paused {
            machine.resume();
        }
        Ok(Self {
            machine,
            channel,
            logs,
            sent_bytes: 0,
            buffer: vec![0; FRAME_BYTES],
        })
    }

    fn run(&mut self, downtime: Duration) -> Result<Moved, SnapshotError> {
        let ram = self.machine.ram().clone();
        let mut began = Instant::now();
        self.send_all(&ram).map_err(failed)?;
        let mut rounds = 1;
        let mut sent_before = 0;
        let rest = loop {
            let pages = self.logs.take().map_err(failed)?;
            let round_bytes = self.sent_bytes - sent_before;
            let rate = round_bytes as f64 / began.elapsed().as_secs_f64().max(1e-6);
            if bytes(&pages) as f64 <= rate * downtime.as_secs_f64() {
                break pages;
            }
            if rounds >= MAX_ROUNDS {
                return Err(SnapshotError::Migration(format!(
                    "the guest writes {} bytes a round, more than {downtime:?} can carry",
                    bytes(&pages)
                )));
            }
            (began, sent_before) = (Instant::now(), self.sent_bytes);
            self.send_changed(&ram, &pages).map_err(failed)?;
            rounds += 1;
        };
        let stopped = Instant::now();
        self.machine.pause()?;
        self.finish(&ram, rest)?;
        let paused_us = u64::try_from(stopped.elapsed().as_micros()).unwrap_or(u64::MAX);
        Ok(Moved {
            rounds,
            sent_bytes: self.sent_bytes,
            paused_us,
        })
    }

    /// While paused: what is left, and the word that the machine is the other's.
    fn finish(&mut self, ram: &GuestRam, mut rest: DirtyPages) -> Result<(), SnapshotError> {
        let last = self.logs.take().map_err(failed)?;
        for (sum, words) in rest.iter_mut().zip(&last) {
            sum.iter_mut().zip(words).for_each(|(s, w)| *s |= w);
        }
        self.send_changed(ram, &rest).map_err(failed)?;
        let channel = &mut self.channel;
        self.machine.with_parts(|parts| {
            for (name, part) in parts {
                if let Some((info, fd)) = part.hand_over() {
                    let part = name.clone();
                    let body = encode(&Region { part, info })?;
                    channel.send_with(Kind::Region, &body, fd).map_err(failed)?;
                }
            }
            Ok::<(), SnapshotError>(())
        })?;
        let state = save(self.machine, Default::default())?;
        self.channel.send(Kind::State, &[&state]).map_err(failed)?;
        self.channel.expect(Kind::Loaded).map_err(failed)?;
        self.channel.send(Kind::Go, &[]).map_err(failed)
    }

    fn send_all(&mut self, ram: &GuestRam) -> io::Result<()> {
        let mut start = 0;
        for region in ram.iter() {
            let mut at = 0;
            while let Some(range) = next_data(ram, region, at)? {
                at = range.start;
                while at < range.end {
                    let end = (at + FRAME_BYTES as u64).min(range.end);
                    self.send_pages(region, start, at..end)?;
                    at = end;
                }
            }
            start += region.len();
        }
        Ok(())
    }

    fn send_changed(&mut self, ram: &GuestRam, pages: &DirtyPages) -> io::Result<()> {
        let mut start = 0;
        for (region, words) in ram.iter().zip(pages) {
            for run in runs(words, FRAME_BYTES) {
                self.send_pages(region, start, run.start..run.end.min(region.len()))?;
            }
            start += region.len();
        }
        Ok(())
    }

    fn send_pages<
        R: GuestMemoryRegion + Bytes<MemoryRegionAddress, E = vm_memory::GuestMemoryError>,
    >(
        &mut self,
        region: &R,
        start: u64,
        range: std::ops::Range<u64>,
    ) -> io::Result<()> {
        let len = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let chunk = &mut self.buffer[..len];
        region
            .read_slice(chunk, MemoryRegionAddress(range.start))
            .map_err(io::Error::other)?;
        let at = (start + range.start).to_le_bytes();
        self.channel.send(Kind::Pages, &[&at, chunk])?;
        self.sent_bytes += len as u64;
        Ok(())
    }
}

/// Sends a value.
fn send_value<T: Serialize>(channel: &mut Channel, kind: Kind, value: &T) -> io::Result<()> {
    let body = postcard::to_stdvec(value).map_err(io::Error::other)?;
    channel.send(kind, &[&body])
}

fn encode<T: Serialize>(value: &T) -> Result<Vec<u8>, SnapshotError> {
    postcard::to_stdvec(value).map_err(failed)
}

fn failed(error: impl std::fmt::Display) -> SnapshotError {
    SnapshotError::Migration(error.to_string())
}
