//! Connection tracking, packet by packet, with the clock in the test's hand.

mod support;

use ocs_dataplane::model::{Direction as Way, Peer, Port, PortId, Rule, Traffic};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::{Direction, Reason};
use support::frames::{
    ACK, End, FIN_ACK, Header, RST, SYN, SYN_ACK, ethernet, icmp, icmp_message, ipv4, tcp, udp,
    udp_datagram,
};
use support::memory::{HZ, Memory};
use support::policy::{all_out, cidr, end, policy, port, tcp_in};

const A: u32 = 1;
const B: u32 = 2;

/// A and B. B is in a group with these rules and no egress; A may send all and hear
/// nothing unasked.
struct Two {
    memory: Memory,
    a: End,
    b: End,
    ports: [(PortId, Port); 2],
}

fn rule(traffic: Traffic) -> Rule {
    Rule {
        direction: Way::Ingress,
        traffic,
        peer: cidr("10.0.0.0/8"),
    }
}

impl Two {
    fn new(rules: Vec<Rule>) -> Self {
        let ports = [
            port(A, 5, [10, 0, 0, 1], &["a"], [169, 254, 1, 1]),
            port(B, 5, [10, 0, 0, 2], &["b"], [169, 254, 1, 2]),
        ];
        let memory = Memory::new(&policy(
            ports.clone(),
            [("a", vec![all_out()]), ("b", rules)],
        ));
        let (a, b) = (end(&ports[0].1, 1000), end(&ports[1].1, 80));
        Self {
            memory,
            a,
            b,
            ports,
        }
    }

    fn any(protocol: u8) -> Self {
        Self::new(vec![rule(Traffic::Protocol(protocol))])
    }

    /// No rule is left; what is tracked stays.
    fn revoke(&mut self) {
        self.memory
            .apply(&policy(self.ports.clone(), [("a", vec![]), ("b", vec![])]));
    }

    fn passes(&self, from: u32, frame: &[u8]) -> bool {
        let mut frame = frame.to_vec();
        self.memory.run_port(from, &mut frame) != Action::Drop
    }

    fn a(&self, flags: u8) -> bool {
        self.passes(A, &tcp(self.a, self.b, flags))
    }

    fn b(&self, flags: u8) -> bool {
        self.passes(B, &tcp(self.b, self.a, flags))
    }

    fn a_udp(&self) -> bool {
        self.passes(A, &udp(self.a, self.b, b"x"))
    }

    fn b_udp(&self) -> bool {
        self.passes(B, &udp(self.b, self.a, b"x"))
    }

    fn wait_s(&mut self, seconds: u64) {
        self.memory.now += seconds * u64::from(HZ);
    }

    /// Flows that A and B remember.
    fn remembered(&self) -> (usize, usize) {
        (self.memory.flows_of(A), self.memory.flows_of(B))
    }
}

#[test]
fn established_tcp_is_remembered_for_five_days() {
    let mut two = Two::any(6);
    assert!(two.a(SYN) && two.b(SYN_ACK) && two.a(ACK));
    assert_eq!(two.remembered(), (1, 1));
    two.revoke();
    two.wait_s(431_999);
    assert!(two.a(ACK) && two.b(ACK));
    two.wait_s(432_000);
    assert_eq!(two.remembered(), (0, 0));
    assert!(!two.a(ACK) && !two.b(ACK));
}

#[test]
fn tcp_that_is_not_established_is_forgotten_soon() {
    let mut two = Two::any(6);
    assert!(two.a(SYN));
    two.wait_s(60);
    assert_eq!(two.remembered(), (0, 0));
    assert!(!two.b(SYN_ACK), "an answer to nothing");

    assert!(two.a(SYN) && two.b(SYN_ACK));
    two.wait_s(59);
    assert!(two.b(SYN_ACK));
    two.wait_s(60);
    assert!(!two.b(SYN_ACK));
}

#[test]
fn tcp_that_was_closed_or_reset_is_forgotten_soon() {
    let mut two = Two::any(6);
    assert!(two.a(SYN) && two.b(SYN_ACK) && two.a(ACK));
    assert!(two.a(FIN_ACK));
    two.wait_s(59);
    assert!(two.b(ACK), "the other half is open");
    assert!(two.b(FIN_ACK) && two.a(ACK));
    two.wait_s(10);
    assert_eq!(two.remembered(), (0, 0));

    assert!(two.a(SYN) && two.b(SYN_ACK) && two.a(ACK) && two.b(RST));
    two.wait_s(9);
    assert_eq!(two.remembered(), (1, 1));
    two.wait_s(1);
    assert_eq!(two.remembered(), (0, 0));
}

#[test]
fn a_segment_that_asks_again_is_a_new_question() {
    let mut two = Two::any(6);
    assert!(two.a(SYN) && two.b(SYN_ACK) && two.a(ACK));
    two.revoke();
    assert!(!two.a(SYN), "the ports of an established flow");
    assert!(!two.b(SYN), "from the other side");
    assert!(two.a(ACK) && two.b(ACK), "which goes on");
}

