//! `ocs image import`: makes files a public image of this installation.

use crate::images::{self, Image, RootType};
use crate::state::State;
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use std::path::PathBuf;

const GIB: u64 = 1 << 30;

/// What can be done with images.
#[derive(Subcommand)]
pub enum Command {
    /// Copies a disk with its own kernel, or a kernel and a root file system, into the
    /// installation; a running `ocs up` offers the image within seconds.
    Import(Import),
}

/// Arguments of `ocs image import`.
#[derive(Args)]
pub struct Import {
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    state: PathBuf,
    /// The image's name.
    #[arg(long)]
    name: String,
    /// ELF with a PVH note, or a Linux bzImage. Without one an instance boots the kernel
    /// that its root disk holds at each start.
    #[arg(long, required_unless_present = "root_image")]
    kernel: Option<PathBuf>,
    /// The kernel's initrd.
    #[arg(long, requires = "kernel")]
    initrd: Option<PathBuf>,
    /// The kernel's command line; behind the disk's own, if the kernel is.
    #[arg(long, default_value = "")]
    cmdline: String,
    /// A raw disk image: the root volume's first content. To have a kernel of its own it is
    /// ext4 or has a GPT with an ext4 partition, as distributions' cloud images do.
    #[arg(long, alias = "disk")]
    root_image: Option<PathBuf>,
    /// The root volume's size in GiB (default: as large as the disk image needs).
    #[arg(long, alias = "root-size-gib")]
    root_size: Option<u64>,
    /// Where the root volume lives.
    #[arg(long, value_enum, default_value = "ebs")]
    root_type: RootType,
}

/// Runs `ocs image import`.
pub fn import(arguments: &Import) -> Result<()> {
    images::check_name(&arguments.name)?;
    ensure!(
        arguments.cmdline.len() <= 2047,
        "--cmdline: is longer than 2047 bytes"
    );
    let root_size_gib = root_size(arguments)?;
    let state = State::at(&arguments.state)?;
    ensure!(
        state.path("images").is_dir(),
        "--state {}: no installation is there; `ocs up --state …` makes one",
        state.root().display()
    );
    let add = |file: &Option<PathBuf>| match file {
        Some(file) => images::add_file(&state, file),
        None => Ok(String::new()),
    };
    let image = Image {
        name: arguments.name.clone(),
        kernel: add(&arguments.kernel)?,
        initrd: add(&arguments.initrd)?,
        cmdline: arguments.cmdline.clone(),
        root_image: add(&arguments.root_image)?,
        root_size_gib,
        root_type: arguments.root_type,
        other: serde_json::Map::new(),
    };
    images::put(&state, image)?;
    println!("{} is imported", arguments.name);
    Ok(())
}

fn root_size(arguments: &Import) -> Result<u64> {
    let needed = match &arguments.root_image {
        None => 1,
        Some(file) => {
            let metadata = file
                .metadata()
                .with_context(|| file.display().to_string())?;
            metadata.len().div_ceil(GIB).max(1)
        }
    };
    let size = arguments.root_size.unwrap_or(needed);
    ensure!(
        (needed..=16_384).contains(&size),
        "--root-size {size}: must be {needed} to 16384 GiB"
    );
    Ok(size)
}
