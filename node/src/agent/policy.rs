//! From desired ENIs and security groups to the packet path's policy.
//!
//! ```text
//!  groups, VPCs, other nodes' ENIs (slice) ──┐
//!  ENIs, taps ───────────────────────────────┴▶ Switchboard ── settle() ──▶ Network::apply(Policy)
//! ```
//! Callers change the inputs and then settle; whoever settles first carries the
//! changes of all who wait, so a burst costs few applications.

use super::error::EffectError;
use super::network::Network;
use ipnet::IpNet;
use ocs_dataplane::model::{
    AclId, Direction, Group, GroupId, Mac, MeterId, Peer, Policy, Port, PortId, Rate, Rule,
    TableId, Tracking, Traffic, Vni,
};
use ocs_node_api as api;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

#[path = "surroundings.rs"]
mod surroundings;

/// The longest IP packet of a guest, where nothing on its way carries less.
const MTU: u16 = 1500;

const TCP: u8 = 6;
const UDP: u8 = 17;
const ICMP: u8 = 1;
const ICMPV6: u8 = 58;

/// The ENIs of one instance as they are plugged in.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plugged {
    /// As desired.
    pub enis: Vec<api::NetworkInterface>,
    /// Interface index of each ENI's tap.
    pub taps: BTreeMap<String, u32>,
    /// Service address of each ENI.
    pub service_addresses: BTreeMap<String, Ipv4Addr>,
    /// Whose the instance is.
    pub account: String,
    /// How fast the instance's network may be.
    pub rate: api::NetworkRate,
}

/// Keeps the packet path equal to its inputs.
pub struct Switchboard {
    network: Box<dyn Network>,
    inputs: Mutex<Inputs>,
    /// The version of the inputs that the packet path has.
    applied: Mutex<u64>,
}

/// What the packet path is to know besides the ENIs of instances, by id.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Surroundings {
    /// Security groups.
    pub groups: BTreeMap<String, api::SecurityGroup>,
    /// VPCs by VNI.
    pub networks: BTreeMap<u32, api::Network>,
    /// Endpoints on other nodes.
    pub remotes: BTreeMap<String, api::RemoteEndpoint>,
    /// NAT gateways of this node.
    pub nats: BTreeMap<String, api::NatGateway>,
}

#[derive(Clone, Default)]
struct Inputs {
    version: u64,
    around: Arc<Surroundings>,
    instances: BTreeMap<String, Plugged>,
}

impl Switchboard {
    /// Over `network`, which is told nothing until the first [`Self::settle`].
    #[must_use]
    pub fn new(network: Box<dyn Network>) -> Self {
        let inputs = Inputs {
            version: 1,
            ..Inputs::default()
        };
        Self {
            network,
            inputs: Mutex::new(inputs),
            applied: Mutex::new(0),
        }
    }

    /// The packet path itself.
    #[must_use]
    pub fn network(&self) -> &dyn Network {
        self.network.as_ref()
    }

    /// States everything besides the ENIs of instances.
    pub fn set_surroundings(&self, around: Surroundings) {
        let mut inputs = lock(&self.inputs);
        if *inputs.around != around {
            inputs.around = Arc::new(around);
            inputs.version += 1;
        }
    }

    /// States the ENIs of instance `id`.
    pub fn plug(&self, id: &str, plugged: Plugged) {
        let mut inputs = lock(&self.inputs);
        if inputs.instances.get(id) != Some(&plugged) {
            inputs.instances.insert(id.to_owned(), plugged);
            inputs.version += 1;
        }
    }

    /// Instance `id` has no ENIs any more.
    pub fn unplug(&self, id: &str) {
        let mut inputs = lock(&self.inputs);
        if inputs.instances.remove(id).is_some() {
            inputs.version += 1;
        }
    }

    /// What is plugged in.
    pub(super) fn plugged(&self) -> Vec<Plugged> {
        lock(&self.inputs).instances.values().cloned().collect()
    }

