//! What the operator is shown: why a packet passes or not, frames as they pass, flows as
//! they are logged.

mod support;

use std::net::IpAddr;
use std::time::SystemTime;

use ocs_dataplane::fabric::{Capture, Explanation, FabricError, Frame, Packet};
use ocs_dataplane::model::{Policy, Port, PortId, Rule, Traffic};
use ocs_dataplane::shared::layout::Direction;
use ocs_dataplane::shared::log::LOG_FLOWS;
use support::frames::{self, SYN, SYN_ACK, tcp, udp};
use support::ipv6;
use support::policy::{all_out, cidr, end, group, policy, port, tcp_in};
use support::{Guest, Lab};

const A: [u8; 4] = [10, 0, 0, 10];
const B: [u8; 4] = [10, 0, 0, 11];

/// A may speak to B's port 443 by group and to 8000 to 8080 by prefix.
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
        let port_a = port(a.ifindex, 7, A, &["sg-a"], [169, 254, 1, 1]);
        let port_b = port(b.ifindex, 7, B, &["sg-b"], [169, 254, 1, 2]);
        let two = Self {
            lab,
            a,
            b,
            port_a,
            port_b,
        };
        two.lab.apply(&two.policy(rules())).expect("a policy");
        two
    }

    fn policy(&self, ingress_of_b: Vec<Rule>) -> Policy {
        let ports = [self.port_a.clone(), self.port_b.clone()];
        policy(ports, [("sg-a", vec![all_out()]), ("sg-b", ingress_of_b)])
    }

    fn explain(&self, to: [u8; 4], destination_port: u16) -> Explanation {
        self.explain_tcp(IpAddr::from(A), IpAddr::from(to), destination_port)
            .expect("an answer")
    }

    fn explain_tcp(
        &self,
        source: IpAddr,
        destination: IpAddr,
        destination_port: u16,
    ) -> Result<Explanation, FabricError> {
        let packet = Packet {
            source,
            destination,
            protocol: 6,
            source_port: 40_000,
            destination_port,
        };
        self.lab.explain(&self.port_a.0, packet)
    }

    fn by_a(&self, to_port: u16, flags: u8) -> Vec<u8> {
        tcp(
            end(&self.port_a.1, 40_000),
            end(&self.port_b.1, to_port),
            flags,
        )
    }

    fn by_b(&self, from_port: u16, flags: u8) -> Vec<u8> {
        tcp(
            end(&self.port_b.1, from_port),
            end(&self.port_a.1, 40_000),
            flags,
        )
    }
}

fn rules() -> Vec<Rule> {
    vec![
        tcp_in(443, 443, group("sg-a")),
        tcp_in(8_000, 8_080, cidr("10.0.0.0/28")),
    ]
}

/// Stages and what was found, as one text.
fn told(explanation: &Explanation) -> String {
    let steps = explanation.steps.iter();
    let lines = steps.map(|step| format!("{}: {}\n", step.stage, step.found));
    format!("{}\n{}", explanation.verdict, lines.collect::<String>())
}

