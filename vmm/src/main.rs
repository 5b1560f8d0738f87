//! `ocs-vmm --spec FILE | --spec-fd N`: runs one microVM to its end.

use anyhow::{Context, ensure};
use clap::Parser;
use ocs_vmm_spec::exit::ExitReason;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{FromRawFd, RawFd};
use std::path::PathBuf;
use std::process::ExitCode;
use tracing_subscriber::EnvFilter;

/// Runs one microVM described by a JSON spec, until the guest or the caller ends it.
#[derive(Parser)]
#[command(version)]
#[group(required = true, multiple = false)]
struct Arguments {
    /// The spec's file.
    #[arg(long)]
    spec: Option<PathBuf>,
    /// The spec as an inherited descriptor.
    #[arg(long)]
    spec_fd: Option<RawFd>,
}

/// Specs are a few KiB.
const MAX_SPEC_BYTES: u64 = 1 << 20;

fn main() -> ExitCode {
    // What a guest does to its queues is counted, not logged line by line.
    let filter = EnvFilter::try_from_env("OCS_LOG")
        .unwrap_or_else(|_| EnvFilter::new("info,virtio_queue=off,vhost=off"));
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        // A full disk under the log must not become a panic on stderr.
        .log_internal_errors(false)
        .init();
    match read_spec(&Arguments::parse()) {
        Ok(json) => {
            let (record, _held_until_exit) = ocs_vmm::serve(&json);
            tracing::info!(reason = ?record.reason, message = record.message, "ended");
            if record.reason == ExitReason::Error {
                complain(&record.message);
                return ExitCode::FAILURE;
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(&format!("{error:#}"));
            ExitCode::FAILURE
        }
    }
}

/// One sentence on stderr, or nowhere where stderr takes none.
fn complain(message: &str) {
    let _ = writeln!(std::io::stderr(), "ocs-vmm: {message}");
}

fn read_spec(arguments: &Arguments) -> anyhow::Result<Vec<u8>> {
    let (file, name) = match (&arguments.spec, arguments.spec_fd) {
        (Some(path), _) => (
            File::open(path).with_context(|| format!("--spec {}", path.display()))?,
            "--spec",
        ),
        (None, Some(fd)) => {
            ensure!(fd > 2, "--spec-fd {fd}: not an inherited descriptor");
            // SAFETY: the caller handed this descriptor over for the spec; a closed number makes
            // the read below fail.
            (unsafe { File::from_raw_fd(fd) }, "--spec-fd")
        }
        (None, None) => anyhow::bail!("neither --spec nor --spec-fd"),
    };
    let mut json = Vec::new();
    file.take(MAX_SPEC_BYTES)
        .read_to_end(&mut json)
        .context(name)?;
    Ok(json)
}
