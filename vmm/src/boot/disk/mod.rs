//! A disk's own kernel: found in its file system and read, as firmware and a boot loader would.
//!
//! ```text
//!  disk ─ gpt.rs ─▶ partitions ─ ext4 ─▶ files ─ menu.rs ─▶ kernel, initrds, command line
//!  (through its backend's queue, before the guest runs: crate::virtio::block)
//! ```
//! Looked for, in each partition in turn and in `/boot` before `/`: entries of the UAPI boot
//! loader specification (`loader/entries/*.conf`), the first entry of `grub/grub.cfg` or
//! `grub2/grub.cfg`, the highest version of `vmlinuz-*` with its initrd. The kernel is what the
//! disk holds *now*: a guest that installs another one starts it at its next boot.
//!
//! The bytes are the tenant's, and so is the process that reads them: it is this one, behind its
//! jail, with nothing of anybody else's in reach. What is malformed is refused by name; nothing
//! that a disk claims makes this process read or keep more than [`MAX_READ_BYTES`] and
//! [`MAX_KERNEL_BYTES`]. Files are read by the crate `ext4-view`, which has no `unsafe` and
//! replays the journal of a file system that was not unmounted.

mod gpt;
mod links;
mod menu;

use super::{Blob, Entry, Payload, load};
use crate::error::{Error, Result};
use crate::memory::GuestRam;
use ext4_view::{Ext4, Ext4Error, Ext4Read, File};
use gpt::Partition;
use menu::{Folder, Item};
use std::cell::RefCell;
use std::io::{self, Cursor, Read};
use std::rc::Rc;
use vm_memory::{Bytes, GuestAddress};

/// A kernel file; Linux with everything built in has 60 MiB.
pub const MAX_KERNEL_BYTES: u64 = 128 << 20;
/// All that is read of a disk, initrds included.
pub const MAX_READ_BYTES: u64 = 4 << 30;
/// A menu or an entry of one.
const MAX_TEXT_BYTES: u64 = 1 << 20;
/// Files in a folder that are looked at.
const MAX_FILES: usize = 4096;
/// The largest block that ext4 has; the reader would take larger ones, several at a time.
const MAX_BLOCK_BYTES: u64 = 64 << 10;
/// Of an ext4 file system; 128 MiB each with common block sizes.
const MAX_BLOCK_GROUPS: u64 = 1 << 20;

/// A disk that can be read.
pub trait DiskBytes {
    /// How many there are.
    fn bytes(&self) -> u64;
    /// Fills `into` from `at` on.
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<()>;
}

/// What a disk says is to be booted.
#[derive(Debug)]
struct Found {
    kernel: Vec<u8>,
    initrds: Vec<File>,
    cmdline: String,
}

/// Loads the kernel that `disk` holds, with its initrds and command line; `cmdline` comes last on
/// it.
pub fn load_own_kernel(ram: &GuestRam, disk: Box<dyn DiskBytes>, cmdline: &str) -> Result<Entry> {
    let found = find(disk).map_err(|problem| Error::Boot {
        field: "boot.disk",
        problem,
    })?;
    let cmdline = format!("{} {cmdline}", found.cmdline);
    let payload = Payload {
        kernel: Cursor::new(found.kernel),
        initrd: (!found.initrds.is_empty()).then_some(Initrds(found.initrds)),
        cmdline: cmdline.trim(),
    };
    tracing::info!(cmdline = payload.cmdline, "booting the disk's own kernel");
    load(ram, payload)
}

/// The disk, behind all that reads it, and what may still be read.
struct Source {
    disk: Box<dyn DiskBytes>,
    left_bytes: u64,
}

impl Source {
    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        self.left_bytes = self
            .left_bytes
            .checked_sub(into.len() as u64)
            .ok_or_else(|| {
                io::Error::other(format!("more than {MAX_READ_BYTES} bytes are read"))
            })?;
        self.disk.read_at(at, into)
    }
}

/// One partition, to the file system's reader.
struct Window {
    source: Rc<RefCell<Source>>,
    start: u64,
    bytes: u64,
}

impl Ext4Read for Window {
    fn read(
        &mut self,
        at: u64,
        into: &mut [u8],
    ) -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
        let end = at.checked_add(into.len() as u64);
        if end.is_none_or(|end| end > self.bytes) {
            return Err(format!("{at:#x} is behind the file system's end").into());
        }
        Ok(self.source.borrow_mut().read_at(self.start + at, into)?)
    }
}

