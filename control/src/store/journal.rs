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
use std::fs::File;
use std::io::Read as _;
use std::os::unix::fs::{FileExt as _, OpenOptionsExt as _};
use std::path::Path;

/// Transactions that became durable together, in the order of their revisions.
pub type Group = Vec<(Revision, Vec<Write>)>;

/// A file that has reached this is set aside.
const FULL_BYTES: u64 = 1 << 20;
/// The file grows by this much, written in advance: a sync of blocks that are there already
/// has no change of the file system's own to wait for.
const STEP_BYTES: u64 = 1 << 20;
const HEADER_BYTES: usize = 8;

/// One of the two files.
pub struct Journal {
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
    /// Opens a file, or makes it, and gives what its last pass holds. It is then written from
    /// its start: what was given has to be elsewhere first.
    ///
    /// # Errors
    /// [`StoreError::Failed`].
    pub fn open(path: &Path) -> Result<(Self, Vec<Group>), StoreError> {
        let mut options = File::options();
        options.read(true).write(true).create(true).mode(0o600);
        let mut file = options.open(path).map_err(failed)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes).map_err(failed)?;
        let mut journal = Self {
            file,
            pass: 0,
            at: 0,
            ready: bytes.len() as u64,
        };
        journal.restart()?;
        Ok((journal, groups(&bytes)))
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

/// The groups of a file's last pass.
fn groups(mut bytes: &[u8]) -> Vec<Group> {
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
fn record(bytes: &[u8]) -> Option<(u64, Group, &[u8])> {
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

    #[test]
    fn a_shorter_pass_does_not_continue_with_the_longer_one_before_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, before) = Journal::open(&path).unwrap();
        assert!(before.is_empty());
        for revision in 1..=3 {
            journal.append(&group(revision, 10)).unwrap();
        }
        journal.restart().unwrap();
        journal.append(&group(4, 10)).unwrap();
        let (_, held) = Journal::open(&path).unwrap();
        assert_eq!(held, [group(4, 10)]);
    }

    #[test]
    fn a_record_that_was_cut_short_ends_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        journal.append(&group(1, 100)).unwrap();
        let whole = journal.at;
        journal.append(&group(2, 100)).unwrap();
        let end = journal.at;
        for cut in whole..end {
            let file = File::options().write(true).open(&path).unwrap();
            let kept = std::fs::read(&path).unwrap();
            file.write_all_at(&vec![0; usize::try_from(end - cut).unwrap()], cut)
                .unwrap();
            let (_, held) = Journal::open(&path).unwrap();
            assert_eq!(held, [group(1, 100)], "cut at {cut}");
            file.write_all_at(&kept, 0).unwrap();
        }
        let (_, held) = Journal::open(&path).unwrap();
        assert_eq!(held, [group(1, 100), group(2, 100)]);
    }

    #[test]
    fn it_grows_in_steps_and_is_full_at_last() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("journal");
        let (mut journal, _) = Journal::open(&path).unwrap();
        let mut revision = 0;
        while !journal.is_full() {
            revision += 1;
            journal.append(&group(revision, 1 << 20)).unwrap();
            let bytes = std::fs::metadata(&path).unwrap().len();
            assert_eq!((bytes, bytes % STEP_BYTES), (journal.ready, 0));
        }
        assert_eq!(revision, 1);
        let (_, held) = Journal::open(&path).unwrap();
        assert_eq!(held.len(), 1);
    }
}
