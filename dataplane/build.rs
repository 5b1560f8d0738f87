//! Embeds the BPF object if `cargo xtask build` has made it; else embeds nothing, and
//! the loader says so when it is asked to load.

use std::path::PathBuf;

fn main() {
    let root = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    let object = root.join("../target/artifacts/ocs-dataplane.bpf.o");
    println!("cargo::rerun-if-changed={}", object.display());
    println!("cargo::rustc-check-cfg=cfg(has_bpf_object)");
    if object.exists() {
        println!("cargo::rustc-cfg=has_bpf_object");
        println!("cargo::rustc-env=OCS_BPF_OBJECT={}", object.display());
    }
}
