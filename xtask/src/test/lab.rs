//! Stock Linux in the emulated host. Each job has an emulated host of one CPU to itself,
//! and this machine runs as many side by side as it has CPUs.

use super::{Counts, demo};
use crate::lab;
use anyhow::Result;
use std::collections::VecDeque;
use std::sync::Mutex;

/// Emulated hosts that the VMM's tests are dealt out to.
const SHARES: usize = 3;

type Job<'a> = Box<dyn FnOnce() -> Result<Counts> + Send + 'a>;

/// The demo's claims about stock Linux, the VMM's tests with stock kernels, and QEMU's and
/// fio's verdict on storaged; with `long`, the claims about a whole Debian, too.
pub fn run(long: bool) -> Result<Counts> {
    let hosts = (0..SHARES).map(|_| lab::TestedHost::prepare());
    let hosts = hosts.collect::<Result<Vec<_>>>()?;
    let mut jobs: Vec<Job<'_>> = vec![Box::new(|| demo::lab(long))];
    for (number, host) in hosts.iter().enumerate() {
        jobs.push(Box::new(move || vmm(host, number, long)));
    }
    jobs.push(Box::new(|| {
        let mut counts = Counts::default();
        let judged = lab::judge().map(|said| print!("{said}"));
        counts.record("fio_in_qemu_in_front_of_storaged", judged);
        Ok(counts)
    }));
    let mut counts = Counts::default();
    for done in side_by_side(jobs) {
        match done {
            Ok(done) => counts.add(done),
            // It hides nothing of what the others did.
            Err(error) => counts.record("an emulated host", Err(error)),
        }
    }
    Ok(counts)
}

/// One share of the VMM's tests.
fn vmm(host: &lab::TestedHost, number: usize, long: bool) -> Result<Counts> {
    let mut lines = Vec::new();
    let share = Some((number, SHARES));
    let code = host.run(&[], long, share, &mut lines)?;
    let lines = String::from_utf8_lossy(&lines);
    println!("{lines}");
    let mut counts = Counts::default();
    for line in lines.lines() {
        counts.read_line(line.trim_end());
    }
    if code != 0 && counts.failed.is_empty() {
        let what = format!("vmm/tests/stock.rs, share {number}: exit code {code}");
        counts.failed.push(what);
    }
    Ok(counts)
}

/// What the jobs gave, in no order.
fn side_by_side(jobs: Vec<Job<'_>>) -> Vec<Result<Counts>> {
    let workers = std::thread::available_parallelism().map_or(1, usize::from);
    let (jobs, done) = (Mutex::new(VecDeque::from(jobs)), Mutex::new(Vec::new()));
    let next = || jobs.lock().ok()?.pop_front();
    std::thread::scope(|scope| {
        for _ in 0..workers {
            scope.spawn(|| {
                while let Some(job) = next() {
                    let result = job();
                    if let Ok(mut done) = done.lock() {
                        done.push(result);
                    }
                }
            });
        }
    });
    done.into_inner().unwrap_or_default()
}
