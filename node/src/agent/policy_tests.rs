use super::*;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

#[derive(Default)]
struct Seen {
    policies: Mutex<Vec<Policy>>,
    broken: AtomicBool,
}

impl Network for Arc<Seen> {
    fn create_tap(&self, _name: &str) -> Result<(OwnedFd, u32), EffectError> {
        Err(EffectError::Permanent("not asked for".into()))
    }
    fn finishes_taps(&self) -> bool {
        false
    }
    fn finish_tap(&self, _ifindex: u32) -> Result<(), EffectError> {
        Err(EffectError::Permanent("not asked for".into()))
    }
    fn apply(&self, policy: &Policy) -> Result<(), EffectError> {
        if self.broken.load(Ordering::Relaxed) {
            return Err(EffectError::Transient("broken".into()));
        }
        lock(&self.policies).push(policy.clone());
        Ok(())
    }
    fn collect_garbage(&self) -> Result<(), EffectError> {
        Ok(())
    }
}

fn board() -> (Switchboard, Arc<Seen>) {
    let seen = Arc::new(Seen::default());
    (Switchboard::new(Box::new(Arc::clone(&seen))), seen)
}

fn eni(id: &str, ip: &str, groups: &[&str]) -> api::NetworkInterface {
    api::NetworkInterface {
        id: id.into(),
        vni: 7,
        mac: "02:00:00:00:00:01".into(),
        private_ip: ip.into(),
        subnet_cidr: "172.31.0.0/20".into(),
        security_groups: groups.iter().map(|g| (*g).to_owned()).collect(),
        ..api::NetworkInterface::default()
    }
}

fn plugged(eni: api::NetworkInterface) -> Plugged {
    Plugged {
        taps: BTreeMap::from([(eni.id.clone(), 5)]),
        service_addresses: BTreeMap::from([(eni.id.clone(), Ipv4Addr::new(169, 254, 1, 0))]),
        enis: vec![eni],
        account: "123456789012".into(),
        rate: api::NetworkRate {
            baseline_bps: 64_000_000,
            peak_bps: 5_000_000_000,
            ..api::NetworkRate::default()
        },
    }
}

fn allowance(protocol: i32, from_port: i32, to_port: i32, peer: api::rule::Peer) -> api::Rule {
    api::Rule {
        egress: false,
        protocol,
        from_port,
        to_port,
        peer: Some(peer),
    }
}

fn everywhere() -> api::rule::Peer {
    api::rule::Peer::Cidr("0.0.0.0/0".into())
}

#[test]
fn each_protocol_is_translated_and_nonsense_allows_nothing() {
    let traffic = |protocol, from, to| {
        rule(&allowance(protocol, from, to, everywhere())).map(|rule| rule.traffic)
    };
    for ((protocol, from, to), expected) in [
        ((-1, 0, 0), Some(Traffic::All)),
        (
            (6, 22, 80),
            Some(Traffic::Ports {
                protocol: 6,
                from: 22,
                to: 80,
            }),
        ),
        ((17, -1, -1), Some(Traffic::Protocol(17))),
        ((6, 80, 22), None),
        ((6, 0, 65536), None),
        (
            (1, -1, -1),
            Some(Traffic::Icmp {
                protocol: 1,
                kind: None,
                code: None,
            }),
        ),
        (
            (1, 8, 0),
            Some(Traffic::Icmp {
                protocol: 1,
                kind: Some(8),
                code: Some(0),
            }),
        ),
        ((1, 256, 0), None),
        ((47, 0, 0), Some(Traffic::Protocol(47))),
        ((300, 0, 0), None),
    ] {
        assert_eq!(
            traffic(protocol, from, to),
            expected,
            "{protocol} {from} {to}"
        );
    }
    let cidr = |text: &str| {
        rule(&allowance(-1, 0, 0, api::rule::Peer::Cidr(text.into()))).map(|rule| rule.peer)
    };
    assert_eq!(
        cidr("10.1.2.3/8"),
        Some(Peer::Cidr("10.0.0.0/8".parse().unwrap()))
    );
    assert_eq!(cidr("10.1.2.3/33"), None);
    assert_eq!(rule(&api::Rule::default()), None);
}

