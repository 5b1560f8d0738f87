//! storaged against qemu-storage-daemon: same file, same client, in turn.
//!
//! The client is the crate `virtio-driver`, one queue, one thread, polling its
//! used ring at depth 32 and sleeping on the completion eventfd at depth 1.

mod client;
mod daemon;
mod raw;

use crate::alternate::alternate;
use crate::report::{Better, Row, median};
use anyhow::{Result, ensure};
use daemon::{Backing, Daemon};
use std::path::Path;
use std::time::Duration;

const FILE_BYTES: u64 = 256 << 20;
const PEER: &str = "qemu-storage-daemon";

struct Case {
    name: &'static str,
    backing: Backing,
    depth: usize,
    p99: bool,
}

/// Measures the area.
pub fn measure(bin_dir: &Path, disk_dir: &Path, quick: bool) -> Result<Vec<Row>> {
    let storaged = bin_dir.join("ocs-storaged");
    ensure!(
        storaged.exists(),
        "{} is missing: run `cargo xtask build --release`",
        storaged.display()
    );
    let (runs, time) = if quick {
        (3, Duration::from_millis(700))
    } else {
        (7, Duration::from_secs(3))
    };
    let on_disk = tempfile::tempdir_in(disk_dir)?;
    let on_ram = tempfile::tempdir_in("/dev/shm")?;
    let disk = daemon::filled_file(&on_disk.path().join("disk"), FILE_BYTES)?;
    let ram = daemon::filled_file(&on_ram.path().join("ram"), FILE_BYTES)?;
    let cases = [
        Case {
            name: "null_qd32",
            backing: Backing::Null(FILE_BYTES),
            depth: 32,
            p99: true,
        },
        Case {
            name: "ram_qd32",
            backing: Backing::Ram(ram),
            depth: 32,
            p99: false,
        },
        Case {
            name: "disk_qd1",
            backing: Backing::Disk(disk.clone()),
            depth: 1,
            p99: false,
        },
        Case {
            name: "disk_qd32",
            backing: Backing::Disk(disk),
            depth: 32,
            p99: false,
        },
    ];
    let mut rows = Vec::new();
    for case in &cases {
        let dir = tempfile::tempdir()?;
        let mut ours = || {
            let daemon = Daemon::storaged(&storaged, &case.backing, dir.path())?;
            client::random_read(&daemon, FILE_BYTES, case.depth, time)
        };
        let mut peer = || {
            let daemon = Daemon::qemu(&case.backing, dir.path())?;
            client::random_read(&daemon, FILE_BYTES, case.depth, time)
        };
        let figures = alternate(runs, &mut [&mut ours, &mut peer])?;
        let mut row = Row::new(
            format!("{}_iops", case.name),
            "1/s",
            Better::Higher,
            &figures[0][0],
        )
        .against(PEER, &figures[1][0]);
        if let Backing::Disk(file) = &case.backing {
            let limit: Vec<f64> = (0..runs)
                .map(|_| raw::random_read(file, case.depth, time))
                .collect::<Result<_>>()?;
            row = row.limited_by(median(&limit));
        }
        rows.push(row);
        if case.p99 {
            rows.push(
                Row::new(
                    format!("{}_p99_us", case.name),
                    "us",
                    Better::Lower,
                    &figures[0][1],
                )
                .against(PEER, &figures[1][1]),
            );
        }
        rows.push(
            Row::new(
                format!("{}_cpu_per_request_us", case.name),
                "us",
                Better::Lower,
                &figures[0][2],
            )
            .against(PEER, &figures[1][2]),
        );
    }
    Ok(rows)
}
