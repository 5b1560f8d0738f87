//! Directories: what is looked up with each packet, found without walking a hash map's
//! chains, which costs a sixth of a packet's time each.
//!
//! ```text
//!  key ─▶ cell ─▶ cells[cell] ─▶ entries[at]: is the key this? ─▶ value
//!                                     └ another's ─▶ far[key] ─▶ entries[at]
//! ```
//!
//! A cell, or an element of `far`, is one word: a reader sees the old entry or the new one,
//! each whole. The loader writes an entry again only when no program that may have seen it
//! runs any more. Of two keys that share a cell one is in `far`.

use crate::layout::{
    Address, Endpoint, EndpointKey, Host, MAX_ENDPOINTS, MAX_HOSTS, MAX_SLOTS, Tap,
};

/// An entry.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Known<Key, Value> {
    /// Whose.
    pub key: Key,
    /// What is known of it.
    pub value: Value,
}

/// `TAP_ENTRIES`.
pub type KnownTap = Known<u32, Tap>;
/// `ENDPOINT_ENTRIES`: a cache line.
pub type KnownEndpoint = Known<EndpointKey, Endpoint>;
/// `HOST_ENTRIES`: a cache line. Its key is an address in a word, so that those of the outer
/// header lie as such are read.
pub type KnownHost = Known<u64, Host>;

/// Cells of the directory of taps; a power of two.
pub const TAP_CELLS: usize = 16_384;
/// Its entries: all that there may be, and as many that wait to be written again.
pub const TAP_ENTRIES: usize = 2 * MAX_SLOTS;
/// Cells of the directory of endpoints; a power of two.
pub const ENDPOINT_CELLS: usize = 1 << ENDPOINT_CELL_BITS;
const ENDPOINT_CELL_BITS: u32 = 18;
/// Its entries, with half as many that wait.
pub const ENDPOINT_ENTRIES: usize = MAX_ENDPOINTS + MAX_ENDPOINTS / 2;
/// Cells of the directory of hosts; a power of two.
pub const HOST_CELLS: usize = 1 << HOST_CELL_BITS;
const HOST_CELL_BITS: u32 = 15;
/// Its entries, with half as many that wait.
pub const HOST_ENTRIES: usize = MAX_HOSTS + MAX_HOSTS / 2;

/// The cell of an interface. The kernel numbers them one after the other.
#[inline(always)]
#[must_use]
pub fn tap_cell(ifindex: u32) -> u32 {
    ifindex & (TAP_CELLS as u32 - 1)
}

/// The cell of an endpoint. A tenant who crowds one makes its own packets a little dearer.
#[inline(always)]
#[must_use]
pub fn endpoint_cell(key: &EndpointKey) -> u32 {
    let key = u64::from(key.vni) << 32 | u64::from(key.address);
    let hash = (key ^ key >> 29).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (64 - ENDPOINT_CELL_BITS)) as u32
}

/// The cell of a host.
#[inline(always)]
#[must_use]
pub fn host_cell(address: Address) -> u32 {
    let hash = u64::from(address).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (hash >> (64 - HOST_CELL_BITS)) as u32
}

const _: () = {
    assert!(TAP_CELLS.is_power_of_two());
    assert!(size_of::<KnownTap>() == 80);
    assert!(size_of::<KnownEndpoint>() == 64);
    assert!(size_of::<KnownHost>() == 64);
};
