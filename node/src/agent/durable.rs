//! Files replaced whole, so that a reader sees the old or the new and never half.

use serde::Serialize;
use serde::de::DeserializeOwned;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A longer file is not ours: the slice of a full host is a few MiB.
const MAX_FILE_BYTES: u64 = 256 << 20;

/// How long a file must last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasts {
    /// As long as this boot of the host: a killed writer is survived.
    ThisBoot,
    /// Through a loss of power, before the call returns.
    Always,
}

/// Replaces `path` by `value` as JSON, mode 0600.
pub fn replace(path: &Path, value: &impl Serialize, lasts: Lasts) -> io::Result<()> {
    let part = path.with_extension("part");
    let mut file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&part)?;
    file.write_all(&serde_json::to_vec(value)?)?;
    if lasts == Lasts::Always {
        file.sync_data()?;
    }
    fs::rename(&part, path)?;
    if lasts == Lasts::Always {
        sync_parent(path)?;
    }
    Ok(())
}

/// Removes a file; none there is fine.
pub fn remove(path: &Path, lasts: Lasts) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other?,
    }
    if lasts == Lasts::Always {
        sync_parent(path)?;
    }
    Ok(())
}

/// Reads JSON; `None` where there is no file.
pub fn read<T: DeserializeOwned>(path: &Path) -> io::Result<Option<T>> {
    let mut bytes = Vec::new();
    match File::open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(e),
        Ok(file) => file.take(MAX_FILE_BYTES).read_to_end(&mut bytes)?,
    };
    Ok(Some(serde_json::from_slice(&bytes)?))
}

fn sync_parent(path: &Path) -> io::Result<()> {
    File::open(path.parent().unwrap_or(Path::new("/")))?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_replaced_read_and_removed() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        assert_eq!(read::<u32>(&path).unwrap(), None);
        replace(&path, &1u32, Lasts::Always).unwrap();
        replace(&path, &2u32, Lasts::ThisBoot).unwrap();
        assert_eq!(read::<u32>(&path).unwrap(), Some(2));
        remove(&path, Lasts::Always).unwrap();
        remove(&path, Lasts::Always).unwrap();
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn half_a_file_is_an_error_and_not_an_absence() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        fs::write(&path, "{\"a\":").unwrap();
        assert!(read::<serde_json::Value>(&path).is_err());
    }
}
