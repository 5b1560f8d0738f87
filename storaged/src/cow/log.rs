//! The map's file: a checkpoint, and behind it a log of what changed since.
//!
//! ```text
//! | header 64 | layers (JSON) | chunks | frame | frame | …
//! header: | magic 8 | boot id 16 | size_bytes 8 | layers_len 8 | chunks_len 8 |
//!         | crc of layers and chunks 4 | zeros 8 | crc of the bytes before 4 |
//! frame:  | kind 4 | count 4 | seq 8 | count × 8 | crc 4 | zeros 4 |
//! ```
//! All little-endian. Each frame's CRC goes on from that of the frame before it (the
//! first's from the header's), so a frame counts only as the end of an unbroken
//! chain: whatever lies behind a torn or missing one does not exist.
//!
//! A *changes* frame says which grains lie where from now on. A *commit* frame says
//! that the data which changes up to a number speak of is durable. What a reader may
//! believe depends on who died:
//!
//! * Only storaged (the boot id is the present one): the page cache is intact and
//!   with it every write that completed. All frames count.
//! * The host: frames may have reached the disk before the data that they speak of.
//!   Changes up to the last commit count, later ones never happened: their grains lie
//!   where they lay before, with what was flushed last.

use super::map::{Map, Place};
use serde::{Deserialize, Serialize};

/// Bytes of the header.
pub const HEADER_BYTES: usize = 64;
/// Bytes of a frame around its entries.
pub const FRAME_BYTES: usize = 24;
/// Most entries of a frame.
pub const MAX_ENTRIES: usize = 64;
const MAGIC: [u8; 8] = *b"OCSMAP1\n";
const MAX_LAYERS_BYTES: u64 = 1 << 20;
const CHANGES: u32 = 1;
const COMMIT: u32 = 2;
const COUNT_BITS: u32 = 20;
const PLACE_BITS: u32 = 8;
/// Most grains that one entry speaks of (64 GiB).
pub const MAX_COUNT: u64 = 1 << COUNT_BITS;

/// A host's boot, as `/proc/sys/kernel/random/boot_id` has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct BootId(pub [u8; 16]);

/// One layer of a volume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerRef {
    /// Its file's name.
    pub file: String,
    /// Its key, wrapped by the node's; absent where its bytes are plain, or where the
    /// key lives elsewhere (ephemeral volumes).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub key: Option<String>,
}

/// What a frame says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// `count` grains from `first` on lie in `place`.
    Change {
        /// First grain.
        first: u64,
        /// How many, 1 to [`MAX_COUNT`].
        count: u64,
        /// Where.
        place: Place,
    },
    /// The data of changes in frames up to this number is durable.
    Commit(u64),
}

impl Entry {
    fn kind(self) -> u32 {
        match self {
            Self::Change { .. } => CHANGES,
            Self::Commit(_) => COMMIT,
        }
    }

    fn word(self) -> u64 {
        match self {
            Self::Change {
                first,
                count,
                place,
            } => {
                first << (COUNT_BITS + PLACE_BITS) | (count - 1) << PLACE_BITS | u64::from(place.0)
            }
            Self::Commit(through) => through,
        }
    }

    fn change(word: u64) -> Self {
        Self::Change {
            first: word >> (COUNT_BITS + PLACE_BITS),
            count: (word >> PLACE_BITS & (MAX_COUNT - 1)) + 1,
            place: Place(word as u8),
        }
    }

    /// May both be in one frame?
    #[must_use]
    pub fn joins(self, other: Self) -> bool {
        matches!((self, other), (Self::Change { .. }, Self::Change { .. }))
    }
}

/// Where a log ends: what the next frame goes on from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tail {
    /// Offset in the file.
    pub at: u64,
    /// Number of the next frame.
    pub seq: u64,
    /// The last frame's CRC.
    pub crc: u32,
}

/// Writes a frame of `entries`, which join, into `into`; returns the tail behind it.
pub fn frame(tail: Tail, entries: &[Entry], into: &mut Vec<u8>) -> Tail {
    into.clear();
    let kind = entries.first().map_or(CHANGES, |entry| entry.kind());
    into.extend(kind.to_le_bytes());
    into.extend((entries.len() as u32).to_le_bytes());
    into.extend(tail.seq.to_le_bytes());
    for entry in entries {
        into.extend(entry.word().to_le_bytes());
    }
    let crc = chain(tail.crc, into);
    into.extend(u64::from(crc).to_le_bytes());
    Tail {
        at: tail.at + into.len() as u64,
        seq: tail.seq + 1,
        crc,
    }
}

fn chain(crc: u32, bytes: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new_with_initial(crc);
    hasher.update(bytes);
    hasher.finalize()
}

/// The bytes of a checkpoint, and where its log begins.
#[must_use]
pub fn checkpoint(
    boot: BootId,
    size_bytes: u64,
    layers: &[LayerRef],
    map: &Map,
) -> (Vec<u8>, Tail) {
    let json = serde_json::to_vec(layers).unwrap_or_default();
    let mut bytes = vec![0; HEADER_BYTES];
    bytes.extend(&json);
    map.encode(&mut bytes);
    let body = crc32fast::hash(&bytes[HEADER_BYTES..]);
    let chunks = (bytes.len() - HEADER_BYTES - json.len()) as u64;
    let mut header = Vec::with_capacity(HEADER_BYTES);
    header.extend(MAGIC);
    header.extend(boot.0);
    header.extend(size_bytes.to_le_bytes());
    header.extend((json.len() as u64).to_le_bytes());
    header.extend(chunks.to_le_bytes());
    header.extend(body.to_le_bytes());
    header.resize(HEADER_BYTES - 4, 0);
    let crc = crc32fast::hash(&header);
    header.extend(crc.to_le_bytes());
    bytes[..HEADER_BYTES].copy_from_slice(&header);
    let tail = Tail {
        at: bytes.len() as u64,
        seq: 1,
        crc,
    };
    (bytes, tail)
}

