//! What is known of an instance store after its end, and what its bytes looked like.
//!
//! Its bytes at rest are ciphertext under a key that is destroyed with the volume. That
//! they are is looked at while they are still there: a sample of blocks, spread evenly,
//! each held to a uniform distribution of bytes. Text, code, tables and file systems
//! fail that by far; what is compressed may pass, so the test is one of the encryption,
//! not of a guest's honesty.

use super::Volumes;
use super::content;
use super::refusal::{Refused, check_name, failed, refused};
use super::table::{Erased, Looks, Record};
use super::volume::Store;
use crate::cow::log::Trust;
use crate::cow::store;
use crate::crypt::{BLOCK_BYTES, is_zero};
use ocs_storaged_api::{Erasure, ErrorCode, VolumeKind, VolumeName};
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::time::{SystemTime, UNIX_EPOCH};

/// Blocks of a volume that are looked at, at most: of a volume that is not encrypted even
/// one tells, and a slow disk reads so many in two seconds.
const SAMPLE_BLOCKS: u64 = 256;
/// Ranges of data that are counted; a file in more pieces is sampled in these.
const MAX_RANGES: usize = 65_536;
/// Pearson's χ² of 4,096 random bytes over 256 values has mean 255 and deviation 22.6;
/// past this it is 10 deviations off.
const MOST_CHI_SQUARE: u64 = 481;

impl Volumes {
    /// What there is to say of the erasure of an instance store.
    pub(super) fn attest_erasure(&self, volume: &VolumeName) -> Result<Erasure, Refused> {
        let name = check_name(volume)?;
        let _claim = self.claim(name);
        let erased = match self.find(name) {
            Some((record, _)) if record.kind == VolumeKind::Persistent => {
                let why = format!("{name} is persistent: its key is kept, wrapped");
                return Err(refused(ErrorCode::Invalid, why));
            }
            Some((record, volume)) => {
                if !volume.is_key_lost(&record, record.attached.is_some()) {
                    let why = format!("{name} is in use: its key is held, and deleted with it");
                    return Err(refused(ErrorCode::Conflict, why));
                }
                let lost = self.store.look(name, &record);
                (lost.map_err(|error| failed(name, &error))?, None)
            }
            None => {
                let erased = self.store.table().erased(name);
                let none = || {
                    let why = format!("no instance store {name} was deleted, or too long ago");
                    refused(ErrorCode::NotFound, why)
                };
                let erased = erased.ok_or_else(none)?;
                let at_s = erased.at_s;
                (erased, Some(at_s))
            }
        };
        let (erased, erased_at_s) = erased;
        let left = |file: &&String| self.store.dir.join(file).exists();
        Ok(Erasure {
            erased_at_s,
            files: erased.files.iter().filter(left).cloned().collect(),
            traces: erased.traces,
            blocks: erased.looks.blocks,
            blocks_sampled: erased.looks.sampled,
            blocks_plain: erased.looks.plain,
            pid: std::process::id(),
        })
    }
}

impl Store {
    /// What is remembered of volume `name`, which is about to end; nothing of persistent
    /// ones, or of one that cannot be looked at.
    pub fn erased(&self, name: &str, record: &Record) -> Option<Erased> {
        if record.kind == VolumeKind::Persistent {
            return None;
        }
        let looked = self.look(name, record);
        looked
            .inspect_err(|error| tracing::error!(volume = name, %error, "not looked at"))
            .ok()
    }

    fn look(&self, name: &str, record: &Record) -> io::Result<Erased> {
        let mut files = vec![format!("{name}.raw"), format!("{name}.map")];
        let own = if self.is_layered(name) {
            let (found, _) = store::load(&self.dir, name, Trust::Committed)?;
            let own = found.layers.into_iter().last();
            let own = own.ok_or(io::ErrorKind::InvalidData)?.file;
            files.push(own.clone());
            self.dir.join(own)
        } else {
            content::path(&self.dir, name)
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH);
        Ok(Erased {
            at_s: now.map_or(0, |now| now.as_secs()),
            traces: record.key_traces.clone(),
            files,
            looks: looks(&File::open(own)?)?,
        })
    }
}

/// Looks at blocks of data in `file`.
fn looks(file: &File) -> io::Result<Looks> {
    let block = BLOCK_BYTES as u64;
    let mut ranges = Vec::new();
    store::extents(file, |start, end| {
        if ranges.len() < MAX_RANGES {
            ranges.push((start / block, end.div_ceil(block)));
        }
        Ok(())
    })?;
    let blocks = ranges.iter().map(|(start, end)| end - start).sum::<u64>();
    let step = blocks.div_ceil(SAMPLE_BLOCKS).max(1);
    let mut looks = Looks {
        blocks,
        ..Looks::default()
    };
    let mut bytes = [0; BLOCK_BYTES];
    // How many blocks of data lie before the one to look at.
    let mut skip = 0;
    for (start, end) in ranges {
        while start + skip < end {
            let read = file.read_exact_at(&mut bytes, (start + skip) * block);
            match read {
                // A file's last block may be cut.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {}
                read => {
                    read?;
                    looks.sampled += 1;
                    looks.plain += u64::from(!is_zero(&bytes) && !is_uniform(&bytes));
                }
            }
            skip += step;
        }
        skip -= end - start;
    }
    Ok(looks)
}

/// Are the bytes as random ones would be?
fn is_uniform(bytes: &[u8; BLOCK_BYTES]) -> bool {
    let mut counts = [0u64; 256];
    for byte in bytes {
        counts[usize::from(*byte)] += 1;
    }
    let expected = BLOCK_BYTES as u64 / 256;
    let squares = counts.iter().map(|count| count.abs_diff(expected).pow(2));
    squares.sum::<u64>() / expected <= MOST_CHI_SQUARE
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::crypt::Key;

    #[test]
    fn ciphertext_is_told_from_text_tables_and_code() {
        let key = Key::generate().unwrap();
        let text = b"attack at dawn, ".repeat(256);
        let table: Vec<u8> = (0..4096u32).map(|n| (n % 200) as u8).collect();
        let code = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let at = code.len() / 2 / BLOCK_BYTES * BLOCK_BYTES;
        for plain in [&text[..], &table, &code[at..at + BLOCK_BYTES]] {
            let mut block: [u8; BLOCK_BYTES] = plain.try_into().unwrap();
            assert!(!is_uniform(&block));
            for number in 0..200 {
                key.encrypt(&mut block, number);
                assert!(is_uniform(&block));
            }
        }
    }

    #[test]
    fn a_sample_is_spread_over_the_data_and_counts_what_it_sees() {
        let file = tempfile::tempfile().unwrap();
        file.set_len(64 << 20).unwrap();
        let key = Key::generate().unwrap();
        let mut bytes = vec![0; 8 << 20];
        key.encrypt(&mut bytes, 0);
        file.write_all_at(&bytes, 0).unwrap();
        file.write_all_at(&[7; BLOCK_BYTES], 32 << 20).unwrap();
        let whole = looks(&file).unwrap();
        assert_eq!((whole.blocks, whole.plain), (2049, 0));
        assert!(whole.sampled >= SAMPLE_BLOCKS / 2 && whole.sampled <= SAMPLE_BLOCKS);
        file.set_len(0).unwrap();
        file.write_all_at(&[7; 3 * BLOCK_BYTES], 0).unwrap();
        let plain = looks(&file).unwrap();
        assert_eq!((plain.blocks, plain.sampled, plain.plain), (3, 3, 3));
    }
}
