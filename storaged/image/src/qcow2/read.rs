//! The clusters of the active state, in the disk's order.

use super::{COMPRESSED, COPIED, Header, OFFSET, ZERO};
use crate::{ImageError, Source};
use flate2::{Decompress, FlushDecompress};

/// Entries of the L1 table that are read at once.
const L1_BATCH: u64 = 512;
/// Deflated clusters are stated in these.
const SECTOR_BYTES: u64 = 512;

/// Where a cluster lies.
enum Place {
    Nowhere,
    Data(u64),
    Deflated { at: u64, len: u64 },
}

/// How much of the file may still be read. A sound file holds each cluster once, so
/// all that is read of it is no more than it has; a file that says otherwise grows
/// without end from few bytes.
struct Budget {
    tables: u64,
    bytes: u64,
}

impl Header {
    /// Calls `each` with every cluster that holds something: its place on the disk and
    /// its bytes, cut at the disk's end.
    pub(crate) fn clusters<E: From<ImageError>>(
        &self,
        source: &impl Source,
        mut each: impl FnMut(u64, &[u8]) -> Result<(), E>,
    ) -> Result<(), E> {
        let cluster = self.cluster_bytes();
        let mut buffers = Buffers::new(cluster);
        let mut budget = Budget {
            tables: self.file_bytes / cluster,
            bytes: self.file_bytes,
        };
        let mut entries = vec![0; 8 * L1_BATCH as usize];
        let mut table = vec![0; cluster as usize];
        for first in (0..self.l1_entries).step_by(L1_BATCH as usize) {
            let n = (self.l1_entries - first).min(L1_BATCH);
            let entries = &mut entries[..8 * n as usize];
            let read = source.read_exact_at(entries, self.l1_at + 8 * first);
            read.map_err(ImageError::from)?;
            for (entry, index) in words(entries).zip(first..) {
                let Some(at) = self.table(index, entry, &mut budget)? else {
                    continue;
                };
                let read = source.read_exact_at(&mut table, at);
                read.map_err(ImageError::from)?;
                for (entry, number) in words(&table).zip(index * (cluster / 8)..) {
                    let disk = number * cluster;
                    if disk >= self.size_bytes {
                        break;
                    }
                    let want = (self.size_bytes - disk).min(cluster);
                    let place = self.place(number, entry, want)?;
                    let context = (number, entry);
                    if let Some(bytes) =
                        buffers.load(self, source, context, &place, want, &mut budget)?
                    {
                        each(disk, bytes)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Where the L2 table of an L1 entry is.
    fn table(
        &self,
        index: u64,
        value: u64,
        budget: &mut Budget,
    ) -> Result<Option<u64>, ImageError> {
        let bad = |why| {
            Err(ImageError::Entry {
                table: "L1",
                index,
                value,
                why,
            })
        };
        if value & !(COPIED | OFFSET) != 0 {
            return bad("has reserved bits");
        }
        let at = value & OFFSET;
        if at == 0 {
            return Ok(None);
        }
        if !at.is_multiple_of(self.cluster_bytes()) {
            return bad("is not the start of a cluster");
        }
        if at + self.cluster_bytes() > self.file_bytes {
            return bad("is a table past the file's end");
        }
        if budget.tables == 0 {
            return bad("is one of more tables than the file can hold");
        }
        budget.tables -= 1;
        Ok(Some(at))
    }

    /// Where the cluster of an L2 entry is, of which `want` bytes are wanted.
    fn place(&self, index: u64, value: u64, want: u64) -> Result<Place, ImageError> {
        let bad = |why| {
            Err(ImageError::Entry {
                table: "L2",
                index,
                value,
                why,
            })
        };
        if value & COMPRESSED != 0 {
            // Bits 0 to x-1 are a byte's offset; from there to 61: further sectors.
            let x = 62 - (self.cluster_bits - 8);
            let at = value & ((1 << x) - 1);
            let sectors = (value & (COMPRESSED - 1)) >> x;
            let end = at / SECTOR_BYTES * SECTOR_BYTES + (sectors + 1) * SECTOR_BYTES;
            if value & COPIED != 0 {
                return bad("is deflated, and marked as used once");
            }
            if at >= self.file_bytes {
                return bad("is deflated bytes past the file's end");
            }
            let len = end.min(self.file_bytes) - at;
            return Ok(Place::Deflated { at, len });
        }
        let zero = if self.version >= 3 { ZERO } else { 0 };
        if value & !(COPIED | OFFSET | zero) != 0 {
            return bad("has reserved bits");
        }
        let at = value & OFFSET;
        if !at.is_multiple_of(self.cluster_bytes()) {
            return bad("is not the start of a cluster");
        }
        if value & zero != 0 || at == 0 {
            return Ok(Place::Nowhere);
        }
        // The last cluster of a file may be cut behind what the disk has of it.
        if at + want > self.file_bytes {
            return bad("is a cluster past the file's end");
        }
        Ok(Place::Data(at))
    }
}

fn words(bytes: &[u8]) -> impl Iterator<Item = u64> + '_ {
    let (words, _) = bytes.as_chunks::<8>();
    words.iter().map(|word| u64::from_be_bytes(*word))
}

/// A cluster's bytes, and its deflated ones.
struct Buffers {
    plain: Vec<u8>,
    deflated: Vec<u8>,
    inflate: Decompress,
}

impl Buffers {
    fn new(cluster: u64) -> Self {
        Self {
            plain: vec![0; cluster as usize],
            deflated: Vec::new(),
            inflate: Decompress::new(false),
        }
    }

    /// The first `want` bytes of the cluster that entry `index`, `value` speaks of.
    fn load(
        &mut self,
        header: &Header,
        source: &impl Source,
        (index, value): (u64, u64),
        place: &Place,
        want: u64,
        budget: &mut Budget,
    ) -> Result<Option<&[u8]>, ImageError> {
        let bad = |why| ImageError::Entry {
            table: "L2",
            index,
            value,
            why,
        };
        let used = match *place {
            Place::Nowhere => return Ok(None),
            Place::Data(at) => {
                source.read_exact_at(&mut self.plain[..want as usize], at)?;
                want
            }
            Place::Deflated { at, len } => {
                // Deflate never needs more than this; the rest is a neighbour's.
                let len = len.min(2 * header.cluster_bytes());
                self.deflated.resize(len as usize, 0);
                source.read_exact_at(&mut self.deflated, at)?;
                self.inflate.reset(false);
                let (input, output) = (&self.deflated, &mut self.plain);
                let outcome = self
                    .inflate
                    .decompress(input, output, FlushDecompress::Finish);
                if outcome.is_err() || self.inflate.total_out() < header.cluster_bytes() {
                    return Err(bad("is a cluster that does not inflate"));
                }
                self.inflate.total_in()
            }
        };
        let left = budget.bytes.checked_sub(used);
        budget.bytes = left.ok_or_else(|| bad("is one of more bytes than the file has"))?;
        Ok(Some(&self.plain[..want as usize]))
    }
}
