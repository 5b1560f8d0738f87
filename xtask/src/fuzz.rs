//! `cargo xtask fuzz`: libFuzzer over the targets of `fuzz/`.
//!
//! ```text
//!  fuzz/targets/*.rs ── coverage counters ──▶ target/fuzz/…/release/TARGET
//!  fuzz/corpus/TARGET/ (kept, read) ──────────▶ │
//!  target/fuzz/corpus/TARGET/ (found) ◀─────────┘──▶ target/fuzz/findings/
//! ```
//! The counters need no nightly compiler: they are LLVM's pass, which `-C` options select.

use crate::setup::{self, Need};
use crate::{places, sh};
use anyhow::{Context, Result, bail};
use clap::Args;
use std::path::PathBuf;
use std::process::Command;

/// What cargo-fuzz sets too: counters at each edge, comparisons traced.
const RUSTFLAGS: &str = "--cfg fuzzing -Cpasses=sancov-module \
    -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters \
    -Cllvm-args=-sanitizer-coverage-pc-table \
    -Cllvm-args=-sanitizer-coverage-trace-compares \
    -Cllvm-args=-simplifycfg-branch-fold-threshold=0";

/// With a target named, build scripts and macros get no counters.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// New inputs a target in CI; each is a fraction of a millisecond.
pub const RUNS: u64 = 20_000;
/// What issues ask of a finished parser.
pub const LONG_RUNS: u64 = 10_000_000;
/// A single input that takes longer is a finding.
const INPUT_TIMEOUT_S: u32 = 10;

/// What to fuzz, and for how long.
#[derive(Args, Default)]
pub struct Options {
    /// One target instead of all
    target: Option<String>,
    /// New inputs a target
    #[arg(long, default_value_t = RUNS)]
    runs: u64,
    /// Run this one input and nothing else
    #[arg(long, requires = "target")]
    input: Option<PathBuf>,
    /// Merge what was found, and adds coverage, into the kept corpus
    #[arg(long)]
    keep: bool,
}

/// Carries out the command.
pub fn run(options: &Options) -> Result<()> {
    build()?;
    for target in targets()? {
        if options.target.as_ref().is_some_and(|only| *only != target) {
            continue;
        }
        match &options.input {
            Some(input) => sh::run(program(&target).arg(input))?,
            None => explore(&target, options.runs)?,
        }
        if options.keep {
            merge(&target)?;
        }
    }
    Ok(())
}

/// The names in `fuzz/targets/`.
pub fn targets() -> Result<Vec<String>> {
    let folder = places::root().join("fuzz/targets");
    let mut names: Vec<String> = std::fs::read_dir(&folder)
        .and_then(|entries| entries.map(|entry| Ok(entry?.path())).collect())
        .with_context(|| format!("cannot list {}", folder.display()))
        .map(|paths: Vec<PathBuf>| {
            paths
                .iter()
                .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
                .collect()
        })?;
    names.sort();
    if names.is_empty() {
        bail!("there is no target in {}", folder.display());
    }
    Ok(names)
}

/// All targets, with counters.
pub fn build() -> Result<()> {
    setup::ensure(&[Need::Fuzzer])?;
    sh::step("build the fuzz targets", || {
        sh::run(
            sh::cargo()
                .current_dir(places::root().join("fuzz"))
                .args(["build", "--release", "--locked", "--bins"])
                .args(["--target", TARGET, "--target-dir"])
                .arg(folder())
                .env("RUSTFLAGS", RUSTFLAGS),
        )
    })
}

/// The kept inputs of `target`, then `runs` new ones.
pub fn explore(target: &str, runs: u64) -> Result<()> {
    let found = found(target);
    let findings = folder().join("findings/");
    for path in [&found, &findings] {
        std::fs::create_dir_all(path).with_context(|| format!("cannot make {}", path.display()))?;
    }
    let mut fuzzer = program(target);
    fuzzer
        .arg(format!("-runs={runs}"))
        .arg(format!("-timeout={INPUT_TIMEOUT_S}"))
        .arg(format!("-artifact_prefix={}/{target}-", findings.display()))
        .args(["-verbosity=0", "-print_final_stats=1", "-rss_limit_mb=2048"])
        .arg(found);
    if kept(target).is_dir() {
        fuzzer.arg(kept(target));
    }
    sh::run(&mut fuzzer).with_context(|| format!("fuzz target {target} has a finding"))
}

fn merge(target: &str) -> Result<()> {
    std::fs::create_dir_all(kept(target))?;
    sh::run(
        program(target)
            .args(["-merge=1", "-max_len=4096"])
            .arg(kept(target))
            .arg(found(target)),
    )
}

fn program(target: &str) -> Command {
    Command::new(folder().join(TARGET).join("release").join(target))
}

fn folder() -> PathBuf {
    places::target().join("fuzz")
}

fn found(target: &str) -> PathBuf {
    folder().join("corpus").join(target)
}

fn kept(target: &str) -> PathBuf {
    places::root().join("fuzz/corpus").join(target)
}
