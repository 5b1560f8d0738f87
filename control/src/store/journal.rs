//! The journal: what is decided reaches the disk here first, with one write and one sync for
//! all that wait. Two files take turns.
//!
//! ```text
//!   store.0.journal  ▓▓▓▓▓▓░░░░  is written
//!   store.1.journal  ▓▓▓▓▓▓▓▓▓▓  goes into the tree, and is then written anew from its start
//!
//!   record: length u32 · CRC-32 u32 · (pass, [(revision, writes)]), in postcard
//! ```
//! A pass is one filling of a file, known by a number drawn at random: what an earlier one
//! left behind a shorter one is not taken for its continuation. A record that a crash cut
//! short ends the file; nobody was told of what it held.

use super::{Revision, StoreError, Write};
use serde::Deserialize;
use std::fs::File;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// Transactions that became durable together, in the order of their revisions.
pub type Group = Vec<(Revision, Vec<Write>)>;
/// The same, in the bytes of a file.
pub type Held<'a> = Vec<(Revision, Vec<HeldWrite<'a>>)>;

/// A [`Write`], in the bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
pub struct HeldWrite<'a> {
    /// The key.
    pub key: &'a str,
    /// New value; none: deleted.
    #[serde(borrow, with = "serde_bytes")]
    pub value: Option<&'a [u8]>,
}

/// A file that has reached this is set aside. What it holds goes into the tree by one
/// transaction, whose pages are in memory until it is written: this bounds them.
const FULL_BYTES: u64 = 256 << 10;
/// The file grows by this much, written in advance: a sync of blocks that are there already
/// has no change of the file system's own to wait for.
const STEP_BYTES: u64 = 128 << 10;
const HEADER_BYTES: usize = 8;

/// One of the two files.
pub struct Journal {
    /// Where it is.
    pub path: PathBuf,
    file: File,
    pass: u64,
    at: u64,
    /// What of the file was written before, if only with zeros.
    ready: u64,
}

fn failed(error: impl std::fmt::Display) -> StoreError {
    StoreError::Failed(format!("its journal: {error}"))
}

impl Journal {
    /// Opens a file, or makes it. It is then written from its start: what it holds has to be
    /// elsewhere first.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn open(path: PathBuf) -> Result<Self, StoreError> {
        let mut options = File::options();
        options.write(true).create(true).truncate(false).mode(0o600);
        let file = options.open(&path).map_err(failed)?;
        let ready = file.metadata().map_err(failed)?.len();
        let mut journal = Self {
            path,
            file,
            pass: 0,
            at: 0,
            ready,
        };
        journal.restart()?;
        Ok(journal)
    }

    /// Begins a new pass.
    ///
    /// # Errors
    /// [`StoreError::Failed`] without randomness.
    pub fn restart(&mut self) -> Result<(), StoreError> {
        let mut pass = [0; 8];
        getrandom::fill(&mut pass).map_err(failed)?;
        self.pass = u64::from_le_bytes(pass);
        self.at = 0;
        Ok(())
    }

    /// Whether it is to be set aside.
    pub fn is_full(&self) -> bool {
        self.at >= FULL_BYTES
    }

    /// Writes a group down; it survives a power cut once this returns.
    ///
    /// # Errors
    /// [`StoreError::Failed`]; the file is then of no more use.
    pub fn append(&mut self, group: &Group) -> Result<(), StoreError> {
        let record = vec![0; HEADER_BYTES];
        let mut record = postcard::to_extend(&(self.pass, group), record).map_err(failed)?;
        let body = &record[HEADER_BYTES..];
        let length = u32::try_from(body.len()).map_err(failed)?;
        let sum = crc32fast::hash(body);
        record[..4].copy_from_slice(&length.to_le_bytes());
        record[4..HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        let end = self.at + record.len() as u64;
        if end > self.ready {
            let ready = end.next_multiple_of(STEP_BYTES);
            let zeros = vec![0; usize::try_from(ready - self.ready).map_err(failed)?];
            self.file.write_all_at(&zeros, self.ready).map_err(failed)?;
            self.ready = ready;
        }
        self.file.write_all_at(&record, self.at).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        self.at = end;
        Ok(())
    }
}

