//! The kernel's maps as [`Maps`]. Their names, keys and values are the loader's
//! interface; `ocs_dataplane_shared::layout` describes them.

use aya_ebpf::bindings::{BPF_F_MMAPABLE, BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{
    Array, ArrayOfMaps, DevMap, HashMap, LpmTrie, LruHashMap, PerCpuArray, ProgramArray, RingBuf,
};
use aya_ebpf::macros::btf_map;
use ocs_dataplane_shared::Maps;
use ocs_dataplane_shared::capture::Captured;
use ocs_dataplane_shared::directory::{
    self, ENDPOINT_ENTRIES, HOST_ENTRIES, KnownEndpoint, KnownHost, KnownTap, TAP_ENTRIES,
};
use ocs_dataplane_shared::flow::Bucket;
use ocs_dataplane_shared::ipv6::layout::{self as ipv6, Address6, Secret};
use ocs_dataplane_shared::layout::{
    ACL_BITS, ACL_CLASS_BITS, AclClassKey, AclRuleKey, Address, Counters, Direction, Endpoint,
    EndpointKey, FLOW_BUCKETS, ForwarderKey, Host, MAX_ACL_RULES, MAX_ENDPOINTS, MAX_HOSTS,
    MAX_PLACES, MAX_PLACES_IPV6, MAX_ROUTES, MAX_ROUTES_IPV6, MAX_RULES, MAX_SLOTS, MAX_STAGES,
    MAX_STRANGERS, NAT_BUCKETS, PREFIX_BITS, Place, PrefixKey, REASONS, RULE_BITS, Reason, Route,
    RuleKey, Service, TABLE_FLAGS, Tap, Uplink,
};
use ocs_dataplane_shared::limit::{Limits, Meter, Meters};
use ocs_dataplane_shared::log::{LOG_FLOWS, LogKey, LogRecord};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;
const SHARED: usize = TABLE_FLAGS as usize;
/// Elements begin where a page does, so that those of a cache line's size are in one.
const ON_PAGES: usize = BPF_F_MMAPABLE as usize;

/// The loader's own, as `ENDPOINTS` and `HOSTS` are; programs go by the directories that follow.
#[btf_map]
static TAPS: HashMap<u32, Tap, MAX_SLOTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static TAP_CELLS: Array<u32, { directory::TAP_CELLS }> = Array::new();
#[btf_map]
static TAP_KNOWN: Array<KnownTap, TAP_ENTRIES, ON_PAGES> = Array::new();
#[btf_map]
static TAP_FAR: HashMap<u32, u32, MAX_SLOTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, MAX_ENDPOINTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static ENDPOINT_CELLS: Array<u32, { directory::ENDPOINT_CELLS }> = Array::new();
#[btf_map]
static ENDPOINT_KNOWN: Array<KnownEndpoint, ENDPOINT_ENTRIES, ON_PAGES> = Array::new();
#[btf_map]
static ENDPOINT_FAR: HashMap<EndpointKey, u32, MAX_ENDPOINTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static SERVICES: HashMap<u32, Service, MAX_SLOTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static FORWARDERS: HashMap<ForwarderKey, u32, MAX_SLOTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static PUBLICS: HashMap<u32, EndpointKey, MAX_ENDPOINTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static HOSTS: HashMap<u64, Host, MAX_HOSTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static HOST_CELLS: Array<u32, { directory::HOST_CELLS }> = Array::new();
#[btf_map]
static HOST_KNOWN: Array<KnownHost, HOST_ENTRIES, ON_PAGES> = Array::new();
#[btf_map]
static HOST_FAR: HashMap<u64, u32, MAX_HOSTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static UPLINKS: HashMap<u32, Uplink, 4, ON_DEMAND> = HashMap::new();
#[btf_map]
static PLACES: LpmTrie<PrefixKey, Place, MAX_PLACES> = LpmTrie::new();
#[btf_map]
static ROUTES: LpmTrie<PrefixKey, Route, MAX_ROUTES> = LpmTrie::new();
#[btf_map]
static ACL_CLASSES: LpmTrie<AclClassKey, u32, MAX_ACL_RULES> = LpmTrie::new();
#[btf_map]
static ACL_RULES: LpmTrie<AclRuleKey, u32, MAX_ACL_RULES> = LpmTrie::new();
#[btf_map]
static RULES: LpmTrie<RuleKey, u32, MAX_RULES> = LpmTrie::new();
#[btf_map]
static PORTS_IPV6: Array<ipv6::Port, MAX_SLOTS> = Array::new();
#[btf_map]
static ENDPOINTS_IPV6: HashMap<ipv6::EndpointKey, ipv6::Endpoint, MAX_ENDPOINTS, ON_DEMAND> =
    HashMap::new();
#[btf_map]
static ROUTES_IPV6: LpmTrie<ipv6::PrefixKey, Route, MAX_ROUTES_IPV6> = LpmTrie::new();
#[btf_map]
static PLACES_IPV6: LpmTrie<ipv6::PrefixKey, ipv6::Place, MAX_PLACES_IPV6> = LpmTrie::new();
#[btf_map]
static PUBLICS_IPV6: HashMap<Address6, u32, MAX_ENDPOINTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static SECRETS: Array<Secret, 1> = Array::new();
#[btf_map]
static STRANGERS: LruHashMap<u32, Address6, MAX_STRANGERS> = LruHashMap::new();
#[btf_map]
static FLOWS: ArrayOfMaps<Array<Bucket, FLOW_BUCKETS, SHARED>, MAX_SLOTS> = ArrayOfMaps::new();
#[btf_map]
static NATS: ArrayOfMaps<Array<Bucket, NAT_BUCKETS, SHARED>, MAX_SLOTS> = ArrayOfMaps::new();
#[btf_map]
static LIMITS: Array<Limits, MAX_SLOTS> = Array::new();
#[btf_map]
static METERS: Array<Meters, MAX_SLOTS> = Array::new();
#[btf_map]
static FLOW_LOGS: ArrayOfMaps<HashMap<LogKey, LogRecord, LOG_FLOWS, ON_DEMAND>, MAX_SLOTS> =
    ArrayOfMaps::new();
#[btf_map]
pub static CAPTURES: ArrayOfMaps<RingBuf<Captured, 65_536>, MAX_SLOTS> = ArrayOfMaps::new();
#[btf_map]
pub static STAGES: ProgramArray<MAX_STAGES> = ProgramArray::new();
#[btf_map]
static COUNTERS: PerCpuArray<Counters, MAX_SLOTS> = PerCpuArray::new();
#[btf_map]
pub static DEVICES: DevMap<MAX_SLOTS> = DevMap::new();
/// The same for programs of sockets' buffers, to which a device map is closed.
#[btf_map]
pub static INTERFACES: Array<u32, MAX_SLOTS> = Array::new();
#[btf_map]
pub static BUFFER_STAGES: ProgramArray<MAX_STAGES> = ProgramArray::new();

/// The maps above.
pub struct KernelMaps;

impl Maps for KernelMaps {
    #[inline(always)]
    fn tap(&self, ifindex: u32) -> Option<&Tap> {
        let at = at(TAP_CELLS.get(directory::tap_cell(ifindex)));
        if let Some(known) = TAP_KNOWN.get(at)
            && at != 0
            && known.key == ifindex
        {
            return Some(&known.value);
        }
        // SAFETY: an element outlives the program's run (RCU). The loader replaces an
        // element whole and never writes into one.
        let at = unsafe { TAP_FAR.get(&ifindex) }.copied()?;
        TAP_KNOWN.get(at).map(|known| &known.value)
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        let at = at(ENDPOINT_CELLS.get(directory::endpoint_cell(key)));
        if let Some(known) = ENDPOINT_KNOWN.get(at)
            && at != 0
            && known.key == *key
        {
            return Some(&known.value);
        }
        // SAFETY: as in `tap`.
        let at = unsafe { ENDPOINT_FAR.get(key) }.copied()?;
        ENDPOINT_KNOWN.get(at).map(|known| &known.value)
    }

    #[inline(always)]
    fn port_ipv6(&self, slot: u32) -> Option<&ipv6::Port> {
        PORTS_IPV6.get(slot).filter(|port| port.is_there())
    }

    #[inline(always)]
    fn endpoint_ipv6(&self, key: &ipv6::EndpointKey) -> Option<&ipv6::Endpoint> {
        // SAFETY: as in `tap`.
        unsafe { ENDPOINTS_IPV6.get(key) }
    }

    #[inline(always)]
    fn route_ipv6(&self, key: &ipv6::PrefixKey) -> Option<Route> {
        ROUTES_IPV6.get(&Key::new(ipv6::PREFIX_BITS, *key)).copied()
    }

    #[inline(always)]
    fn place_ipv6(&self, key: &ipv6::PrefixKey) -> Option<ipv6::Place> {
        PLACES_IPV6.get(&Key::new(ipv6::PREFIX_BITS, *key)).copied()
    }

    #[inline(always)]
    fn public_ipv6(&self, address: &Address6) -> Option<u32> {
        // SAFETY: as in `tap`.
        unsafe { PUBLICS_IPV6.get(address) }.copied()
    }

    #[inline(always)]
    fn secret(&self) -> Option<&Secret> {
        SECRETS.get(0)
    }

    #[inline(always)]
    fn name(&self, number: Address, address: &Address6) {
        name(number, address);
    }

    #[inline(always)]
    fn service(&self, address: Address) -> Option<&Service> {
        // SAFETY: as in `tap`.
        unsafe { SERVICES.get(&address) }
    }

    #[inline(always)]
    fn forwarder(&self, key: &ForwarderKey) -> Option<Address> {
        // SAFETY: as in `tap`.
        unsafe { FORWARDERS.get(key) }.copied()
    }

    #[inline(always)]
    fn rule(&self, key: &RuleKey) -> u32 {
        RULES.get(&Key::new(RULE_BITS, *key)).copied().unwrap_or(0)
    }

    #[inline(always)]
    fn place(&self, key: &PrefixKey) -> Option<Place> {
        PLACES.get(&Key::new(PREFIX_BITS, *key)).copied()
    }

    #[inline(always)]
    fn route(&self, key: &PrefixKey) -> Option<Route> {
        ROUTES.get(&Key::new(PREFIX_BITS, *key)).copied()
    }

    #[inline(always)]
    fn acl_class(&self, key: &AclClassKey) -> Option<u32> {
        ACL_CLASSES.get(&Key::new(ACL_CLASS_BITS, *key)).copied()
    }

    #[inline(always)]
    fn acl_allows(&self, key: &AclRuleKey) -> bool {
        ACL_RULES
            .get(&Key::new(ACL_BITS, *key))
            .is_some_and(|verdict| *verdict != 0)
    }

    #[inline(always)]
    fn public(&self, address: Address) -> Option<EndpointKey> {
        // SAFETY: as in `tap`.
        unsafe { PUBLICS.get(&address) }.copied()
    }

    #[inline(always)]
    fn host(&self, address: Address) -> Option<&Host> {
        let at = at(HOST_CELLS.get(directory::host_cell(address)));
        if let Some(known) = HOST_KNOWN.get(at)
            && at != 0
            && known.key == u64::from(address)
        {
            return Some(&known.value);
        }
        // SAFETY: as in `tap`.
        let at = unsafe { HOST_FAR.get(&u64::from(address)) }.copied()?;
        HOST_KNOWN.get(at).map(|known| &known.value)
    }

    #[inline(always)]
    fn uplink(&self, slot: u32) -> Option<&Uplink> {
        // SAFETY: as in `tap`.
        unsafe { UPLINKS.get(&slot) }
    }

    #[inline(always)]
    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        FLOWS.get_value(slot, &index)
    }

    #[inline(always)]
    fn nat_bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        NATS.get_value(slot, &index)
    }

    #[inline(always)]
    fn limits(&self, slot: u32) -> Option<&Limits> {
        LIMITS.get(slot)
    }

    #[inline(always)]
    fn meter(&self, slot: u32, direction: Direction) -> Option<&Meter> {
        METERS.get(slot)?.directions.get(direction as usize)
    }

    #[inline(always)]
    fn is_logged(&self, slot: u32) -> bool {
        FLOW_LOGS.get(slot).is_some()
    }

    #[inline(always)]
    fn log(&self, slot: u32, key: &LogKey, packets: u64, bytes: u64) {
        add_to_log(slot, key, packets, bytes);
    }

    #[inline(always)]
    fn now(&self) -> u64 {
        // SAFETY: the helper takes no arguments and only reads a counter.
        unsafe { aya_ebpf::helpers::generated::bpf_jiffies64() }
    }

    #[inline(always)]
    fn count(&self, slot: u32, direction: Direction, reason: Reason) {
        let index = direction as usize * REASONS + reason as usize;
        if let Some(counters) = COUNTERS.get_ptr_mut(slot) {
            // SAFETY: the element is this CPU's, and XDP programs of one CPU do not
            // interrupt each other.
            let cells = unsafe { &mut (*counters).cells };
            if let Some(cell) = cells.get_mut(index) {
                *cell += 1;
            }
        }
    }
}

