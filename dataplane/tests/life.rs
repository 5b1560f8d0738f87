//! Restarts, leftovers, refusals: the loader may die at any moment and comes back.

#[path = "life/succession.rs"]
mod succession;
mod support;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::PathBuf;

use ocs_dataplane::compiler::CompileError;
use ocs_dataplane::fabric::{Fabric, FabricConfig, FabricError};
use ocs_dataplane::model::{GroupId, Policy, Port, PortId, Rule, Vni};
use ocs_dataplane::shared::layout::{Direction, Reason};
use support::frames::{ACK, SYN, SYN_ACK, tcp};
use support::policy::{all_out, cidr, end, group, policy, port, tcp_in};
use support::{Guest, Lab, chain, responder};

struct Pair {
    lab: Lab,
    guests: Vec<Guest>,
    ports: Vec<(PortId, Port)>,
}

impl Pair {
    fn new() -> Self {
        let lab = Lab::new();
        let mut guests = Vec::new();
        let mut ports = Vec::new();
        for last in [1, 2] {
            let guest = Guest::new(&lab, &format!("tap{last}"));
            let service = [169, 254, 1, last];
            ports.push(port(guest.ifindex, 5, [10, 0, 0, last], &["g"], service));
            guests.push(guest);
        }
        Self { lab, guests, ports }
    }

    fn policy(&self, rules: Vec<Rule>) -> Policy {
        policy(self.ports.clone(), [("g", rules)])
    }

    fn speak(&mut self, from: usize, flags: u8) -> Option<Vec<u8>> {
        let to = 1 - from;
        let frame = tcp(
            end(&self.ports[from].1, 1000),
            end(&self.ports[to].1, 1000),
            flags,
        );
        self.guests[from].send(&frame);
        self.guests[to].poll()
    }
}

fn open() -> Vec<Rule> {
    vec![all_out(), tcp_in(1000, 1000, group("g"))]
}

#[test]
fn flows_and_policy_outlive_the_loader() {
    let mut pair = Pair::new();
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    assert!(pair.speak(0, SYN).is_some());
    assert!(pair.speak(1, SYN_ACK).is_some());
    let counted = pair.lab.counters(&pair.ports[0].0).expect("counters");

    pair.lab.restart();
    assert!(pair.speak(0, ACK).is_some(), "before any policy is applied");
    pair.lab
        .apply(&pair.policy(vec![all_out()]))
        .expect("a narrower policy");
    assert!(pair.speak(1, ACK).is_some(), "a tracked flow");
    assert!(pair.speak(1, SYN).is_none(), "a new flow");
    let sent = |counters: &ocs_dataplane::fabric::Counters| {
        counters.get(Direction::Egress, Reason::Forwarded)
    };
    let after = pair.lab.counters(&pair.ports[0].0).expect("counters");
    assert_eq!(sent(&after), sent(&counted) + 1);
}

#[test]
fn the_same_policy_after_a_restart_writes_nothing() {
    let mut pair = Pair::new();
    let mut rules = open();
    rules.push(tcp_in(22, 22, cidr("10.0.0.2/32")));
    let wanted = pair.policy(rules);
    pair.lab.apply(&wanted).expect("a policy");
    pair.lab.restart();
    let again = pair.lab.apply(&wanted).expect("the policy again");
    assert_eq!(again.map_writes, 0);
    assert!(pair.speak(0, SYN).is_some());
}

#[test]
fn vanished_taps_are_collected_and_their_ports_harm_nobody() {
    let mut pair = Pair::new();
    let wanted = pair.policy(open());
    pair.lab.apply(&wanted).expect("a policy");
    let gone = pair.guests.remove(1).ifindex;
    pair.lab.restart();
    pair.lab
        .apply(&wanted)
        .expect("a policy that names a tap that is gone");
    let frame = tcp(
        end(&pair.ports[0].1, 1000),
        end(&pair.ports[1].1, 1000),
        SYN,
    );
    pair.guests[0].send(&frame);
    let counters = pair.lab.counters(&pair.ports[0].0).expect("counters");
    assert_eq!(counters.get(Direction::Egress, Reason::NoDevice), 1);

    assert!(
        pair.lab
            .inventory()
            .expect("inventory")
            .links
            .contains_key(&gone)
    );
    assert_eq!(pair.lab.collect_garbage().expect("collection"), 1);
    let left = pair.lab.inventory().expect("inventory");
    assert!(left.links.keys().eq([&pair.guests[0].ifindex]));
    assert_eq!(left.taps.values().collect::<Vec<_>>(), [&"tap1".to_owned()]);
}

#[test]
fn a_policy_of_nobody_leaves_no_entry() {
    let pair = Pair::new();
    let empty = pair.lab.inventory().expect("inventory").map_entries;
    assert!(empty.values().all(|entries| *entries == 0));
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    pair.lab.apply(&Policy::default()).expect("no policy");
    pair.lab.apply(&Policy::default()).expect("still none");
    assert_eq!(pair.lab.inventory().expect("inventory").map_entries, empty);
}

