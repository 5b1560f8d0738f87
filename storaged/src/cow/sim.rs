//! A simulated disk and guest for the tests: runs what a [`Head`] asks for against
//! files in memory, in any order, and can stop at any instant.

use super::detour::Detour;
use super::head::{Head, Target, Turn};
use super::log::{BootId, LayerRef, Tail, Trust, checkpoint, recover};
use super::map::{GRAIN_BYTES, Map, Place};
use crate::crypt::Key;
use crate::disk::FileBacking;
use crate::shard::op::{Op, Vector};
use std::sync::Arc;

pub const SECTOR: usize = 512;

/// Chance, the same for the same seed (xorshift64*).
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next_u64(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 8
    }

    pub fn next_u32(&mut self) -> u32 {
        self.next_u64() as u32
    }

    pub fn below(&mut self, n: u64) -> u64 {
        self.next_u64() % n
    }
}

/// A file: what is on the disk, and what is only in memory yet, in order.
#[derive(Clone, Default)]
pub struct SimFile {
    pub cached: Vec<u8>,
    durable: Vec<u8>,
    dirty: Vec<(usize, Vec<u8>)>,
}

fn put(bytes: &mut Vec<u8>, at: usize, new: &[u8]) {
    if bytes.len() < at + new.len() {
        bytes.resize(at + new.len(), 0);
    }
    bytes[at..at + new.len()].copy_from_slice(new);
}

impl SimFile {
    pub fn durable(bytes: Vec<u8>) -> Self {
        Self {
            durable: bytes.clone(),
            cached: bytes,
            dirty: Vec::new(),
        }
    }

    pub fn write(&mut self, at: usize, new: &[u8]) {
        put(&mut self.cached, at, new);
        self.dirty.push((at, new.to_vec()));
    }

    pub fn sync(&mut self) {
        for (at, bytes) in self.dirty.drain(..) {
            put(&mut self.durable, at, &bytes);
        }
    }

    /// What a host's death may leave: of the writes since the last sync, any.
    pub fn crash(&self, rng: &mut Rng) -> Self {
        let mut left = self.durable.clone();
        let chance = rng.next_u32() % 5;
        for (at, bytes) in &self.dirty {
            // Sector by sector: that is what a disk writes whole.
            let mut from = 0;
            while from < bytes.len() {
                let n = (SECTOR - (at + from) % SECTOR).min(bytes.len() - from);
                if rng.next_u32() % 4 < chance {
                    put(&mut left, at + from, &bytes[from..from + n]);
                }
                from += n;
            }
        }
        Self::durable(left)
    }
}

/// A guest's request: its memory is the simulation's.
pub struct Request {
    pub op: Op,
    pub offset: u64,
    pub bytes: Vec<u8>,
    iov: Vec<libc::iovec>,
    detour: Detour,
    moved: u64,
    /// What is on its way to the disk.
    pending: Option<(Target, Op)>,
    pub result: Option<i32>,
}

/// A volume of two layers below its own, with a head, its files and its requests.
pub struct Sim {
    pub files: Vec<SimFile>,
    pub map_file: SimFile,
    pub head: Head,
    #[expect(clippy::vec_box, reason = "a head keeps pointers into a request")]
    pub requests: Vec<Box<Request>>,
    pub size_bytes: u64,
    keys: Vec<Option<Key>>,
    /// The most that an operation moves at once.
    pub short: Option<usize>,
    boot: u8,
}

fn layers(count: usize) -> Vec<LayerRef> {
    let layer = |n| LayerRef {
        file: format!("layer-{n}"),
        key: None,
    };
    (0..count).map(layer).collect()
}

fn backing(key: Option<Key>) -> FileBacking {
    FileBacking {
        buffered: tempfile::tempfile().unwrap(),
        direct: None,
        inline: false,
        key,
        durable: true,
    }
}

impl Sim {
    /// `keys`: a layer each, the last the volume's own. Lower layers hold `lower`,
    /// placed as `map` says.
    pub fn new(size_bytes: u64, keys: Vec<Option<Key>>, lower: Vec<Vec<u8>>, map: &Map) -> Self {
        let mut files: Vec<_> = lower.into_iter().map(SimFile::durable).collect();
        let whole = size_bytes.next_multiple_of(GRAIN_BYTES) as usize;
        files.push(SimFile::durable(vec![0; whole]));
        assert_eq!(files.len(), keys.len());
        let (bytes, tail) = checkpoint(BootId([1; 16]), size_bytes, &layers(keys.len()), map);
        let head = head(&keys, &bytes, tail, 0);
        Self {
            files,
            map_file: SimFile::durable(bytes),
            head,
            requests: Vec::new(),
            size_bytes,
            keys,
            short: None,
            boot: 1,
        }
    }

