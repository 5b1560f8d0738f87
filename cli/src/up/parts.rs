//! The command line of each part.

use super::Arguments;
use super::ready::Control;
use crate::host::Bundle;
use crate::images::manifest_path;
use crate::part::Part;
use crate::state::{State, Uids};
use anyhow::{Context, Result, ensure};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

/// The name of the node on control's host, which its certificate bears.
pub const LOCAL_NAME: &str = "local";
/// What it dials, which control's certificate bears.
pub const CONTROL_NAME: &str = "localhost";

/// The file by which control tells that it serves, and where.
pub const CONTROL_READY: &str = "run/control/ready.json";

/// Where the parts' programs lie: beside this one.
pub struct Programs {
    folder: PathBuf,
}

impl Programs {
    /// Checks that each program is there.
    pub fn beside_this_one() -> Result<Self> {
        let own = std::env::current_exe().context("finding this program")?;
        let folder = own.parent().unwrap_or(Path::new("/")).to_owned();
        let others = Part::ALL.map(Part::program);
        for name in others.iter().map(String::as_str).chain(["ocs-vmm"]) {
            ensure!(
                folder.join(name).is_file(),
                "{} is missing: `ocs` needs its parts beside itself (`cargo xtask build` leaves them so)",
                folder.join(name).display()
            );
        }
        Ok(Self { folder })
    }

    /// The program of `part`.
    pub fn of(&self, part: Part) -> PathBuf {
        self.folder.join(part.program())
    }
}

/// One part, ready to be started.
#[derive(Clone, Debug)]
pub struct Start {
    /// Which.
    pub part: Part,
    /// Its program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// The uid and gid to start it as; `None` for parts that need root at first.
    pub identity: Option<u32>,
}

/// All that the command lines are made of.
pub struct Plan<'a> {
    /// The state folder.
    pub state: &'a State,
    /// Whom parts run as.
    pub uids: Uids,
    /// Where programs lie.
    pub programs: &'a Programs,
    /// What the operator said.
    pub arguments: &'a Arguments,
    /// Whose host this is, if it has joined another.
    pub joined: Option<&'a Bundle>,
}

impl Plan<'_> {
    /// The file by which control tells that it serves, and where.
    pub fn control_ready(&self) -> PathBuf {
        self.state.path(CONTROL_READY)
    }

    /// Where control writes the first account's credentials.
    pub fn bootstrap(&self) -> PathBuf {
        self.state.path("run/control/bootstrap.json")
    }

    /// The file by which the node tells that its session is up.
    pub fn node_ready(&self) -> PathBuf {
        self.state.path("run/node.ready")
    }

    /// Where storaged takes requests.
    pub fn storaged_socket(&self) -> PathBuf {
        self.state.path("run/storaged/control.sock")
    }

    /// `ocs-control`, on the addresses that it already had if `known`.
    pub fn control(&self, known: Option<&Control>) -> Start {
        let listen = known.map_or(self.arguments.listen, |known| known.listen);
        let grpc = known.map_or(self.arguments.grpc_listen, |known| known.grpc_listen);
        let node = known.map_or_else(
            || self.arguments.node_listen().to_string(),
            |known| known.node_listen.to_string(),
        );
        let mut start = self.start(Part::Control);
        if !self.arguments.public_cidrs.is_empty() {
            start = start.with("--public-addresses", self.arguments.public_cidrs.join(","));
        }
        if let Some(pool) = &self.arguments.ipv6_pool {
            start = start.with("--ipv6-pool", pool);
        }
        start
            .with("--state", self.state.path("control"))
            .with("--listen", listen.to_string())
            .with("--grpc-listen", grpc.to_string())
            .with("--node-listen", node)
            .with("--tls-ca", self.state.path("pki/ca.pem"))
            .with("--tls-cert", self.state.path("pki/control.pem"))
            .with("--tls-key", self.state.path("pki/control.key"))
            .with("--regions", self.arguments.regions.join(","))
            .with("--zones", self.arguments.zones.to_string())
            .with("--bootstrap-file", self.bootstrap())
            .with("--ready-file", self.control_ready())
            .with("--images-manifest", manifest_path(self.state))
            .with("--admin-socket", self.state.path("run/control/admin.sock"))
            .with("--lock-file", self.state.lock(Part::Control))
    }

    /// `ocs-storaged`, which takes over from one that still runs.
    pub fn storaged(&self) -> Start {
        let mut start = self
            .start(Part::Storaged)
            .with("--state", self.state.path("storaged"))
            .with("--images", self.state.path("images"))
            .with("--control", self.storaged_socket());
        start.arguments.push("--take-over".into());
        start
    }

    /// `ocs-responder`, which gives up root by itself.
    pub fn responder(&self) -> Start {
        let uid = self.uids.of(Part::Responder).to_string();
        let mut start = self.start(Part::Responder);
        start.identity = None;
        start
            .with("--state", self.state.root())
            .with("--uid", &uid)
            .with("--gid", &uid)
    }

    /// `ocs-node`, as whom it speaks to control at an address.
    pub fn node(&self, name: &str, control: SocketAddr) -> Start {
        let url = if control.ip().is_loopback() {
            format!("https://{CONTROL_NAME}:{}", control.port())
        } else {
            format!("https://{control}")
        };
        let mut start = self
            .start(Part::Node)
            .with("--state", self.state.root())
            .with("--name", name)
            .with("--control", url)
            .with("--tls-ca", self.state.path("pki/ca.pem"))
            .with("--tls-cert", self.state.path("pki/node.pem"))
            .with("--tls-key", self.state.path("pki/node.key"))
            .with("--uid-base", self.uids.base.to_string())
            .with("--ready-file", self.node_ready())
            .with(
                "--overcommit-cpu",
                self.arguments.overcommit_cpu.to_string(),
            )
            .with(
                "--overcommit-memory",
                self.arguments.overcommit_memory.to_string(),
            )
            .with("--flow-logs", self.arguments.flow_logs.to_string());
        let arguments = self.arguments;
        if let (Some(uplink), Some(address)) = (&arguments.uplink, arguments.underlay_ip) {
            start = start
                .with("--uplink", uplink)
                .with("--underlay-ip", address.to_string());
            if arguments.uplink_outside {
                start.arguments.push("--uplink-outside".into());
            }
        }
        if let Some(name) = &arguments.outside {
            start = start.with("--outside", name);
            let mut cidrs = arguments.public_cidrs.clone();
            cidrs.extend(arguments.ipv6_pool.clone());
            if !cidrs.is_empty() {
                start = start.with("--public-cidrs", cidrs.join(","));
            }
        }
        start
    }

    fn start(&self, part: Part) -> Start {
        Start {
            part,
            program: self.programs.of(part),
            arguments: Vec::new(),
            identity: Some(self.uids.of(part)).filter(|uid| *uid != 0),
        }
    }
}

impl Start {
    fn with(mut self, flag: &str, value: impl Into<OsString>) -> Self {
        self.arguments.push(flag.into());
        self.arguments.push(value.into());
        self
    }
}
