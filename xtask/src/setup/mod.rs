//! Installs what a command needs and the machine lacks.
//!
//! ```text
//!  need ──▶ is it there? ── yes ──▶ nothing said, nothing done
//!                └─ no ─ root ────▶ apt-get / cargo install / pip
//!                        other ───▶ the exact commands, and an error
//! ```

mod apt;
mod cloud_init;
mod vectors;
mod venv;

pub use venv::python;

use crate::{sh, toolchain::Compiler};
use anyhow::{Result, bail};
use std::process::Command;

const BPF_LINKER_VERSION: &str = "0.13.0";
const LLVM_PREFIX: &str = "/usr/lib/llvm-22";

/// Something that a command needs of the machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Need {
    /// A compiler with the sources of `core`, for BPF and bare metal.
    CoreSources,
    /// `bpf-linker`.
    BpfLinker,
    /// `ip`, and `nft` as the packet path's peer.
    NetworkTools,
    /// `tshark`, which reads what crosses hosts.
    Dissector,
    /// A C++ compiler, for libFuzzer.
    Fuzzer,
    /// QEMU, and what makes the lab's images.
    Lab,
    /// What makes a Debian from its packages.
    Debian,
    /// The Python environment with aws CLI and boto3.
    Clients,
    /// What the block benches are held against, beside the lab's QEMU.
    BlockPeers,
    /// The one with moto_server, the peer of the API's benches.
    BenchPeer,
}

/// Installs the packages that those needs lack, and nothing else.
pub fn packages(needs: &[Need]) -> Result<()> {
    let missing = apt::missing(needs);
    if !missing.is_empty() {
        apt::install(&missing)?;
        if needs.contains(&Need::CoreSources) {
            Compiler::get()?;
        }
    }
    Ok(())
}

/// Installs those needs that are not met.
pub fn ensure(needs: &[Need]) -> Result<()> {
    packages(needs)?;
    if needs.contains(&Need::BpfLinker) && !has_bpf_linker() {
        install_bpf_linker()?;
    }
    if needs.contains(&Need::Clients) {
        venv::clients()?;
        cloud_init::ensure()?;
        venv::ansible()?;
        vectors::ensure()?;
    }
    if needs.contains(&Need::BenchPeer) {
        venv::bench_peer()?;
    }
    Ok(())
}

/// Everything that any command needs.
pub fn everything() -> Result<()> {
    ensure(&[
        Need::CoreSources,
        Need::BpfLinker,
        Need::NetworkTools,
        Need::Dissector,
        Need::Lab,
        Need::Clients,
        Need::BenchPeer,
        Need::BlockPeers,
    ])?;
    sh::say("everything that the commands need is installed");
    Ok(())
}

fn has_bpf_linker() -> bool {
    sh::output(Command::new("bpf-linker").arg("--version"))
        .is_ok_and(|v| v.contains(BPF_LINKER_VERSION))
}

fn install_bpf_linker() -> Result<()> {
    let args = [
        "install",
        "bpf-linker",
        "--locked",
        "--version",
        BPF_LINKER_VERSION,
        "--no-default-features",
        "--features",
        "llvm-22",
    ];
    if !sh::is_root() {
        bail!(
            "bpf-linker {BPF_LINKER_VERSION} is missing. Run:\n    LLVM_PREFIX={LLVM_PREFIX} cargo {}",
            args.join(" ")
        );
    }
    sh::step(
        "install bpf-linker from source (2 to 3 minutes, once)",
        || {
            let mut cargo = sh::cargo();
            // Its own target folder: an inherited one would be locked by, or rebuild, the workspace.
            cargo
                .current_dir("/")
                .args(args)
                .env("LLVM_PREFIX", LLVM_PREFIX)
                .env_remove("CARGO_TARGET_DIR");
            sh::run(&mut cargo)
        },
    )
}
