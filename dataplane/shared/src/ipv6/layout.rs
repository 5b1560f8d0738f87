//! The maps that know IPv6 addresses: their keys and values.
//!
//! ```text
//! PORTS_IPV6      slot              → Port      what a port is in IPv6
//! ENDPOINTS_IPV6  (vni, address)    → Endpoint  who receives, and the address's number
//! ROUTES_IPV6     (table, prefix)   → Route     the way to an address
//! ```

use crate::layout::{self, Address};

/// An IPv6 address as it lies in a packet.
pub type Address6 = [u32; 4];

/// An IPv6 address from its bytes.
#[must_use]
pub const fn address(bytes: [u8; 16]) -> Address6 {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bytes;
    [
        u32::from_ne_bytes([a, b, c, d]),
        u32::from_ne_bytes([e, f, g, h]),
        u32::from_ne_bytes([i, j, k, l]),
        u32::from_ne_bytes([m, n, o, p]),
    ]
}

/// The bytes of an IPv6 address.
#[must_use]
pub fn bytes(address: &Address6) -> [u8; 16] {
    let mut bytes = [0; 16];
    for (to, word) in bytes.as_chunks_mut().0.iter_mut().zip(address) {
        *to = word.to_ne_bytes();
    }
    bytes
}

/// [`layout::ROUTER_MAC`]'s link-local address (RFC 4291 appendix A): every subnet's gateway.
pub const ROUTER: [u8; 16] = [
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x6f, 0x63, 0xff, 0xfe, 0x73, 0x00, 0x01,
];

/// [`ROUTER`] as it lies in a packet.
pub const ROUTER_ADDRESS: Address6 = address(ROUTER);

/// Where the metadata service listens, in every network.
pub const METADATA: [u8; 16] = [
    0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x54,
];
/// Where the resolver answers, in every network.
pub const RESOLVER: [u8; 16] = [
    0xfd, 0, 0x0e, 0xc2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x02, 0x53,
];
/// All DHCP servers of a link (RFC 8415 §7.1) as they lie in a packet.
pub const ALL_DHCP: Address6 = address([0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0, 2]);
/// The first 32 bits of every address of the host's services: no network's own.
pub const SERVICES: u32 = u32::from_ne_bytes([0xfd, 0, 0x0e, 0xc2]);
/// [`METADATA`] as it lies in a packet.
pub const METADATA_ADDRESS: Address6 = address(METADATA);
/// [`RESOLVER`] as it lies in a packet.
pub const RESOLVER_ADDRESS: Address6 = address(RESOLVER);

/// The service address in an address that the responder knows a port by.
#[must_use]
pub const fn service_of(address: [u8; 16]) -> [u8; 4] {
    [address[4], address[5], address[6], address[7]]
}

/// Numbers that addresses may have, plus 1.
pub const MAX_NUMBER: u32 = 1 << 24;

/// The `n`th number as it stands in an IPv4 address's place: in 0.0.0.0/8, where no IPv4
/// packet comes from (RFC 1122 §3.2.1.3).
#[must_use]
pub const fn number(n: u32) -> Address {
    (n & (MAX_NUMBER - 1)).to_be()
}

/// `PORTS_IPV6`; without addresses, zero.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Port {
    /// Its first address: the one that service answers go to.
    pub address: Address6,
    /// The first half of its subnet.
    pub subnet: [u32; 2],
    /// The first half of its subnet's mask: no subnet is smaller than a /64.
    pub mask: [u32; 2],
}

impl Port {
    /// Whether an address is of its subnet.
    #[inline(always)]
    #[must_use]
    pub fn is_near(&self, address: &Address6) -> bool {
        address[0] & self.mask[0] == self.subnet[0] && address[1] & self.mask[1] == self.subnet[1]
    }

    /// Whether there is such a port.
    #[inline(always)]
    #[must_use]
    pub fn is_there(&self) -> bool {
        self.mask[0] != 0
    }
}

/// Key of `ENDPOINTS_IPV6`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct EndpointKey {
    /// The network.
    pub vni: u32,
    /// The address.
    pub address: Address6,
}

/// `ENDPOINTS_IPV6`: who receives at an address.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Endpoint {
    /// The address's number, made by [`number`]; never 0.
    pub number: Address,
    /// What receives. Its `subnet`, `mask` and `public` are 0.
    pub is: layout::Endpoint,
}

/// Key of `ROUTES_IPV6`, a prefix tree over `address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey {
    /// The route table.
    pub scope: u32,
    /// An address.
    pub address: Address6,
}

/// All bits of a [`PrefixKey`].
pub const PREFIX_BITS: u32 = 160;

const _: () = {
    assert!(size_of::<Port>() == 32);
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<Endpoint>() == 60);
    assert!(size_of::<PrefixKey>() * 8 == PREFIX_BITS as usize);
};
