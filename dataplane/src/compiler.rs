//! From a [`Policy`] to map entries.
//!
//! ```text
//! groups of a port   ── a set ──▶ set id      names its policy, and it in others' rules
//! address of a port  ── narrowest rule prefix ──▶ atom id
//! rule of a group    ── for each set with the group, for each atom it covers ──▶ entries
//! ```
//!
//! A packet is then judged by two look-ups a side, however many rules there are: (policy,
//! peer's atom) and (policy, peer's set). What narrower prefixes would hide, wider ones
//! still allow, since an atom gets the entries of every prefix that covers it.

mod numbers;
mod ports;
mod rates;
mod rules;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use ocs_dataplane_shared::layout::{
    Endpoint, EndpointKey, Identity, MAX_ENDPOINTS, MAX_RULES, MAX_SLOTS, RuleKey, Service, Tap,
    Timeouts,
};
use ocs_dataplane_shared::limit::Limits;

use crate::model::{Policy, Port, PortId, Vni};

pub use numbers::Numbers;
pub use ports::Slots;

/// Next hop of the responder's route to the ports.
pub const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// Contents of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// `TAPS`.
    pub taps: BTreeMap<u32, Tap>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// `SERVICES`.
    pub services: BTreeMap<u32, Service>,
    /// `RULES`: key and leading bits that count.
    pub rules: BTreeSet<(RuleKey, u32)>,
    /// `DEVICES`: interfaces of slots in use, the responder's left out.
    pub devices: BTreeMap<u32, u32>,
    /// `LIMITS`: of slots that have any.
    pub limits: BTreeMap<u32, Limits>,
}

/// Why a policy cannot be carried out.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum CompileError {
    /// A VNI is not 1 to 2^24-1.
    #[error("port {port}: network {vni} is not in 1..16777216")]
    Vni {
        /// The port's name.
        port: String,
        /// What was given.
        vni: u32,
    },
    /// A port has no IPv4 address.
    #[error("port {port} has no IPv4 address")]
    NoAddress {
        /// The port's name.
        port: String,
    },
    /// A port's subnet isn't IPv4.
    #[error("port {port}: subnet {subnet} is not IPv4")]
    Subnet {
        /// The port's name.
        port: String,
        /// What was given.
        subnet: IpNet,
    },
    /// Two ports have the same interface, address or service address.
    #[error("port {port}: {what} {value} is another port's, too")]
    Duplicate {
        /// The port's name.
        port: String,
        /// Which of its fields.
        what: &'static str,
        /// The value that occurs twice.
        value: String,
    },
    /// A service address is outside 169.254.0.0/16 or reserved.
    #[error("port {port}: {address} cannot be a service address")]
    ServiceAddress {
        /// The port's name.
        port: String,
        /// What was given.
        address: Ipv4Addr,
    },
    /// A port is in a group that the policy does not define.
    #[error("port {port}: group {group} is not defined")]
    UnknownGroup {
        /// The port's name.
        port: String,
        /// The missing group.
        group: String,
    },
    /// A rule's port range is empty, or its protocol has no ports.
    #[error("group {group}: {traffic} cannot be matched")]
    Traffic {
        /// The group's name.
        group: String,
        /// What was given.
        traffic: String,
    },
    /// A map is too small.
    #[error("policy needs {needed} entries of map {map}, which holds {limit}")]
    Overflow {
        /// The map's name.
        map: &'static str,
        /// Entries that the policy needs.
        needed: usize,
        /// Entries that there can be.
        limit: usize,
    },
}

/// Compiles a policy. `numbers` and `slots` keep what has a number at its number, and are
/// only changed if all goes well.
pub fn compile(
    policy: &Policy,
    numbers: &mut Numbers,
    slots: &mut Slots,
    timeouts: Timeouts,
) -> Result<Entries, CompileError> {
    let mut new_numbers = numbers.clone();
    let mut new_slots = slots.clone();
    let mut entries = Entries::default();

    let prefixes = rules::prefixes(policy);
    let identities = identities(policy, &prefixes, &mut new_numbers, slots);
    new_slots.assign(policy)?;
    for (id, port) in &policy.ports {
        ports::add(
            &mut entries,
            id,
            port,
            &new_slots,
            &identities,
            timeouts,
            policy,
        )?;
    }
    rules::add(&mut entries, policy, &prefixes, &identities, &new_numbers)?;
    check_size("TAPS", entries.taps.len(), MAX_SLOTS - 1)?;
    check_size("ENDPOINTS", entries.endpoints.len(), MAX_ENDPOINTS)?;
    check_size("RULES", entries.rules.len(), MAX_RULES)?;

    *numbers = new_numbers;
    *slots = new_slots;
    Ok(entries)
}

pub(crate) fn check_size(
    map: &'static str,
    needed: usize,
    limit: usize,
) -> Result<(), CompileError> {
    if needed > limit {
        return Err(CompileError::Overflow { map, needed, limit });
    }
    Ok(())
}

/// What each address of each port is judged by.
type Identities = BTreeMap<(PortId, Ipv4Addr), Identity>;

/// The rule prefixes of each network.
type Prefixes = BTreeMap<Vni, BTreeSet<Ipv4Net>>;

fn identities(
    policy: &Policy,
    prefixes: &Prefixes,
    numbers: &mut Numbers,
    slots: &Slots,
) -> Identities {
    let mut sets = BTreeMap::new();
    let mut atoms = BTreeMap::new();
    let mut found = Vec::new();
    for (id, port) in &policy.ports {
        let set = (port.vni, port.groups.clone());
        let mut former = slots.former_identity(port);
        for address in ipv4_addresses(port) {
            let atom =
                rules::narrowest(prefixes.get(&port.vni), address).map(|prefix| (port.vni, prefix));
            let former = former.take();
            suggest(&mut sets, &set, former.map(|identity| identity.set));
            if let Some(atom) = &atom {
                suggest(&mut atoms, atom, former.map(|identity| identity.atom));
            }
            found.push(((id.clone(), address), set.clone(), atom));
        }
    }
    numbers.keep(sets, atoms);
    found
        .into_iter()
        .map(|(key, set, atom)| {
            let identity = Identity {
                set: numbers.set(&set),
                atom: atom.map_or(0, |atom| numbers.atom(&atom)),
            };
            (key, identity)
        })
        .collect()
}

fn suggest<Name: Ord + Clone>(
    names: &mut numbers::Suggested<Name>,
    name: &Name,
    number: Option<u32>,
) {
    let suggested = names.entry(name.clone()).or_default();
    *suggested = suggested.or(number);
}

pub(crate) fn ipv4_addresses(port: &Port) -> impl Iterator<Item = Ipv4Addr> {
    port.addresses.iter().filter_map(|address| match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    })
}

/// An address as it lies in a packet.
#[must_use]
pub fn raw(address: Ipv4Addr) -> u32 {
    u32::from_ne_bytes(address.octets())
}