#[test]
fn an_explanation_names_what_decides_and_changes_nothing() {
    let two = Two::new();
    let by_group = two.explain(B, 443);
    assert!(by_group.passes);
    let text = told(&by_group);
    assert!(
        text.starts_with("forwarded\nmapping: network 7: 10.0.0.11 is eni-7-10.0.0.11 (slot "),
        "{text}"
    );
    assert!(
        text.contains("egress: allowed by sg-a: all to 0.0.0.0/0 ("),
        "{text}"
    );
    assert!(
        text.contains("ingress: allowed by sg-b: tcp 443-443 from sg-a ("),
        "{text}"
    );

    let text = told(&two.explain(B, 8_042));
    assert!(
        text.contains("ingress: allowed by sg-b: tcp 8000-8080 from 10.0.0.0/28 ("),
        "{text}"
    );

    let refused = two.explain(B, 22);
    assert!(!refused.passes);
    let text = told(&refused);
    assert!(text.starts_with("ingress_denied\n"), "{text}");
    assert!(
        text.ends_with("ingress: no rule of sg-b allows it\n"),
        "{text}"
    );

    let text = told(&two.explain([10, 0, 0, 99], 443));
    assert_eq!(
        text,
        "no_endpoint\nmapping: network 7: nobody has 10.0.0.99\n"
    );

    for port in [&two.port_a.0, &two.port_b.0] {
        let counters = two.lab.counters(port).expect("counters");
        assert!(counters.packets.is_empty(), "{counters:?}");
    }
    let nobody = two.lab.explain(
        &PortId("eni-nobody".into()),
        Packet {
            source: A.into(),
            destination: B.into(),
            protocol: 6,
            source_port: 1,
            destination_port: 443,
        },
    );
    assert!(matches!(nobody, Err(FabricError::UnknownPort { .. })));
}

#[test]
fn of_ipv6_too_what_decides_is_what_happens() {
    let mut two = Two::new();
    let (a, b) = ("fd00::a", "fd00::b");
    for (port, address) in [(&mut two.port_a.1, a), (&mut two.port_b.1, b)] {
        ipv6::give(port, address.parse().expect("an address"));
    }
    let all_ipv6 = Rule {
        peer: cidr("::/0"),
        ..all_out()
    };
    let ports = [two.port_a.clone(), two.port_b.clone()];
    let ingress = vec![
        tcp_in(443, 443, group("sg-a")),
        tcp_in(8_000, 8_080, cidr("fd00::/120")),
        tcp_in(22, 22, cidr("0.0.0.0/0")),
    ];
    let wanted = policy(ports, [("sg-a", vec![all_ipv6]), ("sg-b", ingress)]);
    two.lab.apply(&wanted).expect("a policy");

    let ip = |text: &str| text.parse::<IpAddr>().expect("an address");
    for (to_port, says) in [
        (443, "ingress: allowed by sg-b: tcp 443-443 from sg-a ("),
        (
            8_042,
            "ingress: allowed by sg-b: tcp 8000-8080 from fd00::/120 (",
        ),
        (22, "ingress: no rule of sg-b allows it\n"),
    ] {
        let told_of = two.explain_tcp(ip(a), ip(b), to_port).expect("an answer");
        let text = told(&told_of);
        assert!(
            text.contains("\nmapping: network 7: fd00::b is eni-7-10.0.0.11 (slot ")
                && text.contains("\negress: allowed by sg-a: all to ::/0 (")
                && text.contains(says),
            "{text}"
        );
        let from = ipv6::end(&two.port_a.1, 40_000);
        let syn = ipv6::tcp(from, ipv6::end(&two.port_b.1, to_port), SYN);
        two.a.send(&syn);
        assert_eq!(two.b.poll().is_some(), told_of.passes, "{text}");
    }
    // Rules of one IP open nothing by the other.
    let by_ipv4 = told(&two.explain(B, 22));
    assert!(
        by_ipv4.ends_with("egress: no rule of sg-a allows it\n"),
        "{by_ipv4}"
    );
    let nobody = two
        .explain_tcp(ip(a), ip("fd00::c"), 443)
        .expect("an answer");
    assert_eq!(
        told(&nobody),
        "no_endpoint\nmapping: network 7: nobody has fd00::c\n"
    );
    let stranger = two
        .explain_tcp(ip("fd00::c"), ip(b), 443)
        .expect("an answer");
    assert_eq!(told(&stranger), "spoofed\n");
    let metadata = two
        .explain_tcp(ip(a), ip("fd00:ec2::254"), 80)
        .expect("an answer");
    assert_eq!(
        told(&metadata),
        "forwarded\nmapping: the host's own services answer\n"
    );
    let mixed = two.explain_tcp(A.into(), ip(b), 443);
    assert!(
        matches!(mixed, Err(FabricError::TwoIps { .. })),
        "{mixed:?}"
    );
}

