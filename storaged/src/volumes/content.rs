//! A volume's first content: zeros, or an image, plain or under a key.
//!
//! Laid down in `NAME.tmp`, synced, then renamed to `NAME.raw`: a crash leaves a
//! file that the table does not name, and the next start collects it.

use super::table::sync_dir;
use crate::crypt::{BLOCK_BYTES, Key, is_zero};
use rustix::fs::{SeekFrom, copy_file_range, ioctl_ficlone, seek};
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

const CHUNK_BYTES: usize = 64 * BLOCK_BYTES;

/// The file of volume `name`.
#[must_use]
pub fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.raw"))
}

/// Makes the file of volume `name`, replacing one that may be there.
pub fn lay(
    dir: &Path,
    name: &str,
    size_bytes: u64,
    image: Option<&File>,
    key: Option<&Key>,
) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let outcome = fill(&temporary, size_bytes, image, key)
        .and_then(|()| std::fs::rename(&temporary, path(dir, name)))
        .and_then(|()| sync_dir(dir));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    outcome
}

fn fill(path: &Path, size_bytes: u64, image: Option<&File>, key: Option<&Key>) -> io::Result<()> {
    let file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?;
    match (image, key) {
        (None, _) => {}
        (Some(image), Some(key)) => encrypt(image, &file, key)?,
        // A clone shares blocks where the file system can; it takes the image's length.
        (Some(image), None) => {
            if ioctl_ficlone(&file, image).is_err() {
                copy(image, &file)?;
            }
        }
    }
    file.set_len(size_bytes)?;
    file.sync_all()
}

/// Calls `each` with every range of data in `file`, in order.
fn extents(file: &File, mut each: impl FnMut(u64, u64) -> io::Result<()>) -> io::Result<()> {
    let mut at = 0;
    loop {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(error) => return Err(error.into()),
        };
        at = seek(file, SeekFrom::Hole(start))?;
        each(start, at)?;
    }
}

fn copy(from: &File, to: &File) -> io::Result<()> {
    extents(from, |start, end| {
        let (mut source, mut target) = (start, start);
        while source < end {
            let len = usize::try_from(end - source)
                .unwrap_or(1 << 30)
                .min(1 << 30);
            if copy_file_range(from, Some(&mut source), to, Some(&mut target), len)? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(())
    })
}

/// Copies `from` encrypted; blocks of zeros stay holes, which read as zeros.
fn encrypt(from: &File, to: &File, key: &Key) -> io::Result<()> {
    let block = BLOCK_BYTES as u64;
    let mut buffer = vec![0u8; CHUNK_BYTES];
    extents(from, |start, end| {
        let mut at = start - start % block;
        while at < end {
            let len = usize::try_from(end.next_multiple_of(block) - at)
                .unwrap_or(CHUNK_BYTES)
                .min(CHUNK_BYTES);
            let chunk = &mut buffer[..len];
            read_padded(from, chunk, at)?;
            for (n, bytes) in chunk.chunks_exact_mut(BLOCK_BYTES).enumerate() {
                if !is_zero(bytes) {
                    let offset = at + (n * BLOCK_BYTES) as u64;
                    key.encrypt(bytes, offset / block);
                    to.write_all_at(bytes, offset)?;
                }
            }
            at += len as u64;
        }
        Ok(())
    })
}

/// Fills `into` from `file` at `at`, with zeros behind its end.
fn read_padded(file: &File, into: &mut [u8], at: u64) -> io::Result<()> {
    let mut done = 0;
    while done < into.len() {
        match file.read_at(&mut into[done..], at + done as u64) {
            Ok(0) => {
                into[done..].fill(0);
                break;
            }
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Removes `NAME.raw` durably; done if it is not there.
pub fn remove(dir: &Path, name: &str) -> io::Result<()> {
    match std::fs::remove_file(path(dir, name)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => sync_dir(dir),
    }
}

/// Removes what crashes left: temporary files, and volumes that `known` denies.
pub fn collect(dir: &Path, known: impl Fn(&str) -> bool) -> io::Result<usize> {
    let mut collected = 0;
    for entry in std::fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name();
        let name = name.to_string_lossy();
        let orphan = name.strip_suffix(".raw").is_some_and(|name| !known(name));
        if orphan || name.ends_with(".tmp") {
            std::fs::remove_file(entry.path())?;
            collected += 1;
        }
    }
    sync_dir(dir)?;
    Ok(collected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    fn sparse_image(dir: &Path) -> (File, Vec<u8>) {
        let file = File::options()
            .read(true)
            .write(true)
            .create_new(true)
            .open(dir.join("image"))
            .unwrap();
        let mut expected = vec![0u8; (9 << 20) + 77];
        for (at, len, value) in [(0, 5000, 1u8), (4 << 20, 300_000, 2), (9 << 20, 77, 3)] {
            expected[at..at + len].fill(value);
            file.write_all_at(&expected[at..at + len], at as u64)
                .unwrap();
        }
        (file, expected)
    }

    #[test]
    fn an_image_is_copied_whole_and_sparse() {
        let dir = tempfile::tempdir().unwrap();
        let (image, mut expected) = sparse_image(dir.path());
        lay(dir.path(), "vol-1", 16 << 20, Some(&image), None).unwrap();
        let got = std::fs::read(path(dir.path(), "vol-1")).unwrap();
        expected.resize(16 << 20, 0);
        assert_eq!(got, expected);
        let on_disk = std::fs::metadata(path(dir.path(), "vol-1"))
            .unwrap()
            .blocks()
            * 512;
        assert!(on_disk < 1 << 20, "{on_disk} bytes on disk");
    }

    #[test]
    fn an_encrypted_copy_decrypts_to_the_image_and_shows_none_of_it() {
        let dir = tempfile::tempdir().unwrap();
        let (image, mut expected) = sparse_image(dir.path());
        let key = Key::generate().unwrap();
        lay(dir.path(), "e", 16 << 20, Some(&image), Some(&key)).unwrap();
        let mut got = std::fs::read(path(dir.path(), "e")).unwrap();
        assert!(!got.windows(64).any(|w| w == [2; 64]));
        key.decrypt(&mut got, 0);
        expected.resize(16 << 20, 0);
        assert_eq!(got, expected);
    }

    #[test]
    fn what_a_crash_left_is_collected_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        for name in [
            "vol-1.raw",
            "vol-2.raw",
            "vol-3.tmp",
            "volumes.json",
            "lock",
        ] {
            std::fs::write(dir.path().join(name), b"x").unwrap();
        }
        assert_eq!(collect(dir.path(), |name| name == "vol-1").unwrap(), 2);
        let mut left: Vec<_> = std::fs::read_dir(dir.path())
            .unwrap()
            .map(|e| e.unwrap().file_name().into_string().unwrap())
            .collect();
        left.sort();
        assert_eq!(left, ["lock", "vol-1.raw", "volumes.json"]);
        remove(dir.path(), "vol-1").unwrap();
        remove(dir.path(), "vol-1").unwrap();
    }
}
