//! Stand-alone: one file or nothing, served on a listening socket. For benches, for
//! a comparison with qemu-storage-daemon, and to try a VMM by hand.

use crate::connection;
use crate::crypt::Key;
use crate::disk::{Backing, Disk, FileBacking, serial};
use crate::memory::Trust;
use crate::session::Served;
use crate::shard::Shard;
use anyhow::Context;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// What to serve and how.
pub struct Options {
    /// Where to listen.
    pub listen: PathBuf,
    /// The file; zeros otherwise.
    pub file: Option<PathBuf>,
    /// Size without a file.
    pub size_bytes: u64,
    /// Offer it read-only.
    pub read_only: bool,
    /// Encrypt under a key that dies with the process.
    pub encrypt: bool,
    /// Queues offered.
    pub queues: u16,
    /// Accept memory that the frontend could truncate.
    pub trust: Trust,
}

/// Listens and serves one connection after the other, for ever.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let (backing, size_bytes) = match &options.file {
        Some(path) => {
            let key = options.encrypt.then(Key::generate).transpose()?;
            let file = FileBacking::open(path, options.read_only, key, true)
                .with_context(|| format!("{} cannot be opened", path.display()))?;
            let size_bytes = file.buffered.metadata()?.len();
            (Backing::File(file), size_bytes)
        }
        None => (Backing::Null, options.size_bytes),
    };
    let name = options.file.as_deref().and_then(Path::file_stem);
    let disk = Arc::new(Disk {
        serial: serial(&name.unwrap_or_default().to_string_lossy()),
        read_only: options.read_only,
        ..Disk::new(size_bytes - size_bytes % 512, options.queues, backing)
    });
    let _ = std::fs::remove_file(&options.listen);
    let listener = UnixListener::bind(&options.listen)
        .with_context(|| format!("{} cannot be bound", options.listen.display()))?;
    let shard = Shard::spawn("shard-0")?;
    loop {
        let (stream, _) = listener.accept()?;
        let served = Served::Plain(Arc::clone(&disk));
        if let Err(error) = connection::serve(
            stream,
            shard.clone(),
            served,
            options.trust,
            &AtomicBool::new(false),
        ) {
            tracing::warn!(%error, "connection ended");
        }
    }
}
