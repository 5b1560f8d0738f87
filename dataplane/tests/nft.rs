//! Three judges of one rule set: the programs, the naive evaluator, and nftables, which
//! knows nothing of either.

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::net::IpAddr;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};

use ocs_dataplane::model::{Direction, GroupId, Peer, Policy, Port, Rule, Traffic, Vni};
use ocs_dataplane::reference::{Answer, ask};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::arbitrary::{Asked, PORTS, group_policies, questions};
use support::stack::{ip, open_tap};
use support::{Guest, Lab};

/// `XDP_REDIRECT` of linux/bpf.h.
const XDP_REDIRECT: u32 = 4;

/// Rule sets, and in how many courts they are tried at the same time: of a set's time nine
/// tenths are the kernel's wait for whoever may still read what the set replaces.
fn cases() -> (u32, u32) {
    if std::env::var_os("OCS_LONG").is_some() {
        (10_000, 10)
    } else {
        (48, 2)
    }
}

/// nftables in a namespace of its own: what comes in on `in5` or `in6`, the two networks,
/// and is allowed, goes out of `out`.
struct Nft {
    orders: Sender<Order>,
    answers: Receiver<bool>,
}

enum Order {
    Rules(String),
    Judge(u32, Vec<u8>),
}

impl Nft {
    fn new() -> Self {
        let (orders, inbox) = channel();
        let (outbox, answers) = channel();
        std::thread::spawn(move || {
            // SAFETY: this thread alone leaves its namespace.
            unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }
                .expect("a namespace");
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("a sysctl");
            let mut taps: BTreeMap<&str, File> = ["in5", "in6", "out"]
                .map(|name| (name, open_tap(name, false)))
                .into();
            for name in taps.keys() {
                ip(&format!("link set {name} up"));
            }
            for order in inbox {
                let answer = match order {
                    Order::Rules(rules) => load(&rules),
                    Order::Judge(vni, frame) => {
                        let name = if vni == 5 { "in5" } else { "in6" };
                        let tap = taps.get_mut(name).expect("a tap");
                        tap.write_all(&frame).expect("the tap takes a frame");
                        arrived(taps.get_mut("out").expect("a tap"))
                    }
                };
                if outbox.send(answer).is_err() {
                    return;
                }
            }
        });
        Self { orders, answers }
    }

    fn order(&self, order: Order) -> bool {
        self.orders.send(order).expect("nftables' thread lives");
        self.answers.recv().expect("nftables' thread lives")
    }
}

/// Whether a frame waits; there is at most one.
fn arrived(tap: &mut File) -> bool {
    match tap.read(&mut [0; 2048]) {
        Ok(_) => true,
        Err(error) if error.kind() == ErrorKind::WouldBlock => false,
        Err(error) => panic!("reading from a tap: {error}"),
    }
}

fn load(rules: &str) -> bool {
    let mut nft = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .expect("nft (Debian: nftables)");
    let mut input = nft.stdin.take().expect("a pipe");
    input.write_all(rules.as_bytes()).expect("nft reads");
    drop(input);
    let status = nft.wait().expect("nft ends");
    assert!(status.success(), "nft refuses:\n{rules}");
    true
}

/// The policy as someone who knows nftables would write it.
fn written(policy: &Policy) -> String {
    let mut text = "flush ruleset\n".to_owned();
    for vni in [5, 6] {
        let ports: Vec<&Port> = policy
            .ports
            .values()
            .filter(|port| port.vni == Vni(vni))
            .collect();
        let (mut egress, mut ingress) = (String::new(), String::new());
        for port in &ports {
            for family in [
                Family {
                    name: "ip",
                    v6: false,
                },
                Family {
                    name: "ip6",
                    v6: true,
                },
            ] {
                let (ip, own) = (family.name, family.address(port));
                let _ = writeln!(egress, "  {ip} saddr {own} {ip} daddr {own} drop");
                for rule in port
                    .groups
                    .iter()
                    .flat_map(|group| &policy.groups[group].rules)
                {
                    let Some(peers) = family.peers(&ports, &rule.peer) else {
                        continue;
                    };
                    let traffic = traffic(rule);
                    let _ = match rule.direction {
                        Direction::Egress => writeln!(
                            egress,
                            "  {ip} saddr {own} {ip} daddr {peers} {traffic} goto ingress"
                        ),
                        Direction::Ingress => writeln!(
                            ingress,
                            "  {ip} daddr {own} {ip} saddr {peers} {traffic} fwd to \"out\""
                        ),
                    };
                }
            }
        }
        let _ = write!(
            text,
            "table netdev vpc{vni} {{\n chain ingress {{\n{ingress}  drop\n }}\n \
             chain egress {{\n  type filter hook ingress device \"in{vni}\" priority 0; policy drop;\n\
             {egress} }}\n}}\n"
        );
    }
    text
}

/// An IP of the two, as nftables calls it.
struct Family {
    name: &'static str,
    v6: bool,
}

