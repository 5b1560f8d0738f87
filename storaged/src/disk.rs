//! What a device serves: a file (plain or encrypted), layers of files, or nothing.

use crate::cow::head::Head;
use crate::crypt::Key;
use crate::qos::Qos;
use rustix::fs::{Mode, OFlags, fstatfs};
use std::fs::File;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// Alignment that every O_DIRECT transfer meets; the few file systems that ask for
/// more answer EINVAL and are served buffered.
pub const DIRECT_ALIGN: u64 = 512;
const TMPFS_MAGIC: i64 = 0x0102_1994;

/// Counters of one volume since storaged started. The shard alone writes them.
#[derive(Debug, Default)]
pub struct Stats {
    /// Reads completed.
    pub reads: AtomicU64,
    /// Writes completed.
    pub writes: AtomicU64,
    /// Flushes completed.
    pub flushes: AtomicU64,
    /// Requests that ended in an error status, and queues that broke.
    pub errors: AtomicU64,
    /// Requests that had to wait for a limit.
    pub throttled: AtomicU64,
}

impl Stats {
    /// Adds one; there is one writer, so no locked instruction is needed.
    pub fn bump(counter: &AtomicU64) {
        counter.store(counter.load(Ordering::Relaxed) + 1, Ordering::Relaxed);
    }
}

/// Where the bytes are.
pub enum Backing {
    /// Reads give zeros, writes go nowhere: measures everything but the file.
    Null,
    /// A file.
    File(FileBacking),
    /// Layers of files.
    Layered(Layered),
}

impl Backing {
    /// The file that takes writes.
    #[must_use]
    pub fn file(&self) -> Option<&FileBacking> {
        match self {
            Self::Null => None,
            Self::File(file) => Some(file),
            Self::Layered(layered) => Some(&layered.top),
        }
    }
}

/// Layers of files, of which the last takes writes.
pub struct Layered {
    top: Arc<FileBacking>,
    head: Mutex<Option<Box<Head>>>,
}

impl Layered {
    /// What `head` says.
    #[must_use]
    pub fn new(head: Head) -> Self {
        Self {
            top: head.top(),
            head: Mutex::new(Some(Box::new(head))),
        }
    }

    /// The head, for the one device that serves it.
    pub fn take(&self) -> std::io::Result<Box<Head>> {
        let mut head = self.head.lock().unwrap_or_else(PoisonError::into_inner);
        head.take()
            .ok_or_else(|| std::io::ErrorKind::ResourceBusy.into())
    }

    /// The device ended; the next one goes on from here.
    pub fn give_back(&self, head: Box<Head>) {
        *self.head.lock().unwrap_or_else(PoisonError::into_inner) = Some(head);
    }
}

/// A file and how it is reached.
pub struct FileBacking {
    /// Through the page cache.
    pub buffered: File,
    /// Past it, where the file system can.
    pub direct: Option<File>,
    /// In RAM (tmpfs): served by system calls in the shard, which beat io_uring's
    /// worker threads there.
    pub inline: bool,
    /// Blocks are encrypted under this key.
    pub key: Option<Key>,
    /// A flush must reach the device. False where a crash of the host loses the
    /// volume anyway (ephemeral).
    pub durable: bool,
}

impl FileBacking {
    /// Opens `path` for serving.
    pub fn open(
        path: &Path,
        read_only: bool,
        key: Option<Key>,
        durable: bool,
    ) -> std::io::Result<Self> {
        let access = if read_only {
            OFlags::RDONLY
        } else {
            OFlags::RDWR
        };
        let flags = access | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let open = |extra| rustix::fs::open(path, flags | extra, Mode::empty()).map(File::from);
        let buffered = open(OFlags::empty())?;
        let inline = fstatfs(&buffered)?.f_type == TMPFS_MAGIC;
        let direct = if inline {
            None
        } else {
            open(OFlags::DIRECT).ok()
        };
        Ok(Self {
            buffered,
            direct,
            inline,
            key,
            durable,
        })
    }
}

/// A volume as a device serves it.
pub struct Disk {
    /// `VIRTIO_BLK_T_GET_ID`'s answer, padded with zeros.
    pub serial: [u8; 20],
    /// Size in bytes, a multiple of 512.
    pub size_bytes: u64,
    /// Offered with `VIRTIO_BLK_F_RO`.
    pub read_only: bool,
    /// Queues offered.
    pub queues: u16,
    /// Where the bytes are.
    pub backing: Backing,
    /// What happened so far.
    pub stats: std::sync::Arc<Stats>,
    /// What it is held to.
    pub qos: std::sync::Arc<Qos>,
}

impl Disk {
    /// One that is written to, has no name and is held to nothing; a caller replaces what differs.
    #[must_use]
    pub fn new(size_bytes: u64, queues: u16, backing: Backing) -> Self {
        Self {
            serial: [0; 20],
            size_bytes,
            read_only: false,
            queues,
            backing,
            stats: std::sync::Arc::default(),
            qos: std::sync::Arc::default(),
        }
    }
}

/// The serial of a volume: its name without dashes, cut to 20 bytes, as EC2 shows it.
#[must_use]
pub fn serial(name: &str) -> [u8; 20] {
    let mut serial = [0; 20];
    for (to, from) in serial.iter_mut().zip(name.bytes().filter(|b| *b != b'-')) {
        *to = from;
    }
    serial
}
