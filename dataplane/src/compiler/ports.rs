//! Entries that say who a port is.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ipnet::{IpNet, Ipv4Net};
use ocs_dataplane_shared::layout::{
    Endpoint, EndpointKey, FORWARDS, ForwarderKey, Identity, METADATA, Service, TRANSLATES, Tap,
    Timeouts, UPLINK_SLOT,
};
use ocs_dataplane_shared::limit::Limits;

use super::numbers::Table;
use super::{
    CompileError, Entries, Identities, NEXT_HOP, Numbers, Slots, ipv4_addresses, rates, raw,
};
use crate::model::{Acl, AclId, Mac, MeterId, Nat, Policy, Port, PortId, Remote, Tracking, Vni};

/// The content of a port's route table.
pub(super) fn table_of(
    policy: &Policy,
    id: &PortId,
    port: &Port,
) -> Result<Option<Table>, CompileError> {
    let Some(name) = &port.table else {
        return Ok(None);
    };
    match policy.tables.get(name) {
        Some(table) => Ok(Some((port.vni, table.clone()))),
        None => Err(CompileError::Unknown {
            port: id.0.clone(),
            what: "route table",
            name: name.0.clone(),
        }),
    }
}

/// The content of a network ACL.
pub(super) fn acl_of<'a>(
    policy: &'a Policy,
    id: &PortId,
    name: Option<&AclId>,
) -> Result<Option<&'a Acl>, CompileError> {
    let Some(name) = name else {
        return Ok(None);
    };
    match policy.acls.get(name) {
        Some(acl) => Ok(Some(acl)),
        None => Err(CompileError::Unknown {
            port: id.0.clone(),
            what: "network ACL",
            name: name.0.clone(),
        }),
    }
}

/// Entries in the making.
pub(super) struct Making<'a> {
    pub entries: &'a mut Entries,
    pub policy: &'a Policy,
    pub slots: &'a Slots,
    pub numbers: &'a Numbers,
    pub identities: &'a Identities,
    pub hz: u32,
    /// The slot on whose meters those of a name spend.
    pub meters: BTreeMap<&'a MeterId, u32>,
}

/// Seconds that a NAT gateway remembers an idle flow (Amazon VPC User Guide, "NAT gateway
/// basics").
const NAT_IDLE_S: u32 = 350;

impl<'a> Making<'a> {
    /// Adds the entries of a port.
    pub(super) fn port(&mut self, id: &PortId, port: &'a Port) -> Result<(), CompileError> {
        let name = || id.0.clone();
        check_vni(id, port.vni)?;
        if let Some(group) = port
            .groups
            .iter()
            .find(|group| !self.policy.groups.contains_key(group))
        {
            return Err(CompileError::UnknownGroup {
                port: name(),
                group: group.0.clone(),
            });
        }
        let subnet = ipv4(id, port.subnet)?;
        let service = service_address(port).ok_or(CompileError::ServiceAddress {
            port: name(),
            address: port.service_address,
        })?;
        let first = ipv4_addresses(port)
            .next()
            .ok_or(CompileError::NoAddress { port: name() })?;
        let slot = self.slots.of(id).unwrap_or(0);
        let gateway = subnet.hosts().next().unwrap_or(subnet.network());
        let table = table_of(self.policy, id, port)?.map_or(0, |table| self.numbers.table(&table));
        let flags = if port.source_dest_check { 0 } else { FORWARDS };
        let endpoint = Endpoint {
            slot,
            host: 0,
            identity: Identity::default(),
            timeouts: self.timeouts(port.tracking),
            subnet: raw(subnet.network()),
            mask: raw(subnet.netmask()),
            acl: self.acl(id, port.acl.as_ref())?,
            public: 0,
            mac: port.mac.0,
            flags,
        };
        let tap = Tap {
            slot,
            vni: port.vni.0,
            address: raw(first),
            gateway: raw(gateway),
            subnet: endpoint.subnet,
            mask: endpoint.mask,
            service,
            resolver: port.resolver.map_or(0, raw),
            identity: self.identity(port.vni, first.into()),
            timeouts: endpoint.timeouts,
            table,
            acl: endpoint.acl,
            mtu: port.mtu,
            flags,
            mac: port.mac.0,
            reserved: [0; 2],
        };
        if self.entries.taps.insert(port.ifindex, tap).is_some() {
            return Err(duplicate(id, "interface", port.ifindex));
        }
        self.port_ipv6(id, port, endpoint)?;
        for address in ipv4_addresses(port) {
            let public = port.publics.get(&address).copied();
            let endpoint = Endpoint {
                identity: self.identity(port.vni, address.into()),
                public: public.map_or(0, raw),
                ..endpoint
            };
            self.endpoint(id, port.vni, address, endpoint)?;
            if let Some(public) = public {
                self.public(id, public, port.vni, address)?;
            }
        }
        if flags & FORWARDS != 0 {
            self.forwarder(port.vni, port.mac, first);
        }
        let answer = Service {
            slot,
            address: raw(first),
            resolver: port.resolver.map_or(0, raw),
            mac: port.mac.0,
            reserved: [0; 2],
        };
        if self.entries.services.insert(service, answer).is_some() {
            return Err(duplicate(id, "service address", port.service_address));
        }
        self.entries.devices.insert(slot, port.ifindex);
        if let Some(limits) = rates::limits(port.rate, self.hz) {
            let shared = port.meter.as_ref().and_then(|meter| self.meters.get(meter));
            let meter = shared.copied().unwrap_or(slot);
            self.entries.limits.insert(slot, Limits { meter, ..limits });
        }
        Ok(())
    }

