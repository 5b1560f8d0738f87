//! Which port has which slot of the maps, from policy to policy.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv6Addr;

use ipnet::Ipv6Net;
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    Endpoint, EndpointKey, FIRST_PORT_SLOT, MAX_SLOTS, TRANSLATES, Tap,
};

use super::{
    CompileError, Entries, Prefixed, check_size, ipv4_addresses, ipv6_ports, rates, raw, routes,
};
use crate::model::{Mac, MeterId, Nat, Policy, Port, PortId, Vni};

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

    /// A NAT gateway has no interface.
    fn of_nat(nat: &Nat) -> Self {
        Self {
            ifindex: 0,
            vni: nat.vni,
            mac: nat.mac,
        }
    }
}

/// Which port, or NAT gateway, has which slot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Slots {
    ports: BTreeMap<PortId, (u32, Body)>,
    /// Slots of ports whose names are not known yet: those that a predecessor left.
    adopted: BTreeMap<u32, Tap>,
    adopted_nats: BTreeMap<EndpointKey, Endpoint>,
    /// Numbers that a predecessor gave to IPv6 addresses and prefixes.
    adopted_numbers: BTreeMap<Prefixed<ipv6::PrefixKey>, u32>,
    /// Of each slot with a limit, the one on whose meters it spends.
    meters: BTreeMap<u32, u32>,
}

impl Slots {
    /// Slots that a predecessor gave out.
    #[must_use]
    pub fn adopt(entries: &Entries) -> Self {
        let nats = entries
            .endpoints
            .iter()
            .filter(|(_, endpoint)| endpoint.flags & TRANSLATES != 0);
        Self {
            ports: BTreeMap::new(),
            adopted: entries.taps.clone(),
            adopted_nats: nats.map(|(key, endpoint)| (*key, *endpoint)).collect(),
            adopted_numbers: ipv6_ports::numbers(entries).collect(),
            meters: meters_of(entries),
        }
    }

    /// Takes over numbers that a predecessor of another layout gave to IPv6 addresses which
    /// have none here.
    pub(crate) fn adopt_numbers(&mut self, numbers: Vec<((Vni, Ipv6Addr), u32)>) {
        for ((vni, address), number) in numbers {
            let key = routes::key_ipv6(vni.0, address.into());
            self.adopted_numbers.entry(key).or_insert(number);
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
        let needed = policy.ports.len() + policy.nats.len();
        check_size("DEVICES", needed, MAX_SLOTS - FIRST_PORT_SLOT as usize)?;
        let mut next = BTreeMap::new();
        let mut new = Vec::new();
        let ports = policy.ports.iter().map(|(id, port)| {
            let body = Body::of(port);
            let former = self.former(id, port, &body);
            (id, body, former)
        });
        let nats = policy.nats.iter().map(|(id, nat)| {
            let body = Body::of_nat(nat);
            let former = self.former_nat(id, nat, &body);
            (id, body, former)
        });
        for (id, body, former) in ports.chain(nats) {
            match former {
                Some(slot) => {
                    next.insert(id.clone(), (slot, body));
                }
                None => new.push((id, body)),
            }
        }
        let mut used: BTreeSet<u32> = next.values().map(|(slot, _)| *slot).collect();
        used.extend(self.ports.values().map(|(slot, _)| *slot));
        used.extend(self.adopted.values().map(|tap| tap.slot));
        used.extend(self.adopted_nats.values().map(|endpoint| endpoint.slot));
        let limit = u32::try_from(MAX_SLOTS).unwrap_or(u32::MAX);
        let mut free = (FIRST_PORT_SLOT..limit).filter(|slot| !used.contains(slot));
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
        self.adopted_nats.clear();
        self.adopted_numbers.clear();
        Ok(())
    }

    fn former(&self, id: &PortId, port: &Port, body: &Body) -> Option<u32> {
        if let Some((slot, former)) = self.ports.get(id) {
            return (former == body).then_some(*slot);
        }
        self.former_tap(port).map(|tap| tap.slot)
    }

    fn former_nat(&self, id: &PortId, nat: &Nat, body: &Body) -> Option<u32> {
        if let Some((slot, former)) = self.ports.get(id) {
            return (former == body).then_some(*slot);
        }
        let key = EndpointKey {
            vni: nat.vni.0,
            address: raw(nat.address),
        };
        let endpoint = self.adopted_nats.get(&key)?;
        (endpoint.mac == nat.mac.0).then_some(endpoint.slot)
    }

    /// Whose meters ports of one name spend on: those that they spend on already, as long as
    /// their port is one of them; else those of a port that has spent, to which what it has
    /// spent goes along.
    pub(super) fn shared_meters<'a>(
        &self,
        policy: &'a Policy,
        hz: u32,
    ) -> BTreeMap<&'a MeterId, u32> {
        let mut members: BTreeMap<&MeterId, Vec<u32>> = BTreeMap::new();
        for (id, port) in &policy.ports {
            if let (Some(meter), Some(slot)) = (&port.meter, self.of(id))
                && rates::limits(port.rate, hz).is_some()
            {
                members.entry(meter).or_default().push(slot);
            }
        }
        let chosen = members.into_iter().filter_map(|(meter, slots)| {
            let spends_on = |slot| self.meters.get(slot).copied();
            let mut theirs = slots.iter().filter_map(spends_on);
            let stays = theirs.find(|on| slots.contains(on));
            let goes_along = || slots.iter().find(|slot| self.meters.contains_key(slot));
            let slot = stays.or_else(|| goes_along().or(slots.first()).copied())?;
            Some((meter, slot))
        });
        chosen.collect()
    }

    /// Notes on whose meters each slot spends.
    pub(super) fn note_meters(&mut self, entries: &Entries) {
        self.meters = meters_of(entries);
    }

    /// The number that a predecessor gave to a prefix.
    pub(super) fn former_number(&self, vni: Vni, prefix: Ipv6Net) -> Option<u32> {
        let key = routes::key_ipv6(vni.0, prefix);
        self.adopted_numbers.get(&key).copied()
    }

    /// What a predecessor made of a port.
    pub(super) fn former_tap(&self, port: &Port) -> Option<&Tap> {
        self.adopted.get(&port.ifindex).filter(|tap| {
            tap.vni == port.vni.0
                && tap.mac == port.mac.0
                && tap.service == raw(port.service_address)
                && ipv4_addresses(port).next().map(raw) == Some(tap.address)
        })
    }
}

fn meters_of(entries: &Entries) -> BTreeMap<u32, u32> {
    let limits = entries.limits.iter();
    limits.map(|(slot, limits)| (*slot, limits.meter)).collect()
}
