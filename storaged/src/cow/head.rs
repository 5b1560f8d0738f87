//! A volume's map while it is served: says what to run for each operation.
//!
//! It performs nothing itself. [`Head::begin`], [`Head::advance`] and [`Head::wake`]
//! each answer with a [`Turn`]; the shard runs it. Whom an outcome concerns besides
//! its own request is in [`Head::woken`].

use super::detour::{Detour, State, Then, total};
use super::log::{Entry, Tail};
use super::map::{GRAIN_BYTES, Map, Place};
use super::writer::{Writer, Written};
use crate::disk::FileBacking;
use crate::shard::bounce::{Bounce, LARGE_BYTES};
use crate::shard::op::Op;
use std::collections::VecDeque;
use std::sync::Arc;

const _: () = assert!(LARGE_BYTES as u64 == GRAIN_BYTES);
/// Grains that are merged at once; a claim that finds no window waits for its turn.
const WINDOWS: u16 = 8;

/// Which file an operation is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A layer, by index.
    Layer(usize),
    /// The map's file.
    Map,
}

/// What to do next for a request.
#[derive(Debug)]
pub enum Turn {
    /// Run this and call [`Head::advance`] with its result.
    Submit(Target, Op),
    /// The operation ended: bytes, or `-errno`.
    Done(i32),
    /// Nothing; [`Head::woken`] will name the request.
    Wait,
}

/// Why a request is woken.
#[derive(Clone, Copy, Debug)]
pub enum Wake {
    /// What it waited for may be had.
    Again,
    /// It is to write the next frame.
    Lead,
    /// The frame that it waited for is written, or failed.
    Logged(i32),
}

/// A volume's map, its layers and what is under way.
pub struct Head {
    pub(super) layers: Vec<Arc<FileBacking>>,
    /// Layers whose bytes are not under the last one's key.
    pub(super) foreign: Vec<bool>,
    pub(super) top: Place,
    pub(super) map: Map,
    writer: Writer,
    pub(super) claims: Vec<(u64, u64)>,
    pub(super) behind: Vec<u32>,
    pub(super) windows: Bounce,
    pub(super) windowless: Vec<u32>,
    pub(super) woken: VecDeque<(u32, Wake)>,
}

impl Head {
    /// The head of a volume with these layers, the last its own. `file` is the map's,
    /// its log ends at `tail`, and changes through `committed` are durable.
    pub fn new(
        layers: Vec<Arc<FileBacking>>,
        map: Map,
        file: FileBacking,
        tail: Tail,
        committed: u64,
    ) -> std::io::Result<Self> {
        let own = layers.last().ok_or(std::io::ErrorKind::InvalidInput)?;
        let check = |layer: &FileBacking| layer.key.as_ref().map(crate::crypt::Key::check);
        let foreign: Vec<bool> = layers.iter().map(|l| check(l) != check(own)).collect();
        if own.key.is_none() && foreign.contains(&true) {
            // Its bytes would lie on the disk in the clear.
            return Err(std::io::ErrorKind::InvalidInput.into());
        }
        Ok(Self {
            top: Place::layer(layers.len() - 1),
            foreign,
            layers,
            map,
            writer: Writer::new(file, tail, committed),
            claims: Vec::new(),
            behind: Vec::new(),
            windows: Bounce::new(WINDOWS, 0)?,
            windowless: Vec::new(),
            woken: VecDeque::new(),
        })
    }

    /// The layer that takes writes.
    #[must_use]
    pub fn top(&self) -> Arc<FileBacking> {
        Arc::clone(&self.layers[self.layers.len() - 1])
    }

    /// The file of a turn.
    #[must_use]
    pub fn file(&self, target: Target) -> &FileBacking {
        match target {
            Target::Layer(index) => &self.layers[index],
            Target::Map => &self.writer.file,
        }
    }

    /// The next request that may go on; call [`Self::wake`] for it.
    pub fn woken(&mut self) -> Option<(u32, Wake)> {
        self.woken.pop_front()
    }

    /// Begins `op` of `request`.
    pub fn begin(&mut self, request: u32, d: &mut Detour, op: Op) -> Turn {
        d.op = Some(op);
        (d.state, d.leads) = (State::Plain, false);
        match op {
            Op::Readv(vector) => self.read(d, &vector),
            Op::Writev(vector) => self.write(request, d, &vector),
            Op::Sync => self.flush(d),
            Op::Allocate { offset, .. } => {
                d.cursor = offset;
                self.zero(request, d)
            }
        }
    }

