//! `ocs volume …`: what an operator asks of this host's storaged.

use crate::image::whole;
use crate::state::State;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use ocs_disk_image::Format;
use ocs_storaged_api::{Client, Request, VolumeName};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;

/// A disk of 16 TiB passes in less.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What can be done with volumes.
#[derive(Subcommand)]
pub enum Command {
    /// Replaces what a detached volume holds by a disk image, raw or qcow2.
    Import(Import),
    /// Writes a detached volume, or a snapshot, to a new file.
    Export(Export),
}

/// Arguments of `ocs volume import`.
#[derive(Args)]
pub struct Import {
    #[command(flatten)]
    place: Place,
    /// The volume (vol-…), at least as large as the disk.
    id: String,
    /// The disk image.
    file: PathBuf,
    /// What it is: raw or qcow2 (default: as its first bytes say).
    #[arg(long)]
    format: Option<Format>,
}

/// Arguments of `ocs volume export`.
#[derive(Args)]
pub struct Export {
    #[command(flatten)]
    place: Place,
    /// The volume (vol-…) or snapshot (snap-…).
    id: String,
    /// The file to make.
    file: PathBuf,
    /// What it becomes: raw or qcow2.
    #[arg(long, default_value = "qcow2")]
    format: Format,
    /// The disk is encrypted, and the file shall not be.
    #[arg(long)]
    decrypt: bool,
}

/// Which installation.
#[derive(Args)]
pub struct Place {
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    state: PathBuf,
}

impl Place {
    fn storaged(&self) -> Result<Client> {
        let socket = State::at(&self.state)?.path("run/storaged/control.sock");
        Client::connect(&socket, TIMEOUT)
            .with_context(|| format!("storaged at {}", socket.display()))
    }
}

/// Runs `ocs volume …`.
pub fn run(command: &Command) -> Result<()> {
    match command {
        Command::Import(arguments) => import(arguments),
        Command::Export(arguments) => export(arguments),
    }
}

fn import(arguments: &Import) -> Result<()> {
    let shown = || arguments.file.display().to_string();
    let file = File::open(&arguments.file).with_context(shown)?;
    let format = arguments.format.map_or_else(|| Format::guess(&file), Ok);
    let request = Request::Import {
        volume: VolumeName(arguments.id.clone()),
        format: format.with_context(shown)?,
    };
    let mut storaged = arguments.place.storaged()?;
    storaged.call_on(&request, file.as_fd())?;
    println!("{} holds what {} does", arguments.id, shown());
    Ok(())
}

fn export(arguments: &Export) -> Result<()> {
    let request = Request::Export {
        of: VolumeName(arguments.id.clone()),
        format: arguments.format,
        decrypt: arguments.decrypt,
    };
    let mut storaged = arguments.place.storaged()?;
    whole(&arguments.file, |file| {
        storaged.call_on(&request, file.as_fd())?;
        Ok(())
    })
}
