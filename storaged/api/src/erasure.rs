//! Is a key gone? Looked for where it may be, by what tells it and does not give it away.
//!
//! A [`Trace`] is a hash of half a key: 256 bits that nobody guesses, so it can be kept
//! when the key is not, and every 32 bytes of a memory can be asked whether they are it.
//! AES round keys begin with the key itself, so an expanded key is found too.

use ring::digest::{Context, Digest, SHA256};
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// Bytes of half an XTS-AES-256 key.
pub const HALF_BYTES: usize = 32;
/// What makes these hashes be of no other purpose.
const PURPOSE: &[u8] = b"ocs key trace 1";
/// Memory is read in pieces of this.
const PIECE_BYTES: usize = 1 << 20;
/// Random bytes have no more zeros than this in 32, but for one key in 10¹³.
const MOST_ZEROS: usize = 7;
/// How storaged names the memory that keeps an instance store's key.
const REGION: &str = "memfd:ocs-inflight";

/// What half a key can be told by.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Trace(String);

impl Trace {
    /// Of this half.
    #[must_use]
    pub fn of(half: &[u8]) -> Self {
        let hash = hash(half);
        Self(hash.as_ref().iter().map(|b| format!("{b:02x}")).collect())
    }
}

fn hash(half: &[u8]) -> Digest {
    let mut context = Context::new(&SHA256);
    context.update(PURPOSE);
    context.update(half);
    context.finish()
}

/// Is `half` what one of `traces` is of? The first byte of a hash tells most.
fn is_of(half: &[u8], traces: &[Trace]) -> bool {
    let hash = hash(half);
    let first = hash.as_ref().first().map(|byte| format!("{byte:02x}"));
    let may = |trace: &Trace| {
        first
            .as_ref()
            .is_some_and(|first| trace.0.starts_with(first))
    };
    traces
        .iter()
        .any(|trace| may(trace) && *trace == Trace::of(half))
}

/// What was searched, and what was found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Search {
    /// Bytes of memory that were looked at.
    pub searched_bytes: u64,
    /// In-flight regions among them.
    pub regions: usize,
    /// Where half a key is: the process and the place in it.
    pub found: Vec<String>,
}

impl Search {
    /// Looks at all of a process' memory that is its own, and at the in-flight regions
    /// that it maps. What it shares with guests is the guests'.
    pub fn process(&mut self, pid: u32, traces: &[Trace]) -> io::Result<()> {
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        for line in maps.lines() {
            let region = line.contains(REGION);
            let Some((range, private)) = parse(line) else {
                continue;
            };
            if private || region {
                self.regions += usize::from(region);
                let place = |at| format!("process {pid}, address {at:#x}");
                self.scan(&memory, range, traces, place);
            }
        }
        Ok(())
    }

    /// Looks at the in-flight regions of all processes of this host, mapped or held open.
    pub fn regions(&mut self, traces: &[Trace]) -> io::Result<()> {
        for entry in std::fs::read_dir("/proc")? {
            let name = entry?.file_name().to_string_lossy().into_owned();
            if name.bytes().all(|b| b.is_ascii_digit()) {
                // A process that ended meanwhile holds nothing.
                let _ = self.regions_of(&name, traces);
            }
        }
        Ok(())
    }

    fn regions_of(&mut self, pid: &str, traces: &[Trace]) -> io::Result<()> {
        for entry in std::fs::read_dir(format!("/proc/{pid}/fd"))? {
            let path = entry?.path();
            let named = std::fs::read_link(&path);
            if named.is_ok_and(|to| to.to_string_lossy().contains(REGION))
                && let Ok(file) = File::open(&path)
            {
                self.regions += 1;
                let place = |at| format!("process {pid}, an in-flight region's byte {at}");
                self.scan(&file, (0, file.metadata()?.len()), traces, place);
            }
        }
        let maps = std::fs::read_to_string(format!("/proc/{pid}/maps"))?;
        let memory = File::open(format!("/proc/{pid}/mem"))?;
        for line in maps.lines().filter(|line| line.contains(REGION)) {
            if let Some((range, _)) = parse(line) {
                self.regions += 1;
                let place = |at| format!("process {pid}, an in-flight region at {at:#x}");
                self.scan(&memory, range, traces, place);
            }
        }
        Ok(())
    }

    fn scan(
        &mut self,
        file: &File,
        (mut at, end): (u64, u64),
        traces: &[Trace],
        place: impl Fn(u64) -> String,
    ) {
        let mut bytes = vec![0; PIECE_BYTES];
        while at + (HALF_BYTES as u64) <= end {
            let len = (end - at).min(PIECE_BYTES as u64) as usize;
            // Guard pages and the like cannot be read, and hold nothing.
            let read = file.read_at(&mut bytes[..len], at).unwrap_or(0);
            self.searched_bytes += read as u64;
            let halves = candidates(&bytes[..read]);
            let halves = halves.filter(|(_, half)| is_of(half, traces));
            self.found
                .extend(halves.map(|(offset, _)| place(at + offset as u64)));
            let step = if read < len {
                (at + read as u64 + 1).next_multiple_of(4096) - at
            } else {
                // A half may lie across two pieces.
                (len - HALF_BYTES + 1) as u64
            };
            at += step;
        }
    }
}

/// Where half a key may be, and what is there: wherever there are not too many zeros, of
/// which most memory is made.
fn candidates(bytes: &[u8]) -> impl Iterator<Item = (usize, &[u8])> {
    let zero = |at: usize| usize::from(bytes[at] == 0);
    let mut zeros = (0..HALF_BYTES.min(bytes.len())).map(zero).sum::<usize>();
    let windows = bytes.windows(HALF_BYTES).enumerate();
    windows.filter(move |(at, _)| {
        if *at > 0 {
            zeros = zeros + zero(at + HALF_BYTES - 1) - zero(at - 1);
        }
        zeros <= MOST_ZEROS
    })
}

/// A line of `/proc/PID/maps`: where it is, and whether it is memory of the process alone.
fn parse(line: &str) -> Option<((u64, u64), bool)> {
    let mut words = line.split_ascii_whitespace();
    let (start, end) = words.next()?.split_once('-')?;
    let number = |text| u64::from_str_radix(text, 16).ok();
    let range = (number(start)?, number(end)?);
    let access = words.next()?;
    let own = access.starts_with("rw") && access.ends_with('p');
    Some((range, own && !line.contains("[vsyscall]")))
}