    /// Begins a request; returns its number.
    pub fn submit(&mut self, kind: Kind, offset: u64, bytes: Vec<u8>, dsync: bool) -> usize {
        let mut request = Box::new(Request {
            op: Op::Sync,
            offset,
            bytes,
            iov: Vec::new(),
            detour: Detour::default(),
            moved: 0,
            pending: None,
            result: None,
        });
        // Two pieces, as a guest's memory has them.
        let half = request.bytes.len() / 2 / 4096 * 4096;
        let (a, b) = request.bytes.split_at_mut(half);
        request.iov = [a, b]
            .into_iter()
            .filter(|p| !p.is_empty())
            .map(|p| libc::iovec {
                iov_base: p.as_mut_ptr().cast(),
                iov_len: p.len(),
            })
            .collect();
        let vector = Vector {
            direct: true,
            dsync,
            iov: request.iov.as_ptr(),
            count: request.iov.len() as u32,
            offset,
        };
        request.op = match kind {
            Kind::Read => Op::Readv(vector),
            Kind::Write => Op::Writev(vector),
            Kind::Sync => Op::Sync,
            Kind::Zero { len } => Op::punch(offset, len, true),
            Kind::Discard { len } => Op::punch(offset, len, false),
        };
        let id = self.requests.len();
        self.requests.push(request);
        let op = self.requests[id].op;
        let turn = self
            .head
            .begin(id as u32, &mut self.requests[id].detour, op);
        self.turn(id, turn);
        self.wake();
        id
    }

    fn turn(&mut self, id: usize, mut turn: Turn) {
        loop {
            let request = &mut self.requests[id];
            match turn {
                Turn::Wait => return,
                Turn::Submit(target, op) => {
                    request.pending = Some((target, op));
                    return;
                }
                Turn::Done(result) => {
                    let asked = request.bytes.len() as u64;
                    let transfer = matches!(request.op, Op::Readv(_) | Op::Writev(_));
                    if transfer && result > 0 {
                        request.moved += u64::from(result.unsigned_abs());
                        if request.moved < asked {
                            // As a slot goes on after a short transfer.
                            skip(&mut request.iov, result as usize);
                            let (iov, moved) = (&request.iov, request.moved);
                            let rest = |v: Vector| Vector {
                                iov: iov.as_ptr(),
                                count: iov.len() as u32,
                                offset: request.offset + moved,
                                ..v
                            };
                            let op = match request.op {
                                Op::Writev(v) => Op::Writev(rest(v)),
                                Op::Readv(v) => Op::Readv(rest(v)),
                                other => other,
                            };
                            turn = self.head.begin(id as u32, &mut request.detour, op);
                            continue;
                        }
                    }
                    request.result = Some(result);
                    return;
                }
            }
        }
    }

    fn wake(&mut self) {
        while let Some((id, wake)) = self.head.woken() {
            let id = id as usize;
            let turn = self
                .head
                .wake(id as u32, &mut self.requests[id].detour, wake);
            self.turn(id, turn);
        }
    }

    /// Requests with an operation on its way.
    pub fn on_their_way(&self) -> Vec<usize> {
        let pending = |id: &usize| self.requests[*id].pending.is_some();
        (0..self.requests.len()).filter(pending).collect()
    }

    /// Runs the operation of request `id` and tells the head.
    pub fn step(&mut self, id: usize) {
        let (target, op) = self.requests[id].pending.take().unwrap();
        let result = self.run(target, &op);
        let turn = self
            .head
            .advance(id as u32, &mut self.requests[id].detour, result);
        self.turn(id, turn);
        self.wake();
    }

    fn run(&mut self, target: Target, op: &Op) -> i32 {
        let file = match target {
            Target::Layer(index) => &mut self.files[index],
            Target::Map => &mut self.map_file,
        };
        match op {
            Op::Sync => {
                file.sync();
                0
            }
            Op::Allocate { offset, len, .. } => {
                file.write(*offset as usize, &vec![0; *len as usize]);
                0
            }
            Op::Readv(v) | Op::Writev(v) => {
                // SAFETY: the vector names a live request's or the head's own memory.
                let pieces = unsafe { std::slice::from_raw_parts(v.iov, v.count as usize) };
                let (mut at, mut left) = (v.offset as usize, self.short.unwrap_or(usize::MAX));
                let from = at;
                for piece in pieces {
                    let n = piece.iov_len.min(left);
                    // SAFETY: as above.
                    let memory =
                        unsafe { std::slice::from_raw_parts_mut(piece.iov_base.cast(), n) };
                    if matches!(op, Op::Writev(_)) {
                        file.write(at, memory);
                    } else {
                        let have = file.cached.get(at..).unwrap_or_default();
                        let part = have.len().min(n);
                        memory[..part].copy_from_slice(&have[..part]);
                        if part < n {
                            return (at + part - from) as i32;
                        }
                    }
                    at += n;
                    left -= n;
                }
                if matches!(op, Op::Writev(v) if v.dsync) {
                    file.sync();
                }
                (at - from) as i32
            }
        }
    }

