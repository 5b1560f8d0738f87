//! What the disk of a restored machine costs more: its requests go through the bounce region,
//! those of a machine that started straight from its memory to storaged.
//!
//! ```text
//!  probe: fill, warm up ── snapshot of machine and volume ──▶ goes on: direct
//!                                └─▶ clone on a volume of the snapshot: bounced
//! ```
//! Both read the same frozen layer; rounds repeat from the start.

use crate::process::{Guarded, program};
use crate::report::{Better, Row};
use crate::vmm;
use anyhow::{Context, Result, bail, ensure};
use ocs_storaged_api::{Client, Reply, Request, VolumeKind, VolumeName};
use ocs_vmm_spec::control::Reply as VmmReply;
use serde_json::{Value, json};
use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

const VOLUME_BYTES: u64 = 64 << 20;
const TIME_OUT: Duration = Duration::from_secs(120);
/// Block size and requests in flight.
const LOADS: [(u64, u64); 3] = [(4096, 1), (4096, 32), (65536, 32)];

/// One round's figures, by load: requests a second and the median of a request's time in µs.
type Figures = [(f64, f64); LOADS.len()];

/// Measures the area.
pub fn measure(bin_dir: &Path, probe: &Path, disk_dir: &Path, quick: bool) -> Result<Vec<Row>> {
    let programs = [
        program(bin_dir, "ocs-vmm")?,
        program(bin_dir, "ocs-storaged")?,
    ];
    let rounds = if quick { 1 } else { 5 };
    let (mut direct, mut bounced) = (Vec::new(), Vec::new());
    for _ in 0..rounds {
        let dir = tempfile::Builder::new()
            .prefix("ocs-bounce-")
            .tempdir_in(disk_dir)?;
        let dir = std::path::absolute(dir.path())?;
        let (one, other) = round(&programs, probe, &dir, if quick { 1 } else { 3 })?;
        direct.push(one);
        bounced.push(other);
    }
    let mut rows = Vec::new();
    for (index, (block, depth)) in LOADS.iter().enumerate() {
        let of = |all: &[Figures], get: fn((f64, f64)) -> f64| -> Vec<f64> {
            all.iter().map(|figures| get(figures[index])).collect()
        };
        let name = format!("{}k_d{depth}", block >> 10);
        for (what, unit, better, get) in [
            (
                "iops",
                "1/s",
                Better::Higher,
                (|f| f.0) as fn((f64, f64)) -> f64,
            ),
            ("p50_us", "us", Better::Lower, |f| f.1),
        ] {
            let row = Row::new(
                format!("bounced_read_{name}_{what}"),
                unit,
                better,
                &of(&bounced, get),
            );
            rows.push(row.against("the same disk without the region", &of(&direct, get)));
        }
    }
    Ok(rows)
}

