//! The maps in memory, so that packet logic runs without a kernel.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ocs_dataplane::compiler::{Entries, Numbers, Slots, compile};
use ocs_dataplane::fabric::Counters;
use ocs_dataplane::model::Policy;
use ocs_dataplane::shared::flow::Bucket;
use ocs_dataplane::shared::layout::{
    Address, Direction, Endpoint, EndpointKey, FLOW_BUCKETS, Reason, RuleKey, Service, Tap,
    Timeouts,
};
use ocs_dataplane::shared::limit::{Limit, Meter, Meters};
use ocs_dataplane::shared::log::LogKey;
use ocs_dataplane::shared::{Action, Maps, guest, responder};

pub const TIMEOUTS: Timeouts = Timeouts {
    hz: 100,
    tcp_established: 43_200_000,
    udp: 3_000,
    udp_stream: 18_000,
};

/// What a host would hold for a policy.
pub struct Memory {
    entries: Entries,
    slots: Slots,
    numbers: Numbers,
    tables: BTreeMap<u32, Vec<Bucket>>,
    meters: BTreeMap<u32, Meters>,
    counters: RefCell<BTreeMap<u32, Counters>>,
    logs: RefCell<BTreeMap<u32, Log>>,
    hz: u32,
    pub now: u64,
}

/// Packets and bytes of each flow.
pub type Log = BTreeMap<LogKey, (u64, u64)>;

impl Memory {
    pub fn new(policy: &Policy) -> Self {
        Self::with_hz(policy, TIMEOUTS.hz)
    }

    /// On a host whose jiffies run at `hz`.
    pub fn with_hz(policy: &Policy, hz: u32) -> Self {
        let mut memory = Self {
            hz,
            logs: RefCell::default(),
            entries: Entries::default(),
            slots: Slots::default(),
            numbers: Numbers::after(0),
            tables: BTreeMap::new(),
            meters: BTreeMap::new(),
            counters: RefCell::default(),
            now: 1_000_000,
        };
        memory.apply(policy);
        memory
    }

    pub fn apply(&mut self, policy: &Policy) {
        let timeouts = Timeouts {
            hz: self.hz,
            ..TIMEOUTS
        };
        self.entries = compile(policy, &mut self.numbers, &mut self.slots, timeouts)
            .unwrap_or_else(|error| panic!("{error}"));
        let slots: BTreeSet<u32> = self.entries.devices.keys().copied().collect();
        self.tables.retain(|slot, _| slots.contains(slot));
        self.meters.retain(|slot, _| slots.contains(slot));
        for slot in slots {
            self.meters.entry(slot).or_default();
            self.tables
                .entry(slot)
                .or_insert_with(|| (0..FLOW_BUCKETS).map(|_| Bucket::default()).collect());
        }
    }

    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// What the `port` program does; with whom it counts a redirection.
    pub fn run_port(&self, ifindex: u32, frame: &mut [u8]) -> Action {
        self.carry_out(guest::receive(frame, self, ifindex))
    }

    /// What the `svc` program does.
    pub fn run_svc(&self, frame: &mut [u8]) -> Action {
        self.carry_out(responder::receive(frame, self))
    }

    fn carry_out(&self, action: Action) -> Action {
        if let Action::Redirect { slot, from } = action {
            self.count(from, Direction::Egress, Reason::Forwarded);
            self.count(slot, Direction::Ingress, Reason::Forwarded);
        }
        action
    }

    /// Counters of the slot of an interface.
    pub fn counters_of(&self, ifindex: u32) -> Counters {
        let slot = self.entries.taps[&ifindex].slot;
        self.counters
            .borrow()
            .get(&slot)
            .cloned()
            .unwrap_or_default()
    }

    /// Live flows of the slot of an interface.
    pub fn flows_of(&self, ifindex: u32) -> usize {
        let slot = self.entries.taps[&ifindex].slot;
        self.tables[&slot]
            .iter()
            .map(|bucket| bucket.live(self.now))
            .sum()
    }
}

impl Maps for Memory {
    fn tap(&self, ifindex: u32) -> Option<&Tap> {
        self.entries.taps.get(&ifindex)
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.entries.endpoints.get(key)
    }

    fn service(&self, address: Address) -> Option<&Service> {
        self.entries.services.get(&address)
    }

    fn allows(&self, key: &RuleKey) -> bool {
        let wanted = bits(key);
        self.entries.rules.iter().any(|(rule, length)| {
            let mask = u128::MAX << (96 - length);
            (bits(rule) ^ wanted) & mask == 0
        })
    }

    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        self.tables
            .get(&slot)?
            .get(usize::try_from(index).expect("an index"))
    }

    fn allowance(&self, slot: u32, direction: Direction) -> Option<(&Limit, &Meter)> {
        let limits = self.entries.limits.get(&slot)?;
        let index = direction as usize;
        Some((
            &limits.directions[index],
            &self.meters[&slot].directions[index],
        ))
    }

    fn is_logged(&self, slot: u32) -> bool {
        self.logs.borrow().contains_key(&slot)
    }

    fn log(&self, slot: u32, key: &LogKey, bytes: u64) {
        if let Some(log) = self.logs.borrow_mut().get_mut(&slot) {
            let (packets, sum) = log.entry(*key).or_default();
            *packets += 1;
            *sum += bytes;
        }
    }

    fn now(&self) -> u64 {
        self.now
    }

    fn count(&self, slot: u32, direction: Direction, reason: Reason) {
        *self
            .counters
            .borrow_mut()
            .entry(slot)
            .or_default()
            .packets
            .entry((direction, reason))
            .or_default() += 1;
    }
}

/// A rule's key as a prefix tree reads it: byte by byte.
fn bits(key: &RuleKey) -> u128 {
    let mut bytes = Vec::new();
    bytes.extend_from_slice(&key.policy.to_ne_bytes());
    bytes.extend_from_slice(&key.peer.to_ne_bytes());
    bytes.extend_from_slice(&[key.direction, key.protocol]);
    bytes.extend_from_slice(&key.port.to_ne_bytes());
    bytes
        .into_iter()
        .fold(0, |bits, byte| bits << 8 | u128::from(byte))
}
