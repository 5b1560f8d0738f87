//! A port's flow table: buckets of ways, shared by CPUs without locks.
//!
//! ```text
//! Bucket ─ 8 × Way { meta: ports, protocol, state │ peers: addresses │ deadline }
//! ```
//!
//! A way whose deadline has passed is free, so nobody needs to sweep. Each port has a
//! table of its own: a flood of flows evicts flows of the flooding port alone, and a
//! port's flows are gone with its table.
//!
//! Writers take a way by exchanging its `meta` for [`BUSY`], and give it back by storing
//! the new one. A reader that saw the same `meta` before and after reading the rest saw
//! one flow.

use crate::layout::{Address, FLOW_BUCKETS};
use crate::verifier::forget;
use crate::word::Word;

/// Ways of a bucket.
pub const WAYS: usize = 1 << WAY_BITS;
const WAY_BITS: u32 = 3;

/// One flow as its port sees it; 0 in all fields: free.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Way {
    meta: Word,
    peers: Word,
    deadline: Word,
}

/// Flows whose keys hash alike.
#[repr(C)]
#[derive(Debug, Default)]
pub struct Bucket {
    ways: [Way; WAYS],
}

/// What a flow is told apart by, seen from its port: the same for both directions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FlowKey {
    /// The port's address.
    pub own: Address,
    /// The other side's.
    pub peer: Address,
    /// The port's transport port.
    pub own_port: u16,
    /// The other side's.
    pub peer_port: u16,
    /// IP protocol.
    pub protocol: u8,
    /// Tells apart flows that share all else: ICMP queries by type and asker, trains of
    /// fragments.
    pub kind: u8,
}

/// How far a flow has come.
#[repr(u8)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Only the opener has spoken.
    Opening = 1,
    /// The other side has answered.
    Answered = 2,
    /// The opener has spoken again: a TCP connection is established.
    Continued = 3,
    /// The other side has answered again: UDP is a stream.
    Stream = 4,
    /// TCP: one side has finished.
    Closing = 5,
    /// TCP: both have, or it was reset.
    Closed = 6,
}

/// A flow's changing part.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// How far it has come.
    pub state: State,
    /// Whether the port itself opened it.
    pub opened_by_own: bool,
    /// Whether it was the port that finished, in [`State::Closing`].
    pub finished_by_own: bool,
}

/// In place of a `meta`: a writer is at work.
const BUSY: u64 = u64::MAX;
const STATE: u64 = 0x0f;
const OPENED_BY_OWN: u64 = 0x10;
const FINISHED_BY_OWN: u64 = 0x20;

impl Progress {
    #[inline(always)]
    fn encode(self) -> u64 {
        let mut bits = self.state as u64;
        if self.opened_by_own {
            bits |= OPENED_BY_OWN;
        }
        if self.finished_by_own {
            bits |= FINISHED_BY_OWN;
        }
        bits
    }

    #[inline(always)]
    fn decode(meta: u64) -> Option<Self> {
        let state = match meta & STATE {
            1 => State::Opening,
            2 => State::Answered,
            3 => State::Continued,
            4 => State::Stream,
            5 => State::Closing,
            6 => State::Closed,
            _ => return None,
        };
        Some(Self {
            state,
            opened_by_own: meta & OPENED_BY_OWN != 0,
            finished_by_own: meta & FINISHED_BY_OWN != 0,
        })
    }
}

impl FlowKey {
    /// The upper 56 bits of a `meta`.
    #[inline(always)]
    fn meta(&self) -> u64 {
        u64::from(self.own_port) << 48
            | u64::from(self.peer_port) << 32
            | u64::from(self.protocol) << 24
            | u64::from(self.kind) << 16
    }

    #[inline(always)]
    fn peers(&self) -> u64 {
        u64::from(self.own) << 32 | u64::from(self.peer)
    }

    /// Two words that hold it; the lower 16 bits of the first are free.
    #[inline(always)]
    pub(crate) fn words(&self) -> (u64, u64) {
        (self.meta(), self.peers())
    }

    /// The key of two words.
    #[inline(always)]
    pub(crate) fn of(meta: u64, peers: u64) -> Self {
        Self {
            own: (peers >> 32) as u32,
            peer: peers as u32,
            own_port: (meta >> 48) as u16,
            peer_port: (meta >> 32) as u16,
            protocol: (meta >> 24) as u8,
            kind: (meta >> 16) as u8,
        }
    }

    /// A number that spreads flows; its upper bits do so best. Tenants can only crowd
    /// tables of their own, so it does not need to resist.
    #[inline(always)]
    #[must_use]
    pub fn hash(&self) -> u64 {
        let mut hash = self.peers() ^ self.meta().rotate_left(17);
        hash = hash.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        hash ^= hash >> 32;
        hash.wrapping_mul(0x9e37_79b9_7f4a_7c15)
    }

    /// The bucket of a port's table that it belongs to.
    #[inline(always)]
    #[must_use]
    pub fn bucket(&self) -> u32 {
        (self.hash() >> 40) as u32 & (FLOW_BUCKETS as u32 - 1)
    }
}

const PROGRESS_BITS: u64 = 0xffff;

/// A flow that was found.
#[derive(Debug)]
pub struct Found<'a> {
    way: &'a Way,
    meta: u64,
    /// How far it has come.
    pub progress: Progress,
}

