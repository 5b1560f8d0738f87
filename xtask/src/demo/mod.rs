//! `cargo xtask demo`: the whole system, driven by the real aws CLI, each claim proven
//! by evidence.
//!
//! ```text
//!  ocs up ─▶ groups, B, A ─▶ metadata ─▶ refused ─▶ authorize ─▶ passes ─▶ revoke
//!         ─▶ SIGKILL of control, node, responder, storaged ─▶ adopted
//!         ─▶ terminate ─▶ nothing left ─▶ ctrl-C ─▶ nothing left at all
//! ```
//! What guests did is read from GetConsoleOutput alone; what is left behind is looked
//! up in the kernel and on disk.

mod aws;
mod bpf;
mod console;
mod debian;
mod guest;
mod installation;
mod lab;
mod leftovers;
mod sabotage;
mod script;
mod story;
mod table;

pub use sabotage::Sabotage;
pub use table::Table;

use crate::build::{self, Profile};
use crate::setup::{self, Need};
use crate::sh;
use anyhow::{Result, bail};
use clap::Args;
use script::Extent;

use std::path::{Path, PathBuf};

/// How to run the demo.
#[derive(Args)]
pub struct Options {
    /// Use the binaries in this folder, as they are
    #[arg(long, hide = true)]
    built: Option<PathBuf>,
    /// Write the table as JSON too
    #[arg(long)]
    json: Option<PathBuf>,
    /// Boot stock Linux in the emulated host instead
    #[arg(long, conflicts_with = "sabotage")]
    lab: bool,
    /// Boot Debian with cloud-init in the emulated host instead, as its cloud images are: minutes
    #[arg(long, conflicts_with_all = ["sabotage", "lab"])]
    debian: bool,
    /// Break one part; its row must turn false
    #[arg(long)]
    sabotage: Option<Sabotage>,
}

/// Runs it; an error if any claim is false.
pub fn run(options: &Options) -> Result<()> {
    setup::ensure(&[Need::NetworkTools, Need::Clients])?;
    let binaries = match &options.built {
        Some(folder) => folder.clone(),
        None => build::all(Profile::Debug)?,
    };
    let table = if options.lab {
        prove_in_lab(&binaries)?
    } else if options.debian {
        prove_debian(&binaries)?
    } else if Path::new("/dev/kvm").exists() {
        script::run(&binaries, options.sabotage, Extent::Whole)
    } else {
        return lab::whole_demo(&binaries, options);
    };
    finish(&table, options.json.as_deref())
}

/// The claims, with the binaries in a folder.
pub fn prove(binaries: &Path) -> Table {
    script::run(binaries, None, Extent::Whole)
}

/// What leads up to the claim that this sabotage must turn false.
pub fn disprove(binaries: &Path, sabotage: Sabotage) -> Table {
    script::run(binaries, Some(sabotage), Extent::Matching)
}

/// The claims about stock Linux, in the emulated host.
pub fn prove_in_lab(binaries: &Path) -> Result<Table> {
    lab::stock(binaries)
}

/// The claims about Debian and its cloud-init, in the emulated host.
pub fn prove_debian(binaries: &Path) -> Result<Table> {
    debian::prove(binaries)
}

fn finish(table: &Table, json: Option<&Path>) -> Result<()> {
    table.print();
    if let Some(path) = json {
        table.write(path)?;
        sh::say(&format!("the table is in {}", path.display()));
    }
    if !table.all_hold() {
        bail!("not every claim holds");
    }
    Ok(())
}