fn find(disk: Box<dyn DiskBytes>) -> std::result::Result<Found, String> {
    let bytes = disk.bytes();
    let source = Rc::new(RefCell::new(Source {
        disk,
        left_bytes: MAX_READ_BYTES,
    }));
    let partitions = gpt::partitions(bytes, |at, into| source.borrow_mut().read_at(at, into))?;
    let mut seen = Vec::new();
    for partition in &partitions {
        let name = &partition.name;
        match open(&source, partition) {
            Ok(Some(fs)) => match look_into(&fs, partition) {
                Ok(Some(found)) => return Ok(found),
                Ok(None) => seen.push(format!("{name} has none")),
                Err(problem) => return Err(format!("{name}: {problem}")),
            },
            Ok(None) => {}
            Err(problem) => seen.push(format!("{name} cannot be read: {problem}")),
        }
    }
    if seen.is_empty() {
        seen.push(format!(
            "no ext4 file system in {} partitions",
            partitions.len()
        ));
    }
    Err(format!("no kernel is on it: {}", seen.join("; ")))
}

/// The partition's file system, if it is ext4.
fn open(source: &Rc<RefCell<Source>>, at: &Partition) -> std::result::Result<Option<Ext4>, String> {
    const SUPERBLOCK: u64 = 1024;
    const MAGIC: u16 = 0xef53;
    let mut raw = [0; 1024];
    if at.bytes < SUPERBLOCK + raw.len() as u64 {
        return Ok(None);
    }
    let read = source.borrow_mut().read_at(at.start + SUPERBLOCK, &mut raw);
    read.map_err(|e| e.to_string())?;
    let word = |offset: usize| {
        let bytes = [0, 1, 2, 3].map(|i| raw[offset + i]);
        u64::from(u32::from_le_bytes(bytes))
    };
    if u16::from_le_bytes([raw[0x38], raw[0x39]]) != MAGIC {
        return Ok(None);
    }
    // The reader makes room for as many as are claimed, and for blocks as large.
    let blocks = word(0x4) | word(0x150) << 32;
    let groups = blocks.div_ceil(word(0x20).max(1));
    let block_bytes = 1024u64.checked_shl(u32::try_from(word(0x18)).unwrap_or(u32::MAX));
    let block_bytes = block_bytes.filter(|bytes| (1024..=MAX_BLOCK_BYTES).contains(bytes));
    let bytes = block_bytes.and_then(|bytes| blocks.checked_mul(bytes));
    if groups > MAX_BLOCK_GROUPS || bytes.is_none_or(|bytes| bytes > at.bytes) {
        return Err(format!(
            "an ext4 file system of {blocks} blocks in {groups} groups, of 2^{} KiB each, in {} bytes",
            word(0x18),
            at.bytes
        ));
    }
    let window = Window {
        source: Rc::clone(source),
        start: at.start,
        bytes: at.bytes,
    };
    let opened = Ext4::load(Box::new(window));
    opened.map(Some).map_err(|e| e.to_string())
}

fn look_into(fs: &Ext4, at: &Partition) -> std::result::Result<Option<Found>, String> {
    for place in ["/boot", "/"] {
        let folder = Place { fs, place };
        let Some(item) = menu::choose(&folder)? else {
            continue;
        };
        let named = |path: &str| {
            let file = folder.open(path);
            file.map_err(|problem| format!("{path}: {problem}"))
        };
        let kernel = read(named(&item.kernel)?, MAX_KERNEL_BYTES)
            .map_err(|problem| format!("{}: {problem}", item.kernel))?;
        let initrds = item.initrds.iter().map(|path| named(path));
        return Ok(Some(Found {
            kernel,
            initrds: initrds.collect::<std::result::Result<_, _>>()?,
            cmdline: cmdline(item, at, place),
        }));
    }
    Ok(None)
}

/// The entry's own, or what a root in the kernel's partition takes.
fn cmdline(item: Item, at: &Partition, place: &str) -> String {
    match (item.options, place) {
        (Some(options), _) => options,
        (None, "/boot") => format!("root={} ro console=ttyS0", at.root),
        // A partition of kernels alone does not say where the root is.
        (None, _) => "console=ttyS0".to_owned(),
    }
}

/// A folder of a file system in which kernels may be.
struct Place<'a> {
    fs: &'a Ext4,
    place: &'a str,
}

