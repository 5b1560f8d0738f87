//! storaged against qemu-storage-daemon: same file, same client, in turn.
//!
//! Beside them, in the same turns, ours with encryption and on disk fio, which is what
//! io_uring does without virtio in between. The client is the crate `virtio-driver`, one queue, one thread, polling its
//! used ring at depth 32 and sleeping on the completion eventfd at depth 1.

mod aes;
mod client;
mod cost;
mod counter;
mod daemon;
mod raw;

use crate::Common;
use crate::alternate::{Side, alternate};
use crate::process;
use crate::report::{Better, Row, median};
use anyhow::Result;
use daemon::{Backing, Daemon};
use std::path::Path;
use std::time::Duration;

const FILE_BYTES: u64 = 256 << 20;
const PEER: &str = "qemu-storage-daemon";

struct Case {
    name: &'static str,
    backing: Backing,
    depth: usize,
    runs: usize,
    time: Duration,
}

/// Measures the area.
pub fn measure(common: &Common, disk_dir: &Path) -> Result<Vec<Row>> {
    let storaged = process::program(&common.bin_dir()?, "ocs-storaged")?;
    let (runs, time) = if common.quick {
        (3, Duration::from_millis(700))
    } else {
        (7, Duration::from_secs(3))
    };
    let on_disk = tempfile::tempdir_in(disk_dir)?;
    let on_ram = tempfile::tempdir_in("/dev/shm")?;
    let disk = daemon::filled_file(&on_disk.path().join("disk"), FILE_BYTES)?;
    let ram = daemon::filled_file(&on_ram.path().join("ram"), FILE_BYTES)?;
    let mut rows = Vec::new();
    for (name, backing, depth) in [
        ("null_qd32", Backing::Null(FILE_BYTES), 32),
        ("ram_qd32", Backing::Ram(ram), 32),
        ("disk_qd1", Backing::Disk(disk.clone()), 1),
        ("disk_qd32", Backing::Disk(disk), 32),
    ] {
        let case = Case {
            name,
            backing,
            depth,
            runs,
            time,
        };
        if common.takes(name) {
            rows.extend(case.measure(&storaged)?);
        }
    }
    if common.takes("aes") {
        rows.push(cipher(runs, time)?);
    }
    if common.takes("syscalls") {
        rows.extend(cost::syscalls(&storaged, disk_dir, time)?);
    }
    if common.takes("memory") {
        rows.extend(cost::memory(&storaged)?);
    }
    Ok(rows)
}

fn cipher(runs: usize, time: Duration) -> Result<Row> {
    let mut ours = || aes::ours(time.min(Duration::from_secs(1)));
    let mut peer = || aes::openssl(time);
    let figures = alternate(runs.min(3), &mut [&mut ours, &mut peer])?;
    Ok(
        Row::new("aes_xts_mib_s", "MiB/s", Better::Higher, &figures[0][0])
            .against("openssl speed", &figures[1][0]),
    )
}

impl Case {
    /// Ours and the peer's, in the same run ours with encryption, and where there is a
    /// disk what fio makes of it.
    fn measure(&self, storaged: &Path) -> Result<Vec<Row>> {
        let Self {
            name,
            backing,
            depth,
            runs,
            time,
        } = self;
        let dir = tempfile::tempdir()?;
        let read = |daemon: Daemon| client::random_read(&daemon, FILE_BYTES, *depth, *time);
        let mut ours = || read(Daemon::storaged(storaged, backing, false, dir.path())?);
        let mut peer = || read(Daemon::qemu(backing, dir.path())?);
        let mut encrypted = || read(Daemon::storaged(storaged, backing, true, dir.path())?);
        let mut raw = || match backing {
            Backing::Disk(file) => raw::random_read(file, *depth, *time),
            _ => Ok(Vec::new()),
        };
        let null = matches!(backing, Backing::Null(_));
        let mut sides: Vec<Side<'_>> = vec![&mut ours, &mut peer, &mut raw];
        if !null {
            sides.push(&mut encrypted);
        }
        let figures = alternate(*runs, &mut sides)?;
        let (ours, peer) = (&figures[0], &figures[1]);
        let row = |metric: &str, unit, better, figures: &[f64]| {
            Row::new(format!("{name}_{metric}"), unit, better, figures)
        };
        let mut rows = vec![row("iops", "1/s", Better::Higher, &ours[0]).against(PEER, &peer[0])];
        let mut cpu =
            row("cpu_per_request_us", "us", Better::Lower, &ours[2]).against(PEER, &peer[2]);
        if let [iops, cpu_us] = &figures[2][..] {
            rows.push(
                row("iops_beside_raw", "1/s", Better::Higher, &ours[0])
                    .against("fio io_uring O_DIRECT", iops),
            );
            cpu = cpu.limited_by(median(cpu_us));
        }
        if null {
            rows.push(row("p99_us", "us", Better::Lower, &ours[1]).against(PEER, &peer[1]));
        } else {
            rows.push(
                row("encrypted_iops", "1/s", Better::Higher, &figures[3][0])
                    .against("the same not encrypted", &ours[0]),
            );
        }
        rows.push(cpu);
        Ok(rows)
    }
}