    /// Goes on after an operation of `request` ended with `result`.
    pub fn advance(&mut self, request: u32, d: &mut Detour, result: i32) -> Turn {
        if d.leads {
            return self.led(request, d, result);
        }
        let interrupted = result == -libc::EINTR || result == -libc::EAGAIN;
        match d.state {
            State::Plain => Turn::Done(result),
            State::Transcoding => self.transcoded(d, result),
            State::Filling | State::Storing if interrupted => self.window_op(d),
            State::Filling | State::Storing if result == -libc::EINVAL && !d.buffered => {
                d.buffered = true;
                self.window_op(d)
            }
            State::Filling if result >= 0 => {
                let moved = result.unsigned_abs() as usize;
                if moved == 0 {
                    self.fill_zeros(d);
                } else {
                    d.done += moved;
                }
                if d.done < LARGE_BYTES {
                    return self.window_op(d);
                }
                self.merge(d)
            }
            State::Storing if result > 0 => {
                d.done += result.unsigned_abs() as usize;
                if d.done < LARGE_BYTES {
                    return self.window_op(d);
                }
                self.give_window(d);
                self.log_claim(request, d)
            }
            State::Passing if result > 0 => {
                d.pass(result.unsigned_abs() as usize);
                match d.op {
                    Some(Op::Writev(vector)) if total(&d.pieces) > 0 => self.pass(d, &vector),
                    _ => self.log_claim(request, d),
                }
            }
            State::Filling | State::Storing | State::Passing => {
                self.unclaim(d);
                Turn::Done(if result == 0 { -libc::EIO } else { result })
            }
            State::SyncingTop if result >= 0 => {
                self.log(request, d, Entry::Commit(d.through), Then::Committed)
            }
            State::SyncingLog if result >= 0 => {
                self.writer.committed = self.writer.committed.max(d.through);
                self.flushed(d)
            }
            State::SyncingTop | State::SyncingLog => Turn::Done(result),
            State::Punching if interrupted => self.zero(request, d),
            State::Punching if result >= 0 => {
                d.cursor += d.answers;
                self.zero(request, d)
            }
            State::Punching => Turn::Done(result),
            // Nothing of theirs is on the ring.
            State::Behind | State::Windowless | State::Logging => Turn::Done(-libc::EIO),
        }
    }

    /// Goes on with a request that [`Self::woken`] named.
    pub fn wake(&mut self, request: u32, d: &mut Detour, wake: Wake) -> Turn {
        match (wake, d.op) {
            (Wake::Lead, _) => {
                d.leads = true;
                Turn::Submit(Target::Map, self.writer.lead())
            }
            (Wake::Logged(outcome), _) => self.logged(request, d, outcome),
            (Wake::Again, Some(Op::Allocate { .. })) => self.zero(request, d),
            (Wake::Again, Some(op)) => self.begin(request, d, op),
            (Wake::Again, None) => Turn::Done(-libc::EIO),
        }
    }

    pub(super) fn log_claim(&mut self, request: u32, d: &mut Detour) -> Turn {
        let entry = Entry::Change {
            first: d.grain,
            count: d.count,
            place: self.top,
        };
        self.log(request, d, entry, Then::Claimed)
    }

    pub(super) fn log(&mut self, request: u32, d: &mut Detour, entry: Entry, then: Then) -> Turn {
        (d.state, d.then) = (State::Logging, then);
        d.leads = self.writer.want(entry, request);
        if d.leads {
            Turn::Submit(Target::Map, self.writer.lead())
        } else {
            Turn::Wait
        }
    }

    /// The leader's operation ended.
    fn led(&mut self, request: u32, d: &mut Detour, result: i32) -> Turn {
        let outcome = match self.writer.wrote(result) {
            Written::Rest(op) => return Turn::Submit(Target::Map, op),
            Written::Over(outcome) => outcome,
        };
        d.leads = false;
        if outcome == 0 {
            for entry in self.writer.said() {
                if let Entry::Change {
                    first,
                    count,
                    place,
                } = *entry
                {
                    self.map.set(first, count, place);
                }
            }
        }
        let others = self.writer.followers().filter(|other| *other != request);
        self.woken
            .extend(others.map(|other| (other, Wake::Logged(outcome))));
        if let Some(next) = self.writer.hand_on() {
            self.woken.push_back((next, Wake::Lead));
        }
        self.logged(request, d, outcome)
    }

    /// The frame that a request waited for is written, or failed.
    fn logged(&mut self, request: u32, d: &mut Detour, outcome: i32) -> Turn {
        if d.then != Then::Committed {
            self.unclaim(d);
        }
        if outcome < 0 {
            return Turn::Done(outcome);
        }
        match (d.then, d.op) {
            (Then::Committed, _) => {
                d.state = State::SyncingLog;
                Turn::Submit(Target::Map, Op::Sync)
            }
            (_, Some(Op::Allocate { .. })) => {
                d.cursor += d.answers;
                self.zero(request, d)
            }
            (_, Some(Op::Writev(vector))) if vector.dsync => self.flush(d),
            _ => Turn::Done(d.answers as i32),
        }
    }

    /// Syncs the last layer, and the log where it has more than was committed.
    fn flush(&mut self, d: &mut Detour) -> Turn {
        d.through = self.writer.changed;
        let claimed = d.through > self.writer.committed;
        if !claimed && matches!(d.op, Some(Op::Writev(_))) {
            // Another's flush has covered it.
            return self.flushed(d);
        }
        d.state = if claimed {
            State::SyncingTop
        } else {
            State::Plain
        };
        Turn::Submit(Target::Layer(self.layers.len() - 1), Op::Sync)
    }

    fn flushed(&self, d: &Detour) -> Turn {
        Turn::Done(match d.op {
            Some(Op::Writev(_)) => d.answers as i32,
            _ => 0,
        })
    }
}
