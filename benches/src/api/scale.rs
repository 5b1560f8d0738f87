//! What size costs: one instance's description among few and among many, and memory.

use super::fleet::{self, Subnets};
use super::servers::{self, Server};
use super::{Places, aws};
use crate::alternate::alternate;
use crate::report::{Better, Row, median};
use anyhow::{Context, Result, ensure};
use std::time::Instant;
use tokio::runtime::Runtime;

const FEW: usize = 100;
/// Where memory is looked at first.
const BASE: usize = 10_000;
const MANY: usize = 110_000;
/// Descriptions of one run.
const CALLS: usize = 200;
/// What the issue of scale allows an instance.
const LIMIT_BYTES: f64 = 4096.0;

/// A server with so many instances.
struct Fleet {
    server: Server,
    ids: Vec<String>,
}

impl Fleet {
    fn new(places: &Places<'_>, name: &str) -> Result<(Self, tempfile::TempDir)> {
        let dir = tempfile::Builder::new()
            .prefix(name)
            .tempdir_in(places.disk_dir)?;
        let server = servers::control(&places.bin_dir.join("ocs-control"), dir.path())?;
        let fleet = Self {
            server,
            ids: Vec::new(),
        };
        Ok((fleet, dir))
    }

    async fn grow(&mut self, subnets: &mut Subnets, to: usize) -> Result<()> {
        while self.ids.len() < to {
            let (client, image) = (&self.server.client, &self.server.image);
            self.ids.extend(subnets.run(client, image).await?);
        }
        Ok(())
    }

    /// Microseconds of a description of one, in the middle.
    async fn describe_us(&self) -> Result<f64> {
        let mut took = Vec::with_capacity(CALLS);
        for number in 0..CALLS {
            // A stride that is prime to the number of instances.
            let id = &self.ids[number * 7_919 % self.ids.len()];
            let start = Instant::now();
            let parameters = [("InstanceId.1", id.as_str())];
            let answer = self
                .server
                .client
                .call("DescribeInstances", &parameters)
                .await?;
            took.push(start.elapsed().as_secs_f64() * 1e6);
            let named = aws::instance_ids(&answer)?;
            ensure!(
                named == [id.clone()],
                "{id} was asked for and {named:?} described"
            );
        }
        Ok(median(&took))
    }

    fn rss_bytes(&self) -> Result<f64> {
        let path = format!("/proc/{}/status", self.server.pid());
        let text = std::fs::read_to_string(path)?;
        let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let kib = line.and_then(|line| line.trim().strip_suffix(" kB"));
        let kib: f64 = kib.context("no VmRSS")?.trim().parse()?;
        Ok(kib * 1024.0)
    }
}

/// The rows.
pub fn measure(runtime: &Runtime, places: &Places<'_>, runs: usize) -> Result<Vec<Row>> {
    let (mut few, _few_dir) = Fleet::new(places, "few")?;
    let (mut many, _many_dir) = Fleet::new(places, "many")?;
    runtime.block_on(async {
        let mut subnets = Subnets::default();
        few.grow(&mut subnets, FEW).await
    })?;
    let mut subnets = Subnets::default();
    runtime.block_on(many.grow(&mut subnets, BASE))?;
    runtime.block_on(fleet::settled(&many.server.client, &many.ids))?;
    let base = many.rss_bytes()?;
    runtime.block_on(many.grow(&mut subnets, MANY))?;
    runtime.block_on(fleet::settled(&many.server.client, &many.ids))?;
    let grown = (many.rss_bytes()? - base) / (MANY - BASE) as f64;
    let figures = alternate(
        runs,
        &mut [
            &mut || Ok(vec![runtime.block_on(many.describe_us())?]),
            &mut || Ok(vec![runtime.block_on(few.describe_us())?]),
        ],
    )?;
    Ok(vec![
        Row::new(
            "describe_one_of_110000_us",
            "us",
            Better::Lower,
            &figures[0][0],
        )
        .against("itself with 100 instances", &figures[1][0]),
        Row::new("rss_per_instance_bytes", "bytes", Better::Lower, &[grown])
            .limited_by(LIMIT_BYTES),
    ])
}
