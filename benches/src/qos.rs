//! Limits and fairness of storaged, seen by guests of it over vhost-user.
//!
//! ```text
//!  rates       limit ─▶ what one guest gets; how soon after a change
//!  neighbours  a small guest beside a large one; two hundred beside one another
//! ```
//! Backing in RAM is above half of any limit here and leaves the disk's noise out; what
//! neighbours do to one another is measured on the disk too.

pub mod guest;
pub mod host;
mod neighbours;
mod rates;

use crate::report::Row;
use crate::{Common, process};
use anyhow::Result;
use guest::Load;
use std::path::Path;

/// Of each volume.
const SIZE: u64 = 256 << 20;

fn random_reads(depth: usize, bytes: u64) -> Load {
    Load {
        depth,
        bytes,
        size_bytes: SIZE,
    }
}

/// Measures the area.
pub fn measure(common: &Common, disk_dir: &Path) -> Result<Vec<Row>> {
    let quick = common.quick;
    let storaged = process::program(&common.bin_dir()?, "ocs-storaged")?;
    let mut rows = Vec::new();
    for (name, batches) in rates::pieces(quick) {
        if common.takes(&name) {
            rows.extend(rates::misses(&storaged, batches, quick)?);
        }
    }
    if common.takes("live_change") {
        rows.push(rates::changes(&storaged, quick)?);
    }
    let ram = Path::new("/dev/shm");
    // In memory one thread is what they share, on a disk the disk.
    for (name, place, shards, thorough) in [
        ("ram_1_shard", ram, 1, false),
        ("ram_2_shards", ram, 2, true),
        ("disk_1_shard", disk_dir, 1, true),
        ("disk_2_shards", disk_dir, 2, false),
    ] {
        if common.takes(name) && !(quick && thorough) {
            rows.extend(neighbours::victim(&storaged, name, (place, shards), quick)?);
        }
    }
    if common.takes("crowd") {
        rows.push(neighbours::crowd(&storaged, quick)?);
    }
    Ok(rows)
}
