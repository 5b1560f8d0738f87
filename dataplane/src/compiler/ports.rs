//! Entries that say who a port is.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use ipnet::IpNet;
use ocs_dataplane_shared::layout::{
    Endpoint, EndpointKey, Identity, MAX_SLOTS, METADATA, Service, Tap, Timeouts,
};
use ocs_dataplane_shared::limit::Limits;

use super::{CompileError, Entries, Identities, NEXT_HOP, check_size, ipv4_addresses, rates, raw};
use crate::model::{Mac, Policy, Port, PortId, Vni};

/// What makes a port another one, with other flows, under the same name.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Body {
    ifindex: u32,
    vni: Vni,
    mac: Mac,
}

impl Body {
    fn of(port: &Port) -> Self {
        Self {
            ifindex: port.ifindex,
            vni: port.vni,
            mac: port.mac,
        }
    }
}

/// Which port has which slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    ports: BTreeMap<PortId, (u32, Body)>,
    /// Slots of ports whose names are not known yet: those that a predecessor left.
    adopted: BTreeMap<u32, Tap>,
}

impl Slots {
    /// Slots that a predecessor gave out, by interface.
    #[must_use]
    pub fn adopt(taps: &BTreeMap<u32, Tap>) -> Self {
        Self {
            ports: BTreeMap::new(),
            adopted: taps.clone(),
        }
    }

    /// A port's slot.
    #[must_use]
    pub fn of(&self, port: &PortId) -> Option<u32> {
        self.ports.get(port).map(|(slot, _)| *slot)
    }

    /// The port that has a slot.
    #[must_use]
    pub fn port(&self, slot: u32) -> Option<&PortId> {
        let found = self.ports.iter().find(|(_, (of, _))| *of == slot);
        found.map(|(id, _)| id)
    }

    /// Ports that have one.
    pub fn ports(&self) -> impl Iterator<Item = &PortId> {
        self.ports.keys()
    }

    /// Gives each port of a policy a slot: its own, else one that none had before.
    pub(super) fn assign(&mut self, policy: &Policy) -> Result<(), CompileError> {
        check_size("DEVICES", policy.ports.len(), MAX_SLOTS - 1)?;
        let mut next = BTreeMap::new();
        let mut new = Vec::new();
        for (id, port) in &policy.ports {
            let body = Body::of(port);
            match self.former(id, port, &body) {
                Some(slot) => {
                    next.insert(id.clone(), (slot, body));
                }
                None => new.push((id, body)),
            }
        }
        let mut used: BTreeSet<u32> = next.values().map(|(slot, _)| *slot).collect();
        used.extend(self.ports.values().map(|(slot, _)| *slot));
        used.extend(self.adopted.values().map(|tap| tap.slot));
        let limit = u32::try_from(MAX_SLOTS).unwrap_or(u32::MAX);
        let mut free = (1..limit).filter(|slot| !used.contains(slot));
        for (id, body) in new {
            let slot = free.next().ok_or(CompileError::Overflow {
                map: "FLOWS",
                needed: used.len() + 1,
                limit: MAX_SLOTS - 1,
            })?;
            next.insert(id.clone(), (slot, body));
        }
        self.ports = next;
        self.adopted.clear();
        Ok(())
    }

    fn former(&self, id: &PortId, port: &Port, body: &Body) -> Option<u32> {
        if let Some((slot, former)) = self.ports.get(id) {
            return (former == body).then_some(*slot);
        }
        self.adopted_tap(port).map(|tap| tap.slot)
    }

    /// What a predecessor judged a port's first address by.
    pub(super) fn former_identity(&self, port: &Port) -> Option<Identity> {
        self.adopted_tap(port).map(|tap| tap.identity)
    }

    fn adopted_tap(&self, port: &Port) -> Option<&Tap> {
        self.adopted.get(&port.ifindex).filter(|tap| {
            tap.vni == port.vni.0
                && tap.mac == port.mac.0
                && tap.service == raw(port.service_address)
                && ipv4_addresses(port).next().map(raw) == Some(tap.address)
        })
    }
}

/// Adds the entries of a port.
pub(super) fn add(
    entries: &mut Entries,
    id: &PortId,
    port: &Port,
    slots: &Slots,
    identities: &Identities,
    timeouts: Timeouts,
    policy: &Policy,
) -> Result<(), CompileError> {
    let name = || id.0.clone();
    if !(1..1 << 24).contains(&port.vni.0) {
        return Err(CompileError::Vni {
            port: name(),
            vni: port.vni.0,
        });
    }
    if let Some(group) = port
        .groups
        .iter()
        .find(|group| !policy.groups.contains_key(group))
    {
        return Err(CompileError::UnknownGroup {
            port: name(),
            group: group.0.clone(),
        });
    }
    let IpNet::V4(subnet) = port.subnet else {
        return Err(CompileError::Subnet {
            port: name(),
            subnet: port.subnet,
        });
    };
    let service = service_address(port).ok_or(CompileError::ServiceAddress {
        port: name(),
        address: port.service_address,
    })?;
    let first = ipv4_addresses(port)
        .next()
        .ok_or(CompileError::NoAddress { port: name() })?;
    let slot = slots.of(id).unwrap_or(0);
    let identity = |address: Ipv4Addr| {
        identities
            .get(&(id.clone(), address))
            .copied()
            .unwrap_or_default()
    };
    let gateway = subnet.hosts().next().unwrap_or(subnet.network());
    let tap = Tap {
        slot,
        vni: port.vni.0,
        address: raw(first),
        gateway: raw(gateway),
        subnet: raw(subnet.network()),
        mask: raw(subnet.netmask()),
        service,
        identity: identity(first),
        timeouts,
        mac: port.mac.0,
        reserved: [0; 2],
    };
    let duplicate = |what, value: String| CompileError::Duplicate {
        port: name(),
        what,
        value,
    };
    if entries.taps.insert(port.ifindex, tap).is_some() {
        return Err(duplicate("interface", port.ifindex.to_string()));
    }
    for address in ipv4_addresses(port) {
        let key = EndpointKey {
            vni: port.vni.0,
            address: raw(address),
        };
        let endpoint = Endpoint {
            slot,
            identity: identity(address),
            timeouts,
            mac: port.mac.0,
            reserved: [0; 2],
        };
        if entries.endpoints.insert(key, endpoint).is_some() {
            return Err(duplicate("address", address.to_string()));
        }
    }
    let answer = Service {
        slot,
        address: raw(first),
        mac: port.mac.0,
        reserved: [0; 2],
    };
    if entries.services.insert(service, answer).is_some() {
        return Err(duplicate(
            "service address",
            port.service_address.to_string(),
        ));
    }
    entries.devices.insert(slot, port.ifindex);
    let limits = rates::limits(port.rate, timeouts.hz);
    if limits != Limits::default() {
        entries.limits.insert(slot, limits);
    }
    Ok(())
}

/// A port's service address, if it may be one: link-local (RFC 3927), and not the
/// responder's own or its next hop.
fn service_address(port: &Port) -> Option<u32> {
    let address = port.service_address;
    let [.., third, _] = address.octets();
    let reserved =
        third == 0 || third == 255 || address == NEXT_HOP || address == Ipv4Addr::from(METADATA);
    (address.is_link_local() && !reserved).then(|| raw(address))
}
