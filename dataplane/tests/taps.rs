//! Frames through real taps: what guests hear of each other.

mod support;

use ocs_dataplane::fabric::Fabric;
use ocs_dataplane::model::{Policy, Port, PortId, Rule};
use ocs_dataplane::shared::layout::{Direction, Reason};
use support::frames::{ACK, SYN, SYN_ACK, tcp};
use support::policy::{all_out, end, group, policy, port, tcp_in};
use support::{Guest, Lab};

const WEB: u16 = 80;

/// Two guests of one network: A in group `a`, B in group `b`.
struct Two {
    lab: Lab,
    a: Guest,
    b: Guest,
    port_a: (PortId, Port),
    port_b: (PortId, Port),
}

impl Two {
    fn new() -> Self {
        let lab = Lab::new();
        let a = Guest::new(&lab, "tap-a");
        let b = Guest::new(&lab, "tap-b");
        let port_a = port(a.ifindex, 7, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]);
        let port_b = port(b.ifindex, 7, [10, 0, 0, 11], &["b"], [169, 254, 1, 2]);
        Self {
            lab,
            a,
            b,
            port_a,
            port_b,
        }
    }

    fn policy(&self, ingress_of_b: Vec<Rule>) -> Policy {
        let ports = [self.port_a.clone(), self.port_b.clone()];
        let mut rules_b = ingress_of_b;
        rules_b.push(all_out());
        policy(ports, [("a", vec![all_out()]), ("b", rules_b)])
    }

    fn apply(&self, ingress_of_b: Vec<Rule>) {
        apply(&self.lab, &self.policy(ingress_of_b));
    }

    fn by_a(&self, port: u16, flags: u8) -> Vec<u8> {
        tcp(end(&self.port_a.1, port), end(&self.port_b.1, WEB), flags)
    }

    fn by_b(&self, port: u16, flags: u8) -> Vec<u8> {
        tcp(end(&self.port_b.1, WEB), end(&self.port_a.1, port), flags)
    }

    fn handshake(&mut self, port: u16) {
        for (flags, a_speaks) in [(SYN, true), (SYN_ACK, false), (ACK, true)] {
            if a_speaks {
                let frame = self.by_a(port, flags);
                self.a.send(&frame);
                assert_eq!(self.b.receive(), frame);
            } else {
                let frame = self.by_b(port, flags);
                self.b.send(&frame);
                assert_eq!(self.a.receive(), frame);
            }
        }
    }
}

fn apply(fabric: &Fabric, policy: &Policy) -> usize {
    fabric
        .apply(policy)
        .unwrap_or_else(|error| panic!("{}", support::chain(&error)))
        .map_writes
}

#[test]
fn a_flow_is_refused_by_default_and_passes_by_group_reference() {
    let mut two = Two::new();
    two.apply(vec![]);
    let syn = two.by_a(40_000, SYN);
    two.a.send(&syn);
    two.b.hears_nothing();
    let counters = two.lab.counters(&two.port_b.0).expect("counters of B");
    assert_eq!(counters.get(Direction::Ingress, Reason::IngressDenied), 1);
    assert_eq!(counters.packets.len(), 1);

    two.apply(vec![tcp_in(WEB, WEB, group("a"))]);
    two.handshake(40_001);
}

#[test]
fn an_established_flow_outlives_the_rule_and_new_flows_are_refused() {
    let mut two = Two::new();
    two.apply(vec![tcp_in(WEB, WEB, group("a"))]);
    two.handshake(40_000);

    two.apply(vec![]);
    let segment = two.by_a(40_000, ACK);
    two.a.send(&segment);
    assert_eq!(two.b.receive(), segment);
    let answer = two.by_b(40_000, ACK);
    two.b.send(&answer);
    assert_eq!(two.a.receive(), answer);

    let syn = two.by_a(40_001, SYN);
    two.a.send(&syn);
    two.b.hears_nothing();
    let again = two.by_a(40_000, SYN);
    two.a.send(&again);
    two.b.hears_nothing();
    two.a.send(&segment);
    assert_eq!(two.b.receive(), segment);
}

#[test]
fn the_same_policy_again_writes_nothing() {
    let two = Two::new();
    let wanted = two.policy(vec![tcp_in(WEB, WEB, group("a"))]);
    assert!(apply(&two.lab, &wanted) > 0);
    assert_eq!(apply(&two.lab, &wanted), 0);
}
