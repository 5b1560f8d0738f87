//! QoS validation: ours against a named peer, same work, same run.
//!
//! ```text
//!  area ──▶ alternate(ours, peer) ──▶ Row{ours, peer, ratio, spread, limit} ──▶ table + JSON
//! ```
//! Ours and the peer take turns (A B A B …) and each figure is a median, so a
//! machine that drifts drifts under both. Start reading at [`report`]; each area
//! has a file of its name.

mod alternate;
mod api;
mod block;
mod boot;
mod bounce;
mod floor;
mod net;
mod process;
mod qos;
mod report;
mod restore;
mod vmm;

use anyhow::Result;
use clap::{Parser, Subcommand};
use std::path::PathBuf;

#[derive(Parser)]
#[command(name = "ocs-benches", about = "Measures OCS against named peers")]
struct Arguments {
    #[command(subcommand)]
    area: Area,
}

#[derive(clap::Args)]
struct Common {
    /// End within about a minute: fewer and shorter runs.
    #[arg(long)]
    quick: bool,
    /// Only the cases whose names contain one of these; their figures go among those that
    /// the report has. Areas: block, net, qos.
    #[arg(long)]
    only: Vec<String>,
    /// Where the built programs lie; beside this one where not given.
    #[arg(long)]
    bin_dir: Option<PathBuf>,
    /// Where the JSON report goes.
    #[arg(long, default_value = "target/bench")]
    out: PathBuf,
}

#[derive(Subcommand)]
enum Area {
    /// VMM start to first guest instruction, against QEMU microvm and the bare-ioctl floor.
    Boot {
        #[command(flatten)]
        common: Common,
        /// The probe image that both start.
        #[arg(long, default_value = "target/artifacts/ocs-probe.elf")]
        probe: PathBuf,
    },
    /// A restored machine's disk against the same one's before, without the bounce region.
    Bounce {
        #[command(flatten)]
        common: Common,
        /// The probe image.
        #[arg(long, default_value = "target/artifacts/ocs-probe.elf")]
        probe: PathBuf,
        /// A folder on the disk that volumes lie on.
        #[arg(long, default_value = "target")]
        disk_dir: PathBuf,
    },
    /// storaged against qemu-storage-daemon: same file, same client.
    Block {
        #[command(flatten)]
        common: Common,
        /// A folder on the disk to measure.
        #[arg(long, default_value = "target")]
        disk_dir: PathBuf,
    },
    /// Limits of volumes, and guests beside one another.
    Qos {
        #[command(flatten)]
        common: Common,
        /// A folder on the disk that neighbours share.
        #[arg(long, default_value = "target")]
        disk_dir: PathBuf,
    },
    /// The packet path against bridge + nftables + conntrack: same sender.
    Net {
        #[command(flatten)]
        common: Common,
    },
    /// EC2's API against moto_server, and a launch through `ocs up`.
    Api {
        #[command(flatten)]
        common: Common,
        /// The peer's program, from `benches/requirements.txt`.
        #[arg(long, default_value = "target/venv-bench/bin/moto_server")]
        moto: PathBuf,
        /// The probe image whose bare start is the limit.
        #[arg(long, default_value = "target/artifacts/ocs-probe.elf")]
        probe: PathBuf,
        /// A folder on the disk that the stores are to be on.
        #[arg(long, default_value = "target")]
        disk_dir: PathBuf,
    },
    /// The least that any VMM must do to continue a snapshot; used by `boot`.
    #[command(hide = true)]
    RestoreFloor {
        /// The memory file.
        memory: PathBuf,
    },
    /// The least that any VMM must do to reach the image's first output; used by `boot`.
    #[command(hide = true)]
    Floor {
        /// The probe image.
        probe: PathBuf,
    },
}

impl Common {
    fn bin_dir(&self) -> Result<PathBuf> {
        match &self.bin_dir {
            Some(dir) => Ok(dir.clone()),
            None => process::own_dir(),
        }
    }

    /// Is the case of that name wanted?
    fn takes(&self, name: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|part| name.contains(part.as_str()))
    }

    fn publish(&self, area: &str, rows: Vec<report::Row>) -> Result<()> {
        report::publish(area, rows, &self.out, !self.only.is_empty())
    }
}

fn main() -> Result<()> {
    match Arguments::parse().area {
        Area::Boot { common, probe } => {
            let rows = boot::measure(&common.bin_dir()?, &probe, common.quick)?;
            common.publish("boot", rows)
        }
        Area::Bounce {
            common,
            probe,
            disk_dir,
        } => {
            let rows = bounce::measure(&common.bin_dir()?, &probe, &disk_dir, common.quick)?;
            common.publish("bounce", rows)
        }
        Area::Block { common, disk_dir } => {
            let rows = block::measure(&common, &disk_dir)?;
            common.publish("block", rows)
        }
        Area::Qos { common, disk_dir } => {
            let rows = qos::measure(&common, &disk_dir)?;
            common.publish("qos", rows)
        }
        Area::Net { common } => common.publish("net", net::measure(&common)?),
        Area::Api {
            common,
            moto,
            probe,
            disk_dir,
        } => {
            let places = api::Places {
                bin_dir: &common.bin_dir()?,
                moto: &moto,
                probe: &probe,
                disk_dir: &disk_dir,
            };
            let rows = api::measure(&places, &common)?;
            common.publish("api", rows)
        }
        Area::Floor { probe } => floor::run(&probe),
        Area::RestoreFloor { memory } => restore::floor(&memory),
    }
}
