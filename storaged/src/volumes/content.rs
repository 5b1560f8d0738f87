//! The file of a volume without layers: zeros at first, sparse, grown in place.
//!
//! Made as `NAME.tmp`, synced, then renamed to `NAME.raw`: a crash leaves a file that
//! the table does not name, and the next start collects it.

use crate::cow::store::{create, sync_dir};
use std::io;
use std::path::{Path, PathBuf};

/// The file of volume `name`.
#[must_use]
pub fn path(dir: &Path, name: &str) -> PathBuf {
    dir.join(format!("{name}.raw"))
}

/// Makes the file of volume `name`, replacing one that may be there.
pub fn lay(dir: &Path, name: &str, size_bytes: u64) -> io::Result<()> {
    let temporary = dir.join(format!("{name}.tmp"));
    let outcome = create(&temporary)
        .and_then(|file| {
            file.set_len(size_bytes)?;
            file.sync_all()
        })
        .and_then(|()| std::fs::rename(&temporary, path(dir, name)))
        .and_then(|()| sync_dir(dir));
    if outcome.is_err() {
        let _ = std::fs::remove_file(&temporary);
    }
    outcome
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
