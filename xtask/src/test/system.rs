//! The system layer: `tests/system`, Python's unittest with boto3.

use super::Counts;
use crate::build::Profile;
use crate::{places, setup};
use anyhow::{Context, Result};
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

/// Runs every module in `tests/system`.
pub fn run(long: bool) -> Result<Counts> {
    let mut command = Command::new(setup::python());
    command
        .args(["-u", "-m", "runner"])
        .current_dir(places::root().join("tests/system"))
        .env("OCS_BIN", Profile::Debug.folder())
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .env_remove("AWS_CA_BUNDLE");
    if long {
        command.env("OCS_LONG", "1");
    }
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .context("cannot start the system tests")?;
    let stdout = child
        .stdout
        .take()
        .context("the system tests have no output")?;
    let mut counts = Counts::default();
    for line in BufReader::new(stdout).lines() {
        let line = line.context("cannot read the system tests' output")?;
        println!("{line}");
        counts.read_outcome(&line);
    }
    let status = child.wait().context("cannot wait for the system tests")?;
    if !status.success() && counts.failed.is_empty() {
        counts.failed.push(format!("system tests: {status}"));
    }
    Ok(counts)
}

impl Counts {
    /// `test NAME ... ok|FAILED|skipped: WHY`, as `tests/system/runner.py` prints it.
    fn read_outcome(&mut self, line: &str) {
        let Some((name, outcome)) = line
            .strip_prefix("test ")
            .and_then(|rest| rest.split_once(" ... "))
        else {
            return;
        };
        if outcome.starts_with("ok") {
            self.passed += 1;
        } else if let Some(why) = outcome.strip_prefix("skipped: ") {
            self.skipped.push(format!("{name}: {why}"));
        } else {
            self.failed.push(name.to_owned());
        }
    }
}
