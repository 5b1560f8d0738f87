//! EC2's API: `ocs-control` against moto_server, and a launch through all parts.
//!
//! ```text
//!  one signed client ─16 connections─▶ ocs-control ─mTLS─▶ null node   verified, fsynced
//!                    └───────────────▶ moto_server                     in memory
//!
//!  RunInstances ─▶ ocs up: control ─▶ node ─▶ storaged, packets, VMM ─▶ console ring
//! ```
//! The first three rows measure the API: hosts are replaced by a [`null_node`] that
//! reports each instance as running at once. The client, its calls and its checks
//! (status 200, every instance asked for is in the answer) are the same for both
//! sides; moto closes each connection after its answer, so it is opened again.
//! The last row replaces nothing; its limit is a bare VMM's start and one fsync.

mod aws;
mod commit;
mod fleet;
mod load;
mod null_node;
mod scale;
mod servers;
mod up;

use crate::Common;
use crate::alternate::alternate;
use crate::boot;
use crate::report::{Better, Row, median};
use anyhow::{Result, ensure};
use servers::Server;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::runtime::Runtime;

const CONNECTIONS: usize = 16;
/// Large answers: as many as saturate the machine, or one run of the peer takes a minute.
const PAGE_CONNECTIONS: usize = 2;
/// The largest page that EC2 gives.
const PAGE: usize = 1_000;
const PEER: &str = "moto_server, in memory (ours on the null node)";

/// Where the programs and files are that the area needs.
pub struct Places<'a> {
    /// Our built programs.
    pub bin_dir: &'a Path,
    /// The peer.
    pub moto: &'a Path,
    /// The image of the bare start.
    pub probe: &'a Path,
    /// A folder on the disk that the stores are to be on.
    pub disk_dir: &'a Path,
}

/// How long to measure.
struct Effort {
    runs: usize,
    launches: usize,
    time: Duration,
}

