//! The kernel's maps as [`Maps`]. Their names, keys and values are the loader's
//! interface; `ocs_dataplane_shared::layout` describes them.

use aya_ebpf::bindings::{BPF_F_NO_PREALLOC, BPF_NOEXIST};
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, DevMap, HashMap, LpmTrie, PerCpuArray, RingBuf};
use aya_ebpf::macros::btf_map;
use ocs_dataplane_shared::Maps;
use ocs_dataplane_shared::capture::Captured;
use ocs_dataplane_shared::flow::Bucket;
use ocs_dataplane_shared::layout::{
    Address, Counters, Direction, Endpoint, EndpointKey, FLOW_BUCKETS, MAX_ENDPOINTS, MAX_RULES,
    MAX_SLOTS, REASONS, RULE_BITS, Reason, RuleKey, Service, Tap,
};
use ocs_dataplane_shared::limit::{Limit, Limits, Meter, Meters};
use ocs_dataplane_shared::log::{LOG_FLOWS, LogKey, LogRecord};

const ON_DEMAND: usize = BPF_F_NO_PREALLOC as usize;

#[btf_map]
static TAPS: HashMap<u32, Tap, MAX_SLOTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, Endpoint, MAX_ENDPOINTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static SERVICES: HashMap<u32, Service, MAX_SLOTS, ON_DEMAND> = HashMap::new();
#[btf_map]
static RULES: LpmTrie<RuleKey, u32, MAX_RULES> = LpmTrie::new();
#[btf_map]
static FLOWS: ArrayOfMaps<Array<Bucket, FLOW_BUCKETS>, MAX_SLOTS> = ArrayOfMaps::new();
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
static COUNTERS: PerCpuArray<Counters, MAX_SLOTS> = PerCpuArray::new();
#[btf_map]
pub static DEVICES: DevMap<MAX_SLOTS> = DevMap::new();

/// The maps above.
pub struct KernelMaps;

impl Maps for KernelMaps {
    #[inline(always)]
    fn tap(&self, ifindex: u32) -> Option<&Tap> {
        // SAFETY: an element outlives the program's run (RCU). The loader replaces an
        // element whole and never writes into one.
        unsafe { TAPS.get(&ifindex) }
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<&Endpoint> {
        // SAFETY: as in `tap`.
        unsafe { ENDPOINTS.get(key) }
    }

    #[inline(always)]
    fn service(&self, address: Address) -> Option<&Service> {
        // SAFETY: as in `tap`.
        unsafe { SERVICES.get(&address) }
    }

    #[inline(always)]
    fn allows(&self, key: &RuleKey) -> bool {
        RULES.get(&Key::new(RULE_BITS, *key)).is_some()
    }

    #[inline(always)]
    fn bucket(&self, slot: u32, index: u32) -> Option<&Bucket> {
        FLOWS.get_value(slot, &index)
    }

    #[inline(always)]
    fn allowance(&self, slot: u32, direction: Direction) -> Option<(&Limit, &Meter)> {
        let limits = LIMITS.get(slot)?;
        let meters = METERS.get(slot)?;
        let index = direction as usize;
        Some((limits.directions.get(index)?, meters.directions.get(index)?))
    }

    #[inline(always)]
    fn is_logged(&self, slot: u32) -> bool {
        FLOW_LOGS.get(slot).is_some()
    }

    #[inline(always)]
    fn log(&self, slot: u32, key: &LogKey, bytes: u64) {
        let Some(table) = FLOW_LOGS.get(slot) else {
            return;
        };
        let now = self.now();
        // SAFETY: as in `tap`; the loader only reads elements, and their words are shared
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
            record.add(bytes, now);
        }
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