#[test]
fn a_policy_holds_ports_their_groups_and_those_that_rules_name() {
    let (board, seen) = board();
    let groups = BTreeMap::from([
        (
            "sg-1".to_owned(),
            api::SecurityGroup {
                id: "sg-1".into(),
                rules: vec![allowance(
                    -1,
                    0,
                    0,
                    api::rule::Peer::SecurityGroup("sg-2".into()),
                )],
                ..api::SecurityGroup::default()
            },
        ),
        ("sg-9".to_owned(), api::SecurityGroup::default()),
    ]);
    board.set_surroundings(Surroundings {
        groups,
        ..Surroundings::default()
    });
    board.plug("i-1", plugged(eni("eni-1", "172.31.0.5", &["sg-1"])));
    board.plug("i-2", plugged(eni("eni-2", "nonsense", &["sg-1"])));
    board.settle().unwrap();
    let policy = lock(&seen.policies).last().unwrap().clone();
    let ports: Vec<_> = policy.ports.keys().map(|id| id.0.as_str()).collect();
    assert_eq!(
        ports,
        ["eni-1"],
        "a port that cannot be understood is closed"
    );
    let groups: Vec<_> = policy.groups.keys().map(|id| id.0.as_str()).collect();
    assert_eq!(groups, ["sg-1", "sg-2"]);
    let port = &policy.ports[&PortId("eni-1".into())];
    assert_eq!((port.ifindex, port.vni), (5, Vni(7)));

    board.unplug("i-1");
    board.settle().unwrap();
    assert!(lock(&seen.policies).last().unwrap().ports.is_empty());
}

#[test]
fn what_did_not_change_is_not_applied_and_a_failure_is_made_good() {
    let (board, seen) = board();
    board.settle().unwrap();
    assert_eq!(
        lock(&seen.policies).len(),
        1,
        "the first policy is the empty one"
    );
    board.settle().unwrap();
    let port = plugged(eni("eni-1", "172.31.0.5", &[]));
    board.plug("i-1", port.clone());
    seen.broken.store(true, Ordering::Relaxed);
    assert!(board.settle().is_err());
    seen.broken.store(false, Ordering::Relaxed);
    board.plug("i-1", port);
    board.settle().unwrap();
    board.settle().unwrap();
    assert_eq!(lock(&seen.policies).len(), 2);
}

/// One VPC with a peer, a way out, an ACL, a NAT gateway and an ENI on another node.
fn vpc() -> Surroundings {
    use api::route::Target;
    let route = |cidr: &str, target| api::Route {
        destination_cidr: cidr.into(),
        target: Some(target),
    };
    let routes = vec![
        route("172.31.0.0/16", Target::Local(true)),
        route("0.0.0.0/0", Target::InternetGateway(true)),
        route("::/0", Target::EgressOnly(true)),
        route("10.9.0.0/16", Target::PeerVni(8)),
        route("192.168.0.0/24", Target::NextHopIp("172.31.0.9".into())),
        route("192.168.1.0/24", Target::NextHopIp("nonsense".into())),
        route("nonsense", Target::Local(true)),
    ];
    let entry = |rule_number, cidr: &str| api::NetworkAclEntry {
        egress: true,
        rule_number,
        protocol: -1,
        cidr: cidr.into(),
        allow: true,
        ..api::NetworkAclEntry::default()
    };
    let network = api::Network {
        vni: 7,
        route_tables: vec![api::RouteTable {
            id: "rtb-1".into(),
            routes,
        }],
        network_acls: vec![api::NetworkAcl {
            id: "acl-1".into(),
            entries: vec![entry(100, "nonsense"), entry(200, "0.0.0.0/0")],
        }],
        peerings: vec![api::Peering {
            peer_vni: 8,
            peer_cidrs: vec!["10.9.0.0/16".into()],
        }],
        cidrs: vec!["172.31.0.0/16".into()],
    };
    let remote = |ip: &str| api::RemoteEndpoint {
        vni: 7,
        ip: ip.into(),
        mac: "02:00:00:00:00:09".into(),
        host: "192.0.2.2".into(),
        forwards: true,
        ..api::RemoteEndpoint::default()
    };
    let gateway = api::NatGateway {
        id: "nat-1".into(),
        desired: api::Desired::Present.into(),
        vni: 7,
        mac: "02:00:00:00:00:0a".into(),
        private_ip: "172.31.0.10".into(),
        public_ip: "198.51.100.1".into(),
        subnet_cidr: "172.31.0.0/20".into(),
        route_table: "rtb-1".into(),
        ..api::NatGateway::default()
    };
    Surroundings {
        networks: BTreeMap::from([(7, network)]),
        remotes: ["172.31.0.9", "172.31.0.5"]
            .map(|ip| (format!("7/{ip}"), remote(ip)))
            .into(),
        nats: BTreeMap::from([("nat-1".to_owned(), gateway)]),
        ..Surroundings::default()
    }
}