impl Found<'_> {
    /// When it ends if nothing more is heard of it, in jiffies.
    #[must_use]
    pub fn deadline(&self) -> u64 {
        self.way.deadline.load()
    }

    /// Records progress and a new deadline. If another CPU recorded some at the same
    /// time, that stands.
    #[inline(always)]
    pub fn advance(&self, progress: Progress, deadline: u64) {
        let meta = self.meta & !PROGRESS_BITS | progress.encode();
        if meta != self.meta {
            let _stands = self.way.meta.replace(self.meta, meta);
        }
        if self.way.deadline.load() != deadline {
            self.way.deadline.store(deadline);
        }
    }
}

/// Words of a [`Bucket`].
pub const BUCKET_WORDS: usize = size_of::<Bucket>() / 8;

impl From<[u64; BUCKET_WORDS]> for Bucket {
    /// A copy of a bucket, as its map gives it.
    fn from(words: [u64; BUCKET_WORDS]) -> Self {
        let way = |index: usize| Way {
            meta: Word::new(words[3 * index]),
            peers: Word::new(words[3 * index + 1]),
            deadline: Word::new(words[3 * index + 2]),
        };
        Self {
            ways: core::array::from_fn(way),
        }
    }
}

impl Bucket {
    /// A bucket by two copies, one made after the other while programs wrote to it. What may
    /// be half of one flow and half of another is left out.
    #[must_use]
    pub fn of_copies(first: [u64; BUCKET_WORDS], second: [u64; BUCKET_WORDS]) -> Self {
        let (bucket, later) = (Self::from(first), Self::from(second));
        for (way, later) in bucket.ways.iter().zip(&later.ways) {
            if way.meta.load() != later.meta.load() || way.peers.load() != later.peers.load() {
                way.deadline.store(0);
            }
        }
        bucket
    }

    /// Finds a live flow.
    #[inline(always)]
    #[must_use]
    pub fn find(&self, key: &FlowKey, now: u64) -> Option<Found<'_>> {
        self.find_way(key, now).map(|(_, found)| found)
    }

    /// [`Bucket::find`], and in which way.
    #[inline(always)]
    #[must_use]
    pub fn find_way(&self, key: &FlowKey, now: u64) -> Option<(usize, Found<'_>)> {
        let wanted = key.meta();
        let peers = key.peers();
        let index = self.ways.iter().position(|way| {
            way.meta.load() & !PROGRESS_BITS == wanted
                && way.peers.load() == peers
                && way.deadline.load() > now
        })?;
        let index = forget::<WAYS>(index, now);
        let way = &self.ways[index];
        let meta = way.meta.load();
        if meta & !PROGRESS_BITS != wanted {
            return None;
        }
        let progress = Progress::decode(meta)?;
        let found = Found {
            way,
            meta,
            progress,
        };
        Some((index, found))
    }

    /// The live flow in a way.
    #[inline(always)]
    #[must_use]
    pub fn entry(&self, way: usize, now: u64) -> Option<(FlowKey, Found<'_>)> {
        let way = &self.ways[way & (WAYS - 1)];
        let meta = way.meta.load();
        let peers = way.peers.load();
        if way.deadline.load() <= now || way.meta.load() != meta {
            return None;
        }
        let progress = Progress::decode(meta)?;
        let found = Found {
            way,
            meta,
            progress,
        };
        Some((FlowKey::of(meta, peers), found))
    }

    /// Remembers a flow in a way that is free; in which. `None`: none is, or another CPU
    /// was faster.
    #[inline(always)]
    #[must_use]
    pub fn claim(
        &self,
        key: &FlowKey,
        progress: Progress,
        now: u64,
        deadline: u64,
    ) -> Option<usize> {
        let free = |way: &Way| way.deadline.load() <= now;
        let index = forget::<WAYS>(self.ways.iter().position(free)?, now);
        self.take(index, key, progress, deadline).then_some(index)
    }

    /// Remembers a flow that another table had, unless it is remembered already.
    pub fn keep(&self, key: &FlowKey, progress: Progress, now: u64, deadline: u64) -> bool {
        self.find(key, now).is_none() && self.insert(key, progress, now, deadline)
    }

    /// [`Self::keep`] in a certain way, if that is free.
    pub fn keep_in(
        &self,
        way: usize,
        key: &FlowKey,
        progress: Progress,
        now: u64,
        deadline: u64,
    ) -> bool {
        self.ways[way & (WAYS - 1)].deadline.load() <= now
            && self.take(way, key, progress, deadline)
    }

    #[inline(always)]
    fn take(&self, index: usize, key: &FlowKey, progress: Progress, deadline: u64) -> bool {
        let way = &self.ways[index & (WAYS - 1)];
        let meta = way.meta.load();
        if meta == BUSY || !way.meta.replace(meta, BUSY) {
            return false;
        }
        way.peers.store(key.peers());
        way.deadline.store(deadline);
        way.meta.replace(BUSY, key.meta() | progress.encode())
    }

    /// Remembers a flow: in its own place if it is there, else in that of an expired flow,
    /// else of the one that would expire first. `false`: another CPU was faster.
    #[inline(always)]
    #[must_use]
    pub fn insert(&self, key: &FlowKey, progress: Progress, now: u64, deadline: u64) -> bool {
        if let Some(found) = self.find(key, now) {
            found.advance(progress, deadline);
            return true;
        }
        let mut first = u64::MAX;
        for (index, way) in self.ways.iter().enumerate() {
            let until = way.deadline.load();
            let rank = if until <= now { 0 } else { until };
            first = first.min(rank << WAY_BITS | index as u64);
        }
        let index = forget::<WAYS>(first as usize & (WAYS - 1), now);
        self.take(index, key, progress, deadline)
    }

    /// Live flows, for those who watch.
    #[must_use]
    pub fn live(&self, now: u64) -> usize {
        self.ways
            .iter()
            .filter(|way| way.deadline.load() > now)
            .count()
    }
}
