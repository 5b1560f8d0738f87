//! What storaged costs as it runs under a node: system calls a request, memory a volume.

use super::counter::Syscalls;
use crate::qos::guest::Load;
use crate::qos::host::Host;
use crate::report::{Better, Row};
use anyhow::Result;
use ocs_storaged_api::Limits;
use std::path::Path;
use std::time::Duration;

const SIZE: u64 = 64 << 20;
/// What storaged may use without a volume, and for each, in KiB.
const BASE_KIB: f64 = 8.0 * 1024.0;
const VOLUME_KIB: f64 = 1024.0;

/// System calls a request on a volume in `disk_dir`, at depth 1 and 32.
pub fn syscalls(storaged: &Path, disk_dir: &Path, time: Duration) -> Result<Vec<Row>> {
    let host = Host::start(storaged, disk_dir, 1)?;
    let mut guest = host.volume("counted", SIZE, Limits::default())?;
    guest.fill(SIZE)?;
    let mut rows = Vec::new();
    for (depth, limit) in [(1, 2.0), (32, 0.15)] {
        let load = Load {
            depth,
            bytes: 4096,
            size_bytes: SIZE,
        };
        let mut figures = Vec::new();
        for _ in 0..3 {
            let counter = Syscalls::of(host.process.pid())?;
            let outcome = guest.read(&load, time)?;
            figures.push(counter.count()? as f64 / outcome.at.len() as f64);
        }
        let name = format!("disk_qd{depth}_syscalls_per_request");
        rows.push(Row::new(name, "1", Better::Lower, &figures).limited_by(limit));
    }
    Ok(rows)
}

/// Memory that is not a guest's with one and with a hundred volumes in use.
pub fn memory(storaged: &Path) -> Result<Vec<Row>> {
    let host = Host::start(storaged, Path::new("/dev/shm"), 2)?;
    let mut guests = Vec::new();
    let mut rows = Vec::new();
    for volumes in [1, 100] {
        while guests.len() < volumes {
            let name = format!("kept-{}", guests.len());
            guests.push(host.volume(&name, SIZE, Limits::default())?);
        }
        for guest in &mut guests {
            let load = Load {
                depth: 32,
                bytes: 65_536,
                size_bytes: SIZE,
            };
            guest.read(&load, Duration::from_millis(20))?;
        }
        let kib = host.process.private_kib("memfd:")?;
        rows.push(
            Row::new(
                format!("memory_of_{volumes}_volumes_kib"),
                "KiB",
                Better::Lower,
                &[kib],
            )
            .limited_by(BASE_KIB + VOLUME_KIB * volumes as f64),
        );
    }
    Ok(rows)
}