#[test]
fn an_explanation_knows_tracked_flows_of_rules_that_are_gone() {
    let mut two = Two::new();
    let udp_in = Rule {
        traffic: Traffic::Protocol(17),
        ..tcp_in(0, 0, group("sg-a"))
    };
    two.lab.apply(&two.policy(vec![udp_in])).expect("a policy");
    let datagram = udp(end(&two.port_a.1, 9), end(&two.port_b.1, 9), b"x");
    two.a.send(&datagram);
    two.b.receive();
    two.lab.apply(&two.policy(vec![])).expect("no rules");
    let explain = |source_port| {
        let packet = Packet {
            source: A.into(),
            destination: B.into(),
            protocol: 17,
            source_port,
            destination_port: 9,
        };
        told(&two.lab.explain(&two.port_a.0, packet).expect("an answer"))
    };
    let text = explain(9);
    assert!(text.starts_with("forwarded\n"), "{text}");
    assert!(
        text.contains("ingress: belongs to a flow that is tracked"),
        "{text}"
    );
    let text = explain(10);
    assert!(
        text.ends_with("ingress: no rule of sg-b allows it\n"),
        "{text}"
    );
}

/// All frames that wait.
fn frames_of(capture: &mut Capture) -> Vec<Frame> {
    std::iter::from_fn(|| capture.next_frame()).collect()
}

#[test]
fn a_capture_shows_frames_as_the_port_sends_and_receives_them() {
    let mut two = Two::new();
    let mut of_a = two.lab.capture(&two.port_a.0).expect("a capture");
    let (syn, refused) = (two.by_a(443, SYN), two.by_a(22, SYN));
    two.a.send(&syn);
    let received = two.b.receive();
    assert_eq!(received, syn);
    two.a.send(&refused);
    two.b.hears_nothing();
    let answer = two.by_b(443, SYN_ACK);
    two.b.send(&answer);
    let heard = two.a.receive();
    let long = udp(end(&two.port_a.1, 9), end(&two.port_b.1, 9), &[7; 1_472]);
    two.a.send(&long);
    let shown = frames_of(&mut of_a);
    let ways: Vec<(Direction, &[u8])> = shown
        .iter()
        .map(|frame| (frame.direction, frame.bytes.as_slice()))
        .collect();
    assert_eq!(
        ways,
        [
            (Direction::Egress, syn.as_slice()),
            (Direction::Egress, refused.as_slice()),
            (Direction::Ingress, heard.as_slice()),
            (Direction::Egress, long.as_slice()),
        ]
    );
    assert!(shown.is_sorted_by_key(|frame| frame.time_ns));
    assert!(
        shown
            .iter()
            .all(|frame| frame.length as usize == frame.bytes.len())
    );

    // Another takes its place, which the first cannot end.
    let mut second = two.lab.capture(&two.port_a.0).expect("a capture");
    two.lab.end_capture(&of_a).expect("nothing to end");
    two.a.send(&syn);
    assert_eq!(frames_of(&mut of_a).len(), 0);
    assert_eq!(frames_of(&mut second).len(), 1);
    two.lab.end_capture(&second).expect("the end");
    two.a.send(&syn);
    assert_eq!(frames_of(&mut second).len(), 0);
}

