//! What must hold before any test is worth running.

use crate::{licences, places, sh};
use anyhow::{Context, Result};

/// One named check.
pub type Gate = (&'static str, fn() -> Result<()>);

/// All of them, cheapest first.
pub const GATES: &[Gate] = &[
    ("formatting", formatting),
    ("licences, sources, duplicates", licences::check),
    ("lints", lints),
    ("documentation", documentation),
];

/// Workspaces of their own, compiled for other targets.
const OTHER_WORKSPACES: &[&str] = &["guest", "dataplane-ebpf", "fuzz"];

/// Runs all gates; the first that fails ends it.
pub fn all() -> Result<()> {
    for (name, gate) in GATES {
        sh::step(name, gate)?;
    }
    Ok(())
}

fn formatting() -> Result<()> {
    sh::run(sh::cargo().args(["fmt", "--all", "--check"]))?;
    for name in OTHER_WORKSPACES {
        let folder = places::root().join(name);
        sh::run(
            sh::cargo()
                .current_dir(folder)
                .args(["fmt", "--all", "--check"]),
        )?;
    }
    Ok(())
}

fn lints() -> Result<()> {
    clippy(&["--workspace", "--all-targets"], ".")?;
    // The image has no test harness, so its own package is linted without tests.
    clippy(&["--package", "ocs-probe"], "guest")?;
    let hosted = [
        "--package",
        "ocs-probe-logic",
        "--package",
        "ocs-probe-harness",
    ];
    clippy(&[&hosted[..], &["--all-targets"]].concat(), "guest")
}

fn clippy(what: &[&str], folder: &str) -> Result<()> {
    sh::run(
        sh::cargo()
            .current_dir(places::root().join(folder))
            .args(["clippy", "--locked"])
            .args(what)
            .args(["--", "--deny", "warnings"]),
    )
}

fn documentation() -> Result<()> {
    sh::run(
        sh::cargo()
            .args([
                "doc",
                "--locked",
                "--workspace",
                "--no-deps",
                "--document-private-items",
                "--quiet",
            ])
            .env(
                "RUSTDOCFLAGS",
                "--deny warnings --allow rustdoc::private_intra_doc_links",
            ),
    )
    .context("rustdoc warned")
}
