//! The maps in memory, so that packet logic runs without a kernel.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};

use ocs_dataplane::compiler::{Entries, Numbers, Slots, compile};
use ocs_dataplane::fabric::Counters;
use ocs_dataplane::model::Policy;
use ocs_dataplane::shared::flow::{Bucket, FlowKey, Progress, State, WAYS};
use ocs_dataplane::shared::layout::{
    AclClassKey, AclRuleKey, Address, Direction, Endpoint, EndpointKey, FLOW_BUCKETS, ForwarderKey,
    Host, NAT_BUCKETS, OUTSIDE_IPV6, Place, PrefixKey, Reason, Route, RuleKey, Service, TRANSLATE,
    Tap, Uplink,
};
use ocs_dataplane::shared::limit::{Limits, Meter, Meters};
use ocs_dataplane::shared::log::LogKey;
use ocs_dataplane::shared::{Action, Maps, guest, ipv6, responder, uplink};

/// What numbers of addresses outside are made with.
const SECRET: ipv6::layout::Secret = [3, 5 << 40, 7 << 32, 11 << 36, 13 << 33];
/// Jiffies of a second.
pub const HZ: u32 = 100;

/// What a host would hold for a policy.
pub struct Memory {
    entries: Entries,
    slots: Slots,
    numbers: Numbers,
    tables: BTreeMap<u32, Vec<Bucket>>,
    nats: BTreeMap<u32, Vec<Bucket>>,
    meters: BTreeMap<u32, Meters>,
    pub hosts: BTreeMap<u32, Host>,
    pub uplinks: BTreeMap<u32, Uplink>,
    counters: RefCell<BTreeMap<u32, Counters>>,
    logs: RefCell<BTreeMap<u32, Log>>,
    /// What numbers of strangers stand for.
    pub names: RefCell<BTreeMap<u32, ipv6::layout::Address6>>,
    hz: u32,
    pub now: u64,
}

/// Packets and bytes of each flow.
pub type Log = BTreeMap<LogKey, (u64, u64)>;

impl Memory {
    pub fn new(policy: &Policy) -> Self {
        Self::with_hz(policy, HZ)
    }

    /// On a host whose jiffies run at `hz`.
    pub fn with_hz(policy: &Policy, hz: u32) -> Self {
        let mut memory = Self {
            logs: RefCell::default(),
            names: RefCell::default(),
            entries: Entries::default(),
            slots: Slots::default(),
            numbers: Numbers::after(0, 0),
            tables: BTreeMap::new(),
            nats: BTreeMap::new(),
            meters: BTreeMap::new(),
            hz,
            hosts: BTreeMap::new(),
            uplinks: BTreeMap::new(),
            counters: RefCell::default(),
            now: 1_000_000,
        };
        memory.apply(policy);
        memory
    }

    pub fn apply(&mut self, policy: &Policy) {
        self.entries = compile(policy, &mut self.numbers, &mut self.slots, self.hz)
            .unwrap_or_else(|error| panic!("{error}"));
        let slots: BTreeSet<u32> = self.entries.devices.keys().copied().collect();
        self.meters.retain(|slot, _| slots.contains(slot));
        for slot in &slots {
            self.meters.entry(*slot).or_default();
        }
        keep(&mut self.tables, &slots, FLOW_BUCKETS);
        keep(&mut self.nats, &self.entries.nats, NAT_BUCKETS);
    }

    pub fn entries(&self) -> &Entries {
        &self.entries
    }

    /// What the `port` program does; with whom it counts a redirection.
    pub fn run_port(&self, ifindex: u32, frame: &mut Vec<u8>) -> Action {
        let mut action = guest::receive(frame, self, ifindex);
        if let Action::Stage { stage, .. } = action {
            action = match stage {
                TRANSLATE => guest::translate(frame, self, ifindex),
                _ => ipv6::receive(frame, self, ifindex),
            };
        }
        if let Action::Stage { .. } = action {
            action = ipv6::outside::send(frame, self, ifindex);
        }
        self.carry_out(action)
    }

    /// What the `svc` program does.
    pub fn run_svc(&self, frame: &mut Vec<u8>) -> Action {
        self.carry_out(responder::receive(frame, self))
    }

