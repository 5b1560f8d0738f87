//! Debian packages: which are missing, and their installation.

use super::{Need, has_bpf_linker};
use crate::{sh, toolchain::Compiler};
use anyhow::{Result, bail};
use std::process::Command;

/// Packages that stand or fall together, and how to see that they are there.
struct Group {
    needs: &'static [Need],
    packages: &'static [&'static str],
    present: fn() -> bool,
}

const GROUPS: &[Group] = &[
    Group {
        needs: &[Need::CoreSources],
        packages: &["rustc-web", "rust-web-src"],
        present: || Compiler::find().is_some(),
    },
    Group {
        needs: &[Need::BpfLinker],
        packages: &[
            "llvm-22-dev",
            "libpolly-22-dev",
            "zlib1g-dev",
            "libzstd-dev",
        ],
        present: has_bpf_linker,
    },
    Group {
        needs: &[Need::NetworkTools],
        packages: &["iproute2", "nftables"],
        present: || sh::has("ip") && sh::has("nft"),
    },
    Group {
        needs: &[Need::Dissector],
        packages: &["tshark"],
        present: || sh::has("tshark"),
    },
    Group {
        needs: &[Need::Fuzzer],
        packages: &["g++"],
        present: || sh::has("c++"),
    },
    // A machine may come with a newer, backported qemu-utils that no qemu-system of
    // its release goes with, hence both by release name.
    Group {
        needs: &[Need::Lab],
        packages: &["qemu-system-x86/RELEASE", "qemu-utils/RELEASE"],
        present: || sh::has("qemu-system-x86_64") && sh::has("qemu-storage-daemon"),
    },
    Group {
        needs: &[Need::Lab],
        packages: &["busybox-static"],
        present: || sh::has("busybox") && !sh::succeeds("sh", &["-c", "ldd $(command -v busybox)"]),
    },
    Group {
        needs: &[Need::Lab],
        packages: &["e2fsprogs", "xz-utils", "zstd"],
        present: || sh::has("mke2fs") && sh::has("xz") && sh::has("zstd"),
    },
    Group {
        needs: &[Need::Debian],
        packages: &["mmdebstrap", "debian-archive-keyring", "fdisk"],
        present: || sh::has("mmdebstrap") && sh::has("sfdisk"),
    },
    Group {
        needs: &[Need::BlockPeers],
        packages: &["fio", "openssl"],
        present: || sh::has("fio") && sh::has("openssl"),
    },
    Group {
        needs: &[Need::Clients, Need::BenchPeer],
        packages: &["python3", "python3-venv"],
        present: || sh::succeeds("python3", &["-c", "import venv, ensurepip"]),
    },
];

/// The packages to install for `needs`, in apt-get's notation.
pub fn missing(needs: &[Need]) -> Vec<String> {
    GROUPS
        .iter()
        .filter(|group| group.needs.iter().any(|need| needs.contains(need)) && !(group.present)())
        .flat_map(|group| group.packages)
        .map(|package| package.replace("RELEASE", &release()))
        .collect()
}

/// Installs them, or says how where we may not.
pub fn install(packages: &[String]) -> Result<()> {
    let list = packages.join(" ");
    let line = format!("apt-get install -y --no-install-recommends --allow-downgrades {list}");
    if !sh::has("apt-get") {
        bail!("these Debian packages, or your system's equivalents, are missing: {list}");
    }
    if !sh::is_root() {
        bail!("packages are missing. Run as root:\n    apt-get update\n    {line}");
    }
    sh::step(&format!("install {list}"), || {
        // A list made when the machine was may name what is gone, or old releases.
        apt_get(&["update"])?;
        let args: Vec<&str> = line.split(' ').skip(1).collect();
        apt_get(&args)
    })
}

fn apt_get(args: &[&str]) -> Result<()> {
    sh::run(
        Command::new("apt-get")
            .args(args)
            .env("DEBIAN_FRONTEND", "noninteractive"),
    )
}

/// The distribution's code name, such as `bookworm`.
fn release() -> String {
    std::fs::read_to_string("/etc/os-release")
        .unwrap_or_default()
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("stable")
        .trim_matches('"')
        .to_owned()
}