/// The entry that a cell leads to: read once, since the loader may write another.
#[inline(always)]
fn at(cell: Option<&u32>) -> u32 {
    // SAFETY: the pointer is to a live, aligned word, which is read in one access.
    cell.map_or(0, |cell| unsafe {
        core::ptr::from_ref(cell).read_volatile()
    })
}

/// Not inlined: a function of its own has a stack of its own.
#[inline(never)]
fn name(number: Address, address: &Address6) {
    // SAFETY: as in `Maps::tap`.
    if unsafe { STRANGERS.get(&number) }.is_none() {
        // If that fails the log says that it skipped packets.
        let _room = STRANGERS.insert(&number, address, 0);
    }
}

/// Not inlined: a function of its own has a stack of its own.
#[inline(never)]
fn add_to_log(slot: u32, key: &LogKey, packets: u64, bytes: u64) {
    let Some(table) = FLOW_LOGS.get(slot) else {
        return;
    };
    let now = KernelMaps.now();
    // SAFETY: as in `Maps::tap`; the loader only reads elements, and their words are shared
    // by CPUs as `LogRecord` means them to be.
    let found = unsafe { table.get(key) };
    let found = match found {
        Some(record) => Some(record),
        None => {
            // If that fails another CPU was first, or there is no room.
            let _room = table.insert(key, LogRecord::beginning(now), BPF_NOEXIST.into());
            // SAFETY: as above.
            unsafe { table.get(key).or_else(|| table.get(LogKey::SKIPPED)) }
        }
    };
    if let Some(record) = found {
        record.add(packets, bytes, now);
    }
}
