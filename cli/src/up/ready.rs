//! When the system serves, and what its operator is then told.

use super::parts::{CONTROL_READY, Plan};
use super::supervise::Supervisor;
use super::{LOG_LINES, log};
use crate::part::Part;
use crate::state::State;
use anyhow::{Context, Result, anyhow};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::fs;
use std::net::SocketAddr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;
use tokio::time::{Instant, sleep};

const LOOK_AGAIN: Duration = Duration::from_millis(20);
/// A part that is not ready by then will not be.
const PATIENCE: Duration = Duration::from_secs(60);
const PROBE: &str = "ocs-probe";
const PROBE_INSTANCE_STORE: &str = "ocs-probe-instance-store";

/// What control tells once it serves.
#[derive(Clone, Debug, Deserialize)]
pub struct Control {
    /// The EC2 API.
    pub listen: SocketAddr,
    /// The gRPC API.
    pub grpc_listen: SocketAddr,
    /// Where the node dials.
    pub node_listen: SocketAddr,
    /// Region → image name → id.
    images: BTreeMap<String, BTreeMap<String, String>>,
    /// Region → zones.
    zones: BTreeMap<String, Vec<String>>,
}

/// The first account.
#[derive(Deserialize)]
struct Bootstrap {
    account_id: String,
    access_key_id: String,
    secret_access_key: String,
    default_region: String,
}

/// Waits until control serves.
pub async fn control(plan: &Plan<'_>, supervisor: &Supervisor) -> Result<Control> {
    let path = plan.control_ready();
    wait(plan, supervisor, Part::Control, || path.exists()).await?;
    read(&path)
}

/// Waits until storaged takes requests and the node has its session with control.
pub async fn others(plan: &Plan<'_>, supervisor: &Supervisor) -> Result<()> {
    let socket = plan.storaged_socket();
    wait(plan, supervisor, Part::Storaged, || {
        UnixStream::connect(&socket).is_ok()
    })
    .await?;
    let file = plan.node_ready();
    wait(plan, supervisor, Part::Node, || file.exists()).await
}

async fn wait(
    plan: &Plan<'_>,
    supervisor: &Supervisor,
    part: Part,
    is_ready: impl Fn() -> bool,
) -> Result<()> {
    let until = Instant::now() + PATIENCE;
    while !is_ready() {
        if let Some(part) = supervisor.failing() {
            return Err(not_ready(plan, part, "keeps ending"));
        }
        if Instant::now() > until {
            return Err(not_ready(plan, part, "is not ready in time"));
        }
        sleep(LOOK_AGAIN).await;
    }
    Ok(())
}

fn not_ready(plan: &Plan<'_>, part: Part, problem: &str) -> anyhow::Error {
    let log = plan.state.log(part);
    anyhow!(
        "{} {problem}; the end of {}:\n{}",
        part.program(),
        log.display(),
        log::tail(&log, LOG_LINES)
    )
}

/// Where control of a running installation waits for nodes.
pub fn node_listen(state: &State) -> Result<SocketAddr> {
    let control: Control = read(&state.path(CONTROL_READY)).context("does `ocs up` run there?")?;
    Ok(control.node_listen)
}

fn read<T: for<'de> Deserialize<'de>>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| path.display().to_string())?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// The env file: shell lines, the last of which exports what the others set.
pub fn environment(plan: &Plan<'_>, control: &Control) -> Result<String> {
    let first: Bootstrap = read(&plan.bootstrap())?;
    let region = &first.default_region;
    let zone = control.zones.get(region).and_then(|zones| zones.first());
    let image = |name: &str| {
        let images = control.images.get(region);
        images
            .and_then(|images| images.get(name))
            .with_context(|| format!("control offers no image {name} in {region}"))
    };
    // From other machines only TLS is served.
    let url = |address: SocketAddr| {
        let here = address.ip().is_loopback() || address.ip().is_unspecified();
        let scheme = if here { "http" } else { "https" };
        format!("{scheme}://{address}")
    };
    let authority = plan.state.path("pki/ca.pem").display().to_string();
    let lines = [
        ("OCS_ENDPOINT", url(control.listen)),
        ("OCS_GRPC_ENDPOINT", url(control.grpc_listen)),
        ("OCS_CA_BUNDLE", authority),
        ("AWS_ACCESS_KEY_ID", first.access_key_id),
        ("AWS_SECRET_ACCESS_KEY", first.secret_access_key),
        ("AWS_DEFAULT_REGION", region.clone()),
        ("OCS_ACCOUNT_ID", first.account_id),
        (
            "OCS_ZONE",
            zone.with_context(|| format!("{region} has no zone"))?
                .clone(),
        ),
        ("OCS_PROBE_AMI", image(PROBE)?.clone()),
        (
            "OCS_PROBE_AMI_INSTANCE_STORE",
            image(PROBE_INSTANCE_STORE)?.clone(),
        ),
    ];
    Ok(shell_lines(&lines))
}

fn shell_lines(lines: &[(&str, String)]) -> String {
    let mut text = String::new();
    for (name, value) in lines {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name}={value}");
    }
    let names: Vec<&str> = lines.iter().map(|(name, _)| *name).collect();
    let _ = writeln!(text, "export {}", names.join(" "));
    text
}

/// What is printed once the system serves.
pub fn greeting(environment: &str, env_file: Option<&Path>, control: &Control) -> String {
    let endpoint = format!("http://{}", control.listen);
    let call = format!("aws --endpoint-url {endpoint} ec2 describe-instance-types");
    match env_file {
        Some(path) => format!(
            "Open Cloud System serves EC2's API at {endpoint}\n\n  . {} && {call}\n",
            path.display()
        ),
        None => {
            format!("Open Cloud System serves EC2's API at {endpoint}\n\n{environment}\n  {call}\n")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_exports_every_line() {
        let lines = [
            ("OCS_A", "http://127.0.0.1:1".to_owned()),
            ("OCS_B", "a+b/c=".to_owned()),
        ];
        let script = format!("{}env | grep ^OCS_ | sort", shell_lines(&lines));
        let output = std::process::Command::new("sh")
            .args(["-euc", &script])
            .env_clear()
            .env("PATH", "/usr/bin:/bin")
            .output()
            .unwrap();
        let text = String::from_utf8(output.stdout).unwrap();
        assert_eq!(text, "OCS_A=http://127.0.0.1:1\nOCS_B=a+b/c=\n");
    }
}
