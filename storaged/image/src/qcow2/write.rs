//! Where things go in a file that we write.
//!
//! ```text
//! | header | L1 table | L2 table, its clusters | L2 table, … | refcount blocks | table |
//! ```
//! Clusters come in the disk's order, each L2 table before the first cluster that it
//! speaks of; every cluster of the file is used once. The header is written last: a
//! file that is not whole is no image.

use super::{COPIED, MAGIC};
use crate::{CHUNK_BYTES, ImageError, Sink};

const CLUSTER: u64 = CHUNK_BYTES as u64;
const CLUSTER_BITS: u32 = CLUSTER.trailing_zeros();
const ENTRIES: u64 = CLUSTER / 8;
/// A refcount has 2 to the power of this bits.
const REFCOUNT_ORDER: u32 = 4;
const COUNTS: u64 = CLUSTER / 2;
const HEADER_BYTES: u32 = 104;

/// A file as far as it is laid out.
pub(crate) struct Layout {
    size_bytes: u64,
    l1: Vec<u64>,
    /// The L2 table that is filled now: its number and entries.
    table: Option<(u64, Vec<u8>)>,
    /// Clusters of the file that are given out.
    used: u64,
}

impl Layout {
    pub(crate) fn new(size_bytes: u64) -> Self {
        let tables = size_bytes.div_ceil(CLUSTER * ENTRIES);
        Self {
            size_bytes,
            l1: vec![0; tables as usize],
            table: None,
            used: 1 + (8 * tables).div_ceil(CLUSTER),
        }
    }

    fn take(&mut self) -> u64 {
        self.used += 1;
        (self.used - 1) * CLUSTER
    }

    /// Where cluster `number` of the disk goes.
    pub(crate) fn place(&mut self, sink: &mut impl Sink, number: u64) -> Result<u64, ImageError> {
        let (index, entry) = (number / ENTRIES, (number % ENTRIES) as usize);
        if self.table.as_ref().is_none_or(|(at, _)| *at != index) {
            self.flush(sink)?;
            self.l1[index as usize] = self.take() | COPIED;
            self.table = Some((index, vec![0; CLUSTER as usize]));
        }
        let at = self.take();
        if let Some((_, bytes)) = &mut self.table {
            bytes[8 * entry..8 * entry + 8].copy_from_slice(&(at | COPIED).to_be_bytes());
        }
        Ok(at)
    }

    fn flush(&mut self, sink: &mut impl Sink) -> Result<(), ImageError> {
        if let Some((index, bytes)) = self.table.take() {
            sink.write_all_at(&bytes, self.l1[index as usize] & !COPIED)?;
        }
        Ok(())
    }

    /// Writes what is left, the header last.
    pub(crate) fn finish(mut self, sink: &mut impl Sink) -> Result<(), ImageError> {
        self.flush(sink)?;
        let l1: Vec<u8> = self.l1.iter().flat_map(|e| e.to_be_bytes()).collect();
        sink.write_all_at(&l1, CLUSTER)?;
        // The blocks count themselves and their table too.
        let (mut blocks, mut table) = (0, 0);
        while blocks * COUNTS < self.used + blocks + table {
            blocks = (self.used + blocks + table).div_ceil(COUNTS);
            table = blocks.div_ceil(ENTRIES);
        }
        let first = self.used;
        self.used += blocks + table;
        let mut entries = Vec::new();
        for block in 0..blocks {
            let at = (first + block) * CLUSTER;
            let counted = (self.used - block * COUNTS).min(COUNTS);
            let mut counts = 1u16.to_be_bytes().repeat(counted as usize);
            counts.resize(CLUSTER as usize, 0);
            sink.write_all_at(&counts, at)?;
            entries.extend(at.to_be_bytes());
        }
        let table_at = (first + blocks) * CLUSTER;
        entries.resize((table * CLUSTER) as usize, 0);
        sink.write_all_at(&entries, table_at)?;
        sink.set_len(self.used * CLUSTER)?;
        sink.write_all_at(&self.header(table_at, table), 0)?;
        Ok(())
    }

    fn header(&self, refcounts_at: u64, refcount_clusters: u64) -> Vec<u8> {
        let mut header = Vec::with_capacity(HEADER_BYTES as usize + 8);
        let mut u32s = |words: &[u32]| header.extend(words.iter().flat_map(|w| w.to_be_bytes()));
        let split = |word: u64| [(word >> 32) as u32, word as u32];
        u32s(&[u32::from_be_bytes(MAGIC), 3]);
        // No backing file.
        u32s(&[0, 0, 0]);
        u32s(&[CLUSTER_BITS]);
        u32s(&split(self.size_bytes));
        // No encryption; the L1 table.
        u32s(&[0, self.l1.len() as u32]);
        u32s(&split(if self.l1.is_empty() { 0 } else { CLUSTER }));
        u32s(&split(refcounts_at));
        // No snapshots; no features; no extensions behind the header.
        u32s(&[refcount_clusters as u32, 0, 0, 0]);
        u32s(&[0; 6]);
        u32s(&[REFCOUNT_ORDER, HEADER_BYTES]);
        u32s(&[0; 2]);
        header
    }
}
