//! A part's lock: `flock` on `run/PART.lock`, which holds the pid of its owner.

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a predecessor may take to be gone: a child that it was starting when it
/// was killed shares its lock until it executes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Held as long as the value lives.
#[derive(Debug)]
pub struct PartLock(#[allow(dead_code, reason = "its life is the lock's")] File);

impl PartLock {
    /// Takes the lock at `path`, or says who has it and does not let go.
    pub fn take(path: &Path) -> io::Result<Self> {
        Self::take_within(path, PATIENCE)
    }

    fn take_within(path: &Path, patience: Duration) -> io::Result<Self> {
        let until = Instant::now() + patience;
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(path)?;
        while let Err(error) = flock(&file, FlockOperation::NonBlockingLockExclusive) {
            if error != Errno::WOULDBLOCK {
                return Err(error.into());
            }
            if Instant::now() > until {
                let mut pid = String::new();
                file.read_to_string(&mut pid)?;
                return Err(io::Error::other(format!(
                    "{} is held by process {}",
                    path.display(),
                    pid.trim()
                )));
            }
            std::thread::sleep(Duration::from_millis(20));
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
        let error = PartLock::take_within(&path, Duration::ZERO).unwrap_err();
        let pid = std::process::id().to_string();
        assert!(error.to_string().contains(&pid), "{error}");
        let leaving = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(100));
            drop(first);
        });
        PartLock::take(&path).unwrap();
        leaving.join().unwrap();
    }
}
