//! Layers that `cargo test` runs; its lines are shown and counted.

use super::Counts;
use crate::{fuzz, places, sh};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Cases per property in the fuzz layer.
const FUZZ_CASES: &str = "512";
const LONG_CASES: &str = "20000";

/// Library tests, program tests and documentation examples.
pub fn unit(long: bool) -> Result<Counts> {
    let mut counts = test(&["--lib", "--bins"], long)?;
    counts.add(test(&["--doc"], long)?);
    counts.add(stream(&mut guest("ocs-probe-logic", long))?);
    Ok(counts)
}

/// Integration tests: those in each crate's `tests/`, and the probe's image under QEMU.
pub fn kernel(long: bool) -> Result<Counts> {
    let mut counts = test(&["--test", "*"], long)?;
    counts.add(stream(&mut guest("ocs-probe-harness", long))?);
    Ok(counts)
}

/// Every test with `fuzz` in its name, with more cases per property; then each fuzz target.
pub fn fuzz(long: bool) -> Result<Counts> {
    let cases = if long { LONG_CASES } else { FUZZ_CASES };
    let mut command = command(&["--lib", "--bins", "--tests"], &["fuzz"], long);
    command.env("PROPTEST_CASES", cases);
    let mut counts = stream(&mut command)?;
    fuzz::build()?;
    for target in fuzz::targets()? {
        let runs = if long { fuzz::LONG_RUNS } else { fuzz::RUNS };
        counts.record(
            &format!("fuzz target {target}"),
            fuzz::explore(&target, runs),
        );
    }
    Ok(counts)
}

fn test(targets: &[&str], long: bool) -> Result<Counts> {
    stream(&mut command(targets, &[], long))
}

/// A package of the probe guest's workspace that runs on the host.
fn guest(package: &str, long: bool) -> Command {
    let mut cargo = sh::cargo();
    cargo.current_dir(places::root().join("guest")).args([
        "test",
        "--locked",
        "--no-fail-fast",
        "--package",
        package,
    ]);
    if long {
        cargo.env("OCS_LONG", "1");
    }
    cargo
}

fn command(targets: &[&str], filter: &[&str], long: bool) -> Command {
    let mut cargo = sh::cargo();
    cargo
        .args(["test", "--locked", "--workspace", "--no-fail-fast"])
        .args(targets)
        .arg("--")
        .args(filter);
    if long {
        cargo.env("OCS_LONG", "1");
    }
    cargo
}

/// Shows what cargo prints as it comes, and counts it.
fn stream(command: &mut Command) -> Result<Counts> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start cargo test")?;
    let mut counts = Counts::default();
    let stdout = child.stdout.take().context("cargo test has no output")?;
    for line in BufReader::new(stdout).split(b'\n') {
        let line = line.context("cannot read cargo test's output")?;
        let line = String::from_utf8_lossy(&line);
        println!("{line}");
        counts.read_line(&line);
    }
    let status = child.wait().context("cannot wait for cargo test")?;
    // A crate that does not compile, or a test that dies, prints no line of its own.
    if !status.success() && counts.failed.is_empty() {
        counts.failed.push(format!("cargo test: {status}"));
    }
    Ok(counts)
}

impl Counts {
    /// libtest's line about one test: `test NAME ... OUTCOME`. The outcome may stand
    /// on a later line when a test prints past the capture; the `test result:` line
    /// of its program is the one that counts passes.
    pub fn read_line(&mut self, line: &str) {
        if let Some(totals) = line.strip_prefix("test result: ") {
            self.passed += totals
                .split([' ', '.', ';'])
                .zip(totals.split([' ', '.', ';']).skip(1))
                .find(|(_, word)| *word == "passed")
                .and_then(|(count, _)| count.parse::<u64>().ok())
                .unwrap_or(0);
        } else if let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        {
            match outcome.split_once(',').map_or(outcome, |(word, _)| word) {
                "FAILED" => self.failed.push(name.to_owned()),
                "ignored" => self.skipped.push(format!("{name}: {outcome}")),
                _ => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cargo_tests_lines_are_counted() {
        let mut counts = Counts::default();
        for line in [
            "running 3 tests",
            "test a::passes ... ok",
            "test a::fails ... FAILED",
            "test a::not_here ... ignored, needs VT-x",
            "test result: FAILED. 1 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out",
            "test result: ok. 12 passed; 0 failed; 0 ignored; 0 measured; 2 filtered out",
        ] {
            counts.read_line(line);
        }
        let expected = Counts {
            passed: 13,
            failed: vec!["a::fails".into()],
            skipped: vec!["a::not_here: ignored, needs VT-x".into()],
        };
        assert_eq!(counts, expected);
    }
}