#[test]
fn a_reset_begins_nothing() {
    let two = Two::any(6);
    assert!(two.a(RST), "the rules allow it");
    assert_eq!(two.remembered(), (0, 0));
    assert!(!two.b(ACK));
}

#[test]
fn udp_is_a_stream_after_the_second_answer() {
    let mut two = Two::any(17);
    assert!(two.a_udp() && two.b_udp());
    two.wait_s(29);
    assert!(two.b_udp(), "no second question");
    two.wait_s(30);
    assert!(!two.b_udp(), "forgotten");

    assert!(two.a_udp() && two.b_udp() && two.a_udp() && two.b_udp());
    two.wait_s(179);
    assert!(two.b_udp());
    two.wait_s(180);
    assert!(!two.b_udp());
}

#[test]
fn other_protocols_are_remembered_by_address() {
    let mut two = Two::any(47);
    let there = ethernet(
        two.b.mac,
        two.a.mac,
        0x0800,
        &ipv4(two.a.ip, two.b.ip, 47, Header::default(), &[0; 8]),
    );
    let back = ethernet(
        two.a.mac,
        two.b.mac,
        0x0800,
        &ipv4(two.b.ip, two.a.ip, 47, Header::default(), &[1; 8]),
    );
    assert!(!two.passes(B, &back));
    assert!(two.passes(A, &there) && two.passes(B, &back));
    two.wait_s(599);
    assert!(two.passes(B, &back));
    two.wait_s(600);
    assert!(!two.passes(B, &back));
}

#[test]
fn an_echo_is_answered_by_its_own_answer_alone() {
    let two = Two::any(1);
    let ask = |id| icmp(two.a, two.b, 8, 0, id, b"x");
    let answer = |kind, id| icmp(two.b, two.a, kind, 0, id, b"x");
    assert!(!two.passes(B, &answer(0, 7)), "unasked");
    assert!(two.passes(A, &ask(7)) && two.passes(B, &answer(0, 7)));
    assert!(!two.passes(B, &answer(0, 8)), "another identifier");
    assert!(!two.passes(B, &answer(8, 7)), "a question back");
    assert!(!two.passes(B, &answer(14, 7)), "an answer of another kind");
    assert_eq!(two.remembered(), (1, 1));
}

/// An ICMP error by `from` about a packet.
fn error_about(from: End, to: End, packet: &[u8]) -> Vec<u8> {
    icmp(from, to, 3, 3, 0, &packet[14..14 + 28])
}

#[test]
fn an_error_passes_if_it_quotes_a_tracked_flow() {
    let two = Two::any(17);
    let question = udp(two.a, two.b, b"x");
    let about = error_about(two.b, two.a, &question);
    assert!(!two.passes(B, &about), "before the question");
    assert!(two.passes(A, &question));
    assert!(two.passes(B, &about));

    let other = udp(End { port: 999, ..two.a }, two.b, b"x");
    assert!(!two.passes(B, &error_about(two.b, two.a, &other)));
    let backwards = udp(two.b, two.a, b"x");
    assert!(!two.passes(B, &error_about(two.b, two.a, &backwards)));
    let mut cut = about.clone();
    cut.truncate(14 + 20 + 8 + 20);
    cut[16..18].copy_from_slice(&48u16.to_be_bytes());
    assert!(!two.passes(B, &cut), "no ports in the quote");
    assert_eq!(two.remembered(), (1, 1), "an error keeps nothing alive");
}

/// A datagram of 2,000 bytes in two parts.
fn fragments(two: &Two, id: u16) -> [Vec<u8>; 2] {
    let datagram = udp_datagram(two.a, two.b, &[7; 1992]);
    [(0x2000, &datagram[..1480]), (1480 / 8, &datagram[1480..])].map(|(fragment, part)| {
        let header = Header {
            id,
            fragment,
            ttl: 64,
        };
        ethernet(
            two.b.mac,
            two.a.mac,
            0x0800,
            &ipv4(two.a.ip, two.b.ip, 17, header, part),
        )
    })
}

#[test]
fn later_fragments_follow_their_first_for_half_a_minute() {
    let mut two = Two::any(17);
    let [first, later] = fragments(&two, 1);
    let [_, stray] = fragments(&two, 2);
    assert!(!two.passes(A, &later), "before its first");
    let counters = two.memory.counters_of(A);
    assert_eq!(counters.get(Direction::Egress, Reason::Fragment), 1);
    assert!(two.passes(A, &first) && two.passes(A, &later));
    assert!(!two.passes(A, &stray), "of another datagram");
    two.wait_s(29);
    assert!(two.passes(A, &later));
    two.wait_s(1);
    assert!(!two.passes(A, &later));
}