    /// Adds the entries of a NAT gateway.
    pub(super) fn nat(&mut self, id: &PortId, nat: &Nat) -> Result<(), CompileError> {
        check_vni(id, nat.vni)?;
        let subnet = ipv4(id, nat.subnet)?;
        let slot = self.slots.of(id).unwrap_or(0);
        let idle = NAT_IDLE_S * self.hz;
        let endpoint = Endpoint {
            slot,
            host: 0,
            identity: self.identity(nat.vni, nat.address.into()),
            timeouts: Timeouts {
                hz: self.hz,
                tcp_established: idle,
                udp: idle,
                udp_stream: idle,
            },
            subnet: raw(subnet.network()),
            mask: raw(subnet.netmask()),
            acl: self.acl(id, nat.acl.as_ref())?,
            public: nat.public.map_or(0, raw),
            mac: nat.mac.0,
            flags: FORWARDS | TRANSLATES,
        };
        self.endpoint(id, nat.vni, nat.address, endpoint)?;
        self.forwarder(nat.vni, nat.mac, nat.address);
        if let Some(public) = nat.public {
            self.public(id, public, nat.vni, nat.address)?;
        }
        self.entries.nats.insert(slot);
        Ok(())
    }

    /// Adds the entries of an address on another host.
    pub(super) fn remote(
        &mut self,
        vni: Vni,
        address: IpAddr,
        remote: &Remote,
    ) -> Result<(), CompileError> {
        let id = PortId(format!("{address} of network {} on {}", vni.0, remote.host));
        check_vni(&id, vni)?;
        if remote.host.is_unspecified() {
            return Err(CompileError::Host { port: id.0 });
        }
        let flags = if remote.forwards { FORWARDS } else { 0 };
        let endpoint = Endpoint {
            slot: UPLINK_SLOT,
            host: raw(remote.host),
            identity: self.identity(vni, address),
            mac: remote.mac.0,
            flags,
            ..Endpoint::default()
        };
        let address = match address {
            IpAddr::V4(address) => address,
            IpAddr::V6(address) => return self.endpoint_ipv6(&id, vni, address, endpoint),
        };
        self.endpoint(&id, vni, address, endpoint)?;
        if remote.forwards {
            self.forwarder(vni, remote.mac, address);
        }
        Ok(())
    }

    fn endpoint(
        &mut self,
        id: &PortId,
        vni: Vni,
        address: Ipv4Addr,
        endpoint: Endpoint,
    ) -> Result<(), CompileError> {
        let key = EndpointKey {
            vni: vni.0,
            address: raw(address),
        };
        match self.entries.endpoints.insert(key, endpoint) {
            Some(_) => Err(duplicate(id, "address", address)),
            None => Ok(()),
        }
    }

    fn public(
        &mut self,
        id: &PortId,
        public: Ipv4Addr,
        vni: Vni,
        address: Ipv4Addr,
    ) -> Result<(), CompileError> {
        let key = EndpointKey {
            vni: vni.0,
            address: raw(address),
        };
        match self.entries.publics.insert(raw(public), key) {
            Some(_) => Err(duplicate(id, "public address", public)),
            None => Ok(()),
        }
    }

    /// One that has several addresses is known by its first.
    fn forwarder(&mut self, vni: Vni, mac: Mac, address: Ipv4Addr) {
        let key = ForwarderKey {
            vni: vni.0,
            mac: mac.0,
            reserved: [0; 2],
        };
        self.entries.forwarders.entry(key).or_insert(raw(address));
    }

    fn acl(&self, id: &PortId, name: Option<&AclId>) -> Result<u32, CompileError> {
        Ok(acl_of(self.policy, id, name)?.map_or(0, |acl| self.numbers.acl(acl)))
    }

    pub(super) fn identity(&self, vni: Vni, address: IpAddr) -> Identity {
        let found = self.identities.get(&(vni, address));
        found.copied().unwrap_or_default()
    }

    fn timeouts(&self, tracking: Tracking) -> Timeouts {
        Timeouts {
            hz: self.hz,
            tcp_established: tracking.tcp_established_s.saturating_mul(self.hz),
            udp: tracking.udp_s.saturating_mul(self.hz),
            udp_stream: tracking.udp_stream_s.saturating_mul(self.hz),
        }
    }
}

pub(super) fn duplicate(id: &PortId, what: &'static str, value: impl ToString) -> CompileError {
    CompileError::Duplicate {
        port: id.0.clone(),
        what,
        value: value.to_string(),
    }
}

fn check_vni(id: &PortId, vni: Vni) -> Result<(), CompileError> {
    if (1..1 << 24).contains(&vni.0) {
        return Ok(());
    }
    Err(CompileError::Vni {
        port: id.0.clone(),
        vni: vni.0,
    })
}

fn ipv4(id: &PortId, subnet: IpNet) -> Result<Ipv4Net, CompileError> {
    match subnet {
        IpNet::V4(subnet) => Ok(subnet),
        IpNet::V6(_) => Err(CompileError::Subnet {
            port: id.0.clone(),
            subnet,
        }),
    }
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
