//! How near a guest comes to its limit, and how soon to another one.

use super::guest::Load;
use super::host::{Host, bytes, iops};
use super::{SIZE, random_reads};
use crate::report::{Better, Row};
use anyhow::Result;
use ocs_storaged_api::{IO_BYTES, Limits};
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

/// A limit and the requests that meet it.
pub struct Case {
    limits: Limits,
    load: Load,
}

impl Case {
    fn iops(per_s: u64, block: u64) -> Self {
        Self {
            limits: iops(per_s),
            load: random_reads(128, block),
        }
    }

    fn bytes(mib_per_s: u64, block: u64) -> Self {
        Self {
            limits: bytes(mib_per_s << 20),
            load: random_reads(128, block),
        }
    }

    fn name(&self) -> String {
        let kib = self.load.bytes as f64 / 1024.0;
        match (&self.limits.iops, &self.limits.bytes) {
            (Some(rate), _) => format!("{}_iops_{kib}k", rate.per_s),
            (_, Some(rate)) => format!("{}_mib_s_{kib}k", rate.per_s >> 20),
            _ => "unlimited".to_owned(),
        }
    }

    /// Requests that the limit lets through in a second.
    fn requests_per_s(&self) -> f64 {
        match (&self.limits.iops, &self.limits.bytes) {
            (Some(rate), _) => {
                let each = self.load.bytes.div_ceil(u64::from(IO_BYTES));
                rate.per_s as f64 / each as f64
            }
            (_, Some(rate)) => rate.per_s as f64 / self.load.bytes as f64,
            _ => f64::INFINITY,
        }
    }
}

/// Limits that guests of one storaged meet at the same time.
pub type Batch = Vec<Case>;

/// Sizes of requests.
const BLOCKS: [u64; 5] = [512, 4096, 65_536, 256 << 10, 1 << 20];
const IOPS: [u64; 5] = [10, 100, 1000, 10_000, 100_000];
const MIB_PER_S: [u64; 4] = [1, 16, 128, 1024];
/// What a guest and a file in memory do on two busy CPUs: limits above are not met for
/// want of work, and say nothing.
const MOST_REQUESTS_PER_S: f64 = 300_000.0;
const MOST_BYTES_PER_S: f64 = 2.5 * (1u64 << 30) as f64;
/// Guests that want less than this are served at the same time.
const TOGETHER_BYTES_PER_S: f64 = (17 << 20) as f64;
const TOGETHER_REQUESTS_PER_S: f64 = 5_000.0;

/// Batches by name: some of the limits, or all of them at every size of requests.
pub fn pieces(quick: bool) -> Vec<(String, Vec<Batch>)> {
    if quick {
        return vec![("rates".to_owned(), some())];
    }
    let named = |block: u64| (format!("rates_{}k", block as f64 / 1024.0), all(block));
    BLOCKS.into_iter().map(named).collect()
}

fn some() -> Vec<Batch> {
    const MIB: u64 = 1 << 20;
    vec![
        vec![
            Case::iops(10, 4096),
            Case::iops(100, 512),
            Case::iops(100, MIB),
            Case::iops(1000, 16_384),
            Case::bytes(1, 4096),
            Case::bytes(16, 256 << 10),
        ],
        vec![Case::iops(10_000, 4096), Case::bytes(128, 65_536)],
        vec![Case::iops(100_000, 4096)],
        vec![Case::bytes(1024, 65_536)],
    ]
}

/// Every limit that can be met by requests of `block` bytes: what is slow together, what
/// is fast alone.
fn all(block: u64) -> Vec<Batch> {
    let iops = IOPS.into_iter().map(|rate| Case::iops(rate, block));
    let bytes = MIB_PER_S.into_iter().map(|rate| Case::bytes(rate, block));
    let mut batches = vec![Vec::new()];
    for case in iops.chain(bytes) {
        let requests = case.requests_per_s();
        let bytes = requests * block as f64;
        if requests > MOST_REQUESTS_PER_S || bytes > MOST_BYTES_PER_S {
            continue;
        }
        if requests < TOGETHER_REQUESTS_PER_S && bytes < TOGETHER_BYTES_PER_S {
            batches[0].push(case);
        } else {
            batches.push(vec![case]);
        }
    }
    batches
}

/// By how much each limit is missed, in percent, from the first request on; the limit
/// is the larger of one percent and one request.
pub fn misses(storaged: &Path, batches: Vec<Batch>, quick: bool) -> Result<Vec<Row>> {
    let time = Duration::from_secs(if quick { 5 } else { 10 });
    let mut rows = Vec::new();
    for batch in batches {
        let host = Host::start(storaged, Path::new("/dev/shm"), 2)?;
        let mut guests = Vec::new();
        for case in &batch {
            guests.push(host.volume(&slug(&case.name()), SIZE, case.limits)?);
        }
        let mut counts = vec![0; batch.len()];
        thread::scope(|scope| {
            let runs: Vec<_> = guests
                .iter_mut()
                .zip(&batch)
                .map(|(guest, case)| scope.spawn(|| guest.count(&case.load, time)))
                .collect();
            for (count, run) in counts.iter_mut().zip(runs) {
                *count = run.join().expect("the guest's thread")?;
            }
            anyhow::Ok(())
        })?;
        for (case, count) in batch.iter().zip(counts) {
            let due = case.requests_per_s() * time.as_secs_f64();
            let off = (count as f64 - due) / due * 100.0;
            let row = Row::new(
                format!("{}_off_pct", case.name()),
                "%",
                Better::Lower,
                &[off.abs()],
            );
            rows.push(row.limited_by(f64::max(1.0, 100.0 / due)));
        }
    }
    Ok(rows)
}

/// How long after the call a changed limit is what a guest gets, in ms.
pub fn changes(storaged: &Path, quick: bool) -> Result<Row> {
    const SLOW: u64 = 1000;
    const FAST: u64 = 20_000;
    let window = Duration::from_millis(25);
    let host = Host::start(storaged, Path::new("/dev/shm"), 2)?;
    let mut guest = host.volume("changes", SIZE, iops(SLOW))?;
    let changes = if quick { 6 } else { 20 };
    let every = Duration::from_millis(500);
    let load = random_reads(32, 4096);
    let start = Instant::now();
    let (outcome, called) = thread::scope(|scope| {
        let run = scope.spawn(|| guest.read(&load, every * (changes + 1)));
        let mut called = Vec::new();
        for change in 0..changes {
            thread::sleep((every * (change + 1)).saturating_sub(start.elapsed()));
            called.push(start.elapsed());
            let rate = if change % 2 == 0 { FAST } else { SLOW };
            host.limit("changes", iops(rate))?;
        }
        anyhow::Ok((run.join().expect("the guest's thread")?, called))
    })?;
    let mut took_ms = Vec::new();
    for (change, called) in called.iter().enumerate() {
        let rate = if change % 2 == 0 { FAST } else { SLOW } as f64 * window.as_secs_f64();
        let holds = |from: Duration| {
            let got = outcome.between(from, from + window) as f64;
            if change % 2 == 0 {
                got >= rate * 0.9
            } else {
                got <= rate * 1.1 + 1.0
            }
        };
        let step = Duration::from_millis(1);
        let found = (0..450).find(|n| holds(*called + step * *n));
        took_ms.push(found.map_or(f64::INFINITY, f64::from));
    }
    Ok(Row::new("live_change_ms", "ms", Better::Lower, &took_ms).limited_by(100.0))
}

fn slug(name: &str) -> String {
    name.replace(['_', '.'], "-")
}