    /// Returns once the packet path has all that was stated before the call.
    pub fn settle(&self) -> Result<(), EffectError> {
        let wanted = lock(&self.inputs).version;
        let mut applied = lock(&self.applied);
        if *applied >= wanted {
            return Ok(());
        }
        let inputs = lock(&self.inputs).clone();
        self.network.apply(&translate(&inputs))?;
        *applied = inputs.version;
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What cannot be translated is left out, which denies it, and logged.
fn translate(inputs: &Inputs) -> Policy {
    let around = &inputs.around;
    let mut policy = Policy::default();
    for (instance, plugged) in &inputs.instances {
        for eni in &plugged.enis {
            match port(eni, plugged) {
                Some(port) => {
                    let meter = Some(MeterId(instance.clone()));
                    let port = Port { meter, ..port };
                    policy.ports.insert(PortId(eni.id.clone()), port);
                }
                None => tracing::error!(eni = ?eni, "an ENI is not valid; it stays closed"),
            }
        }
    }
    surroundings::add(&mut policy, around);
    let mut wanted: BTreeSet<GroupId> = policy
        .ports
        .values()
        .flat_map(|port| port.groups.iter().cloned())
        .collect();
    let direct: Vec<GroupId> = wanted.iter().cloned().collect();
    for id in direct {
        let group = around.groups.get(&id.0).map(group).unwrap_or_default();
        wanted.extend(group.rules.iter().filter_map(|rule| match &rule.peer {
            Peer::Group(peer) => Some(peer.clone()),
            Peer::Cidr(_) => None,
        }));
        policy.groups.insert(id, group);
    }
    for id in wanted {
        let rules = || around.groups.get(&id.0).map(group).unwrap_or_default();
        policy.groups.entry(id.clone()).or_insert_with(rules);
    }
    policy
}

fn port(eni: &api::NetworkInterface, plugged: &Plugged) -> Option<Port> {
    let mut addresses: Vec<IpAddr> = vec![eni.private_ip.parse().ok()?];
    for further in eni.secondary_private_ips.iter().chain(&eni.ipv6_addresses) {
        addresses.push(further.parse().ok()?);
    }
    let mut publics = BTreeMap::new();
    for pair in &eni.public_addresses {
        publics.insert(pair.private_ip.parse().ok()?, pair.public_ip.parse().ok()?);
    }
    let tracking = eni.connection_tracking.unwrap_or_default();
    let default = Tracking::default();
    let or = |given, default| if given == 0 { default } else { given };
    Some(Port {
        ifindex: *plugged.taps.get(&eni.id)?,
        vni: Vni(eni.vni),
        mac: Mac(ocs_vmm_spec::parse_mac(&eni.mac)?),
        addresses,
        subnet: eni.subnet_cidr.parse().ok()?,
        ipv6_subnet: match eni.subnet_ipv6_cidr.as_str() {
            "" => None,
            cidr => Some(cidr.parse().ok()?),
        },
        groups: eni.security_groups.iter().cloned().map(GroupId).collect(),
        service_address: *plugged.service_addresses.get(&eni.id)?,
        resolver: resolver(&eni.vpc_cidr),
        meter: None,
        rate: Rate {
            baseline_bps: plugged.rate.baseline_bps,
            peak_bps: plugged.rate.peak_bps,
            credit_bytes: plugged.rate.credit_bytes,
            packets_per_s: plugged.rate.packets_per_s,
        },
        table: named(&eni.route_table).map(TableId),
        acl: named(&eni.network_acl).map(AclId),
        source_dest_check: eni.source_dest_check,
        publics,
        tracking: Tracking {
            tcp_established_s: or(tracking.tcp_established_s, default.tcp_established_s),
            udp_s: or(tracking.udp_s, default.udp_s),
            udp_stream_s: or(tracking.udp_stream_s, default.udp_stream_s),
        },
        mtu: match eni.mtu {
            0 => MTU,
            mtu => u16::try_from(mtu).ok()?.min(MTU),
        },
    })
}

/// The base of the VPC's first block plus two.
fn resolver(vpc_cidr: &str) -> Option<Ipv4Addr> {
    let block: ipnet::Ipv4Net = vpc_cidr.parse().ok()?;
    Some(Ipv4Addr::from(u32::from(block.network()).wrapping_add(2)))
}

fn named(id: &str) -> Option<String> {
    (!id.is_empty()).then(|| id.to_owned())
}

fn group(desired: &api::SecurityGroup) -> Group {
    let mut rules = BTreeSet::new();
    for desired_rule in &desired.rules {
        match rule(desired_rule) {
            Some(rule) => {
                rules.insert(rule);
            }
            None => {
                tracing::error!(group = desired.id, rule = ?desired_rule, "a rule is not valid; it allows nothing");
            }
        }
    }
    Group { rules }
}

fn rule(desired: &api::Rule) -> Option<Rule> {
    let direction = if desired.egress {
        Direction::Egress
    } else {
        Direction::Ingress
    };
    let peer = match desired.peer.as_ref()? {
        api::rule::Peer::Cidr(cidr) => Peer::Cidr(cidr.parse::<IpNet>().ok()?.trunc()),
        api::rule::Peer::SecurityGroup(id) => Peer::Group(GroupId(id.clone())),
    };
    Some(Rule {
        direction,
        traffic: traffic(desired.protocol, desired.from_port, desired.to_port)?,
        peer,
    })
}

/// EC2's `IpPermission`: protocol -1 is everything; -1 for an ICMP type or code is any.
fn traffic(protocol: i32, from: i32, to: i32) -> Option<Traffic> {
    if protocol == -1 {
        return Some(Traffic::All);
    }
    let protocol = u8::try_from(protocol).ok()?;
    match protocol {
        TCP | UDP if (from, to) == (-1, -1) => Some(Traffic::Protocol(protocol)),
        TCP | UDP => {
            let (from, to) = (u16::try_from(from).ok()?, u16::try_from(to).ok()?);
            (from <= to).then_some(Traffic::Ports { protocol, from, to })
        }
        ICMP | ICMPV6 => {
            let part = |value: i32| match value {
                -1 => Some(None),
                value => u8::try_from(value).ok().map(Some),
            };
            Some(Traffic::Icmp {
                protocol,
                kind: part(from)?,
                code: part(to)?,
            })
        }
        _ => Some(Traffic::Protocol(protocol)),
    }
}

#[cfg(test)]
#[path = "policy_tests.rs"]
mod tests;
