//! A part's log: a file that it appends to by itself, so that it can log when
//! `ocs up` is dead, cut when it grows.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

/// A log is cut at this size; what was cut is kept once, as `PART.log.1`.
pub const MAX_BYTES: u64 = 8 << 20;

/// Opens a log to append to. Appending is what makes [`cut`] safe: the next line
/// of a running part lands at the new end.
pub fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .append(true)
        .create(true)
        .mode(0o600)
        .open(path)
}

/// Moves the log's content aside if it is longer than `max_bytes`. A line that
/// is written between copy and cut is lost.
pub fn cut(path: &Path, max_bytes: u64) -> io::Result<()> {
    match fs::metadata(path) {
        Ok(metadata) if metadata.len() > max_bytes => {}
        Ok(_) => return Ok(()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error),
    }
    let mut old = path.as_os_str().to_owned();
    old.push(".1");
    fs::copy(path, old)?;
    OpenOptions::new().write(true).open(path)?.set_len(0)
}

/// The last lines, to show when a part will not start.
pub fn tail(path: &Path, lines: usize) -> String {
    let text = fs::read(path).unwrap_or_default();
    let text = String::from_utf8_lossy(&text);
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn a_log_is_cut_under_its_writer() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("part.log");
        cut(&path, 10).unwrap();
        let mut writer = open(&path).unwrap();
        writer.write_all(b"first line\n").unwrap();
        cut(&path, 100).unwrap();
        cut(&path, 10).unwrap();
        writer.write_all(b"second\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "second\n");
        let old = fs::read_to_string(folder.path().join("part.log.1")).unwrap();
        assert_eq!(old, "first line\n");
        assert_eq!(tail(&path, 5), "second");
    }
}
