//! From a [`Policy`] to map entries.
//!
//! ```text
//! groups of a port   ── a set ──▶ set id      names its policy, and it in others' rules
//! address of a port  ── narrowest rule prefix ──▶ atom id
//! rule of a group    ── for each set with the group, for each atom it covers ──▶ entries
//! IPv6 address       ── number           stands for it in trackers and ACLs
//! route table, ACL   ── by its content ──▶ number, entries under it
//! rule prefix, CIDR  ── places: what a network sees of an address beyond its ports; an IPv6
//!                       place has a number for ACLs, too
//! ```
//!
//! A packet is then judged by two look-ups a side, however many rules there are: (policy,
//! peer's atom) and (policy, peer's set). What narrower prefixes would hide, wider ones
//! still allow, since an atom gets the entries of every prefix that covers it.

mod acls;
pub(crate) mod ipv6_ports;
pub(crate) mod numbers;
mod open;
mod ports;
mod rates;
mod routes;
mod rules;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv6Net};
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    AclClassKey, AclRuleKey, Endpoint, EndpointKey, ForwarderKey, Identity, MAX_ENDPOINTS,
    MAX_RULES, MAX_SLOTS, Place, PrefixKey, Route, RuleKey, Service, Tap,
};
use ocs_dataplane_shared::limit::Limits;

use crate::model::{GroupId, Policy, Port, Vni};
use numbers::{Names, Suggested};

pub use numbers::Numbers;
pub use slots::Slots;

/// Next hop of the responder's route to the ports.
pub const NEXT_HOP: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 253);

/// A key of a prefix tree, and how many of its leading bits count.
pub type Prefixed<Key> = (Key, u32);

