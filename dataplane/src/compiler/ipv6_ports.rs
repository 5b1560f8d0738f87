//! Entries that say who a port is in IPv6.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{Endpoint, FORWARDS};

use super::ports::{Making, duplicate, table_of};
use super::{CompileError, Entries, Prefixed};
use crate::model::{Policy, Port, PortId, RouteTable, Target, Vni};

/// The smallest subnet: interface identifiers are half an address (RFC 4291 §2.5.1).
const LONGEST_PREFIX: u8 = 64;

/// Who receives at an address.
pub(crate) fn key(vni: Vni, address: Ipv6Addr) -> ipv6::EndpointKey {
    ipv6::EndpointKey {
        vni: vni.0,
        address: ipv6::address(address.octets()),
    }
}

/// Every IPv6 address that a policy names, and so numbers.
pub(crate) fn addresses(policy: &Policy) -> impl Iterator<Item = (Vni, Ipv6Addr)> {
    let ports = policy.ports.values();
    let ports = ports.flat_map(|port| port.addresses.iter().map(|address| (port.vni, *address)));
    let all = ports.chain(policy.remotes.keys().copied());
    all.filter_map(|(vni, address)| match address {
        IpAddr::V6(address) => Some((vni, address)),
        IpAddr::V4(_) => None,
    })
}

/// Numbers that a predecessor gave, by network and prefix.
pub(super) fn numbers(entries: &Entries) -> impl Iterator<Item = (Prefixed<ipv6::PrefixKey>, u32)> {
    let endpoints = entries.endpoints_ipv6.iter().map(|(key, endpoint)| {
        let prefix = ipv6::PrefixKey {
            scope: key.vni,
            address: key.address,
        };
        ((prefix, ipv6::PREFIX_BITS), endpoint.number)
    });
    let places = entries.places_ipv6.iter();
    endpoints
        .chain(places.map(|(key, place)| (*key, place.number)))
        .map(|(key, number)| (key, u32::from_be(number)))
}

impl Making<'_> {
    /// Adds what a port is in IPv6, if anything. `endpoint` is what it is in IPv4.
    pub(super) fn port_ipv6(
        &mut self,
        id: &PortId,
        port: &Port,
        endpoint: Endpoint,
    ) -> Result<(), CompileError> {
        let addresses = port.addresses.iter().filter_map(|address| match address {
            IpAddr::V6(address) => Some(*address),
            IpAddr::V4(_) => None,
        });
        let addresses: Vec<Ipv6Addr> = addresses.collect();
        let Some(first) = addresses.first() else {
            return Ok(());
        };
        let fits = |subnet: &Ipv6Net| (1..=LONGEST_PREFIX).contains(&subnet.prefix_len());
        let Some(subnet) = port.ipv6_subnet.filter(fits) else {
            return Err(CompileError::Ipv6Subnet {
                port: id.0.clone(),
                subnet: port
                    .ipv6_subnet
                    .map_or_else(|| "missing".to_owned(), |subnet| subnet.to_string()),
            });
        };
        let [front, next, ..] = ipv6::address(subnet.network().octets());
        let [front_mask, next_mask, ..] = ipv6::address(subnet.netmask().octets());
        let table = table_of(self.policy, id, port)?;
        let leads_out = table.as_ref().is_some_and(|(_, table)| leads_out(table));
        let entry = ipv6::Port {
            table: table.map_or(0, |table| self.numbers.table(&table)),
            address: ipv6::address(first.octets()),
            subnet: [front, next],
            mask: [front_mask, next_mask],
        };
        self.entries.ports_ipv6.insert(endpoint.slot, entry);
        for address in addresses {
            self.endpoint_ipv6(id, port.vni, address, endpoint)?;
            if leads_out {
                self.public_ipv6(id, port.vni, address)?;
            }
        }
        Ok(())
    }

    /// Lets the outside speak to an address.
    fn public_ipv6(
        &mut self,
        id: &PortId,
        vni: Vni,
        address: Ipv6Addr,
    ) -> Result<(), CompileError> {
        let raw = ipv6::address(address.octets());
        match self.entries.publics_ipv6.insert(raw, vni.0) {
            Some(_) => Err(duplicate(id, "public address", address)),
            None => Ok(()),
        }
    }

    /// Adds who receives at an address.
    pub(super) fn endpoint_ipv6(
        &mut self,
        id: &PortId,
        vni: Vni,
        address: Ipv6Addr,
        endpoint: Endpoint,
    ) -> Result<(), CompileError> {
        let entry = ipv6::Endpoint {
            number: ipv6::number(self.numbers.address(&(vni, address.into()))),
            is: Endpoint {
                identity: self.identity(vni, address.into()),
                subnet: 0,
                mask: 0,
                public: 0,
                // Nobody sends or hears for IPv6 addresses of others.
                flags: endpoint.flags & !FORWARDS,
                ..endpoint
            },
        };
        let there = self.entries.endpoints_ipv6.insert(key(vni, address), entry);
        match there {
            Some(_) => Err(duplicate(id, "address", address)),
            None => Ok(()),
        }
    }
}

/// Whether IPv6 leaves the host by any route of a table.
fn leads_out(table: &RouteTable) -> bool {
    table.routes.iter().any(|(prefix, target)| {
        matches!(prefix, IpNet::V6(_)) && matches!(target, Target::Outside | Target::EgressOnly)
    })
}
