//! The demo as tests: each of its claims is one, and each sabotage must be noticed.

use super::Counts;
use crate::build::Profile;
use crate::demo::{self, Sabotage};
use anyhow::{Result, bail};
use clap::ValueEnum;

/// The demo's claims; then, for each sabotage, that its claim turns false.
pub fn run() -> Result<Counts> {
    let binaries = Profile::Debug.folder();
    let mut counts = claims("demo", &demo::prove(&binaries));
    for sabotage in Sabotage::value_variants() {
        let table = demo::disprove(&binaries, *sabotage);
        let claim = sabotage.breaks();
        let noticed = match table.verdict(claim) {
            Some(false) => Ok(()),
            Some(true) => Err(anyhow::anyhow!("`{claim}` still holds")),
            None => Err(anyhow::anyhow!("`{claim}` was not checked")),
        };
        if noticed.is_err() {
            table.print();
        }
        counts.record(&format!("sabotage of {sabotage:?} is noticed"), noticed);
    }
    Ok(counts)
}

/// The claims about stock Linux in the emulated host; with `long`, about Debian and its
/// cloud-init, too.
pub fn lab(long: bool) -> Result<Counts> {
    let binaries = Profile::Debug.folder();
    let mut counts = claims("lab", &demo::prove_in_lab(&binaries)?);
    if long {
        let debian = claims("debian", &demo::prove_debian(&binaries)?);
        counts.passed += debian.passed;
        counts.failed.extend(debian.failed);
    }
    Ok(counts)
}

fn claims(prefix: &str, table: &demo::Table) -> Counts {
    table.print();
    let mut counts = Counts::default();
    for (claim, held) in table.verdicts() {
        let result = if held { Ok(()) } else { not_held() };
        counts.record(&format!("{prefix}: {claim}"), result);
    }
    counts
}

fn not_held() -> Result<()> {
    bail!("does not hold; its evidence is in the table")
}