/// Contents of the maps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Entries {
    /// `TAPS`.
    pub taps: BTreeMap<u32, Tap>,
    /// `ENDPOINTS`.
    pub endpoints: BTreeMap<EndpointKey, Endpoint>,
    /// `FORWARDERS`.
    pub forwarders: BTreeMap<ForwarderKey, u32>,
    /// `PORTS_IPV6`: of slots that have IPv6 addresses.
    pub ports_ipv6: BTreeMap<u32, ipv6::Port>,
    /// `ENDPOINTS_IPV6`.
    pub endpoints_ipv6: BTreeMap<ipv6::EndpointKey, ipv6::Endpoint>,
    /// `ROUTES_IPV6`.
    pub routes_ipv6: BTreeMap<Prefixed<ipv6::PrefixKey>, Route>,
    /// `PLACES_IPV6`.
    pub places_ipv6: BTreeMap<Prefixed<ipv6::PrefixKey>, ipv6::Place>,
    /// `PUBLICS_IPV6`.
    pub publics_ipv6: BTreeMap<ipv6::Address6, u32>,
    /// `SERVICES`.
    pub services: BTreeMap<u32, Service>,
    /// `PUBLICS`.
    pub publics: BTreeMap<u32, EndpointKey>,
    /// `RULES`.
    pub rules: BTreeMap<Prefixed<RuleKey>, u32>,
    /// `PLACES`.
    pub places: BTreeMap<Prefixed<PrefixKey>, Place>,
    /// `ROUTES`.
    pub routes: BTreeMap<Prefixed<PrefixKey>, Route>,
    /// `ACL_CLASSES`.
    pub acl_classes: BTreeMap<Prefixed<AclClassKey>, u32>,
    /// `ACL_RULES`.
    pub acl_rules: BTreeMap<Prefixed<AclRuleKey>, u32>,
    /// `DEVICES`: interfaces of slots in use, the host's own left out. Each has a table in
    /// `FLOWS`.
    pub devices: BTreeMap<u32, u32>,
    /// `NATS`: slots that have a table.
    pub nats: BTreeSet<u32>,
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
    /// A port on another host has no host.
    #[error("port {port} is on no host")]
    Host {
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
    /// A port has IPv6 addresses but no subnet for them, or one smaller than a /64.
    #[error("port {port} has IPv6 addresses, but its IPv6 subnet is {subnet}")]
    Ipv6Subnet {
        /// The port's name.
        port: String,
        /// What was given.
        subnet: String,
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
    /// A port or NAT gateway names a route table or ACL that the policy does not define.
    #[error("port {port}: {what} {name} is not defined")]
    Unknown {
        /// The port's name.
        port: String,
        /// Route table or network ACL.
        what: &'static str,
        /// The missing one.
        name: String,
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
/// only changed if all goes well. `hz` is the frequency of jiffies.
pub fn compile(
    policy: &Policy,
    numbers: &mut Numbers,
    slots: &mut Slots,
    hz: u32,
) -> Result<Entries, CompileError> {
    let mut new_numbers = numbers.clone();
    let mut new_slots = slots.clone();
    let mut entries = Entries::default();

    let prefixes = rules::prefixes(policy);
    let identities = identities(policy, &prefixes, &mut new_numbers, slots)?;
    new_slots.assign(policy)?;
    let mut making = ports::Making {
        entries: &mut entries,
        policy,
        slots: &new_slots,
        numbers: &new_numbers,
        identities: &identities,
        hz,
        meters: new_slots.shared_meters(policy, hz),
    };
    for (id, port) in &policy.ports {
        making.port(id, port)?;
    }
    for (id, nat) in &policy.nats {
        making.nat(id, nat)?;
    }
    for ((vni, address), remote) in &policy.remotes {
        making.remote(*vni, *address, remote)?;
    }
    rules::add(&mut entries, policy, &prefixes, &new_numbers)?;
    rules::mark_tracking(&mut entries);
    routes::add(&mut entries, &new_numbers)?;
    routes::add_places(&mut entries, policy, &prefixes, &new_numbers)?;
    acls::add(&mut entries, &new_numbers)?;
    check_size("TAPS", entries.taps.len(), MAX_SLOTS - 1)?;
    check_size("ENDPOINTS", entries.endpoints.len(), MAX_ENDPOINTS)?;
    let endpoints_ipv6 = entries.endpoints_ipv6.len();
    check_size("ENDPOINTS_IPV6", endpoints_ipv6, MAX_ENDPOINTS)?;
    check_size("FORWARDERS", entries.forwarders.len(), MAX_SLOTS)?;
    check_size("RULES", entries.rules.len(), MAX_RULES)?;

    new_slots.note_meters(&entries);
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

/// What each address of each network is judged by.
type Identities = BTreeMap<(Vni, IpAddr), Identity>;

/// The rule prefixes of each network.
type Prefixes = BTreeMap<Vni, BTreeSet<IpNet>>;

/// Networks that ports or NAT gateways of this host are in.
pub(crate) fn own_networks(policy: &Policy) -> BTreeSet<Vni> {
    let ports = policy.ports.values().map(|port| port.vni);
    ports
        .chain(policy.nats.values().map(|nat| nat.vni))
        .collect()
}

/// Numbers everything that is named, and finds who each address is.
fn identities(
    policy: &Policy,
    prefixes: &Prefixes,
    numbers: &mut Numbers,
    slots: &Slots,
) -> Result<Identities, CompileError> {
    let mut names = Names::default();
    let mut found = Vec::new();
    for (vni, prefixes) in prefixes {
        for prefix in prefixes {
            suggest(&mut names.atoms, &(*vni, *prefix), None);
        }
    }
    let atom_of = |vni: Vni, address: IpAddr| {
        let named = prefixes.get(&vni)?;
        rules::narrowest(|net| named.contains(net), IpNet::from(address))
            .map(|prefix| (vni, prefix))
    };
    let mut add = |names: &mut Names, vni: Vni, address, groups: &BTreeSet<GroupId>, former| {
        let set = (vni, groups.clone());
        let atom = atom_of(vni, address);
        let former: Option<Identity> = former;
        if let IpAddr::V6(address) = address {
            let prefix = Ipv6Net::from(address);
            let former = slots.former_number(vni, prefix);
            suggest(&mut names.addresses, &(vni, prefix), former);
        }
        suggest(&mut names.sets, &set, former.map(|identity| identity.set));
        if let Some(atom) = &atom {
            suggest(&mut names.atoms, atom, former.map(|identity| identity.atom));
        }
        found.push(((vni, address), set, atom));
    };
    for (id, port) in &policy.ports {
        let former = slots.former_tap(port);
        let mut identity = former.map(|tap| tap.identity);
        for address in &port.addresses {
            add(
                &mut names,
                port.vni,
                *address,
                &port.groups,
                identity.take(),
            );
        }
        if let Some(table) = ports::table_of(policy, id, port)? {
            suggest(&mut names.tables, &table, former.map(|tap| tap.table));
        }
        if let Some(acl) = ports::acl_of(policy, id, port.acl.as_ref())? {
            suggest(&mut names.acls, acl, former.map(|tap| tap.acl));
        }
    }
    let nobody = BTreeSet::new();
    for (id, nat) in &policy.nats {
        add(&mut names, nat.vni, nat.address.into(), &nobody, None);
        if let Some(acl) = ports::acl_of(policy, id, nat.acl.as_ref())? {
            suggest(&mut names.acls, acl, None);
        }
    }
    for ((vni, address), remote) in &policy.remotes {
        add(&mut names, *vni, *address, &remote.groups, None);
    }
    for vni in own_networks(policy) {
        for prefix in routes::prefixes_ipv6(policy, prefixes, vni) {
            let former = slots.former_number(vni, prefix);
            suggest(&mut names.addresses, &(vni, prefix), former);
        }
    }
    numbers.keep(names);
    Ok(found
        .into_iter()
        .map(|(key, set, atom)| {
            let identity = Identity {
                set: numbers.set(&set),
                atom: atom.map_or(0, |atom| numbers.atom(&atom)),
            };
            (key, identity)
        })
        .collect())
}

fn suggest<Name: Ord + Clone>(names: &mut Suggested<Name>, name: &Name, number: Option<u32>) {
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