#[test]
fn a_vpc_is_translated_and_what_is_not_valid_denies() {
    use ocs_dataplane::model::{Target, Vni};
    let (board, seen) = board();
    board.set_surroundings(vpc());
    let here = api::NetworkInterface {
        route_table: "rtb-1".into(),
        network_acl: "acl-unknown".into(),
        secondary_private_ips: vec!["172.31.0.4".into()],
        public_addresses: vec![api::PublicAddress {
            private_ip: "172.31.0.5".into(),
            public_ip: "198.51.100.2".into(),
        }],
        connection_tracking: Some(api::ConnectionTracking {
            udp_s: 45,
            ..api::ConnectionTracking::default()
        }),
        mtu: 1450,
        ..eni("eni-1", "172.31.0.5", &[])
    };
    board.plug("i-1", plugged(here));
    board.settle().unwrap();
    let policy = lock(&seen.policies).last().unwrap().clone();

    let port = &policy.ports[&PortId("eni-1".into())];
    let addresses = ["172.31.0.5", "172.31.0.4"].map(|ip| ip.parse::<IpAddr>().unwrap());
    assert_eq!(port.addresses, addresses, "the primary one first");
    assert_eq!(port.publics.len(), 1);
    assert_eq!((port.tracking.udp_s, port.tracking.udp_stream_s), (45, 180));
    assert_eq!(port.mtu, 1450);
    assert!(!port.source_dest_check);

    let table = &policy.tables[&TableId("rtb-1".into())];
    let leads = |cidr: &str| table.routes[&cidr.parse::<IpNet>().unwrap()];
    assert_eq!(leads("172.31.0.0/16"), Target::Local);
    assert_eq!(leads("0.0.0.0/0"), Target::Outside);
    assert_eq!(leads("::/0"), Target::EgressOnly);
    assert_eq!(leads("10.9.0.0/16"), Target::Peer(Vni(8)));
    assert_eq!(leads("192.168.1.0/24"), Target::Blackhole);
    assert_eq!(table.routes.len(), 6);

    let acl = &policy.acls[&AclId("acl-1".into())];
    assert!(!acl.entries[&(Direction::Egress, 100)].allow);
    assert!(policy.acls[&AclId("acl-unknown".into())].entries.is_empty());
    let network = &policy.networks[&Vni(7)];
    assert_eq!((network.cidrs.len(), network.peers.len()), (1, 1));

    let remotes: Vec<IpAddr> = policy.remotes.keys().map(|(_, ip)| *ip).collect();
    assert_eq!(
        remotes,
        ["172.31.0.9".parse::<IpAddr>().unwrap()],
        "what is here is not there"
    );
    let nat = &policy.nats[&PortId("nat-1".into())];
    assert_eq!(nat.public, Some("198.51.100.1".parse().unwrap()));
}

#[test]
fn a_nat_gateway_without_a_way_out_has_no_public_address() {
    let (board, seen) = board();
    let mut around = vpc();
    let network = around.networks.get_mut(&7).unwrap();
    network.route_tables[0]
        .routes
        .retain(|route| route.destination_cidr != "0.0.0.0/0");
    board.set_surroundings(around);
    board.settle().unwrap();
    let policy = lock(&seen.policies).last().unwrap().clone();
    assert_eq!(policy.nats[&PortId("nat-1".into())].public, None);
}
