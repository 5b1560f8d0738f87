//! Limits that several volumes share, on whatever shards they are.
//!
//! Of two shards that wait for the same token, one that polls is always there before one
//! that sleeps. So a volume that got more than another that waits gives way to it, for as
//! long as that one may take to wake; what the bucket gains meanwhile is not lost, for it
//! holds more than that.

use super::{Direction, Throttle, lock, turns};
use ocs_storaged_api::{Credits, Limits};
use std::sync::Mutex;

/// How far a volume may be ahead of one that waits, in time of the group's whole rate: so
/// much is taken at once where tokens come faster than shards wake.
const LEAD_NS: u64 = 5_000_000;
/// Who was told to come again is reckoned with for so long after its time.
const LATE_NS: u64 = 20_000_000;
/// When to look again whether the other one has come.
const LOOK_AGAIN_NS: u64 = 500_000;

/// A volume of the group that waits, or was served.
#[derive(Debug)]
struct Member {
    key: usize,
    /// What it was charged, by weight, in time of the group's whole rate.
    spent_ns: u64,
    /// It waits, and is reckoned with until then; 0: it does not wait.
    waits_until_ns: u64,
}

#[derive(Debug)]
struct Shared {
    throttle: Throttle,
    /// Those that waited or were served of late.
    members: Vec<Member>,
    /// What the last one served had spent: a newcomer begins near it.
    clock_ns: u64,
}

/// A group at work.
#[derive(Debug)]
pub struct Group(Mutex<Shared>);

impl Group {
    /// A group with these limits.
    #[must_use]
    pub fn new(limits: &Limits, now_ns: u64) -> Self {
        Self(Mutex::new(Shared {
            throttle: Throttle::new(limits, now_ns),
            members: Vec::new(),
            clock_ns: 0,
        }))
    }

    /// Goes on with other limits.
    pub fn change(&self, limits: &Limits, now_ns: u64) {
        let shared = &mut *lock(&self.0);
        shared.throttle.change(limits, now_ns);
        // Nobody waits for what the old limits would have given.
        shared.members.clear();
    }

    /// Burst credits left, less what can be spent in `reserve_s` seconds.
    #[must_use]
    pub fn credits(&self, reserve_s: u64, now_ns: u64) -> Credits {
        lock(&self.0).throttle.credits(reserve_s, now_ns)
    }

    /// Leaves at most so many credits.
    pub fn keep(&self, credits: &Credits) {
        lock(&self.0).throttle.keep(credits);
    }

    /// Adds credits.
    pub fn grant(&self, credits: &Credits, now_ns: u64) {
        lock(&self.0).throttle.grant(credits, now_ns);
    }

    /// When the next request of the volume `key` may begin: `None` if at once.
    #[must_use]
    pub(super) fn ready_at(&self, key: usize, now_ns: u64) -> Option<u64> {
        let shared = &mut *lock(&self.0);
        let free_at = shared.throttle.ready_at(now_ns);
        let spent_ns = shared.member(key).spent_ns;
        let gives_way = shared.members.iter().any(|other| {
            other.key != key
                && now_ns < other.waits_until_ns
                && other.spent_ns.saturating_add(LEAD_NS) < spent_ns
        });
        let look_again = gives_way.then_some(now_ns + LOOK_AGAIN_NS);
        let at = free_at.max(look_again);
        shared.member(key).waits_until_ns = at.map_or(0, |at| at.saturating_add(LATE_NS));
        at
    }

    /// A transfer of the volume `key`, of a weight, begins.
    pub(super) fn charge(
        &self,
        (key, weight): (usize, u32),
        direction: Direction,
        offset: u64,
        len: u64,
        now_ns: u64,
    ) {
        let shared = &mut *lock(&self.0);
        let ns = shared.throttle.charge(direction, offset, len, now_ns);
        let by_weight = ns.saturating_mul(turns::WEIGHT.into()) / u64::from(weight.max(1));
        let member = shared.member(key);
        let before_ns = member.spent_ns;
        member.spent_ns = before_ns.saturating_add(by_weight);
        member.waits_until_ns = 0;
        shared.clock_ns = shared.clock_ns.max(before_ns);
        // Who is as far behind as a newcomer would be need not be remembered.
        let begin_ns = shared.begin_ns();
        shared
            .members
            .retain(|member| member.spent_ns > begin_ns || now_ns < member.waits_until_ns);
    }
}

impl Shared {
    /// Where one begins that was not there: what it did not ask for it has not saved.
    fn begin_ns(&self) -> u64 {
        self.clock_ns.saturating_sub(LEAD_NS)
    }

    fn member(&mut self, key: usize) -> &mut Member {
        let begin_ns = self.begin_ns();
        let at = match self.members.iter().position(|member| member.key == key) {
            Some(at) => at,
            None => {
                self.members.push(Member {
                    key,
                    spent_ns: begin_ns,
                    waits_until_ns: 0,
                });
                self.members.len() - 1
            }
        };
        let member = &mut self.members[at];
        if member.waits_until_ns == 0 {
            member.spent_ns = member.spent_ns.max(begin_ns);
        }
        member
    }
}