impl Place<'_> {
    /// A path as a menu has it: from the file system's root, or, where this was mounted at `/boot`
    /// or was not, from there.
    fn open(&self, path: &str) -> std::result::Result<File, String> {
        let rooted = format!("/{}", path.trim_start_matches('/'));
        let here = format!("{}{rooted}", self.place.trim_end_matches('/'));
        let above = rooted.strip_prefix("/boot").unwrap_or(&rooted).to_owned();
        let mut problem = String::new();
        for path in [&rooted, &here, &above] {
            let opened = links::follow(self.fs, path).and_then(|path| self.fs.open(&path));
            match opened {
                Ok(file) => return Ok(file),
                Err(Ext4Error::NotFound) if !problem.is_empty() => {}
                Err(error) => problem = error.to_string(),
            }
        }
        Err(problem)
    }
}

impl Folder for Place<'_> {
    fn list(&self, folder: &str) -> std::result::Result<Vec<String>, String> {
        let path = format!("{}/{folder}", self.place.trim_end_matches('/'));
        let path = if path.len() > 1 {
            path.trim_end_matches('/')
        } else {
            "/"
        };
        let Ok(folder) = links::follow(self.fs, path) else {
            return Ok(Vec::new());
        };
        let metadata = self.fs.symlink_metadata(&folder);
        if !metadata.is_ok_and(|metadata| metadata.is_dir()) {
            return Ok(Vec::new());
        }
        let entries = self
            .fs
            .read_dir(&folder)
            .map_err(|e| format!("{path}: {e}"))?;
        let mut names = Vec::new();
        for entry in entries {
            let entry = entry.map_err(|e| format!("{path}: {e}"))?;
            if names.len() == MAX_FILES {
                return Err(format!("{path}: has more than {MAX_FILES} files"));
            }
            if let Ok(name) = entry.file_name().as_str() {
                names.push(name.to_owned());
            }
        }
        Ok(names)
    }

    fn text(&self, name: &str) -> std::result::Result<Option<String>, String> {
        let path = format!("{}/{name}", self.place.trim_end_matches('/'));
        let opened = links::follow(self.fs, &path).and_then(|path| self.fs.open(&path));
        let Ok(file) = opened else {
            return Ok(None);
        };
        let bytes = read(file, MAX_TEXT_BYTES).map_err(|problem| format!("{path}: {problem}"))?;
        Ok(Some(String::from_utf8_lossy(&bytes).into_owned()))
    }
}

fn read(mut file: File, most: u64) -> std::result::Result<Vec<u8>, String> {
    let bytes = file.metadata().len();
    if bytes > most {
        return Err(format!("its {bytes} bytes are more than {most}"));
    }
    let mut content = Vec::new();
    match file.read_to_end(&mut content) {
        Ok(_) => Ok(content),
        Err(error) => Err(format!("cannot be read: {error}")),
    }
}

/// Initrds, one behind the other at multiples of four bytes, as the kernel wants archives.
struct Initrds(Vec<File>);

impl Blob for Initrds {
    fn bytes(&mut self) -> io::Result<u64> {
        let add = |sum: u64, file: &File| {
            let next = sum.checked_next_multiple_of(4)?;
            next.checked_add(file.metadata().len())
        };
        let sum = self.0.iter().try_fold(0, add);
        sum.ok_or_else(|| io::Error::other("their sizes have no sum"))
    }

    fn fill(&mut self, ram: &GuestRam, at: GuestAddress, _bytes: usize) -> io::Result<()> {
        let mut chunk = vec![0; 64 << 10];
        let mut at = at.0;
        for file in &mut self.0 {
            at = at.next_multiple_of(4);
            loop {
                let count = file.read(&mut chunk)?;
                if count == 0 {
                    break;
                }
                ram.write_slice(&chunk[..count], GuestAddress(at))
                    .map_err(io::Error::other)?;
                at += count as u64;
            }
        }
        Ok(())
    }
}

/// A disk in memory.
impl DiskBytes for Vec<u8> {
    fn bytes(&self) -> u64 {
        self.len() as u64
    }

    fn read_at(&mut self, at: u64, into: &mut [u8]) -> io::Result<()> {
        let start = usize::try_from(at).map_err(io::Error::other)?;
        let from = start
            .checked_add(into.len())
            .and_then(|end| self.get(start..end))
            .ok_or_else(|| io::Error::other(format!("{at:#x} is behind the disk's end")))?;
        into.copy_from_slice(from);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