/// Direct figures, then those of a clone.
fn round(
    programs: &[PathBuf; 2],
    probe: &Path,
    dir: &Path,
    for_s: u64,
) -> Result<(Figures, Figures)> {
    let [program, storaged] = programs;
    for folder in ["state", "images"] {
        std::fs::create_dir_all(dir.join(folder))?;
    }
    let control = dir.join("storaged.sock");
    let mut command = Command::new(storaged);
    command
        .arg("--state")
        .arg(dir.join("state"))
        .arg("--images")
        .arg(dir.join("images"));
    command.arg("--control").arg(&control);
    let mut storaged = Guarded::spawn(&mut command, &dir.join("storaged.log"))?;
    storaged
        .wait_until(TIME_OUT, false, || control.exists())
        .context("ocs-storaged")?;

    let mut orders = vec![
        "disk 0 fill 48MiB".to_owned(),
        "bench disk 0 read 4KiB depth 1 for 2s".to_owned(),
    ];
    for (block, depth) in LOADS {
        orders.push(format!(
            "bench disk 0 read {}KiB depth {depth} for {for_s}s",
            block >> 10
        ));
    }
    let mut spec = spec(dir, "direct");
    spec["boot"] = json!({
        "kernel": {"path": std::path::absolute(probe)?}, "cmdline": format!("orders={}", orders.join(";")),
    });
    spec["control"] = json!({"path": dir.join("control")});
    let mut child = vmm::start(program, dir, &spec)?;
    attach(&control, dir, "direct", None)?;
    wait_for(&mut child, dir, "direct", |console| {
        console.contains("fill")
    })?;
    // In the midst of the warming up.
    std::thread::sleep(Duration::from_millis(500));
    ask(dir, r#"{"cmd":"pause"}"#, &[])?;
    let files = [
        File::create(dir.join("saved.state"))?,
        File::create(dir.join("saved.memory"))?,
    ];
    ask(dir, vmm::SNAPSHOT, &[files[0].as_fd(), files[1].as_fd()])?;
    call(
        &control,
        &Request::PutSnapshot {
            snapshot: name("saved"),
            volume: name("vol-direct"),
            with: Vec::new(),
        },
    )?;
    ask(dir, r#"{"cmd":"resume"}"#, &[])?;
    let direct = figures(&mut child, dir, "direct")?;
    drop(child);

    let mut spec = self::spec(dir, "bounced");
    let at = |name: &str| json!({"path": dir.join(name)});
    spec["restore"] = json!({"state": at("saved.state"), "memory": [at("saved.memory")]});
    let mut child = vmm::start(program, dir, &spec)?;
    attach(&control, dir, "bounced", Some("saved"))?;
    let bounced = figures(&mut child, dir, "bounced")?;
    Ok((direct, bounced))
}

fn spec(dir: &Path, id: &str) -> Value {
    let mut spec = vmm::spec(dir, id, 64);
    let listener = json!({"path": dir.join(format!("{id}.disk"))});
    spec["block"] = json!([{"id": "disk", "listener": listener, "backend_uid": 0}]);
    spec
}

fn name(name: &str) -> VolumeName {
    VolumeName(name.to_owned())
}

/// Serves the machine `id` a volume, a new one or what `snapshot` holds.
fn attach(control: &Path, dir: &Path, id: &str, snapshot: Option<&str>) -> Result<()> {
    let volume = name(&format!("vol-{id}"));
    call(
        control,
        &Request::PutVolume {
            volume: volume.clone(),
            size_bytes: VOLUME_BYTES,
            kind: VolumeKind::Persistent,
            image: None,
            snapshot: snapshot.map(name),
            encrypted: false,
        },
    )?;
    let socket = dir.join(format!("{id}.disk"));
    call(
        control,
        &Request::Attach {
            volume,
            socket,
            read_only: false,
        },
    )
}

fn call(control: &Path, request: &Request) -> Result<()> {
    let reply = Client::connect(control, TIME_OUT)?.call(request)?;
    ensure!(reply == Reply::Ok, "{request:?}: {reply:?}");
    Ok(())
}

/// Asks the machine that is not a clone.
fn ask(dir: &Path, request: &str, files: &[BorrowedFd<'_>]) -> Result<()> {
    match vmm::ask(&dir.join("control"), request, files)? {
        VmmReply::Error { message } => bail!("{request}: {message}"),
        _ => Ok(()),
    }
}

fn wait_for(
    child: &mut Guarded,
    dir: &Path,
    id: &str,
    done: impl Fn(&str) -> bool,
) -> Result<String> {
    let mut console = String::new();
    child.wait_until(TIME_OUT, false, || {
        let ring = File::open(dir.join(format!("{id}.ring")));
        let bytes = ring.and_then(|file| ocs_vmm_spec::console::read(&file));
        console = bytes.map_or_else(
            |_| String::new(),
            |(bytes, _)| String::from_utf8_lossy(&bytes).into_owned(),
        );
        done(&console)
    })?;
    Ok(console)
}

/// What the guest measured, once it has measured all.
fn figures(child: &mut Guarded, dir: &Path, id: &str) -> Result<Figures> {
    let (block, depth) = LOADS[LOADS.len() - 1];
    let last = format!("block={block} depth={depth} ");
    let console = wait_for(child, dir, id, |console| {
        console
            .split_once(&last)
            .is_some_and(|(_, rest)| rest.contains("max_us="))
    })?;
    let mut figures = Figures::default();
    for ((block, depth), figure) in LOADS.iter().zip(&mut figures) {
        // The warming up has the same load as the first of them: the last line counts.
        let line = console
            .lines()
            .rfind(|line| line.contains(&format!("block={block} depth={depth} ")));
        let line = line.with_context(|| format!("no figures of {block} bytes: {console}"))?;
        let number = |key: &str| {
            let word = line.split(' ').find_map(|word| word.strip_prefix(key));
            word.and_then(|word| word.trim_end().parse().ok())
                .with_context(|| format!("no {key} in {line}"))
        };
        *figure = (number("iops=")?, number("p50_us=")?);
    }
    Ok(figures)
}
