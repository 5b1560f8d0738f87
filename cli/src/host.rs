//! `ocs host`: the other hosts of an installation.
//!
//! ```text
//!  first host                                   another host
//!  ocs host add NAME ─▶ NAME.join ── copied ──▶ ocs up --join NAME.join
//!     certificate for NAME, by the               storaged, responder, node;
//!     installation's authority                   DIR/host.json says whose they are
//! ```
//! Whoever holds a bundle may speak as that host, so it is for root alone to read.

use crate::account::{Place, ask, print};
use crate::state::{State, write_whole};
use crate::up::{LOCAL_NAME, control_for_hosts, pki};
use anyhow::{Context, Result, ensure};
use clap::Subcommand;
use serde::{Deserialize, Serialize};
use serde_json::json;
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Longest name of a host: a label of DNS.
const MAX_NAME_BYTES: usize = 63;
/// Who hears when a certificate is about to end.
const WARN_S: i64 = 30 * 24 * 3600;

/// What a host needs to join an installation.
#[derive(Clone, Debug, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Bundle {
    /// The host's name, which its certificate bears.
    pub name: String,
    /// Where control waits for nodes.
    pub control: SocketAddr,
    /// The authority of control's certificate (PEM).
    pub authority: String,
    /// The host's own (PEM).
    pub certificate: String,
    /// Its key (PEM).
    pub key: String,
    /// When the certificate ends, in seconds since 1970.
    pub expires_s: i64,
    /// Key and certificate (PEM) that sign the identity documents of each region.
    #[serde(default)]
    pub identities: BTreeMap<String, (String, String)>,
}

/// `ocs host`.
#[derive(Subcommand)]
pub enum Hosts {
    /// Makes a certificate for another host, and the file with which it joins.
    Add {
        #[command(flatten)]
        place: Place,
        /// The host's name: lower-case letters, digits and dashes.
        name: String,
        /// The file to write (default: NAME.join, here). Keep it secret: who holds it is that
        /// host.
        #[arg(long)]
        out: Option<PathBuf>,
    },
    /// Lists hosts: how they are reached, how much of them is given out, and what they hold.
    List(Place),
    /// Removes a host: its certificate is void from then on, other hosts know its instances no
    /// more, its NAT gateways move to another. One that holds instances, volumes or snapshots
    /// stays, unless it is forced.
    Remove {
        #[command(flatten)]
        place: Place,
        /// The host's name.
        name: String,
        /// For a host that is dead for good: its instances are terminated, its volumes and
        /// snapshots are in error, since what it held is lost.
        #[arg(long)]
        force: bool,
    },
}

/// Runs `ocs host`.
pub fn run(command: &Hosts) -> Result<()> {
    match command {
        Hosts::Add { place, name, out } => add(&State::at(&place.state)?, name, out.as_deref()),
        Hosts::Remove { place, name, force } => remove(place, name, *force),
        Hosts::List(place) => print(&ask(place, &json!({"list_hosts": {}}))?),
    }
}

fn add(state: &State, name: &str, out: Option<&Path>) -> Result<()> {
    check_name(name)?;
    let control = control_for_hosts(state)?;
    let credentials = pki::admit(state, name)?;
    let bundle = Bundle {
        name: name.to_owned(),
        control,
        authority: credentials.authority,
        certificate: credentials.certificate,
        key: credentials.key,
        expires_s: credentials.expires_s,
        identities: pki::kept_identities(state)?,
    };
    let path = match out {
        Some(path) => path.to_owned(),
        None => PathBuf::from(format!("{name}.join")),
    };
    write_whole(&path, &serde_json::to_vec_pretty(&bundle)?, 0o600, 0)?;
    println!(
        "{} lets {name} join. Copy it there, let nobody else read it, and run there:\n\n  \
         ocs up --join {} --uplink INTERFACE --underlay-ip ADDRESS",
        path.display(),
        path.display()
    );
    Ok(())
}

fn remove(place: &Place, name: &str, force: bool) -> Result<()> {
    check_name(name)?;
    let void_until_s = pki::begins_now().unix_timestamp();
    let request = json!({"name": name, "force": force, "void_until_s": void_until_s});
    let answer = ask(place, &json!({"remove_host": request}))?;
    // Certificates count in seconds: one of this second would be void, too.
    while pki::begins_now().unix_timestamp() <= void_until_s {
        std::thread::sleep(Duration::from_millis(20));
    }
    print(&answer)
}

fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !name.is_empty() && name.len() <= MAX_NAME_BYTES && name.chars().all(plain),
        "a host's name is 1 to {MAX_NAME_BYTES} lower-case letters, digits and dashes, not {name:?}"
    );
    ensure!(
        name != LOCAL_NAME,
        "{LOCAL_NAME:?} is the first host's name"
    );
    Ok(())
}

/// Whose host this is: as `join` has it, which is kept, or as it was kept before; nobody's
/// but its own where it has never joined.
pub fn membership(state: &State, join: Option<&Path>) -> Result<Option<Bundle>> {
    let kept = state.path("host.json");
    let from = join.unwrap_or(&kept);
    let text = match fs::read(from) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound && join.is_none() => {
            return Ok(None);
        }
        Err(error) => return Err(error).with_context(|| from.display().to_string()),
    };
    let bundle: Bundle = serde_json::from_slice(&text)
        .with_context(|| format!("{} is not what `ocs host add` writes", from.display()))?;
    check_name(&bundle.name).with_context(|| from.display().to_string())?;
    ensure!(
        !state.path("control/store.redb").exists(),
        "{} is the state of an installation's first host, which cannot join another; choose \
         another --state",
        state.root().display()
    );
    let now_s = time::OffsetDateTime::now_utc().unix_timestamp();
    ensure!(
        now_s < bundle.expires_s,
        "the certificate of {} has ended: `ocs host add {}` on the first host makes another",
        bundle.name,
        bundle.name
    );
    if bundle.expires_s - now_s < WARN_S {
        tracing::warn!(
            name = bundle.name,
            "this host's certificate ends within 30 days: `ocs host add` makes another"
        );
    }
    if join.is_some() {
        write_whole(&kept, &text, 0o600, 0)?;
    }
    Ok(Some(bundle))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bundle(expires_s: i64) -> Bundle {
        Bundle {
            name: "rack-2".to_owned(),
            control: "192.0.2.1:8774".parse().unwrap(),
            authority: "a".to_owned(),
            certificate: "c".to_owned(),
            key: "k".to_owned(),
            expires_s,
            identities: BTreeMap::new(),
        }
    }

    #[test]
    fn a_host_that_joined_stays_one_and_keeps_its_key_to_itself() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(&folder.path().join("state")).unwrap();
        fs::create_dir(state.root()).unwrap();
        assert!(membership(&state, None).unwrap().is_none());
        let file = folder.path().join("rack-2.join");
        let far = i64::MAX / 2;
        fs::write(&file, serde_json::to_vec(&bundle(far)).unwrap()).unwrap();
        for join in [Some(file.as_path()), None] {
            let joined = membership(&state, join).unwrap().unwrap();
            assert_eq!((joined.name.as_str(), joined.expires_s), ("rack-2", far));
        }
        let mode = fs::metadata(state.path("host.json")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o600);
    }

    #[test]
    fn what_is_no_bundle_is_refused_and_not_kept() {
        let folder = tempfile::tempdir().unwrap();
        let state = State::at(folder.path()).unwrap();
        let file = folder.path().join("x.join");
        let error = membership(&state, Some(&file)).unwrap_err();
        assert!(format!("{error:#}").contains("x.join"), "{error:#}");
        let mut named = bundle(i64::MAX / 2);
        named.name = "../x".to_owned();
        for (text, says) in [
            ("{}".to_owned(), "ocs host add"),
            (serde_json::to_string(&bundle(1)).unwrap(), "has ended"),
            (serde_json::to_string(&named).unwrap(), "lower-case"),
        ] {
            fs::write(&file, text).unwrap();
            let error = format!("{:#}", membership(&state, Some(&file)).unwrap_err());
            assert!(error.contains(says), "{error}");
            assert!(!state.path("host.json").exists());
        }
        fs::create_dir(state.path("control")).unwrap();
        fs::write(state.path("control/store.redb"), "").unwrap();
        fs::write(&file, serde_json::to_vec(&bundle(i64::MAX / 2)).unwrap()).unwrap();
        let error = membership(&state, Some(&file)).unwrap_err().to_string();
        assert!(error.contains("first host"), "{error}");
    }
}
