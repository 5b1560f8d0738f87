//! `ocs image import`: makes files a public image of this installation; `ocs image
//! export`: the root disk of one as a file.

use crate::images::{self, Image, RootType};
use crate::state::State;
use anyhow::{Context, Result, ensure};
use clap::{Args, Subcommand};
use ocs_disk_image::{Format, Writer};
use std::fs::File;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

const GIB: u64 = 1 << 30;

/// What can be done with images.
#[derive(Subcommand)]
pub enum Command {
    /// Copies a disk with its own kernel, or a kernel and a root file system, into the
    /// installation; a running `ocs up` offers the image within seconds.
    Import(Import),
    /// Writes an image's root disk to a file.
    Export(Export),
}

/// Arguments of `ocs image export`.
#[derive(Args)]
pub struct Export {
    /// The installation's state folder.
    #[arg(long, default_value = super::up::DEFAULT_STATE)]
    state: PathBuf,
    /// The image's name.
    #[arg(long)]
    name: String,
    /// What the file becomes: raw or qcow2.
    #[arg(long, default_value = "qcow2")]
    format: Format,
    /// The file.
    file: PathBuf,
}

/// Runs `ocs image export`.
pub fn export(arguments: &Export) -> Result<()> {
    let state = State::at(&arguments.state)?;
    let image = images::find(&state, &arguments.name)?;
    ensure!(
        !image.root_image.is_empty(),
        "{} has no root disk",
        arguments.name
    );
    let disk = state.path("images").join(&image.root_image);
    let reader = images::open(&disk, Some(Format::Raw))?;
    whole(&arguments.file, |file| {
        let mut writer = Writer::new(file, arguments.format, reader.size_bytes())?;
        reader.chunks(|at, chunk| writer.put(at, chunk))?;
        writer.finish()?;
        Ok(file.sync_all()?)
    })
}

/// Makes a new file by `write`, whole or not at all.
pub fn whole(path: &Path, write: impl FnOnce(&File) -> Result<()>) -> Result<()> {
    ensure!(!path.exists(), "{} exists", path.display());
    let mut part = path.as_os_str().to_owned();
    part.push(".part");
    let part = PathBuf::from(part);
    let mut options = File::options();
    options.read(true).write(true).create_new(true).mode(0o600);
    let file = options
        .open(&part)
        .with_context(|| part.display().to_string())?;
    let outcome = write(&file).and_then(|()| Ok(std::fs::rename(&part, path)?));
    if outcome.is_err() {
        // The write's error is the one to tell.
        let _ = std::fs::remove_file(&part);
    }
    outcome.with_context(|| format!("writing {}", path.display()))
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
    /// A disk image, raw or qcow2: the root volume's first content. To have a kernel of its own it is
    /// ext4 or has a GPT with an ext4 partition, as distributions' cloud images do.
    #[arg(long, alias = "disk")]
    root_image: Option<PathBuf>,
    /// What the disk image is: raw or qcow2 (default: as its first bytes say; a guest that
    /// wrote a raw disk chose those).
    #[arg(long)]
    root_format: Option<Format>,
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
    let root = arguments
        .root_image
        .as_deref()
        .map(|file| root(file, arguments.root_format))
        .transpose()?;
    let root_size_gib = root_size(arguments, root.as_ref().map_or(0, |(_, _, size)| *size))?;
    let state = State::at(&arguments.state)?;
    ensure!(
        state.path("images").is_dir(),
        "--state {}: no installation is there; `ocs up --state …` makes one",
        state.root().display()
    );
    let add = |file: &Option<PathBuf>| match file {
        Some(file) => images::add_file(&state, file, Format::Raw),
        None => Ok(String::new()),
    };
    let image = Image {
        name: arguments.name.clone(),
        kernel: add(&arguments.kernel)?,
        initrd: add(&arguments.initrd)?,
        cmdline: arguments.cmdline.clone(),
        root_image: root
            .map(|(file, format, _)| images::add_file(&state, file, format))
            .transpose()?
            .unwrap_or_default(),
        root_size_gib,
        root_type: arguments.root_type,
        other: serde_json::Map::new(),
    };
    images::put(&state, image)?;
    println!("{} is imported", arguments.name);
    Ok(())
}

/// A disk image, what it is, and the size of the disk in it.
fn root(file: &Path, format: Option<Format>) -> Result<(&Path, Format, u64)> {
    let reader = images::open(file, format)?;
    Ok((file, reader.format(), reader.size_bytes()))
}

fn root_size(arguments: &Import, size_bytes: u64) -> Result<u64> {
    let needed = size_bytes.div_ceil(GIB).max(1);
    let size = arguments.root_size.unwrap_or(needed);
    ensure!(
        (needed..=16_384).contains(&size),
        "--root-size {size}: must be {needed} to 16384 GiB"
    );
    Ok(size)
}