/// Measures the area.
pub fn measure(places: &Places<'_>, common: &Common) -> Result<Vec<Row>> {
    let quick = common.quick;
    for program in ["ocs-control", "ocs"] {
        let path = places.bin_dir.join(program);
        ensure!(
            path.exists(),
            "{} is missing: run `cargo xtask build --release`",
            path.display()
        );
    }
    ensure!(
        places.probe.exists(),
        "{} is missing: run `cargo xtask build-guest`",
        places.probe.display()
    );
    let effort = if quick {
        Effort {
            runs: 3,
            launches: 5,
            time: Duration::from_millis(500),
        }
    } else {
        Effort {
            runs: 7,
            launches: 15,
            time: Duration::from_secs(3),
        }
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut rows = Vec::new();
    if common.takes("throughput") {
        rows.extend(throughput(&runtime, places, &effort)?);
    }
    if !quick && common.takes("scale") {
        rows.extend(scale::measure(&runtime, places, effort.runs)?);
    }
    if common.takes("launch") {
        rows.push(first_instruction(&runtime, places, &effort)?);
    }
    Ok(rows)
}

/// One side: its server, and the instances that it always has.
struct Side {
    server: Arc<Server>,
    standing: Arc<[String]>,
}

impl Side {
    fn new(runtime: &Runtime, server: Server) -> Result<Self> {
        let standing = runtime.block_on(fleet::launch(&server.client, &server.image, PAGE))?;
        Ok(Self {
            server: Arc::new(server),
            standing: standing.into(),
        })
    }

    /// DescribeInstances of one id, another each time.
    async fn describe_one(&self, time: Duration) -> Result<f64> {
        let (server, standing) = (Arc::clone(&self.server), Arc::clone(&self.standing));
        load::per_second(CONNECTIONS, time, move |number| {
            let (server, standing) = (Arc::clone(&server), Arc::clone(&standing));
            async move {
                let at = usize::try_from(number).unwrap_or_default() % standing.len();
                let parameters = [("InstanceId.1", standing[at].as_str())];
                let answer = server.client.call("DescribeInstances", &parameters).await?;
                let named = aws::instance_ids(&answer)?;
                ensure!(
                    named == standing[at..=at],
                    "{} was asked for and {named:?} described",
                    standing[at]
                );
                Ok(())
            }
        })
        .await
    }

    /// DescribeInstances of all that is there: one full page.
    async fn describe_page(&self, time: Duration) -> Result<f64> {
        let server = Arc::clone(&self.server);
        load::per_second(PAGE_CONNECTIONS, time, move |_| {
            let server = Arc::clone(&server);
            async move {
                let largest = PAGE.to_string();
                let parameters = [("MaxResults", largest.as_str())];
                let answer = server.client.call("DescribeInstances", &parameters).await?;
                let described = aws::count_instances(&answer);
                ensure!(described == PAGE, "a page describes {described} instances");
                Ok(())
            }
        })
        .await
    }

    /// RunInstances of one instance; afterwards, uncounted, all are terminated.
    async fn run_instances(&self, time: Duration) -> Result<f64> {
        let (server, made) = (Arc::clone(&self.server), Arc::new(Mutex::new(Vec::new())));
        let kept = Arc::clone(&made);
        let rate = load::per_second(CONNECTIONS, time, move |_| {
            let (server, kept) = (Arc::clone(&server), Arc::clone(&kept));
            async move {
                let ids = fleet::run(&server.client, &server.image, 1).await?;
                kept.lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .extend(ids);
                Ok(())
            }
        })
        .await?;
        let made = std::mem::take(&mut *made.lock().unwrap_or_else(PoisonError::into_inner));
        fleet::terminate(&self.server.client, &made).await?;
        Ok(rate)
    }
}

/// The rows against moto. Pages come before launches, whose terminated instances
/// would be on them.
fn throughput(runtime: &Runtime, places: &Places<'_>, effort: &Effort) -> Result<Vec<Row>> {
    let dir = tempfile::tempdir_in(places.disk_dir)?;
    let control = servers::control(&places.bin_dir.join("ocs-control"), dir.path())?;
    let ours = Side::new(runtime, control)?;
    let peer = Side::new(runtime, servers::moto(places.moto, dir.path())?)?;
    let time = effort.time;
    let row = |name: &str, figures: &[Vec<Vec<f64>>]| {
        Row::new(name, "1/s", Better::Higher, &figures[0][0]).against(PEER, &figures[1][0])
    };
    let ones = alternate(
        effort.runs,
        &mut [
            &mut || Ok(vec![runtime.block_on(ours.describe_one(time))?]),
            &mut || Ok(vec![runtime.block_on(peer.describe_one(time))?]),
        ],
    )?;
    let pages = alternate(
        effort.runs,
        &mut [
            &mut || Ok(vec![runtime.block_on(ours.describe_page(time))?]),
            &mut || Ok(vec![runtime.block_on(peer.describe_page(time))?]),
        ],
    )?;
    let mut log = commit::Log::new(dir.path())?;
    let launches = alternate(
        effort.runs,
        &mut [
            &mut || Ok(vec![runtime.block_on(ours.run_instances(time))?]),
            &mut || Ok(vec![runtime.block_on(peer.run_instances(time))?]),
            &mut || log.per_second(time),
        ],
    )?;
    let of_disk = |name: &str, what: &str, disk: &[f64]| {
        let peer = format!(
            "{what} of {CONNECTIONS} callers with {} bytes each, bare",
            commit::RECORD_BYTES
        );
        Row::new(name, "1/s", Better::Higher, &launches[0][0]).against(peer, disk)
    };
    Ok(vec![
        row("run_instances_per_s", &launches),
        of_disk(
            "run_instances_to_disk_records",
            "durable records",
            &launches[2][0],
        ),
        of_disk(
            "run_instances_to_disk_commits",
            "group commits",
            &launches[2][1],
        ),
        row("describe_one_per_s", &ones),
        row("describe_page_per_s", &pages),
    ])
}

fn first_instruction(runtime: &Runtime, places: &Places<'_>, effort: &Effort) -> Result<Row> {
    let mut up = up::Up::start(runtime, &places.bin_dir.join("ocs"), places.disk_dir)?;
    let synced = tempfile::tempfile_in(places.disk_dir)?;
    let figures = alternate(
        effort.launches,
        &mut [
            &mut || up.run_to_first_byte(),
            &mut || Ok(vec![boot::start_floor(places.probe)?[0] / 1e3]),
            &mut || Ok(vec![up::one_fsync(&synced)?]),
        ],
    )?;
    let limit = median(&figures[1][0]) + median(&figures[2][0]);
    Ok(Row::new(
        "run_to_first_instruction_ms",
        "ms",
        Better::Lower,
        &figures[0][0],
    )
    .limited_by(limit))
}
