//! Compiled policies, in memory and in the kernel, say what the naive evaluator says.

mod support;

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use ocs_dataplane::compiler::raw;
use ocs_dataplane::fabric::{Counters, Explanation, Packet, UplinkConfig};
use ocs_dataplane::model::{Policy, PortId};
use ocs_dataplane::reference::{Answer, Question, ask};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::{Direction, Host, OUTSIDE_HOST, OUTSIDE_HOST_IPV6, Reason};
use proptest::prelude::*;
use proptest::test_runner::TestRunner;
use support::arbitrary::{Asked, HOST, PORTS, policies, questions};
use support::memory::Memory;
use support::underlay::Netns;
use support::{Guest, Lab};

/// Rule sets per run: what issues name with `OCS_LONG`, few otherwise.
fn cases() -> u32 {
    if std::env::var_os("OCS_LONG").is_some() {
        10_000
    } else {
        ProptestConfig::default().cases
    }
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: cases(),
        failure_persistence: None,
        ..ProptestConfig::default()
    }
}

/// Who counts a packet, and how.
type Counted = (PortId, Direction, Reason);

/// An answer as counters tell it: who counts which direction and reason.
fn counted(answer: &Answer, from: &PortId, question: Question) -> Counted {
    match answer {
        Answer::Leaves(IpAddr::V4(_)) if is_error(question) => {
            (from.clone(), Direction::Egress, Reason::NotTranslated)
        }
        Answer::Passes(to) => (to.clone(), Direction::Ingress, Reason::Forwarded),
        Answer::ToHost(_) | Answer::ToNat(_) | Answer::Leaves(_) => {
            (from.clone(), Direction::Egress, Reason::Forwarded)
        }
        Answer::NoEndpoint => (from.clone(), Direction::Egress, Reason::NoEndpoint),
        Answer::NoRoute => (from.clone(), Direction::Egress, Reason::NoRoute),
        Answer::Blackhole => (from.clone(), Direction::Egress, Reason::Blackhole),
        Answer::SourceDestCheck => (from.clone(), Direction::Egress, Reason::SourceDestCheck),
        Answer::NoPublicAddress => (from.clone(), Direction::Egress, Reason::NoPublicAddress),
        Answer::EgressAclDenied => (from.clone(), Direction::Egress, Reason::AclDenied),
        Answer::EgressDenied => (from.clone(), Direction::Egress, Reason::EgressDenied),
        Answer::IngressAclDenied(to) => (to.clone(), Direction::Ingress, Reason::AclDenied),
        Answer::IngressDenied(to) => (to.clone(), Direction::Ingress, Reason::IngressDenied),
    }
}

fn passes(answer: &Answer, question: Question) -> bool {
    match answer {
        Answer::Leaves(IpAddr::V4(_)) => !is_error(question),
        Answer::Leaves(IpAddr::V6(_))
        | Answer::Passes(_)
        | Answer::ToHost(_)
        | Answer::ToNat(_) => true,
        _ => false,
    }
}

/// An ICMP error: here one that quotes nothing, so its quote cannot be translated.
fn is_error(question: Question) -> bool {
    let [kind, _] = question.port.to_be_bytes();
    question.protocol == 1 && matches!(kind, 3 | 4 | 11)
}

/// Lets frames leave the host in memory.
fn know_the_way(memory: &mut Memory) {
    for address in [raw(HOST), OUTSIDE_HOST, OUTSIDE_HOST_IPV6] {
        memory.hosts.insert(address, Host::default());
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn fuzz_memory_says_what_the_reference_says(
        policy in policies([1, 2, 3, 4, 5, 6]),
        asked in proptest::collection::vec(questions(), 8),
    ) {
        let mut memory = Memory::new(&policy);
        for (nonce, one) in asked.iter().enumerate() {
            let (from, ifindex, source, to, mut frame) =
                one.frame(&policy, u16::try_from(nonce).expect("few questions"));
            let answer = ask(&policy, &from, source, to, one.question).expect("own address");
            know_the_way(&mut memory);
            let action = memory.run_port(ifindex, &mut frame);
            let (who, direction, reason) = counted(&answer, &from, one.question);
            prop_assert_eq!(
                action != Action::Drop,
                passes(&answer, one.question),
                "{:?} {:?}", one, answer
            );
            let counters = memory.counters_of(policy.ports[&who].ifindex);
            prop_assert_eq!(counters.get(direction, reason), 1, "{:?} {:?}", one, answer);
            memory = Memory::new(&policy);
        }
    }
}

/// How often each answer was expected of each port.
type Expected = BTreeMap<Counted, u64>;

/// Asks a kernel whose flow tables remember what was allowed before.
struct Asker<'a> {
    lab: &'a Lab,
    underlay: &'a Netns,
    /// Tells apart flows that have ports.
    nonce: u16,
    /// Flows without ports that were allowed, in either direction.
    tracked: BTreeSet<(PortId, IpAddr, u8)>,
}

