//! `ocs status`: which parts of an installation run, and how many instances.

use crate::part::{Part, Running};
use crate::state::State;
use anyhow::{Context, Result};
use clap::Args;
use std::fs;
use std::io;
use std::path::PathBuf;

/// Arguments of `ocs status`.
#[derive(Args)]
pub struct Arguments {
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    state: PathBuf,
}

/// Runs `ocs status`; fails where a part is down.
pub fn run(arguments: &Arguments) -> Result<()> {
    let state = State::at(&arguments.state)?;
    let mut down = Vec::new();
    let joined = state.path("host.json").exists();
    for part in Part::ALL {
        if joined && part == Part::Control {
            continue;
        }
        match Running::find(&state, part) {
            Some(running) => println!("{:<10} runs, pid {}", part.name(), running.pid),
            None => {
                println!("{:<10} is down", part.name());
                down.push(part.name());
            }
        }
    }
    println!("{:<10} {}", "instances", instances(&state)?);
    anyhow::ensure!(down.is_empty(), "down: {}", down.join(", "));
    Ok(())
}

/// Instances of which this host holds a run directory.
pub fn instances(state: &State) -> Result<usize> {
    let folder = state.path("run/instances");
    match fs::read_dir(&folder) {
        Ok(entries) => Ok(entries.count()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(error).with_context(|| folder.display().to_string()),
    }
}
