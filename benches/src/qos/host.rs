//! A storaged with its table and control socket, and guests of its volumes.

use super::guest::Guest;
use crate::process::Guarded;
use anyhow::{Context, Result};
use ocs_storaged_api::{Client, Limits, Rate, Request, VolumeKind, VolumeLimits, VolumeName};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(10);

/// A running storaged.
pub struct Host {
    /// The process; ends before its folder does.
    pub process: Guarded,
    dir: tempfile::TempDir,
}

impl Host {
    /// Starts one with so many shards and its volumes in a new folder of `place`.
    pub fn start(program: &Path, place: &Path, shards: usize) -> Result<Self> {
        let dir = tempfile::tempdir_in(place)?;
        let at = |name: &str| dir.path().join(name);
        std::fs::create_dir(at("state"))?;
        std::fs::create_dir(at("images"))?;
        let mut command = Command::new(program);
        command.arg("--state").arg(at("state"));
        command.arg("--images").arg(at("images"));
        command.arg("--control").arg(at("control.sock"));
        command.arg("--shards").arg(shards.to_string());
        let mut process = Guarded::spawn(&mut command, &at("log"))?;
        process
            .wait_until(PATIENCE, false, || {
                Client::connect(&at("control.sock"), PATIENCE).is_ok()
            })
            .with_context(|| std::fs::read_to_string(at("log")).unwrap_or_default())?;
        Ok(Self { process, dir })
    }

    fn ask(&self, request: &Request) -> Result<()> {
        let mut client = Client::connect(&self.dir.path().join("control.sock"), PATIENCE)?;
        client.call(request)?;
        Ok(())
    }

    /// A new volume of zeros, held to `limits`, and its guest.
    pub fn volume(&self, name: &str, size_bytes: u64, limits: Limits) -> Result<Guest> {
        let volume = VolumeName(name.to_owned());
        self.ask(&Request::PutVolume {
            volume: volume.clone(),
            size_bytes,
            kind: VolumeKind::Persistent,
            image: None,
            snapshot: None,
            encrypted: false,
        })?;
        self.limit(name, limits)?;
        let socket = self.dir.path().join(format!("{name}.sock"));
        let listener = UnixListener::bind(&socket)?;
        self.ask(&Request::Attach {
            volume,
            socket,
            read_only: false,
        })?;
        Guest::new(listener.accept()?.0)
    }

    /// Holds a volume to other limits.
    pub fn limit(&self, name: &str, limits: Limits) -> Result<()> {
        self.ask(&Request::SetLimits {
            volume: VolumeName(name.to_owned()),
            limits: VolumeLimits {
                limits,
                ..VolumeLimits::default()
            },
        })
    }
}

/// So many operations a second.
pub fn iops(per_s: u64) -> Limits {
    Limits {
        iops: Some(Rate::steady(per_s)),
        ..Limits::default()
    }
}

/// So many bytes a second.
pub fn bytes(per_s: u64) -> Limits {
    Limits {
        bytes: Some(Rate::steady(per_s)),
        ..Limits::default()
    }
}
