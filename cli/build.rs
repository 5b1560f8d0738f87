//! Embeds the probe guest, if it has been built (`cargo xtask build`).

use std::env;
use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let probe = root.join("../target/artifacts/ocs-probe.elf");
    println!("cargo:rerun-if-changed={}", probe.display());
    println!("cargo:rustc-check-cfg=cfg(has_probe)");
    if probe.exists() {
        println!("cargo:rustc-env=OCS_PROBE_ELF={}", probe.display());
        println!("cargo:rustc-cfg=has_probe");
    }
}
