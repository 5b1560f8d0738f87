//! The two daemons, started the same way on the same backing.

use crate::process::Guarded;
use anyhow::{Context, Result};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// What lies behind the device.
pub enum Backing {
    /// Reads of zeros, of that many bytes.
    Null(u64),
    /// A file in tmpfs.
    Ram(PathBuf),
    /// A file on disk, opened `O_DIRECT`.
    Disk(PathBuf),
}

/// A running daemon and its socket.
pub struct Daemon {
    /// The process.
    pub process: Guarded,
    /// Where it listens.
    pub socket: PathBuf,
}

impl Daemon {
    /// `ocs-storaged serve`; encrypted, what the file holds counts as ciphertext.
    pub fn storaged(program: &Path, backing: &Backing, encrypt: bool, dir: &Path) -> Result<Self> {
        let mut command = Command::new(program);
        let socket = dir.join("ours.sock");
        command
            .arg("serve")
            .arg("--listen")
            .arg(&socket)
            .arg("--allow-unsealed-memory");
        if encrypt {
            command.arg("--encrypt");
        }
        match backing {
            Backing::Null(bytes) => command.arg("--size-bytes").arg(bytes.to_string()),
            Backing::Ram(file) | Backing::Disk(file) => command.arg("--file").arg(file),
        };
        Self::start(command, socket, &dir.join("ours.log")).context("ocs-storaged")
    }

    /// `qemu-storage-daemon` with its io_uring engine where the file is on disk.
    pub fn qemu(backing: &Backing, dir: &Path) -> Result<Self> {
        let node = match backing {
            Backing::Null(bytes) => {
                format!("driver=null-co,node-name=n,size={bytes},read-zeroes=on")
            }
            Backing::Ram(file) => format!("driver=file,node-name=n,filename={}", file.display()),
            Backing::Disk(file) => format!(
                "driver=file,node-name=n,filename={},cache.direct=on,aio=io_uring",
                file.display()
            ),
        };
        let socket = dir.join("peer.sock");
        let mut command = Command::new("qemu-storage-daemon");
        command.arg("--blockdev").arg(node).arg("--export").arg(format!(
            "type=vhost-user-blk,id=e,node-name=n,addr.type=unix,addr.path={},writable=on,num-queues=1",
            socket.display()
        ));
        Self::start(command, socket, &dir.join("peer.log")).context("qemu-storage-daemon")
    }

    fn start(mut command: Command, socket: PathBuf, log: &Path) -> Result<Self> {
        let _ = std::fs::remove_file(&socket);
        let mut process = Guarded::spawn(&mut command, log)?;
        process
            .wait_until(Duration::from_secs(10), false, || socket.exists())
            .with_context(|| std::fs::read_to_string(log).unwrap_or_default())?;
        Ok(Self { process, socket })
    }
}

/// Makes a file of `bytes` without holes.
pub fn filled_file(path: &Path, bytes: u64) -> Result<PathBuf> {
    let mut file = std::fs::File::create(path)?;
    let chunk: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> 24) as u8)
        .collect();
    for _ in 0..bytes >> 20 {
        file.write_all(&chunk)?;
    }
    file.sync_all()?;
    Ok(path.to_owned())
}
