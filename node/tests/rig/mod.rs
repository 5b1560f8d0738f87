//! A host of its own: the real node, storaged, VMM and packet path, under a control
//! that the test plays. Everything is named by the test's process and gone after it.

#![allow(dead_code, reason = "each test file uses a part")]

mod control;
mod pki;

pub use control::Control;

use ocs_node_api as api;
use std::collections::HashMap;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tempfile::TempDir;

/// How long anything may take on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(120);
const RESPONDER: u32 = 2;
const STORAGED: u32 = 3;

pub struct Rig {
    pub state: PathBuf,
    pub control: Control,
    uid_base: u32,
    folder: TempDir,
    node: Option<Child>,
    storaged: Option<Child>,
    responder: Option<Child>,
}

/// A program of another crate, beside `ocs-node` or where `OCS_BIN_DIRS` says.
fn program(name: &str) -> PathBuf {
    let beside = Path::new(env!("CARGO_BIN_EXE_ocs-node")).with_file_name(name);
    let elsewhere = std::env::var("OCS_BIN_DIRS").unwrap_or_default();
    elsewhere
        .split(':')
        .map(|dir| Path::new(dir).join(name))
        .chain([beside])
        .find(|path| path.is_file())
        .unwrap_or_else(|| panic!("{name} is not built; `cargo xtask build` makes it"))
}

fn probe() -> PathBuf {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/artifacts/ocs-probe.elf");
    assert!(
        path.is_file(),
        "the probe is not built; `cargo xtask build` makes it"
    );
    path
}