impl Family {
    fn address(&self, port: &Port) -> IpAddr {
        let mut addresses = port.addresses.iter();
        let own = addresses.find(|address| address.is_ipv6() == self.v6);
        *own.expect("an address of each family")
    }

    /// A set of addresses; nothing if it is empty.
    fn peers(&self, ports: &[&Port], peer: &Peer) -> Option<String> {
        match peer {
            Peer::Cidr(prefix) => (prefix.addr().is_ipv6() == self.v6).then(|| prefix.to_string()),
            Peer::Group(group) => self.members(ports, group),
        }
    }

    fn members(&self, ports: &[&Port], group: &GroupId) -> Option<String> {
        let members = ports.iter().filter(|port| port.groups.contains(group));
        let members: BTreeSet<String> =
            members.map(|port| self.address(port).to_string()).collect();
        let list = members.into_iter().collect::<Vec<_>>().join(", ");
        (!list.is_empty()).then(|| format!("{{ {list} }}"))
    }
}

/// Matches of a rule's traffic.
fn traffic(rule: &Rule) -> String {
    match rule.traffic {
        Traffic::All => String::new(),
        Traffic::Protocol(number) => format!("meta l4proto {number}"),
        Traffic::Ports { protocol, from, to } => {
            let name = if protocol == 6 { "tcp" } else { "udp" };
            format!("{name} dport {from}-{to}")
        }
        Traffic::Icmp {
            protocol,
            kind,
            code,
        } => {
            // By place: of the other IP these bytes are nothing to nftables.
            let mut text = format!("meta l4proto {protocol}");
            for (at, value) in [(0, kind), (8, code)] {
                if let Some(value) = value {
                    let _ = write!(text, " @th,{at},8 {value}");
                }
            }
            text
        }
    }
}

struct Judges {
    lab: Lab,
    guests: Vec<Guest>,
    nft: Nft,
    nonce: u16,
    judged: u64,
    passed: u64,
}

impl Judges {
    fn all(&mut self, policy: &Policy, asked: &[Asked]) -> Result<(), TestCaseError> {
        // Empty flow tables, then the rules.
        self.lab.apply(&Policy::default()).expect("no policy");
        self.lab
            .apply(policy)
            .map_err(|error| TestCaseError::fail(support::chain(&error)))?;
        self.nft.order(Order::Rules(written(policy)));
        let mut tracked = BTreeSet::new();
        for one in asked {
            self.nonce = self.nonce.wrapping_add(1).max(1);
            let (from, ifindex, source, to, frame) = one.frame(policy, self.nonce);
            let vni = policy.ports[&from].vni.0;
            // nftables is asked without conntrack, so a flow without ports is asked once.
            let flow = (vni, source.min(to), source.max(to), one.question.protocol);
            if !one.has_ports() && !tracked.insert(flow) {
                continue;
            }
            let answer = ask(policy, &from, source, to, one.question).expect("own address");
            let plainly = matches!(answer, Answer::Passes(_));
            let run = self.lab.run_port(ifindex, &frame, 1, None).expect("a run");
            let by_nft = self.nft.order(Order::Judge(vni, frame));
            self.judged += 1;
            self.passed += u64::from(plainly);
            prop_assert_eq!(
                (run.action == XDP_REDIRECT, by_nft),
                (plainly, plainly),
                "programs and nftables against {:?} of {:?}\n{}",
                answer,
                one,
                written(policy)
            );
        }
        Ok(())
    }
}

/// Tries so many rule sets; how many packets were judged, and how many of them passed.
fn court(cases: u32) -> (u64, u64) {
    let lab = Lab::new();
    let guests: Vec<Guest> = (0..PORTS)
        .map(|index| Guest::new(&lab, &format!("tap{index}")))
        .collect();
    let ifindexes: [u32; PORTS] = std::array::from_fn(|index| guests[index].ifindex);
    let judges = RefCell::new(Judges {
        lab,
        guests,
        nft: Nft::new(),
        nonce: 0,
        judged: 0,
        passed: 0,
    });
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    let asked = proptest::collection::vec(questions(), 16);
    TestRunner::new(config)
        .run(&(group_policies(ifindexes), asked), |(policy, asked)| {
            judges.borrow_mut().all(&policy, &asked)
        })
        .unwrap_or_else(|error| panic!("{error}"));
    let judges = judges.into_inner();
    assert_eq!(judges.guests.len(), PORTS);
    (judges.judged, judges.passed)
}

#[test]
fn fuzz_programs_reference_and_nftables_agree() {
    let (cases, courts) = cases();
    let courts: Vec<_> = (0..courts)
        .map(|_| std::thread::spawn(move || court(cases / courts)))
        .collect();
    let (mut judged, mut passed) = (0, 0);
    for court in courts {
        let of = court
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        judged += of.0;
        passed += of.1;
    }
    println!("{cases} rule sets: {judged} packets judged alike, {passed} passed");
    assert!(passed > 0 && passed < judged);
}
