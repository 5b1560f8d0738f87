//! The daemon: table, shards, control socket, until SIGTERM or SIGINT.

use crate::control::{self, Held};
use crate::cow::log::BootId;
use crate::handover::{self, Taking};
use crate::sandbox;
use crate::scrub::Pace;
use crate::shard::Shard;
use crate::volumes::{CREDITS_INTERVAL, Volumes};
use anyhow::{Context, bail};
use rustix::fs::{FlockOperation, flock};
use std::fs::File;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;

/// How the daemon runs.
pub struct Options {
    /// Folder of the table and the volumes.
    pub state: PathBuf,
    /// Folder of first contents.
    pub images: PathBuf,
    /// Where the control socket is bound.
    pub control: PathBuf,
    /// A uid that may use it, besides root and the daemon's own.
    pub allow_uid: Option<u32>,
    /// Take over from a storaged that runs on the folder.
    pub take_over: bool,
    /// Threads that do I/O.
    pub shards: usize,
    /// How frozen layers are scrubbed, if they are.
    pub scrub: Option<Pace>,
}

/// Runs until told to end.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let signals = block_signals();
    let (held, taking) = match lock(&options.state)? {
        Some(lock) => {
            let listener = bind(&options.control)?;
            (Held { lock, listener }, None)
        }
        None => take(options)?,
    };
    let folder = match options.control.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => std::path::Path::new("."),
    };
    let boot = boot_id()?;
    sandbox::enter(&options.state, &options.images, folder)?;
    let shards = Shard::spawn_all(options.shards)?;
    let volumes = Arc::new(Volumes::start(
        &options.state,
        &options.images,
        shards,
        boot,
        taking,
    )?);
    if let Some(pace) = options.scrub {
        volumes.scrub(pace)?;
    }
    let mut allowed = vec![0, rustix::process::getuid().as_raw()];
    allowed.extend(options.allow_uid);
    let (held, served) = (Arc::new(held), Arc::clone(&volumes));
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || {
            let error = control::serve(&held, &served, &allowed);
            tracing::error!(%error, "control socket lost");
            std::process::exit(1);
        })?;
    let spent = Arc::clone(&volumes);
    std::thread::Builder::new()
        .name("credits".into())
        .spawn(move || {
            loop {
                std::thread::sleep(CREDITS_INTERVAL);
                spent.keep_credits();
            }
        })?;
    let signal = wait_for(&signals);
    tracing::info!(signal, "ending");
    volumes.end();
    let _ = std::fs::remove_file(&options.control);
    Ok(())
}

/// Which boot of the host this is; the sandbox hides it.
fn boot_id() -> anyhow::Result<BootId> {
    let path = "/proc/sys/kernel/random/boot_id";
    let text = std::fs::read_to_string(path).with_context(|| path.to_owned())?;
    let hex: String = text.chars().filter(char::is_ascii_hexdigit).collect();
    let id = u128::from_str_radix(&hex, 16).with_context(|| format!("{path}: {text}"))?;
    Ok(BootId(id.to_be_bytes()))
}

/// One storaged a folder; `None` if another one runs.
fn lock(state: &std::path::Path) -> anyhow::Result<Option<File>> {
    let path = state.join("lock");
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(&path)
        .with_context(|| format!("{} cannot be opened", path.display()))?;
    Ok(flock(&file, FlockOperation::NonBlockingLockExclusive)
        .is_ok()
        .then_some(file))
}

/// Takes over from the storaged that runs on this folder, if that is wanted.
fn take(options: &Options) -> anyhow::Result<(Held, Option<Taking>)> {
    if !options.take_over {
        bail!("another storaged runs on {}", options.state.display());
    }
    let mut taking = handover::take(&options.control).with_context(|| {
        let state = options.state.display();
        format!("the storaged that runs on {state} does not hand over")
    })?;
    let (lock, listener) = taking.held()?;
    Ok((Held { lock, listener }, Some(taking)))
}

fn bind(path: &std::path::Path) -> anyhow::Result<UnixListener> {
    let _ = std::fs::remove_file(path);
    let listener =
        UnixListener::bind(path).with_context(|| format!("{} cannot be bound", path.display()))?;
    // Who may speak is checked by uid; the mode only keeps others from connecting.
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

/// Blocks SIGTERM and SIGINT here and in all threads to come.
fn block_signals() -> libc::sigset_t {
    // SAFETY: plain calls on a set of ours.
    unsafe {
        let mut set = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        libc::sigaddset(&mut set, libc::SIGTERM);
        libc::sigaddset(&mut set, libc::SIGINT);
        libc::pthread_sigmask(libc::SIG_BLOCK, &set, std::ptr::null_mut());
        set
    }
}

fn wait_for(set: &libc::sigset_t) -> i32 {
    let mut signal = 0;
    // SAFETY: `set` is initialised and `signal` is ours.
    while unsafe { libc::sigwait(set, &mut signal) } != 0 {}
    signal
}