impl Rig {
    /// Everything up but the node.
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix(&format!("ocs-node-{}-", std::process::id()))
            .tempdir()
            .unwrap();
        let state = folder.path().join("state");
        let uid_base = 300_000 + std::process::id() % 1000 * 1000;
        let uid = uid_base + STORAGED;
        for dir in ["", "images", "run", "run/storaged", "storaged", "pki"] {
            std::fs::create_dir_all(state.join(dir)).unwrap();
        }
        for path in [folder.path(), &state] {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
        }
        for dir in ["run/storaged", "storaged"] {
            std::os::unix::fs::chown(state.join(dir), Some(uid), Some(uid)).unwrap();
        }
        std::fs::copy(probe(), state.join("images/ocs-probe.elf")).unwrap();
        pki::make(&state.join("pki"));
        let control = Control::start(&state.join("pki"));
        let mut rig = Self {
            state,
            control,
            uid_base,
            folder,
            node: None,
            storaged: None,
            responder: None,
        };
        rig.start_storaged();
        rig
    }

    pub fn start_storaged(&mut self) {
        let uid = self.uid_base + STORAGED;
        let child = Command::new(program("ocs-storaged"))
            .arg("--state")
            .arg(self.state.join("storaged"))
            .arg("--images")
            .arg(self.state.join("images"))
            .arg("--control")
            .arg(self.state.join("run/storaged/control.sock"))
            .stdin(Stdio::null())
            .uid(uid)
            .gid(uid)
            .spawn()
            .unwrap();
        self.storaged = Some(child);
    }

    /// DHCP and metadata, for tests whose guests talk.
    pub fn start_responder(&mut self) {
        let uid = (self.uid_base + RESPONDER).to_string();
        let child = Command::new(env!("CARGO_BIN_EXE_ocs-responder"))
            .arg("--state")
            .arg(&self.state)
            .arg("--netns")
            .arg(self.state.join("run/netns/svc"))
            .args(["--interface", "svc1", "--uid", &uid, "--gid", &uid])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.responder = Some(child);
    }

    pub fn kill_storaged(&mut self) {
        end(&mut self.storaged);
    }

    pub fn start_node(&mut self) {
        let pki = self.state.join("pki");
        let ready = self.state.join("run/node.ready");
        let _ = std::fs::remove_file(&ready);
        let child = Command::new(env!("CARGO_BIN_EXE_ocs-node"))
            .args(["--name", "host", "--control", &self.control.url()])
            .arg("--tls-ca")
            .arg(pki.join("ca.pem"))
            .arg("--tls-cert")
            .arg(pki.join("node.pem"))
            .arg("--tls-key")
            .arg(pki.join("node.key"))
            .arg("--ready-file")
            .arg(&ready)
            .args(self.common())
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        self.node = Some(child);
        eventually("the node is ready", || ready.exists());
    }

    fn common(&self) -> Vec<String> {
        vec![
            "--state".into(),
            self.state.display().to_string(),
            "--uid-base".into(),
            self.uid_base.to_string(),
            "--vmm".into(),
            program("ocs-vmm").display().to_string(),
            "--stop-grace-s".into(),
            "10".into(),
        ]
    }

    /// SIGKILL.
    pub fn kill_node(&mut self) {
        end(&mut self.node);
    }

    /// `ocs-node cleanup`.
    pub fn cleanup(&mut self) -> bool {
        self.kill_node();
        Command::new(env!("CARGO_BIN_EXE_ocs-node"))
            .arg("cleanup")
            .args(self.common())
            .status()
            .unwrap()
            .success()
    }

    /// What the console of instance `id` holds now.
    pub fn console(&self, id: &str) -> String {
        std::fs::File::open(self.state.join("run/console").join(id))
            .and_then(|file| ocs_vmm_spec::console::read(&file))
            .map(|(bytes, _)| String::from_utf8_lossy(&bytes).into_owned())
            .unwrap_or_default()
    }

    pub fn await_console(&self, id: &str, text: &str) {
        let until = Instant::now() + PATIENCE;
        while !self.console(id).contains(text) {
            assert!(
                Instant::now() < until,
                "{text:?} is not on the console of {id}:\n{}",
                self.console(id)
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits for a console line that `of` says yes to, among those after `from` bytes.
    #[track_caller]
    pub fn await_line(
        &self,
        id: &str,
        from: usize,
        what: &str,
        of: impl Fn(&str) -> bool,
    ) -> String {
        let until = Instant::now() + PATIENCE;
        loop {
            let console = self.console(id);
            let tail = console.get(from..).unwrap_or_default();
            let whole = tail.rsplit_once('\n').map_or("", |(lines, _)| lines);
            if let Some(line) = whole.lines().find(|line| of(line)) {
                return line.to_owned();
            }
            assert!(
                Instant::now() < until,
                "no {what} on the console of {id}:\n{tail}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn owner(&self, id: &str) -> Option<ocs_node::agent::owner::Owner> {
        let path = self.state.join("run/instances").join(id).join("owner.json");
        serde_json::from_slice(&std::fs::read(path).ok()?).ok()
    }

    pub fn pid(&self, id: &str) -> Option<i32> {
        Some(self.owner(id)?.process?.pid)
    }

    /// Processes whose environment names instance `id`.
    pub fn processes_of(&self, id: &str) -> Vec<i32> {
        let wanted = format!("OCS_INSTANCE={id}");
        std::fs::read_dir("/proc")
            .unwrap()
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .filter(|pid| {
                std::fs::read(format!("/proc/{pid}/environ"))
                    .is_ok_and(|e| e.split(|b| *b == 0).any(|v| v == wanted.as_bytes()))
            })
            .collect()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        let clean = self.cleanup();
        end(&mut self.storaged);
        end(&mut self.responder);
        if !clean && !std::thread::panicking() {
            panic!("cleanup failed");
        }
        let left: Vec<String> = std::fs::read_to_string("/proc/mounts")
            .unwrap()
            .lines()
            .filter(|line| line.contains(self.folder.path().to_str().unwrap()))
            .map(str::to_owned)
            .collect();
        if !std::thread::panicking() {
            assert!(left.is_empty(), "mounts are left: {left:?}");
        }
    }
}

fn end(child: &mut Option<Child>) {
    if let Some(mut child) = child.take() {
        let _ = child.kill();
        let _ = child.wait();
    }
}

#[track_caller]
pub fn eventually(what: &str, mut so: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// An id that no other run of the tests uses; within one, `n` tells them apart.
pub fn id(kind: &str, n: u64) -> String {
    let unique = u64::from(std::process::id()) << 16 | n;
    format!("{kind}-{unique:017x}")
}

pub fn volume(n: u64) -> api::Volume {
    api::Volume {
        id: id("vol", n),
        generation: 1,
        desired: api::Desired::Present.into(),
        size_bytes: 64 << 20,
        image: String::new(),
        limits: None,
        ..api::Volume::default()
    }
}

/// The default group: all out, and in from itself.
pub fn group() -> api::SecurityGroup {
    api::SecurityGroup {
        id: id("sg", 0),
        generation: 1,
        vni: 7,
        rules: vec![
            api::Rule {
                egress: true,
                protocol: -1,
                from_port: -1,
                to_port: -1,
                peer: Some(api::rule::Peer::Cidr("0.0.0.0/0".into())),
            },
            api::Rule {
                egress: false,
                protocol: -1,
                from_port: -1,
                to_port: -1,
                peer: Some(api::rule::Peer::SecurityGroup(id("sg", 0))),
            },
        ],
    }
}

/// A probe with a root volume, an ENI and `orders` as its user data.
pub fn instance(n: u64, orders: &str) -> api::Instance {
    let id_ = id("i", n);
    api::Instance {
        id: id_,
        generation: 1,
        desired: api::Desired::Running.into(),
        vcpus: 1,
        memory_mib: 64,
        image: Some(api::Image {
            id: "ami-1".into(),
            kernel: "ocs-probe.elf".into(),
            ..api::Image::default()
        }),
        attachments: vec![api::Attachment {
            volume_id: id("vol", n),
            device_name: "/dev/sda1".into(),
            read_only: false,
        }],
        network_interfaces: vec![api::NetworkInterface {
            id: id("eni", n),
            vni: 7,
            mac: format!("02:00:00:00:01:{n:02x}"),
            private_ip: format!("172.31.0.{}", 10 + n),
            subnet_cidr: "172.31.0.0/20".into(),
            vpc_cidr: "172.31.0.0/16".into(),
            security_groups: vec![id("sg", 0)],
            source_dest_check: true,
            mtu: 1500,
            domain_name: "ec2.internal".into(),
            ..api::NetworkInterface::default()
        }],
        metadata: Some(api::Metadata {
            account_id: "123456789012".into(),
            instance_type: "t3.nano".into(),
            region: "us-east-1".into(),
            availability_zone: "us-east-1a".into(),
            user_data: orders.as_bytes().to_vec(),
            http_endpoint_enabled: true,
            http_put_response_hop_limit: 1,
            tags: HashMap::new(),
            ..api::Metadata::default()
        }),
        starts: 1,
        ..api::Instance::default()
    }
}