    /// Runs everything to its end, in an order that `rng` chooses.
    pub fn finish(&mut self, rng: &mut Rng) {
        loop {
            let ready = self.on_their_way();
            if ready.is_empty() {
                return;
            }
            self.step(ready[rng.next_u32() as usize % ready.len()]);
        }
    }

    /// The whole volume as the map at hand says, without the head.
    pub fn look(&self, map: &Map) -> Vec<u8> {
        let mut bytes = vec![0; self.size_bytes as usize];
        for (first, count, place) in map.runs() {
            let Some(layer) = place.index() else { continue };
            let start = (first * GRAIN_BYTES) as usize;
            let end = (start + (count * GRAIN_BYTES) as usize).min(bytes.len());
            let have = &self.files[layer].cached;
            let part = have.len().clamp(start, end);
            bytes[start..part].copy_from_slice(&have[start..part]);
            if let Some(key) = &self.keys[layer] {
                key.decrypt(&mut bytes[start..end], start as u64 / 4096);
            }
        }
        bytes
    }

    /// storaged dies (`host`: the host does), at this instant; what is next opens what
    /// is left. Returns the volume as it is then.
    pub fn die(&mut self, host: bool, rng: &mut Rng) -> Vec<u8> {
        if host {
            for file in self.files.iter_mut().chain([&mut self.map_file]) {
                *file = file.crash(rng);
            }
            self.boot += 1;
        } else {
            // The kernel had begun some of what was on its way.
            for id in self.on_their_way() {
                if rng.next_u32().is_multiple_of(2) {
                    let (target, op) = self.requests[id].pending.take().unwrap();
                    self.run(target, &op);
                }
            }
        }
        self.requests.clear();
        let boot = BootId([self.boot; 16]);
        let found = recover(&self.map_file.cached, Trust::Since(boot)).unwrap();
        let bytes = self.look(&found.map);
        // As `store::open` does.
        if found.boot == boot && found.tail.at == self.map_file.cached.len() as u64 {
            let cached = &self.map_file.cached;
            self.head = head(&self.keys, cached, found.tail, found.committed);
        } else {
            self.files.last_mut().unwrap().sync();
            let (new, tail) = checkpoint(boot, self.size_bytes, &found.layers, &found.map);
            self.head = head(&self.keys, &new, tail, 0);
            self.map_file = SimFile::durable(new);
        }
        bytes
    }
}

fn head(keys: &[Option<Key>], bytes: &[u8], tail: Tail, committed: u64) -> Head {
    let found = recover(bytes, Trust::Since(boot_of(bytes))).unwrap();
    let layers = keys.iter().cloned().map(backing).map(Arc::new).collect();
    Head::new(layers, found.map, backing(None), tail, committed).unwrap()
}

fn boot_of(bytes: &[u8]) -> BootId {
    let mut boot = BootId([0; 16]);
    boot.0.copy_from_slice(&bytes[8..24]);
    boot
}

fn skip(iov: &mut Vec<libc::iovec>, mut n: usize) {
    while n > 0 {
        let part = iov[0].iov_len.min(n);
        // SAFETY: inside the piece.
        iov[0].iov_base = unsafe { iov[0].iov_base.cast::<u8>().add(part) }.cast();
        iov[0].iov_len -= part;
        n -= part;
        if iov[0].iov_len == 0 {
            iov.remove(0);
        }
    }
}

/// What a request asks.
#[derive(Clone, Copy)]
pub enum Kind {
    Read,
    Write,
    Sync,
    Zero { len: u64 },
    Discard { len: u64 },
}

/// A map of `grains` grains in which each lies in one of `lower` layers or nowhere.
pub fn scattered(size_bytes: u64, lower: usize, rng: &mut Rng) -> Map {
    let mut map = Map::new(size_bytes);
    for grain in 0..map.grains() {
        let place = (rng.next_u32() as usize) % (lower + 1);
        map.set(grain, 1, Place(place as u8));
    }
    map
}
