//! `ocs volume …`: what an operator asks of this host's storaged.

use crate::image::whole;
use crate::state::State;
use anyhow::{Context, Result, bail, ensure};
use clap::{Args, Subcommand};
use ocs_disk_image::Format;
use ocs_storaged_api::erasure::Search;
use ocs_storaged_api::{
    Client, Erasure, Reply, Request, Scrub, SnapshotStatus, VolumeName, VolumeStatus,
};
use std::fs::File;
use std::os::fd::AsFd;
use std::path::PathBuf;
use std::time::Duration;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// A disk of 16 TiB passes in less.
const TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What can be done with volumes.
#[derive(Subcommand)]
pub enum Command {
    /// Replaces what a detached volume holds by a disk image, raw or qcow2.
    Import(Import),
    /// Writes a detached volume, or a snapshot, to a new file.
    Export(Export),
    /// Shows that a deleted instance store's key is gone and its bytes were ciphertext;
    /// fails where that cannot be shown.
    AttestErasure(One),
    /// Shows this host's volumes and snapshots, and what scrubbing found of them; fails
    /// where something is damaged.
    Status(Place),
    /// Shows counters of volumes and of scrubbing, in Prometheus' text format.
    Metrics(Place),
}

/// Arguments of `ocs volume attest-erasure`.
#[derive(Args)]
pub struct One {
    #[command(flatten)]
    place: Place,
    /// The instance store (i-…-ephemeral0).
    id: String,
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
    /// What it is: raw or qcow2 (default: as its first bytes say; a guest that wrote a raw
    /// disk chose those).
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
        Command::AttestErasure(arguments) => attest_erasure(arguments),
        Command::Status(place) => status(place),
        Command::Metrics(place) => metrics(place),
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

/// What the attestation does not speak of.
const NOT_SHOWN: &str = "\
not shown  that a VMM copied the key out of its in-flight region, which only its own
           compromise could make it do; pages that the kernel freed and has not reused;
           swap, which is to be encrypted or off. Freed disk blocks hold ciphertext.";

fn attest_erasure(arguments: &One) -> Result<()> {
    let request = Request::AttestErasure {
        volume: VolumeName(arguments.id.clone()),
    };
    let reply = arguments.place.storaged()?.call(&request)?;
    let Reply::Erasure { erasure } = reply else {
        bail!("storaged answered something else: {reply:?}");
    };
    let mut search = Search::default();
    search
        .process(erasure.pid, &erasure.traces)
        .with_context(|| format!("the memory of storaged, process {}", erasure.pid))?;
    search.regions(&erasure.traces).context("/proc")?;
    report(&arguments.id, &erasure, &search)
}

fn report(id: &str, erasure: &Erasure, search: &Search) -> Result<()> {
    let when = match erasure.erased_at_s {
        None => "its key is lost, and it is not deleted".to_owned(),
        Some(at_s) => {
            let at = OffsetDateTime::from_unix_timestamp(at_s.cast_signed())?;
            format!("deleted {}", at.format(&Rfc3339)?)
        }
    };
    println!("{id}: {when}");
    println!(
        "key        {} in {} bytes of storaged's memory (process {}) and of {} in-flight regions",
        if search.found.is_empty() {
            "not found"
        } else {
            "FOUND"
        },
        search.searched_bytes,
        erasure.pid,
        search.regions,
    );
    for place in &search.found {
        println!("           half of it is at {place}");
    }
    println!(
        "bytes      {} of {} blocks were looked at; {} of them are not ciphertext",
        erasure.blocks_sampled, erasure.blocks, erasure.blocks_plain
    );
    for file in &erasure.files {
        println!("           {file} is still there");
    }
    println!("{NOT_SHOWN}");
    ensure!(
        !erasure.traces.is_empty(),
        "{id}: nothing tells its key: it was made by an older storaged"
    );
    ensure!(search.found.is_empty(), "{id}: its key is still there");
    ensure!(
        erasure.blocks_plain == 0,
        "{id}: some of its bytes were not ciphertext"
    );
    ensure!(
        erasure.erased_at_s.is_none() || erasure.files.is_empty(),
        "{id}: files that held its bytes are still there"
    );
    println!("{id}: erased");
    Ok(())
}

/// All that storaged has: volumes, snapshots, what scrubbing found.
fn inventory(place: &Place) -> Result<(Vec<VolumeStatus>, Vec<SnapshotStatus>, Scrub)> {
    let mut storaged = place.storaged()?;
    let Reply::Volumes { volumes } = storaged.call(&Request::List)? else {
        bail!("storaged answered something else than its volumes");
    };
    let Reply::Snapshots { snapshots } = storaged.call(&Request::ListSnapshots)? else {
        bail!("storaged answered something else than its snapshots");
    };
    let Reply::Scrub { scrub } = storaged.call(&Request::Scrub)? else {
        bail!("storaged answered something else than its scrubs");
    };
    Ok((volumes, snapshots, scrub))
}

fn status(place: &Place) -> Result<()> {
    let (volumes, snapshots, scrub) = inventory(place)?;
    for v in &volumes {
        let state = match (v.key_lost, v.connected, &v.attached) {
            (true, _, _) => "key lost",
            (_, true, _) => "served",
            (_, _, Some(_)) => "attached",
            _ => "available",
        };
        let damage = damage(v.damaged_bytes);
        println!(
            "{:<32} {:>16} bytes  {state}{damage}",
            v.volume.0, v.size_bytes
        );
    }
    for s in &snapshots {
        let damage = damage(s.damaged_bytes);
        println!(
            "{:<32} {:>16} bytes  of {}{damage}",
            s.snapshot.0, s.size_bytes, s.volume.0
        );
    }
    println!(
        "scrubbed {} times; {} bytes checked, {} sealed",
        scrub.passes, scrub.checked_bytes, scrub.sealed_bytes
    );
    for d in &scrub.damage {
        let of: Vec<&str> = d.of.iter().map(|name| name.0.as_str()).collect();
        println!("damaged: {} at {}, in {}", d.layer, d.offset, of.join(", "));
    }
    for name in &scrub.damaged_maps {
        println!("damaged: the map of {}", name.0);
    }
    ensure!(
        scrub.damage.is_empty() && scrub.damaged_maps.is_empty(),
        "{} grains and {} maps are not what they were",
        scrub.damage.len(),
        scrub.damaged_maps.len()
    );
    Ok(())
}

fn damage(bytes: u64) -> String {
    match bytes {
        0 => String::new(),
        bytes => format!("  DAMAGED: {bytes} bytes"),
    }
}

fn metrics(place: &Place) -> Result<()> {
    let (volumes, _, scrub) = inventory(place)?;
    type Count = (&'static str, fn(&VolumeStatus) -> u64);
    let counts: [Count; 6] = [
        ("reads_total", |v| v.reads),
        ("writes_total", |v| v.writes),
        ("flushes_total", |v| v.flushes),
        ("errors_total", |v| v.errors),
        ("throttled_total", |v| v.throttled),
        ("damaged_bytes", |v| v.damaged_bytes),
    ];
    for (name, of) in counts {
        let kind = if name.ends_with("_total") {
            "counter"
        } else {
            "gauge"
        };
        println!("# TYPE ocs_volume_{name} {kind}");
        for v in &volumes {
            println!("ocs_volume_{name}{{volume=\"{}\"}} {}", v.volume.0, of(v));
        }
    }
    for (name, kind, value) in [
        ("passes_total", "counter", scrub.passes),
        ("checked_bytes_total", "counter", scrub.checked_bytes),
        ("sealed_bytes_total", "counter", scrub.sealed_bytes),
        ("damaged_sums_total", "counter", scrub.damaged_sums),
        ("unreadable_total", "counter", scrub.unreadable),
        ("damaged_grains", "gauge", scrub.damage.len() as u64),
        ("damaged_maps", "gauge", scrub.damaged_maps.len() as u64),
    ] {
        println!("# TYPE ocs_scrub_{name} {kind}\nocs_scrub_{name} {value}");
    }
    Ok(())
}
