//! Entries that say who a port is in IPv6.

use std::net::{IpAddr, Ipv6Addr};

use ipnet::Ipv6Net;
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{Endpoint, FORWARDS};

use super::CompileError;
use super::numbers::Numbered;
use super::ports::{Making, duplicate};
use crate::model::{Policy, Port, PortId, Vni};

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
pub(crate) fn addresses(policy: &Policy) -> impl Iterator<Item = Numbered> {
    let ports = policy.ports.values();
    let ports = ports.flat_map(|port| port.addresses.iter().map(|address| (port.vni, *address)));
    let all = ports.chain(policy.remotes.keys().copied());
    all.filter_map(|(vni, address)| match address {
        IpAddr::V6(address) => Some((vni, address)),
        IpAddr::V4(_) => None,
    })
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
        let entry = ipv6::Port {
            address: ipv6::address(first.octets()),
            subnet: [front, next],
            mask: [front_mask, next_mask],
        };
        self.entries.ports_ipv6.insert(endpoint.slot, entry);
        for address in addresses {
            self.endpoint_ipv6(id, port.vni, address, endpoint)?;
        }
        Ok(())
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
            number: ipv6::number(self.numbers.address(&(vni, address))),
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
