//! Both sides' servers: the real `ocs-control` with a null node, and `moto_server`.

use super::aws::{Client, Credentials, REGION};
use super::null_node::{self, NullNode};
use crate::process::Guarded;
use anyhow::{Context, Result, ensure};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use serde::Deserialize;
use serde_json::Value;
use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const TIME_OUT: Duration = Duration::from_secs(60);
/// moto takes any image id that is well formed.
const ANY_IMAGE: &str = "ami-12c6146b";

/// A server that answers, stopped when dropped.
pub struct Server {
    /// Its client.
    pub client: Client,
    /// An image that it launches.
    pub image: String,
    _node: Option<NullNode>,
    process: Guarded,
}

impl Server {
    /// Its process id.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }
}

/// What control says of itself once it serves.
#[derive(Deserialize)]
struct Ready {
    listen: String,
    node_listen: String,
    images: HashMap<String, HashMap<String, String>>,
}

/// Starts `ocs-control` on an empty store in `dir`: signatures verified, each
/// mutation answered after its fsync, all instances on the null node.
pub fn control(program: &Path, dir: &Path) -> Result<Server> {
    let file = |name: &str| dir.join(name);
    fs::create_dir_all(file("state"))?;
    make_pki(dir)?;
    let mut command = Command::new(program);
    command
        .env("RUST_LOG", "warn")
        .args(["--regions", REGION])
        .args(["--request-rate", "0"]);
    for (flag, name) in [
        ("--state", "state"),
        ("--tls-ca", "ca.pem"),
        ("--tls-cert", "control.pem"),
        ("--tls-key", "control.key"),
        ("--bootstrap-file", "keys"),
        ("--ready-file", "ready"),
    ] {
        command.arg(flag).arg(file(name));
    }
    let log = file("control.log");
    let mut process = Guarded::spawn(&mut command, &log)?;
    process
        .wait_until(TIME_OUT, false, || file("ready").exists())
        .with_context(|| said("ocs-control", &log))?;
    let ready: Ready = serde_json::from_slice(&fs::read(file("ready"))?)?;
    let keys: Value = serde_json::from_slice(&fs::read(file("keys"))?)?;
    let key = |name: &str| {
        keys[name]
            .as_str()
            .map(str::to_owned)
            .with_context(|| format!("ocs-control made no {name}"))
    };
    let credentials = Credentials {
        access_key: key("access_key_id")?,
        secret_key: key("secret_access_key")?,
    };
    let image = ready
        .images
        .get(REGION)
        .and_then(|images| images.get("ocs-probe"))
        .with_context(|| format!("ocs-control offers no ocs-probe in {REGION}"))?;
    Ok(Server {
        client: Client::new(ready.listen, credentials),
        image: image.clone(),
        _node: Some(NullNode::connect(&ready.node_listen, dir)?),
        process,
    })
}

/// Starts `moto_server`; it keeps all in memory and believes any signature.
pub fn moto(program: &Path, dir: &Path) -> Result<Server> {
    ensure!(
        program.exists(),
        "{} is missing: `cargo xtask bench api` installs benches/requirements.txt there",
        program.display()
    );
    let log = dir.join("moto.log");
    let mut process = Guarded::spawn(Command::new(program).args(["-p", "0"]), &log)?;
    let mut host = None;
    process
        .wait_until(TIME_OUT, false, || {
            host = listens(&fs::read_to_string(&log).unwrap_or_default());
            host.is_some()
        })
        .with_context(|| said("moto_server", &log))?;
    let credentials = Credentials {
        access_key: "AKIAIOSFODNN7EXAMPLE".to_owned(),
        secret_key: "unchecked".to_owned(),
    };
    Ok(Server {
        client: Client::new(host.unwrap_or_default(), credentials),
        image: ANY_IMAGE.to_owned(),
        _node: None,
        process,
    })
}

/// The address in werkzeug's ` * Running on http://127.0.0.1:43849`.
fn listens(log: &str) -> Option<String> {
    let (_, rest) = log.split_once("Running on http://")?;
    let (host, _) = rest.split_once('\n')?;
    Some(host.trim().to_owned())
}

fn said(who: &str, log: &Path) -> String {
    let text = fs::read_to_string(log).unwrap_or_default();
    let last = text.lines().last().unwrap_or("nothing").to_owned();
    format!("{who} said: {last}")
}

/// An authority, and leaves for control and the null node.
fn make_pki(dir: &Path) -> Result<()> {
    let mut params = CertificateParams::new(Vec::new())?;
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate()?;
    fs::write(dir.join("ca.pem"), params.self_signed(&key)?.pem())?;
    let issuer = Issuer::new(params, key);
    for (file, name) in [("control", "control"), ("node", null_node::NAME)] {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()])?;
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate()?;
        let path = |end: &str| -> PathBuf { dir.join(format!("{file}.{end}")) };
        fs::write(path("pem"), params.signed_by(&key, &issuer)?.pem())?;
        fs::write(path("key"), key.serialize_pem())?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn motos_address_is_read_once_it_is_whole() {
        assert_eq!(listens(" * Running on http://127.0.0.1:43"), None);
        let log = "WARNING\n * Running on http://127.0.0.1:43849\nPress CTRL+C to quit\n";
        assert_eq!(listens(log).as_deref(), Some("127.0.0.1:43849"));
    }
}