#[test]
fn a_refused_first_fragment_lets_none_follow() {
    let two = Two::new(vec![]);
    let [first, later] = fragments(&two, 1);
    assert!(!two.passes(A, &first) && !two.passes(A, &later));
    assert_eq!(two.remembered(), (0, 0));
}

#[test]
fn a_fragment_that_would_overwrite_a_tcp_header_is_malformed() {
    let two = Two::any(6);
    assert!(two.a(SYN));
    for fragment in [1, 2] {
        let header = Header {
            fragment,
            ..Header::default()
        };
        let packet = ipv4(two.a.ip, two.b.ip, 6, header, &[0; 64]);
        assert!(!two.passes(A, &ethernet(two.b.mac, two.a.mac, 0x0800, &packet)));
    }
    let counters = two.memory.counters_of(A);
    assert_eq!(counters.get(Direction::Egress, Reason::Malformed), 2);
}

/// A floods B with flows: A's and B's tables are full, and A's own newest flow as well as
/// a flow of C and D pass on.
#[test]
fn a_flood_of_flows_evicts_its_own_oldest_and_no_others() {
    let ports = [
        port(1, 5, [10, 0, 0, 1], &["g"], [169, 254, 1, 1]),
        port(2, 5, [10, 0, 0, 2], &["g"], [169, 254, 1, 2]),
        port(3, 5, [10, 0, 0, 3], &["g"], [169, 254, 1, 3]),
        port(4, 5, [10, 0, 0, 4], &["g"], [169, 254, 1, 4]),
    ];
    let open = vec![
        all_out(),
        tcp_in(
            80,
            80,
            Peer::Group(ocs_dataplane::model::GroupId("g".into())),
        ),
    ];
    let mut memory = Memory::new(&policy(ports.clone(), [("g", open)]));
    let [a, b, c, d] = ports.each_ref().map(|(_, port)| end(port, 80));
    let run = |memory: &Memory, ifindex, frame: &[u8]| {
        memory.run_port(ifindex, &mut frame.to_vec()) != Action::Drop
    };
    let c = End { port: 1000, ..c };
    for (from, frame) in [
        (3, tcp(c, d, SYN)),
        (4, tcp(d, c, SYN_ACK)),
        (3, tcp(c, d, ACK)),
    ] {
        assert!(run(&memory, from, &frame));
    }
    for port in 1..=u16::MAX {
        memory.now += 1;
        let a = End { port, ..a };
        assert!(run(&memory, 1, &tcp(a, b, SYN)), "flow {port}");
        assert!(run(&memory, 2, &tcp(b, a, SYN_ACK)), "answer to {port}");
    }
    let (full, others) = (memory.flows_of(1), memory.flows_of(3));
    assert!((3500..=4096).contains(&full), "{full}");
    assert_eq!(others, 1);
    assert!(run(&memory, 4, &tcp(d, c, ACK)));
}

/// Flows inserted, found and advanced by several threads at once: a flow that is found is
/// the one that was asked for.
#[test]
fn a_bucket_shared_by_threads_never_shows_a_flow_that_is_none() {
    use ocs_dataplane::shared::flow::{Bucket, FlowKey, Progress, State};
    let bucket = Bucket::default();
    let key = |index: u16| FlowKey {
        own: u32::from(index).wrapping_mul(0x0101_0101),
        peer: !u32::from(index),
        own_port: index,
        peer_port: 1,
        protocol: 6,
        kind: 0,
    };
    // Same ports as `key`, other addresses: found only if a way is seen half written.
    let chimera = |index: u16| FlowKey {
        own: key(index + 1).own,
        peer: key(index + 1).peer,
        ..key(index)
    };
    let progress = Progress {
        state: State::Opening,
        opened_by_own: true,
        finished_by_own: false,
    };
    std::thread::scope(|scope| {
        for thread in 0..2 {
            let bucket = &bucket;
            scope.spawn(move || {
                for round in 0..100_000u64 {
                    let index = u16::try_from(round % 64).expect("below 64") * 2 + thread;
                    let _busy = bucket.insert(&key(index), progress, round, round + 5);
                    assert!(bucket.find(&chimera(index), round).is_none());
                }
            });
        }
    });
    assert!(bucket.live(0) <= 8);
}

#[test]
fn icmp_that_answers_nothing_needs_a_rule_of_its_own() {
    let unreachable = Traffic::Icmp {
        protocol: 1,
        kind: Some(3),
        code: None,
    };
    let two = Two::new(vec![rule(unreachable)]);
    let quote = [0; 28];
    let message = icmp_message(3, 1, 0, &quote);
    let packet = ipv4(two.a.ip, two.b.ip, 1, Header::default(), &message);
    assert!(two.passes(A, &ethernet(two.b.mac, two.a.mac, 0x0800, &packet)));
    assert!(!two.passes(A, &icmp(two.a, two.b, 11, 0, 0, &quote)));
    assert_eq!(two.remembered(), (0, 0));
}
