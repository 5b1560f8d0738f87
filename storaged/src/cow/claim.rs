//! Writes, and zeros: what takes grains over from the layers below.

use super::detour::{Detour, State, Then, pieces, total};
use super::head::{Head, Target, Turn, Wake};
use super::log::{Entry, MAX_COUNT};
use super::map::{GRAIN_BYTES, Place};
use super::read::cut;
use crate::crypt::BLOCK_BYTES;
use crate::shard::bounce::LARGE_BYTES;
use crate::shard::op::{Op, Vector};

impl Head {
    pub(super) fn write(&mut self, request: u32, d: &mut Detour, vector: &Vector) -> Turn {
        let asked = total(pieces(vector));
        let (place, len) = self.map.extent(vector.offset, asked);
        if place == self.top {
            let own = self.top.index().unwrap_or_default();
            return Turn::Submit(Target::Layer(own), Op::Writev(cut(d, vector, len)));
        }
        let grain = vector.offset / GRAIN_BYTES;
        let whole = if vector.offset.is_multiple_of(GRAIN_BYTES) {
            (len / GRAIN_BYTES).min(MAX_COUNT)
        } else {
            0
        };
        if !self.claim(request, d, grain, whole.max(1)) {
            return Turn::Wait;
        }
        if whole > 0 {
            d.answers = whole * GRAIN_BYTES;
            d.keep(vector, d.answers);
            return self.pass(d, vector);
        }
        d.answers = asked.min((grain + 1) * GRAIN_BYTES - vector.offset);
        d.keep(vector, d.answers);
        self.fill(request, d, place)
    }

    /// Claims grains, unless another request does already; then `request` waits.
    pub(super) fn claim(&mut self, request: u32, d: &mut Detour, first: u64, count: u64) -> bool {
        let meets = |(at, n): &(u64, u64)| first < at + n && *at < first + count;
        if self.claims.iter().any(meets) {
            d.state = State::Behind;
            self.behind.push(request);
            return false;
        }
        self.claims.push((first, count));
        (d.grain, d.count) = (first, count);
        true
    }

    pub(super) fn unclaim(&mut self, d: &mut Detour) {
        self.give_window(d);
        self.claims.retain(|claim| *claim != (d.grain, d.count));
        let again = |request| (request, Wake::Again);
        self.woken.extend(self.behind.drain(..).map(again));
    }

    pub(super) fn give_window(&mut self, d: &mut Detour) {
        if let Some(window) = d.window.take() {
            self.windows.give(window);
            let again = |request| (request, Wake::Again);
            self.woken.extend(self.windowless.drain(..).map(again));
        }
    }

    /// Whole grains straight from the guest.
    pub(super) fn pass(&mut self, d: &mut Detour, vector: &Vector) -> Turn {
        d.state = State::Passing;
        let at = d.grain * GRAIN_BYTES + d.answers - total(&d.pieces);
        let own = self.layers.len() - 1;
        Turn::Submit(Target::Layer(own), Op::Writev(d.rest(vector, at)))
    }

    /// The claimed grain's old bytes into a window.
    pub(super) fn fill(&mut self, request: u32, d: &mut Detour, place: Place) -> Turn {
        let Some(window) = self.windows.take(GRAIN_BYTES) else {
            self.unclaim(d);
            d.state = State::Windowless;
            self.windowless.push(request);
            return Turn::Wait;
        };
        (d.window, d.done, d.buffered) = (Some(window), 0, false);
        d.state = State::Filling;
        if place == Place::ZERO {
            self.fill_zeros(d);
            return self.merge(d);
        }
        self.window_op(d)
    }

    pub(super) fn fill_zeros(&mut self, d: &mut Detour) {
        if let Some(window) = d.window {
            self.windows.slice(window, LARGE_BYTES)[d.done..].fill(0);
            d.done = LARGE_BYTES;
        }
    }

    /// The rest of the window's transfer: from where the grain is, or to the last layer.
    pub(super) fn window_op(&mut self, d: &mut Detour) -> Turn {
        let Some(window) = d.window else {
            return Turn::Done(-libc::EIO);
        };
        let iov = d.window_iov.insert(libc::iovec {
            // SAFETY: done <= LARGE_BYTES.
            iov_base: unsafe { self.windows.at(window).add(d.done) }.cast(),
            iov_len: LARGE_BYTES - d.done,
        });
        let vector = Vector {
            direct: !d.buffered && d.done.is_multiple_of(BLOCK_BYTES),
            dsync: false,
            iov: &raw const *iov,
            count: 1,
            offset: d.grain * GRAIN_BYTES + d.done as u64,
        };
        if d.state == State::Storing {
            return Turn::Submit(Target::Layer(self.layers.len() - 1), Op::Writev(vector));
        }
        let from = self.map.get(d.grain).index().unwrap_or_default();
        Turn::Submit(Target::Layer(from), Op::Readv(vector))
    }

    /// The window holds the grain's old bytes: puts the new ones in.
    pub(super) fn merge(&mut self, d: &mut Detour) -> Turn {
        let (Some(window), Some(op)) = (d.window, d.op) else {
            return Turn::Done(-libc::EIO);
        };
        let base = d.grain * GRAIN_BYTES;
        let bytes = self.windows.slice(window, LARGE_BYTES);
        if let Some(layer) = self.map.get(d.grain).index() {
            self.transcode(layer, bytes, base);
        }
        match op {
            Op::Writev(vector) => {
                let mut at = (vector.offset - base) as usize;
                d.each(|from, len| {
                    // SAFETY: the pieces are valid for the operation, and the grain
                    // holds what this piece answers for.
                    let new = unsafe { std::slice::from_raw_parts(from, len) };
                    bytes[at..at + len].copy_from_slice(new);
                    at += len;
                });
            }
            _ => {
                let at = (d.cursor - base) as usize;
                bytes[at..at + d.answers as usize].fill(0);
            }
        }
        (d.state, d.done) = (State::Storing, 0);
        self.window_op(d)
    }

    /// The next piece of what is to read as zeros.
    pub(super) fn zero(&mut self, request: u32, d: &mut Detour) -> Turn {
        let Some(Op::Allocate {
            mode,
            offset,
            len,
            must,
        }) = d.op
        else {
            return Turn::Done(-libc::EIO);
        };
        let end = offset + len;
        while d.cursor < end {
            let (place, len) = self.map.extent(d.cursor, end - d.cursor);
            if place == Place::ZERO {
                d.cursor += len;
                continue;
            }
            if place == self.top {
                (d.state, d.answers) = (State::Punching, len);
                let op = Op::Allocate {
                    mode,
                    offset: d.cursor,
                    len,
                    must,
                };
                return Turn::Submit(Target::Layer(self.layers.len() - 1), op);
            }
            let grain = d.cursor / GRAIN_BYTES;
            if d.cursor.is_multiple_of(GRAIN_BYTES) && len >= GRAIN_BYTES {
                let count = (len / GRAIN_BYTES).min(MAX_COUNT);
                if !self.claim(request, d, grain, count) {
                    return Turn::Wait;
                }
                d.answers = count * GRAIN_BYTES;
                let entry = Entry::Change {
                    first: grain,
                    count,
                    place: Place::ZERO,
                };
                return self.log(request, d, entry, Then::Dropped);
            }
            let part = len.min((grain + 1) * GRAIN_BYTES - d.cursor);
            if !must {
                d.cursor += part;
                continue;
            }
            if !self.claim(request, d, grain, 1) {
                return Turn::Wait;
            }
            d.answers = part;
            return self.fill(request, d, place);
        }
        Turn::Done(0)
    }
}