/// The bytes of a file; none where there is no file.
///
/// # Errors
/// [`StoreError::Failed`].
pub fn read(path: &Path) -> Result<Vec<u8>, StoreError> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
        read => read.map_err(failed),
    }
}

/// The groups of a file's last pass.
pub fn groups(mut bytes: &[u8]) -> Vec<Held<'_>> {
    let mut groups = Vec::new();
    let mut of = None;
    while let Some((pass, group, rest)) = record(bytes) {
        if *of.get_or_insert(pass) != pass {
            break;
        }
        groups.push(group);
        bytes = rest;
    }
    groups
}

/// The record that some bytes begin with: its pass, what it holds, and what follows it.
fn record(bytes: &[u8]) -> Option<(u64, Held<'_>, &[u8])> {
    let (length, bytes) = bytes.split_first_chunk()?;
    let (sum, bytes) = bytes.split_first_chunk()?;
    let length = usize::try_from(u32::from_le_bytes(*length)).ok()?;
    let (body, rest) = bytes.split_at_checked(length)?;
    if crc32fast::hash(body) != u32::from_le_bytes(*sum) {
        return None;
    }
    let (pass, group) = postcard::from_bytes(body).ok()?;
    Some((pass, group, rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn group(revision: Revision, bytes: usize) -> Group {
        let write = Write {
            key: format!("k{revision}"),
            value: Some(vec![7; bytes]),
        };
        vec![(revision, vec![write])]
    }

    /// The revisions that a file holds, and that their values are whole.
    fn held(path: &Path, bytes: usize) -> Vec<Revision> {
        let file = read(path).unwrap();
        let groups = groups(&file);
        let writes = groups.iter().flatten().flat_map(|(_, writes)| writes);
        assert!(
            writes
                .clone()
                .all(|write| write.value == Some(&vec![7; bytes][..]))
        );
        groups
            .iter()
            .flatten()
            .map(|(revision, _)| *revision)
            .collect()
    }

    #[test]
    fn a_shorter_pass_does_not_continue_with_the_longer_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        assert!(held(&path, 0).is_empty());
        let mut journal = Journal::open(path.clone()).unwrap();
        for revision in 1..=3 {
            journal.append(&group(revision, 10)).unwrap();
        }
        assert_eq!(held(&path, 10), [1, 2, 3]);
        journal.restart().unwrap();
        journal.append(&group(4, 10)).unwrap();
        assert_eq!(held(&path, 10), [4]);
    }

    #[test]
    fn a_record_that_was_cut_short_ends_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(path.clone()).unwrap();
        journal.append(&group(1, 100)).unwrap();
        let whole = journal.at;
        journal.append(&group(2, 100)).unwrap();
        let end = journal.at;
        let kept = std::fs::read(&path).unwrap();
        let file = File::options().write(true).open(&path).unwrap();
        for cut in whole..end {
            let zeros = vec![0; usize::try_from(end - cut).unwrap()];
            file.write_all_at(&zeros, cut).unwrap();
            assert_eq!(held(&path, 100), [1], "cut at {cut}");
            file.write_all_at(&kept, 0).unwrap();
        }
        assert_eq!(held(&path, 100), [1, 2]);
    }

    #[test]
    fn it_grows_in_steps_and_is_full_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let mut journal = Journal::open(path.clone()).unwrap();
        let (bytes, mut revision) = (30_000, 0);
        while !journal.is_full() {
            revision += 1;
            journal.append(&group(revision, bytes)).unwrap();
            let length = std::fs::metadata(&path).unwrap().len();
            assert_eq!((length, length % STEP_BYTES), (journal.ready, 0));
            assert!(length < journal.at + STEP_BYTES);
        }
        assert_eq!(revision, FULL_BYTES.div_ceil(bytes as u64));
        assert_eq!(held(&path, bytes).len() as u64, revision);
    }
}