#[test]
fn a_capture_that_nobody_reads_costs_its_ring_and_ends_with_its_port_or_loader() {
    let mut two = Two::new();
    let mut capture = two.lab.capture(&two.port_a.0).expect("a capture");
    let syn = two.by_a(443, SYN);
    two.lab
        .run_port(two.a.ifindex, &syn, 10_000, Some(64))
        .expect("frames");
    let held = frames_of(&mut capture).len();
    assert!((1_000..10_000).contains(&held), "{held}");

    let mut wanted = two.policy(rules());
    wanted.ports.remove(&two.port_a.0);
    two.lab.apply(&wanted).expect("a policy without A");
    // Whoever gets A's slot next is not watched.
    two.lab.apply(&two.policy(rules())).expect("A again");
    two.a.send(&syn);
    assert_eq!(frames_of(&mut capture).len(), 0);

    let mut capture = two.lab.capture(&two.port_a.0).expect("a capture");
    two.lab.restart();
    two.a.send(&syn);
    assert_eq!(
        frames_of(&mut capture).len(),
        0,
        "its reader died with the loader"
    );
}

#[test]
fn a_flow_log_counts_each_flow_at_each_end() {
    let mut two = Two::new();
    for id in [&two.port_a.0, &two.port_b.0] {
        assert_eq!(two.lab.take_flow_log(id).expect("none"), None);
        two.lab.set_logged(id, true).expect("a log");
    }
    let began = SystemTime::now();
    let (syn, refused, answer) = (
        two.by_a(443, SYN),
        two.by_a(22, SYN),
        two.by_b(443, SYN_ACK),
    );
    for _ in 0..3 {
        two.a.send(&syn);
    }
    two.a.send(&refused);
    two.b.send(&answer);
    let short = |id: &PortId| {
        let log = two.lab.take_flow_log(id).expect("a log").expect("kept");
        assert_eq!(log.skipped_packets, 0);
        let mut flows: Vec<_> = log
            .records
            .iter()
            .map(|flow| {
                assert!(flow.first <= flow.last);
                let off = match flow.first.duration_since(began) {
                    Ok(after) => after,
                    Err(before) => before.duration(),
                };
                assert!(off.as_secs() < 5, "{off:?}");
                let ports = (flow.source_port, flow.destination_port);
                (
                    flow.source,
                    ports,
                    flow.protocol,
                    flow.accepted,
                    flow.packets,
                    flow.bytes,
                )
            })
            .collect();
        flows.sort();
        flows
    };
    let (a, b) = (IpAddr::from(A), IpAddr::from(B));
    assert_eq!(
        short(&two.port_a.0),
        [
            (a, (40_000, 22), 6, true, 1, 40),
            (a, (40_000, 443), 6, true, 3, 120),
            (b, (443, 40_000), 6, true, 1, 40),
        ]
    );
    assert_eq!(
        short(&two.port_b.0),
        [
            (a, (40_000, 22), 6, false, 1, 40),
            (a, (40_000, 443), 6, true, 3, 120),
            (b, (443, 40_000), 6, true, 1, 40),
        ]
    );
    assert_eq!(short(&two.port_a.0), []);
    two.lab.set_logged(&two.port_a.0, false).expect("no log");
    assert_eq!(two.lab.take_flow_log(&two.port_a.0).expect("none"), None);
}

#[test]
fn a_scan_fills_the_log_of_its_ports_alone_and_says_what_it_left_out() {
    let two = Two::new();
    for id in [&two.port_a.0, &two.port_b.0] {
        two.lab.set_logged(id, true).expect("a log");
    }
    let from = end(&two.port_a.1, 1);
    let scanned = LOG_FLOWS + 500;
    for flow in 0..scanned {
        let to_port = u16::try_from(flow).expect("a port");
        let to = frames::End {
            port: to_port,
            ..end(&two.port_b.1, 0)
        };
        two.lab
            .run_port(two.a.ifindex, &udp(from, to, b""), 1, None)
            .expect("a run");
    }
    let log = two
        .lab
        .take_flow_log(&two.port_a.0)
        .expect("a log")
        .expect("kept");
    assert!(log.records.len() < LOG_FLOWS);
    let told: u64 = log.records.iter().map(|flow| flow.packets).sum();
    assert_eq!(told + log.skipped_packets, scanned as u64);
    assert!(log.skipped_packets >= 500);
}
