//! Policies in few words.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use ocs_dataplane::model::{
    Direction, Group, GroupId, Mac, Peer, Policy, Port, PortId, Rate, Rule, Tracking, Traffic, Vni,
};

use super::frames::End;

pub fn port(
    ifindex: u32,
    vni: u32,
    address: [u8; 4],
    groups: &[&str],
    service: [u8; 4],
) -> (PortId, Port) {
    let id = PortId(format!("eni-{vni}-{}", Ipv4Addr::from(address)));
    let address = Ipv4Addr::from(address);
    let port = Port {
        ifindex,
        vni: Vni(vni),
        mac: mac_of(vni, address),
        addresses: vec![IpAddr::V4(address)],
        subnet: format!("{address}/24")
            .parse::<ipnet::IpNet>()
            .expect("a prefix")
            .trunc(),
        ipv6_subnet: None,
        groups: groups.iter().map(|name| GroupId((*name).into())).collect(),
        service_address: Ipv4Addr::from(service),
        resolver: None,
        rate: Rate::default(),
        meter: None,
        table: None,
        acl: None,
        source_dest_check: true,
        publics: BTreeMap::new(),
        tracking: Tracking::default(),
        mtu: 1500,
    };
    (id, port)
}

fn mac_of(vni: u32, address: Ipv4Addr) -> Mac {
    let [_, network, _, _] = vni.to_be_bytes();
    let [a, b, c, d] = address.octets();
    Mac([0x02 | (network << 2), a, b, c, d, vni.to_be_bytes()[3]])
}

/// A port as an end of a conversation.
pub fn end(port: &Port, at: u16) -> End {
    let ip = match port.addresses.first() {
        Some(IpAddr::V4(ip)) => *ip,
        other => panic!("not an IPv4 address: {other:?}"),
    };
    End {
        mac: port.mac.0,
        ip,
        port: at,
    }
}

pub fn policy(
    ports: impl IntoIterator<Item = (PortId, Port)>,
    groups: impl IntoIterator<Item = (&'static str, Vec<Rule>)>,
) -> Policy {
    let groups: BTreeMap<GroupId, Group> = groups
        .into_iter()
        .map(|(name, rules)| {
            let group = Group {
                rules: rules.into_iter().collect(),
            };
            (GroupId(name.into()), group)
        })
        .collect();
    Policy {
        ports: ports.into_iter().collect(),
        groups,
        ..Policy::default()
    }
}

/// EC2's default egress rule.
pub fn all_out() -> Rule {
    Rule {
        direction: Direction::Egress,
        traffic: Traffic::All,
        peer: Peer::Cidr("0.0.0.0/0".parse().expect("a prefix")),
    }
}

pub fn tcp_in(from: u16, to: u16, peer: Peer) -> Rule {
    Rule {
        direction: Direction::Ingress,
        traffic: Traffic::Ports {
            protocol: 6,
            from,
            to,
        },
        peer,
    }
}

pub fn group(name: &str) -> Peer {
    Peer::Group(GroupId(name.into()))
}

pub fn cidr(prefix: &str) -> Peer {
    Peer::Cidr(prefix.parse().expect("a prefix"))
}
