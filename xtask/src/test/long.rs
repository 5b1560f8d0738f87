//! `target/long.json`: what a long run did, for notes to quote.

use super::{Outcome, name};
use crate::{places, sh};
use anyhow::{Context, Result};
use serde_json::json;
use std::process::Command;

/// Writes the record of this run.
pub fn write(outcomes: &[Outcome]) -> Result<()> {
    let commit = sh::output(
        Command::new("git")
            .args(["rev-parse", "HEAD"])
            .current_dir(places::root()),
    )?;
    let layers: Vec<_> = outcomes
        .iter()
        .map(|outcome| {
            json!({
                "layer": name(outcome.layer),
                "passed": outcome.counts.passed,
                "failed": outcome.counts.failed,
                "skipped": outcome.counts.skipped,
                "seconds": outcome.took.as_secs(),
            })
        })
        .collect();
    let record = json!({ "commit": commit.trim(), "results": layers });
    let path = places::target().join("long.json");
    std::fs::write(&path, format!("{record:#}\n"))
        .with_context(|| format!("cannot write {}", path.display()))
}
