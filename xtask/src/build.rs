//! `cargo xtask build`: guest and BPF first, then the host binaries that embed them.

use crate::setup::{self, Need};
use crate::toolchain::Compiler;
use crate::{places, sh};
use anyhow::{Context, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::ScopedJoinHandle;

/// How the host binaries are compiled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Profile {
    /// `target/debug`.
    Debug,
    /// `target/release`.
    Release,
}

impl Profile {
    /// As the `--release` flag says.
    pub fn of(release: bool) -> Self {
        if release { Self::Release } else { Self::Debug }
    }

    /// Where this profile's binaries are.
    pub fn folder(self) -> PathBuf {
        places::target().join(match self {
            Self::Debug => "debug",
            Self::Release => "release",
        })
    }
}

/// The host crates whose binaries make an installation.
const HOST_CRATES: &[&str] = &[
    "ocs-cli",
    "ocs-control",
    "ocs-node",
    "ocs-storaged",
    "ocs-vmm",
];

/// Everything. Yields the folder that holds the binaries.
pub fn all(profile: Profile) -> Result<PathBuf> {
    embedded()?;
    host(profile)?;
    Ok(profile.folder())
}

/// What the host crates embed: the probe guest and the BPF programs, side by side, since the
/// end of each is the linker's work on one CPU.
pub fn embedded() -> Result<()> {
    setup::ensure(&[Need::CoreSources, Need::BpfLinker])?;
    std::thread::scope(|scope| {
        let guest = scope.spawn(guest);
        ebpf()?;
        joined(guest)
    })
}

/// What a thread gave.
pub fn joined(thread: ScopedJoinHandle<'_, Result<()>>) -> Result<()> {
    match thread.join() {
        Ok(result) => result,
        Err(panic) => std::panic::resume_unwind(panic),
    }
}

/// Everything, and every test program. One selection of packages for all that tests run:
/// each selection has features of its own, with which dependencies would be built once more.
pub fn for_tests() -> Result<()> {
    embedded()?;
    sh::step("build the host binaries and the tests", || {
        sh::run(sh::cargo().args([
            "build",
            "--locked",
            "--workspace",
            "--lib",
            "--bins",
            "--tests",
        ]))
    })
}

/// The probe guest.
pub fn guest() -> Result<()> {
    setup::ensure(&[Need::CoreSources])?;
    sh::step("build the probe guest", || {
        let built = Compiler::get()?.build(
            &places::root().join("guest"),
            "x86_64-unknown-none",
            "core,alloc",
            "",
        )?;
        keep(&built.join("ocs-probe"), "ocs-probe.elf")
    })
}

/// The BPF programs.
pub fn ebpf() -> Result<()> {
    setup::ensure(&[Need::CoreSources, Need::BpfLinker])?;
    sh::step("build the BPF programs", || {
        let built = Compiler::get()?.build(
            &places::root().join("dataplane-ebpf"),
            "bpfel-unknown-none",
            "core",
            "-Clink-arg=--btf -Cdebuginfo=2",
        )?;
        keep(&built.join("ocs-dataplane-ebpf"), "ocs-dataplane.bpf.o")
    })
}

/// `ocs` and the parts that it supervises.
fn host(profile: Profile) -> Result<()> {
    sh::step("build the host binaries", || {
        let mut cargo = sh::cargo();
        cargo.args(["build", "--locked", "--bins"]);
        for name in HOST_CRATES {
            cargo.args(["--package", name]);
        }
        if profile == Profile::Release {
            cargo.arg("--release");
        }
        sh::run(&mut cargo)
    })
}

/// The EC2 tables, from AWS's published service model in botocore.
pub fn generate_ec2() -> Result<()> {
    setup::ensure(&[Need::Clients])?;
    let find = "import botocore, os; print(os.path.dirname(botocore.__file__))";
    let botocore = sh::output(Command::new(setup::python()).args(["-c", find]))?;
    sh::step("generate the EC2 tables", || {
        sh::run(
            sh::cargo()
                .args([
                    "run",
                    "--locked",
                    "--package",
                    "ocs-control",
                    "--bin",
                    "gen-ec2",
                    "--",
                ])
                .args([botocore.trim(), "control"]),
        )
    })
}

/// Copies what was built to where consumers embed it from, unless it is the same
/// (its time would make them build again).
fn keep(built: &Path, name: &str) -> Result<()> {
    let folder = places::artifacts();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let bytes = fs::read(built).with_context(|| format!("cannot read {}", built.display()))?;
    let path = folder.join(name);
    if fs::read(&path).is_ok_and(|held| held == bytes) {
        return Ok(());
    }
    fs::write(&path, bytes).with_context(|| format!("cannot write {}", path.display()))
}