impl Asker<'_> {
    fn ask_all(&mut self, policy: &Policy, asked: &[Asked]) -> Result<(), TestCaseError> {
        if usize::from(self.nonce) + asked.len() > usize::from(u16::MAX) || self.tracked.len() > 200
        {
            self.nonce = 0;
            self.tracked.clear();
            self.lab.apply(&Policy::default()).expect("no policy");
        }
        self.lab
            .apply(policy)
            .map_err(|error| TestCaseError::fail(support::chain(&error)))?;
        self.underlay
            .within(|| self.lab.refresh_hosts())
            .expect("the way to hosts");
        let before = self.counters(policy);
        let mut expected = Expected::new();
        for one in asked {
            if let Some(counted) = self.ask(policy, one)? {
                if let (to, Direction::Ingress, Reason::Forwarded) = &counted.1
                    && *to != counted.0
                {
                    // Its sender counts it, too.
                    let sent = (counted.0.clone(), Direction::Egress, Reason::Forwarded);
                    *expected.entry(sent).or_default() += 1;
                }
                *expected.entry(counted.1).or_default() += 1;
            }
        }
        let after = self.counters(policy);
        for ((port, direction, reason), count) in expected {
            let packets =
                after[&port].get(direction, reason) - before[&port].get(direction, reason);
            prop_assert_eq!(packets, count, "{:?} {:?} {:?}", port, direction, reason);
        }
        Ok(())
    }

    fn counters(&self, policy: &Policy) -> BTreeMap<PortId, Counters> {
        let of = |id: &PortId| self.lab.counters(id).expect("counters");
        policy.ports.keys().map(|id| (id.clone(), of(id))).collect()
    }

    fn ask(
        &mut self,
        policy: &Policy,
        one: &Asked,
    ) -> Result<Option<(PortId, Counted)>, TestCaseError> {
        self.nonce += 1;
        let (from, ifindex, source, to, frame) = one.frame(policy, self.nonce);
        let answer = ask(policy, &from, source, to, one.question).expect("own address");
        if !one.has_ports() {
            // By its sender, or by whoever may receive it.
            let is_tracked = self.tracked.iter().any(|(id, peer, protocol)| {
                *protocol == one.question.protocol
                    && ((*id == from && *peer == to) || *peer == source)
            });
            if is_tracked {
                return Ok(None);
            }
            if passes(&answer, one.question) {
                self.tracked
                    .insert((from.clone(), to, one.question.protocol));
            }
            if let Answer::Passes(receiver) = &answer {
                self.tracked
                    .insert((receiver.clone(), source, one.question.protocol));
            }
        }
        let told = self.explain(&from, source, to, one.question);
        let run = self.lab.run_port(ifindex, &frame, 1, None).expect("a run");
        let passes = passes(&answer, one.question);
        prop_assert_eq!(run.action == XDP_REDIRECT, passes, "{:?} {:?}", one, answer);
        if let Answer::Passes(to) = &answer {
            prop_assert_eq!(&run.frame[..6], &policy.ports[to].mac.0[..]);
        }
        let counted = counted(&answer, &from, one.question);
        let verdict = counted.2.label();
        prop_assert_eq!((told.passes, told.verdict), (passes, verdict), "{:?}", told);
        prop_assert!(tells(&told, &answer), "{:?}: {:?}", answer, told);
        Ok(Some((from, counted)))
    }

    /// What the operator would be told of a packet.
    fn explain(&self, from: &PortId, source: IpAddr, to: IpAddr, asked: Question) -> Explanation {
        let packet = Packet {
            source,
            destination: to,
            protocol: asked.protocol,
            source_port: self.nonce,
            destination_port: asked.port,
        };
        self.lab.explain(from, packet).expect("an answer")
    }
}

