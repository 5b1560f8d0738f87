//! What was claimed, whether it held, and the evidence.

use anyhow::{Context, Result};
use serde::Serialize;
use std::path::Path;
use std::time::Instant;

/// One claim after its check.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The claim.
    pub check: String,
    /// It held.
    pub ok: bool,
    /// How long the check took.
    pub ms: u128,
    /// Raw: an API answer, console lines, a listing; or what was seen instead.
    pub evidence: String,
}

/// All claims so far.
#[derive(Default)]
pub struct Table {
    rows: Vec<Row>,
}

impl Table {
    /// Checks one claim: the evidence, or why it does not hold. Yields whether it held.
    pub fn check(&mut self, check: &str, work: impl FnOnce() -> Result<String>) -> bool {
        eprint!("    {check} … ");
        let start = Instant::now();
        let result = work();
        let ok = result.is_ok();
        let evidence = result.unwrap_or_else(|error| format!("{error:#}"));
        let ms = start.elapsed().as_millis();
        eprintln!("{} ({ms} ms)", if ok { "yes" } else { "NO" });
        self.rows.push(Row {
            check: check.to_owned(),
            ok,
            ms,
            evidence,
        });
        ok
    }

    /// Did every claim hold, and was there any?
    pub fn all_hold(&self) -> bool {
        !self.rows.is_empty() && self.rows.iter().all(|row| row.ok)
    }

    /// Each claim and whether it held.
    pub fn verdicts(&self) -> impl Iterator<Item = (&str, bool)> {
        self.rows.iter().map(|row| (row.check.as_str(), row.ok))
    }

    /// Whether the claim that begins so held, if it was checked.
    pub fn verdict(&self, start: &str) -> Option<bool> {
        self.verdicts()
            .find_map(|(check, ok)| check.starts_with(start).then_some(ok))
    }

    /// The table with its evidence.
    pub fn print(&self) {
        println!();
        for (number, row) in self.rows.iter().enumerate() {
            let verdict = if row.ok { "proven" } else { "FALSE " };
            println!(
                "{:>2} {verdict} {:>6} ms  {}",
                number + 1,
                row.ms,
                row.check
            );
            for line in row.evidence.lines() {
                println!("                     │ {line}");
            }
        }
        let held = self.rows.iter().filter(|row| row.ok).count();
        println!("\n{held} of {} claims proven", self.rows.len());
    }

    /// The same as JSON.
    pub fn write(&self, path: &Path) -> Result<()> {
        let json = serde_json::to_string_pretty(&self.rows)?;
        std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write {}", path.display()))
    }
}
