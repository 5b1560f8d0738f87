//! Reads: from the layer that has the grain, or zeros.

use super::detour::{Detour, State, pieces, total};
use super::head::{Head, Target, Turn};
use crate::crypt::{BLOCK_BYTES, is_zero};
use crate::shard::op::{Op, Vector};

impl Head {
    pub(super) fn read(&mut self, d: &mut Detour, vector: &Vector) -> Turn {
        let asked = total(pieces(vector)).min(1 << 30);
        let (place, len) = self.map.extent(vector.offset, asked);
        let Some(layer) = place.index() else {
            d.keep(vector, len);
            // SAFETY: pieces are guest memory or a window, valid for the operation.
            d.each(|at, len| unsafe { at.write_bytes(0, len) });
            return Turn::Done(len as i32);
        };
        if self.foreign[layer] {
            d.keep(vector, len);
            (d.state, d.grain, d.answers) = (State::Transcoding, layer as u64, len);
            return Turn::Submit(
                Target::Layer(layer),
                Op::Readv(d.rest(vector, vector.offset)),
            );
        }
        Turn::Submit(Target::Layer(layer), Op::Readv(cut(d, vector, len)))
    }

    /// A piece of a shared layer came; once it is whole, puts it under our own key,
    /// which whoever asked for it is about to take off.
    pub(super) fn transcoded(&mut self, d: &mut Detour, result: i32) -> Turn {
        let Some(Op::Readv(vector)) = d.op else {
            return Turn::Done(-libc::EIO);
        };
        if result < 0 {
            return Turn::Done(result);
        }
        let left = total(&d.pieces);
        if result == 0 {
            // SAFETY: as in `read`; only what is left of the pieces.
            d.each(|at, len| unsafe { at.write_bytes(0, len) });
        }
        d.pass(result.unsigned_abs() as usize);
        let left = if result == 0 {
            0
        } else {
            left - u64::from(result.unsigned_abs())
        };
        if left > 0 {
            let at = vector.offset + d.answers - left;
            return Turn::Submit(
                Target::Layer(d.grain as usize),
                Op::Readv(d.rest(&vector, at)),
            );
        }
        d.keep(&vector, d.answers);
        let (mut offset, mut whole) = (vector.offset, true);
        let layer = d.grain as usize;
        d.each(|at, len| {
            whole &= (offset | len as u64).is_multiple_of(BLOCK_BYTES as u64);
            if whole {
                // SAFETY: a window of ours: encrypted volumes read through those alone.
                let bytes = unsafe { std::slice::from_raw_parts_mut(at, len) };
                self.transcode(layer, bytes, offset);
            }
            offset += len as u64;
        });
        Turn::Done(if whole { d.answers as i32 } else { -libc::EIO })
    }

    /// From a layer's key, or none, to the last layer's.
    pub(super) fn transcode(&self, layer: usize, bytes: &mut [u8], offset: u64) {
        if !self.foreign[layer] {
            return;
        }
        let block = offset / BLOCK_BYTES as u64;
        if let Some(key) = &self.layers[layer].key {
            key.decrypt(bytes, block);
        }
        if let Some(key) = self.layers.last().and_then(|own| own.key.as_ref()) {
            for (bytes, block) in bytes.chunks_exact_mut(BLOCK_BYTES).zip(block..) {
                if !is_zero(bytes) {
                    key.encrypt(bytes, block);
                }
            }
        }
    }
}

/// `vector` up to `len` bytes; itself where it has no more.
pub(super) fn cut(d: &mut Detour, vector: &Vector, len: u64) -> Vector {
    if total(pieces(vector)) == len {
        return *vector;
    }
    d.keep(vector, len);
    d.rest(vector, vector.offset)
}
