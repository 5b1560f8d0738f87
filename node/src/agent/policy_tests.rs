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
    board.set_groups(&BTreeMap::from([
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
    ]));
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
