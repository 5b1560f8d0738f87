//! A part's lock: `flock` on `run/PART.lock`, which holds the pid of its owner.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// Held as long as the value lives.
#[derive(Debug)]
pub struct PartLock(#[allow(dead_code, reason = "its life is the lock's")] File);

impl PartLock {
    /// Takes the lock at `path`, or says who has it.
    pub fn take(path: &Path) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Err(Errno::WOULDBLOCK) => {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                return Err(io::Error::other(format!(
                    "{} is held by process {}",
                    path.display(),
                    pid.trim()
                )));
            }
            other => other?,
        }
        file.set_len(0)?;
        file.rewind()?;
        writeln!(file, "{}", std::process::id())?;
        Ok(Self(file))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_owner_is_refused_and_told_who_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("node.lock");
        let first = PartLock::take(&path).unwrap();
        let error = PartLock::take(&path).unwrap_err().to_string();
        assert!(error.contains(&std::process::id().to_string()), "{error}");
        drop(first);
        PartLock::take(&path).unwrap();
    }
}