    /// What the `uplink` program does.
    pub fn run_uplink(&self, frame: &mut Vec<u8>) -> Action {
        let mut action = uplink::receive(frame, self);
        if let Action::Stage { stage, .. } = action {
            action = match stage {
                OUTSIDE_IPV6 => ipv6::outside::receive(frame, self),
                _ => ipv6::receive_uplink(frame, self),
            };
        }
        self.carry_out(action)
    }

    /// What the `outside` program does.
    pub fn run_outside(&self, frame: &mut Vec<u8>) -> Action {
        let mut action = uplink::receive_outside(frame, self);
        if let Action::Stage { .. } = action {
            action = ipv6::outside::receive(frame, self);
        }
        self.carry_out(action)
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
        self.counters_at(self.entries.taps[&ifindex].slot)
    }

    /// Counters of a slot.
    pub fn counters_at(&self, slot: u32) -> Counters {
        self.counters
            .borrow()
            .get(&slot)
            .cloned()
            .unwrap_or_default()
    }

    /// Live flows of the slot of an interface.
    pub fn flows_of(&self, ifindex: u32) -> usize {
        let slot = self.entries.taps[&ifindex].slot;
        live(&self.tables[&slot], self.now)
    }

    /// As many flows as [`Memory::fill`] gives one port: half of what its table holds, so that
    /// those that it has of its own stay.
    pub const FLOWS_OF_ONE: usize = FLOW_BUCKETS * WAYS / 2;

    /// Fills ports' tables with so many flows of others.
    pub fn fill(&self, flows: usize) {
        let mut left = flows;
        let until = self.now + 1_000_000;
        for table in self.tables.values() {
            for bucket in table {
                for port in 0..(WAYS as u16 / 2).min(u16::try_from(left).unwrap_or(u16::MAX)) {
                    let key = FlowKey {
                        own: 1,
                        peer: 2,
                        own_port: port,
                        peer_port: 3,
                        protocol: 17,
                        kind: 0,
                    };
                    let progress = Progress {
                        state: State::Stream,
                        opened_by_own: true,
                        finished_by_own: false,
                    };
                    assert!(bucket.insert(&key, progress, self.now, until));
                    left -= 1;
                }
            }
        }
    }

    /// Live flows of all NAT gateways.
    pub fn translated(&self) -> usize {
        self.nats.values().map(|table| live(table, self.now)).sum()
    }
}

fn live(table: &[Bucket], now: u64) -> usize {
    table.iter().map(|bucket| bucket.live(now)).sum()
}

/// Keeps tables of these slots, and makes those that are missing.
fn keep(tables: &mut BTreeMap<u32, Vec<Bucket>>, slots: &BTreeSet<u32>, buckets: usize) {
    tables.retain(|slot, _| slots.contains(slot));
    for slot in slots {
        tables
            .entry(*slot)
            .or_insert_with(|| (0..buckets).map(|_| Bucket::default()).collect());
    }
}

/// The value of the longest prefix of `key`, both as a prefix tree reads them: byte by byte.
fn longest<'a, Key: 'a, Value: Copy + 'a>(
    entries: impl IntoIterator<Item = (&'a (Key, u32), &'a Value)>,
    key: &Key,
    bits: impl Fn(&Key) -> u128,
) -> Option<Value> {
    let wanted = bits(key);
    entries
        .into_iter()
        .filter(|((prefix, length), _)| {
            let mask = u128::MAX << (96 - length);
            (bits(prefix) ^ wanted) & mask == 0
        })
        .max_by_key(|((_, length), _)| *length)
        .map(|(_, value)| *value)
}

/// The value of the longest prefix of an IPv6 address.
fn longest_ipv6<Value: Copy>(
    entries: &BTreeMap<(ipv6::layout::PrefixKey, u32), Value>,
    key: &ipv6::layout::PrefixKey,
) -> Option<Value> {
    let bits = |key: &ipv6::layout::PrefixKey| {
        let words = key.address.map(u32::to_ne_bytes);
        joined(words.as_flattened(), &[])
    };
    let entries = entries.iter();
    entries
        .filter(|((prefix, length), _)| {
            let free = 160 - length;
            let mask = u128::MAX.checked_shl(free).unwrap_or(0);
            prefix.scope == key.scope && (bits(prefix) ^ bits(key)) & mask == 0
        })
        .max_by_key(|((_, length), _)| *length)
        .map(|(_, value)| *value)
}