fn mounts(folder: &std::path::Path) -> Vec<String> {
    std::fs::read_to_string("/proc/self/mounts")
        .expect("mounts")
        .lines()
        .filter(|line| line.contains(&folder.display().to_string()))
        .map(str::to_owned)
        .collect()
}

#[test]
fn teardown_leaves_nothing() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = FabricConfig::under(folder.path());
    let fabric = Fabric::open(config.clone()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    assert_eq!(mounts(folder.path()).len(), 3);
    fabric.teardown().expect("teardown");
    assert_eq!(mounts(folder.path()), Vec::<String>::new());
    let left = [config.bpffs, config.taps_netns, config.svc_netns].map(|path| path.exists());
    assert_eq!(left, [false; 3]);
    Fabric::destroy(&FabricConfig::under(folder.path())).expect("nothing to destroy");
}

/// A loader killed between any two steps of `open` leaves a prefix of what they make.
#[test]
fn open_completes_what_a_killed_predecessor_began() {
    let folder = tempfile::tempdir().expect("a folder");
    let config = FabricConfig::under(folder.path());
    std::fs::create_dir_all(folder.path().join("netns")).expect("a folder");
    std::fs::write(&config.taps_netns, "").expect("a file that no namespace is mounted on");
    let fabric = Fabric::open(config.clone()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    drop(fabric);
    let svc_netns: PathBuf = config.svc_netns.clone();
    rustix::mount::unmount(&svc_netns, rustix::mount::UnmountFlags::DETACH).expect("unmounting");
    let fabric = Fabric::open(config.clone()).unwrap_or_else(|error| panic!("{}", chain(&error)));
    responder::within(&svc_netns, || {
        std::net::UdpSocket::bind((responder::ADDRESS, 67)).expect("the responder's address");
    });
    fabric.teardown().expect("teardown");
}

#[test]
fn a_refused_policy_changes_nothing() {
    let mut pair = Pair::new();
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    let before = pair.lab.inventory().expect("inventory");
    for (what, change, expected) in refusals() {
        let mut bad = pair.policy(open());
        change(&mut bad);
        match pair.lab.apply(&bad) {
            Err(FabricError::Policy(error)) => assert_eq!(error.to_string(), expected, "{what}"),
            other => panic!("{what}: {other:?}"),
        }
    }
    assert_eq!(pair.lab.inventory().expect("inventory"), before);
    assert!(pair.speak(0, SYN).is_some());
}

type Refusal = (&'static str, fn(&mut Policy), &'static str);

fn first(policy: &mut Policy) -> &mut Port {
    policy.ports.values_mut().next().expect("a port")
}

fn refusals() -> Vec<Refusal> {
    vec![
        (
            "a network of 0",
            |policy| first(policy).vni = Vni(0),
            "port eni-5-10.0.0.1: network 0 is not in 1..16777216",
        ),
        (
            "no address",
            |policy| first(policy).addresses.clear(),
            "port eni-5-10.0.0.1 has no IPv4 address",
        ),
        (
            "the responder's address",
            |policy| first(policy).service_address = Ipv4Addr::new(169, 254, 169, 254),
            "port eni-5-10.0.0.1: 169.254.169.254 cannot be a service address",
        ),
        (
            "an address of the world",
            |policy| first(policy).service_address = Ipv4Addr::new(192, 0, 2, 1),
            "port eni-5-10.0.0.1: 192.0.2.1 cannot be a service address",
        ),
        (
            "an address twice",
            |policy| {
                let address = [10, 0, 0, 2].into();
                first(policy).addresses = [address].into();
            },
            "port eni-5-10.0.0.2: address 10.0.0.2 is another port's, too",
        ),
        (
            "a group of nobody",
            |policy| {
                first(policy).groups.insert(GroupId("sg-none".into()));
            },
            "port eni-5-10.0.0.1: group sg-none is not defined",
        ),
    ]
}

/// More rules than the map holds: refused whole, by name.
#[test]
fn overflow_names_the_map_and_changes_nothing() {
    let mut pair = Pair::new();
    pair.lab.apply(&pair.policy(open())).expect("a policy");
    let many = (0..30_000).map(|at| tcp_in(at, at, cidr("0.0.0.0/0")));
    let mut wide = pair.policy(many.chain(open()).collect());
    for index in 0..40 {
        let name = GroupId(format!("g{index}"));
        wide.groups
            .insert(name.clone(), wide.groups[&GroupId("g".into())].clone());
        let ifindex = 1000 + u32::from(index);
        let (id, mut port) = port(ifindex, 5, [10, 0, 1, index], &[], [169, 254, 2, index]);
        port.groups = BTreeSet::from([name]);
        wide.ports.insert(id, port);
    }
    match pair.lab.apply(&wide) {
        Err(FabricError::Policy(CompileError::Overflow { map: "RULES", .. })) => {}
        other => panic!("{other:?}"),
    }
    assert!(pair.speak(0, SYN).is_some());
}
