//! Instances by the API alone: launched, awaited, terminated; the same calls for
//! both sides.

use super::aws::{Client, count_instances, instance_ids};
use anyhow::{Result, ensure};
use std::time::{Duration, Instant};

/// Cheap to place: neither side gives it anything to run on.
pub const INSTANCE_TYPE: &str = "t3.nano";
const TIME_OUT: Duration = Duration::from_secs(120);
const LOOK_AGAIN: Duration = Duration::from_millis(10);
/// Instances of one RunInstances or TerminateInstances.
const CHUNK: usize = 100;

/// Launches `count` instances, a multiple of 100, and waits until all are `running`.
pub async fn launch(client: &Client, image: &str, count: usize) -> Result<Vec<String>> {
    let mut ids = Vec::with_capacity(count);
    while ids.len() < count {
        ids.extend(run(client, image, CHUNK).await?);
    }
    ensure!(ids.len() == count, "{count} is no multiple of {CHUNK}");
    for chunk in ids.chunks(CHUNK) {
        wait_for(client, chunk, "running").await?;
    }
    Ok(ids)
}

/// Waits until the instances launched last run: what comes before them does, too.
pub async fn settled(client: &Client, ids: &[String]) -> Result<()> {
    let last = ids.len().saturating_sub(CHUNK);
    wait_for(client, &ids[last..], "running").await
}

/// Subnets with room for a fleet: each a VPC's whole /16.
#[derive(Default)]
pub struct Subnets {
    /// The one that is being filled, and how many instances fit still.
    current: Option<(String, usize)>,
}

/// Instances of one subnet.
const OF_A_SUBNET: usize = 60_000;

impl Subnets {
    /// Launches a chunk of instances.
    pub async fn run(&mut self, client: &Client, image: &str) -> Result<Vec<String>> {
        if self.current.as_ref().is_none_or(|(_, left)| *left == 0) {
            let block = "10.0.0.0/16";
            let vpc = client.call("CreateVpc", &[("CidrBlock", block)]).await?;
            let vpc = element(&vpc, "vpcId")?;
            let parameters = [("VpcId", vpc.as_str()), ("CidrBlock", block)];
            let subnet = client.call("CreateSubnet", &parameters).await?;
            self.current = Some((element(&subnet, "subnetId")?, OF_A_SUBNET));
        }
        let Some((subnet, left)) = &mut self.current else {
            return Ok(Vec::new());
        };
        let ids = launch_in(client, image, CHUNK, &[("SubnetId", subnet)]).await?;
        *left -= CHUNK;
        Ok(ids)
    }
}

/// The text of an answer's first element of a name.
fn element(answer: &[u8], name: &str) -> Result<String> {
    let text = std::str::from_utf8(answer)?;
    let (_, rest) = text.split_once(&format!("<{name}>")).unwrap_or_default();
    let (value, _) = rest.split_once('<').unwrap_or_default();
    ensure!(!value.is_empty(), "no {name} in {text}");
    Ok(value.to_owned())
}

/// One RunInstances of `count` instances, no fewer.
pub async fn run(client: &Client, image: &str, count: usize) -> Result<Vec<String>> {
    launch_in(client, image, count, &[]).await
}

async fn launch_in(
    client: &Client,
    image: &str,
    count: usize,
    more: &[(&str, &str)],
) -> Result<Vec<String>> {
    let number = count.to_string();
    let mut parameters = vec![
        ("ImageId", image),
        ("InstanceType", INSTANCE_TYPE),
        ("MinCount", &number),
        ("MaxCount", &number),
    ];
    parameters.extend(more);
    let answer = client.call("RunInstances", &parameters).await?;
    let ids = instance_ids(&answer)?;
    ensure!(
        ids.len() == count,
        "RunInstances of {count} named {} instances",
        ids.len()
    );
    Ok(ids)
}

/// Terminates instances and waits until all are `terminated`.
pub async fn terminate(client: &Client, ids: &[String]) -> Result<()> {
    for chunk in ids.chunks(CHUNK) {
        let answer = by_id(client, "TerminateInstances", chunk, &[]).await?;
        ensure!(
            count_instances(&answer) == chunk.len(),
            "TerminateInstances did not name all {} instances",
            chunk.len()
        );
    }
    for chunk in ids.chunks(CHUNK) {
        wait_for(client, chunk, "terminated").await?;
    }
    Ok(())
}

/// Waits until every one of `ids` is in `state`.
async fn wait_for(client: &Client, ids: &[String], state: &str) -> Result<()> {
    let filter = [
        ("Filter.1.Name", "instance-state-name"),
        ("Filter.1.Value.1", state),
    ];
    let start = Instant::now();
    loop {
        let answer = by_id(client, "DescribeInstances", ids, &filter).await?;
        let there = count_instances(&answer);
        if there == ids.len() {
            return Ok(());
        }
        ensure!(
            start.elapsed() < TIME_OUT,
            "only {there} of {} instances are {state} after {} s",
            ids.len(),
            TIME_OUT.as_secs()
        );
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

async fn by_id(
    client: &Client,
    action: &str,
    ids: &[String],
    more: &[(&str, &str)],
) -> Result<hyper::body::Bytes> {
    let names: Vec<String> = (1..=ids.len()).map(|n| format!("InstanceId.{n}")).collect();
    let mut parameters: Vec<(&str, &str)> = names
        .iter()
        .zip(ids)
        .map(|(name, id)| (name.as_str(), id.as_str()))
        .collect();
    parameters.extend(more);
    client.call(action, &parameters).await
}
