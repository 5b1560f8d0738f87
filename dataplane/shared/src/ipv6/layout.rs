//! The maps that know IPv6 addresses: their keys and values.
//!
//! ```text
//! PORTS_IPV6      slot              → Port      what a port is in IPv6
//! ENDPOINTS_IPV6  (vni, address)    → Endpoint  who receives, and the address's number
//! ROUTES_IPV6     (table, prefix)   → Route     the way to an address
//! PLACES_IPV6     (vni, prefix)     → Place     what a network sees of an address
//! PUBLICS_IPV6    address           → vni       whose an address is that is reached from outside
//! SECRETS         0                 → Secret    what numbers of addresses outside are made with
//! STRANGERS       number            → address   what they stand for, in flow logs
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

/// Numbers of addresses that are no endpoint's are of 224.0.0.0/3, from where no IPv4 packet
/// comes either (RFC 1112 §4, RFC 1122 §3.2.1.3).
pub const STRANGER: Address = Address::from_ne_bytes([0xe0, 0, 0, 0]);

/// What numbers of addresses outside are made with: random, and the host's own.
pub type Secret = [u64; 5];

/// The number of an address that is no endpoint's: 29 bits of a strongly universal hash
/// (Lemire and Kaser, "Strongly universal string hashing is fast", §3), so that nobody who
/// does not know the secret finds two addresses that share one, but by trying 2^29 of them.
#[inline(always)]
#[must_use]
pub fn stranger(secret: &Secret, address: &Address6) -> Address {
    let [begin, a, b, c, d] = *secret;
    let [e, f, g, h] = address.map(u64::from);
    let sum = begin
        .wrapping_add(a.wrapping_mul(e))
        .wrapping_add(b.wrapping_mul(f))
        .wrapping_add(c.wrapping_mul(g))
        .wrapping_add(d.wrapping_mul(h));
    (sum >> 32) as u32 | STRANGER
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
    /// Its subnet's route table; 0 leads to its own network alone.
    pub table: u32,
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

/// `PLACES_IPV6`: what a network sees of an address that is no endpoint of its own.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Place {
    /// The atom it is in, and whose address space.
    pub is: layout::Place,
    /// The prefix's number, made by [`number`]: what network ACLs know its addresses by.
    pub number: Address,
}

/// Key of `ROUTES_IPV6` and `PLACES_IPV6`, prefix trees over `address`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PrefixKey {
    /// The route table, or the network.
    pub scope: u32,
    /// An address.
    pub address: Address6,
}

/// All bits of a [`PrefixKey`].
pub const PREFIX_BITS: u32 = 160;

const _: () = {
    assert!(size_of::<Port>() == 36);
    assert!(size_of::<Place>() == 12);
    assert!(size_of::<EndpointKey>() == 20);
    assert!(size_of::<Endpoint>() == 60);
    assert!(size_of::<PrefixKey>() * 8 == PREFIX_BITS as usize);
};