impl Maps for Memory {
    fn tap(&self, ifindex: u32) -> Option<&Tap> {
        self.entries.taps.get(&ifindex)
    }

    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        self.entries.endpoints.get(key)
    }

    fn port_ipv6(&self, slot: u32) -> Option<&ipv6::layout::Port> {
        self.entries.ports_ipv6.get(&slot)
    }

    fn endpoint_ipv6(&self, key: &ipv6::layout::EndpointKey) -> Option<&ipv6::layout::Endpoint> {
        self.entries.endpoints_ipv6.get(key)
    }

    fn route_ipv6(&self, key: &ipv6::layout::PrefixKey) -> Option<Route> {
        longest_ipv6(&self.entries.routes_ipv6, key)
    }

    fn place_ipv6(&self, key: &ipv6::layout::PrefixKey) -> Option<ipv6::layout::Place> {
        longest_ipv6(&self.entries.places_ipv6, key)
    }

    fn public_ipv6(&self, address: &ipv6::layout::Address6) -> Option<u32> {
        self.entries.publics_ipv6.get(address).copied()
    }

    fn secret(&self) -> Option<&ipv6::layout::Secret> {
        Some(&SECRET)
    }

    fn name(&self, number: Address, address: &ipv6::layout::Address6) {
        self.names.borrow_mut().insert(number, *address);
    }

    fn service(&self, address: Address) -> Option<&Service> {
        self.entries.services.get(&address)
    }

    fn forwarder(&self, key: &ForwarderKey) -> Option<Address> {
        self.entries.forwarders.get(key).copied()
    }

    fn rule(&self, key: &RuleKey) -> u32 {
        longest(&self.entries.rules, key, |key| {
            let words = [key.policy.to_ne_bytes(), key.peer.to_ne_bytes()];
            let [low, high] = key.port.to_ne_bytes();
            joined(
                words.as_flattened(),
                &[key.direction, key.protocol, low, high],
            )
        })
        .unwrap_or(0)
    }

    fn place(&self, key: &PrefixKey) -> Option<Place> {
        longest(&self.entries.places, key, prefix_bits)
    }

    fn route(&self, key: &PrefixKey) -> Option<Route> {
        longest(&self.entries.routes, key, prefix_bits)
    }

    fn acl_class(&self, key: &AclClassKey) -> Option<u32> {
        longest(&self.entries.acl_classes, key, |key| {
            let words = [key.acl.to_ne_bytes(), key.direction.to_ne_bytes()];
            joined(words.as_flattened(), &key.address.to_ne_bytes())
        })
    }

    fn acl_allows(&self, key: &AclRuleKey) -> bool {
        longest(&self.entries.acl_rules, key, |key| {
            let words = [key.acl.to_ne_bytes(), key.class.to_ne_bytes()];
            let [low, high] = key.port.to_ne_bytes();
            joined(
                words.as_flattened(),
                &[key.protocol, key.reserved, low, high],
            )
        })
        .is_some_and(|verdict| verdict != 0)
    }

    fn public(&self, address: Address) -> Option<EndpointKey> {
        self.entries.publics.get(&address).copied()
    }

    fn host(&self, address: Address) -> Option<&Host> {
        self.hosts.get(&address)
    }

    fn uplink(&self, slot: u32) -> Option<&Uplink> {
        self.uplinks.get(&slot)
    }

    fn nat_bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        self.nats
            .get(&slot)?
            .get(usize::try_from(index).expect("an index"))
    }

    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        self.tables
            .get(&slot)?
            .get(usize::try_from(index).expect("an index"))
    }

    fn limits(&self, slot: u32) -> Option<&Limits> {
        self.entries.limits.get(&slot)
    }

    fn meter(&self, slot: u32, direction: Direction) -> Option<&Meter> {
        Some(&self.meters.get(&slot)?.directions[direction as usize])
    }

    fn is_logged(&self, slot: u32) -> bool {
        self.logs.borrow().contains_key(&slot)
    }

    fn log(&self, slot: u32, key: &LogKey, added: u64, bytes: u64) {
        if let Some(log) = self.logs.borrow_mut().get_mut(&slot) {
            let (packets, sum) = log.entry(*key).or_default();
            *packets += added;
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

fn prefix_bits(key: &PrefixKey) -> u128 {
    joined(&key.scope.to_ne_bytes(), &key.address.to_ne_bytes()) << 32
}

fn joined(front: &[u8], back: &[u8]) -> u128 {
    let bytes = front.iter().chain(back);
    bytes.fold(0, |bits, byte| bits << 8 | u128::from(*byte))
}