/// Why bytes are no map.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The header is torn, or of something else.
    #[error("the header is not a map's")]
    Header,
    /// The checkpoint's parts do not have the sums that the header states.
    #[error("the checkpoint is damaged")]
    Checkpoint,
    /// A layer's name or the number of layers is out of bounds.
    #[error("the layers are not a volume's")]
    Layers,
}

/// A map as it was when its writer died.
#[derive(Clone)]
pub struct Recovered {
    /// The volume's size.
    pub size_bytes: u64,
    /// Its layers; the last is the one that takes writes.
    pub layers: Vec<LayerRef>,
    /// Where its grains lie.
    pub map: Map,
    /// Changes that did not survive the host: their grains in the last layer hold
    /// nothing that counts.
    pub reverted: Vec<(u64, u64)>,
    /// Where the log ends.
    pub tail: Tail,
    /// The last commit.
    pub committed: u64,
    /// The boot in which it was written.
    pub boot: BootId,
}

/// How much of a log counts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Everything, if it was written in this boot; else what was committed.
    Since(BootId),
    /// What was committed.
    Committed,
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let mut word = [0; 8];
    word.copy_from_slice(&bytes[at..at + 8]);
    u64::from_le_bytes(word)
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[at..at + 4]);
    u32::from_le_bytes(word)
}

/// Reads a map's file; pure, and safe for any bytes.
pub fn recover(bytes: &[u8], trust: Trust) -> Result<Recovered, LogError> {
    let header = bytes.get(..HEADER_BYTES).ok_or(LogError::Header)?;
    let sum = u32_at(header, HEADER_BYTES - 4);
    if header[..8] != MAGIC || sum != crc32fast::hash(&header[..HEADER_BYTES - 4]) {
        return Err(LogError::Header);
    }
    let mut boot = BootId([0; 16]);
    boot.0.copy_from_slice(&header[8..24]);
    let (size_bytes, json, chunks) = (u64_at(header, 24), u64_at(header, 32), u64_at(header, 40));
    let rest = (bytes.len() - HEADER_BYTES) as u64;
    if json > MAX_LAYERS_BYTES || json.saturating_add(chunks) > rest {
        return Err(LogError::Checkpoint);
    }
    let end = HEADER_BYTES + (json + chunks) as usize;
    let body = &bytes[HEADER_BYTES..end];
    if crc32fast::hash(body) != u32_at(header, 48) {
        return Err(LogError::Checkpoint);
    }
    let (json, chunks) = body.split_at(json as usize);
    let layers: Vec<LayerRef> = serde_json::from_slice(json).map_err(|_| LogError::Layers)?;
    let plain =
        |l: &LayerRef| !l.file.is_empty() && !l.file.starts_with('.') && !l.file.contains('/');
    if layers.is_empty() || layers.len() > super::map::MAX_LAYERS || !layers.iter().all(plain) {
        return Err(LogError::Layers);
    }
    let map = Map::decode(size_bytes, layers.len(), chunks).ok_or(LogError::Checkpoint)?;
    let mut recovered = Recovered {
        size_bytes,
        layers,
        map,
        reverted: Vec::new(),
        tail: Tail {
            at: end as u64,
            seq: 1,
            crc: sum,
        },
        committed: 0,
        boot,
    };
    replay(&mut recovered, &bytes[end..], trust == Trust::Since(boot));
    Ok(recovered)
}

/// Calls `each` with the unbroken chain of frames; returns the tail behind it.
fn frames(log: &[u8], mut tail: Tail, mut each: impl FnMut(u64, u32, &[u8])) -> Tail {
    let start = tail.at;
    loop {
        let Some(rest) = log.get((tail.at - start) as usize..) else {
            return tail;
        };
        let Some(head) = rest.get(..16) else {
            return tail;
        };
        let (kind, count) = (u32_at(head, 0), u32_at(head, 4) as usize);
        let known = match kind {
            CHANGES => (1..=MAX_ENTRIES).contains(&count),
            COMMIT => count == 1,
            _ => false,
        };
        if !known || u64_at(head, 8) != tail.seq {
            return tail;
        }
        let len = FRAME_BYTES + 8 * count;
        let Some(frame) = rest.get(..len) else {
            return tail;
        };
        let crc = chain(tail.crc, &frame[..len - 8]);
        if u64_at(frame, len - 8) != u64::from(crc) {
            return tail;
        }
        each(tail.seq, kind, &frame[16..len - 8]);
        tail = Tail {
            at: tail.at + len as u64,
            seq: tail.seq + 1,
            crc,
        };
    }
}

fn replay(recovered: &mut Recovered, log: &[u8], all: bool) {
    let start = recovered.tail;
    let mut committed = 0;
    recovered.tail = frames(log, start, |_, kind, words| {
        if kind == COMMIT {
            committed = committed.max(u64_at(words, 0));
        }
    });
    recovered.committed = committed;
    let layers = recovered.layers.len();
    let (map, reverted) = (&mut recovered.map, &mut recovered.reverted);
    frames(log, start, |seq, kind, words| {
        for word in words.chunks_exact(8).filter(|_| kind == CHANGES) {
            let Entry::Change {
                first,
                count,
                place,
            } = Entry::change(u64_at(word, 0))
            else {
                continue;
            };
            if usize::from(place.0) > layers {
                continue;
            }
            if all || seq <= committed {
                map.set(first, count, place);
            } else {
                reverted.push((first, count));
            }
        }
    });
}

#[cfg(test)]
mod tests;