/// Whether an explanation names what decides: the route, the mapping, each side's rule.
fn tells(told: &Explanation, answer: &Answer) -> bool {
    let found = |stage| {
        let mut steps = told.steps.iter().rev();
        steps
            .find(|step| step.stage == stage)
            .map_or("", |step| &step.found)
    };
    let (egress, ingress) = (found("egress"), found("ingress"));
    let allowed = |found: &str| found.starts_with("allowed by ") && !found.contains("the maps");
    let denied = |found: &str| found.starts_with("no rule of ");
    match answer {
        Answer::Passes(_) => allowed(egress) && allowed(ingress),
        Answer::IngressDenied(_) => allowed(egress) && denied(ingress),
        Answer::ToHost(host) => {
            let is_there = found("mapping").contains(&format!(" is on host {host} ("));
            is_there && allowed(egress) && ingress.is_empty()
        }
        Answer::Leaves(public) => {
            let leaves = found("mapping").ends_with(&format!(" leaves as {public}"));
            leaves && allowed(egress) && ingress.is_empty()
        }
        Answer::ToNat(_) | Answer::NoPublicAddress => allowed(egress) && ingress.is_empty(),
        Answer::EgressDenied => denied(egress) && ingress.is_empty(),
        Answer::IngressAclDenied(_) => {
            allowed(egress) && found("acl") == "the receiver's subnet: denied"
        }
        Answer::EgressAclDenied => {
            egress.is_empty() && found("acl") == "the sender's subnet: denied"
        }
        Answer::NoRoute => found("route").ends_with(": no route leads there"),
        Answer::Blackhole => found("route").ends_with(": nowhere (blackhole)"),
        Answer::NoEndpoint | Answer::SourceDestCheck => {
            !found("mapping").is_empty() && egress.is_empty()
        }
    }
}

/// `XDP_REDIRECT` of linux/bpf.h.
const XDP_REDIRECT: u32 = 4;

/// Namespaces that lead to [`HOST`] and outside.
fn underlay(lab: &Lab) -> [Netns; 2] {
    let (host, gateway) = (Netns::new(), Netns::new());
    host.cable("up0", &gateway, "up1");
    host.ip("addr add 192.0.2.1/24 dev up0");
    host.ip("neigh add 192.0.2.9 lladdr 02:00:00:00:02:09 dev up0");
    host.ip("neigh add 192.0.2.254 lladdr 02:00:00:00:02:fe dev up0");
    host.ip("route add default via 192.0.2.254");
    host.ip("addr add 2001:db8:ffff::1/64 dev up0");
    host.ip("neigh add fe80::fe lladdr 02:00:00:00:02:fe dev up0");
    host.ip("-6 route add default via fe80::fe dev up0");
    let config = UplinkConfig {
        interface: "up0".to_owned(),
        address: Ipv4Addr::new(192, 0, 2, 1),
        outside: true,
    };
    host.within(|| lab.set_uplink(config)).expect("an uplink");
    [host, gateway]
}

#[test]
fn fuzz_the_kernel_says_what_the_reference_says() {
    let lab = Lab::new();
    let underlay = underlay(&lab);
    let guests: Vec<Guest> = (0..PORTS)
        .map(|index| Guest::new(&lab, &format!("tap{index}")))
        .collect();
    let ifindexes: [u32; PORTS] = std::array::from_fn(|index| guests[index].ifindex);
    let asker = RefCell::new(Asker {
        lab: &lab,
        underlay: &underlay[0],
        nonce: 0,
        tracked: BTreeSet::new(),
    });
    let asked = proptest::collection::vec(questions(), 30);
    TestRunner::new(config())
        .run(&(policies(ifindexes), asked), |(policy, asked)| {
            asker.borrow_mut().ask_all(&policy, &asked)
        })
        .unwrap_or_else(|error| panic!("{error}"));
}
