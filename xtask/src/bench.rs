//! `cargo xtask bench AREA`: runs `ocs-benches` on a release build.

use crate::build::{self, Profile};
use crate::setup::{self, Need};
use crate::{places, sh};
use anyhow::Result;
use std::process::Command;

/// Builds, then measures one area; the table goes to the terminal, the figures to
/// `target/bench/AREA.json`.
pub fn run(area: &str, quick: bool, only: &[String]) -> Result<()> {
    setup::ensure(match area {
        "api" => &[Need::BenchPeer],
        "net" => &[Need::NetworkTools],
        "qos" => &[],
        "block" => &[Need::Lab, Need::BlockPeers],
        _ => &[Need::Lab],
    })?;
    let binaries = build::all(Profile::Release)?;
    sh::step("build the benches", || {
        sh::run(sh::cargo().args(["build", "--locked", "--release", "--package", "ocs-benches"]))
    })?;
    let mut bench = Command::new(binaries.join("ocs-benches"));
    bench.arg(area).current_dir(places::root());
    if quick {
        bench.arg("--quick");
    }
    for part in only {
        bench.arg("--only").arg(part);
    }
    sh::run(&mut bench)
}
