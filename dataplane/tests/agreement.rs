//! The programs do in the kernel, byte for byte, what their logic does in memory.

mod support;

use std::net::{Ipv4Addr, Ipv6Addr};

use ocs_dataplane::model::{Policy, Port, PortId, Rule};
use ocs_dataplane::shared::Action;
use ocs_dataplane::shared::layout::ROUTER_MAC;
use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::Index;
use proptest::test_runner::TestRunner;
use support::frames::{self, End, Header};
use support::ipv6;
use support::memory::Memory;
use support::policy::{all_out, cidr, end, group, policy, port, tcp_in};
use support::{Guest, Lab};

/// `enum xdp_action` of linux/bpf.h.
fn xdp(action: Action) -> u32 {
    match action {
        Action::Drop | Action::Stage { .. } => 1,
        Action::Pass => 2,
        Action::Bounce => 3,
        Action::Redirect { .. } => 4,
    }
}

/// A frame that a guest may send, and what is done to it on the way.
#[derive(Clone, Debug)]
struct Sent {
    from: Index,
    to: Index,
    shape: u8,
    flags: u8,
    port: u16,
    fragment: u16,
    cut: Option<Index>,
    flips: Vec<(Index, u8)>,
}

fn sent() -> impl Strategy<Value = Sent> {
    let flags = prop_oneof![
        Just(2),
        Just(0x12),
        Just(0x10),
        Just(0x11),
        Just(4),
        any::<u8>()
    ];
    let port = prop_oneof![Just(67), Just(68), Just(80), 0..4u16];
    let fragment = prop_oneof![4 => Just(0x4000), 1 => Just(0x2000), 1 => 0..200u16];
    let cut = proptest::option::weighted(0.1, any::<Index>());
    let flips = prop_oneof![3 => Just(vec![]), 1 => vec((any::<Index>(), any::<u8>()), 1..3)];
    (
        any::<Index>(),
        any::<Index>(),
        0..13u8,
        flags,
        port,
        fragment,
        cut,
        flips,
    )
        .prop_map(
            |(from, to, shape, flags, port, fragment, cut, flips)| Sent {
                from,
                to,
                shape,
                flags,
                port,
                fragment,
                cut,
                flips,
            },
        )
}

impl Sent {
    fn frame(&self, ports: &[(PortId, Port)]) -> (u32, Vec<u8>) {
        let sender = &self.from.get(ports).1;
        if self.shape > 5 {
            let frame = self.ipv6_frame(sender, ports);
            return (sender.ifindex, self.spoilt(frame));
        }
        let from = end(sender, self.port);
        let mut targets: Vec<End> = ports.iter().map(|(_, port)| end(port, self.port)).collect();
        targets.push(frames::metadata(self.port));
        targets.push(End {
            ip: Ipv4Addr::new(10, 0, 0, 1),
            ..frames::metadata(self.port)
        });
        let to = End {
            mac: ROUTER_MAC,
            ..*self.to.get(&targets)
        };
        let header = Header {
            fragment: self.fragment,
            id: self.port,
            ttl: self.flags,
        };
        let quoted = frames::udp(to, from, b"x");
        let (protocol, payload) = match self.shape {
            0 => (
                6,
                frames::tcp_segment(from, to, self.flags, frames::ONES, b""),
            ),
            1 => (17, frames::udp_datagram(from, to, &[0; 24])),
            2 => (
                1,
                frames::icmp_message(self.flags % 20, 0, self.port, &[0; 8]),
            ),
            3 => (1, frames::icmp_message(3, 3, 0, &quoted[14..])),
            _ => (47, vec![0; 8]),
        };
        let frame = if self.shape == 5 {
            frames::arp(from, self.flags % 3, to.ip)
        } else {
            let packet = frames::ipv4(from.ip, to.ip, protocol, header, &payload);
            frames::ethernet(to.mac, from.mac, 0x0800, &packet)
        };
        (sender.ifindex, self.spoilt(frame))
    }

    fn ipv6_frame(&self, sender: &Port, ports: &[(PortId, Port)]) -> Vec<u8> {
        let from = ipv6::end(sender, self.port);
        let from = if self.shape == 12 && self.flags & 1 != 0 {
            ipv6::link_local(from)
        } else {
            from
        };
        let mut targets: Vec<ipv6::End> = ports
            .iter()
            .map(|(_, port)| ipv6::end(port, self.port))
            .collect();
        targets.push(ipv6::router());
        let to = ipv6::End {
            mac: ROUTER_MAC,
            ..*self.to.get(&targets)
        };
        let datagram = ipv6::udp_datagram(from, to, &[0; 24]);
        let [high, low] = self.port.to_be_bytes();
        match self.shape {
            6 => ipv6::tcp(from, to, self.flags),
            7 => ipv6::udp(from, to, &[0; 24]),
            8 => {
                let kind = 126 + self.flags % 14;
                let message = ipv6::icmp_message(from, to, kind, 0, &[high, low, 0, 0]);
                ipv6::frame(from, to, ipv6::ICMPV6, &message)
            }
            9 => ipv6::error(from, to, 1 + self.flags % 4, &ipv6::udp(to, from, b"x")),
            10 => {
                let (offset, more) = (self.fragment & 0xff, self.fragment & 0x2000 != 0);
                let part = ipv6::fragment(17, offset, more, u32::from(self.port), &datagram);
                ipv6::frame(from, to, ipv6::FRAGMENT, &part)
            }
            11 => {
                // Options of options of …, or too many of them.
                let mut payload = Vec::new();
                for index in 0..=self.flags % 6 {
                    let last = index == self.flags % 6;
                    payload.extend_from_slice(&[if last { 17 } else { 60 }, 0, 1, 4, 0, 0, 0, 0]);
                }
                payload.extend_from_slice(&datagram);
                ipv6::frame(from, to, if self.flags & 8 == 0 { 60 } else { 0 }, &payload)
            }
            _ => ipv6::solicitation(from, to.ip),
        }
    }

    /// The frame, as it is on the way.
    fn spoilt(&self, mut frame: Vec<u8>) -> Vec<u8> {
        for (at, bits) in &self.flips {
            let at = at.index(frame.len());
            frame[at] ^= bits;
        }
        if let Some(cut) = &self.cut {
            frame.truncate(14 + cut.index(frame.len() - 14));
        }
        frame
    }
}

fn hosts(guests: &[Guest]) -> Vec<(PortId, Port)> {
    let places = [
        (5, [10, 0, 0, 10], "client"),
        (5, [10, 0, 0, 11], "server"),
        (5, [10, 0, 1, 10], "server"),
        (6, [10, 0, 0, 11], "server"),
    ];
    (1..)
        .zip(places)
        .zip(guests)
        .map(|((last, (vni, address, member)), guest)| {
            let (id, mut port) = port(guest.ifindex, vni, address, &[member], [169, 254, 1, last]);
            let [.., subnet, host] = address.map(u16::from);
            let address = Ipv6Addr::new(0xfd00, 0, 0, subnet, 0, 0, 0, host);
            ipv6::give(&mut port, address);
            (id, port)
        })
        .collect()
}

fn rules(ports: &[(PortId, Port)]) -> Policy {
    let ipv6_out = Rule {
        peer: cidr("fd00::/16"),
        ..all_out()
    };
    let server = vec![all_out(), tcp_in(0, 80, group("client"))];
    policy(
        ports.to_vec(),
        [("client", vec![all_out(), ipv6_out]), ("server", server)],
    )
}

/// A number of runs of random frames, of a fabric's programs and in memory.
fn agree(
    lab: &Lab,
    guests: &[Guest],
    run: impl Fn(&Lab, u32, &[u8]) -> Option<(u32, Vec<u8>)>,
    verdict: impl Fn(Action) -> u32,
) {
    let ports = hosts(guests);
    let rules = rules(&ports);
    let cases = if std::env::var_os("OCS_LONG").is_some() {
        2_000
    } else {
        20
    };
    let config = ProptestConfig {
        cases,
        failure_persistence: None,
        ..ProptestConfig::default()
    };
    TestRunner::new(config)
        .run(&vec(sent(), 1..200), |all| {
            lab.apply(&Policy::default()).expect("no policy");
            lab.apply(&rules).expect("the policy");
            let memory = Memory::new(&rules);
            for one in all {
                let (ifindex, frame) = one.frame(&ports);
                let Some((verdict_of_kernel, left)) = run(lab, ifindex, &frame) else {
                    continue;
                };
                let mut expected = frame.clone();
                let action = memory.run_port(ifindex, &mut expected);
                prop_assert_eq!(
                    verdict_of_kernel,
                    verdict(action),
                    "{:?} {:02x?}",
                    one,
                    frame
                );
                prop_assert_eq!(left, expected, "{:?} {:02x?}", one, frame);
            }
            for (id, port) in &ports {
                let counters = lab.counters(id).expect("counters");
                prop_assert_eq!(counters, memory.counters_of(port.ifindex), "{:?}", id);
            }
            Ok(())
        })
        .unwrap_or_else(|error| panic!("{error}"));
}

#[test]
fn fuzz_the_kernel_does_what_the_logic_does() {
    let lab = Lab::new();
    let guests: Vec<Guest> = (0..4)
        .map(|index| Guest::new(&lab, &format!("tap{index}")))
        .collect();
    let run = |lab: &Lab, ifindex, frame: &[u8]| {
        let run = lab.run_port(ifindex, frame, 1, None).expect("a run");
        Some((run.action, run.frame))
    };
    agree(&lab, &guests, run, xdp);
}

/// The twin of guests that leave work to others does the same with finished frames, but for
/// those with IP options, which it refuses, and IPv6, for which it has no stage.
#[test]
fn fuzz_the_twin_does_what_the_logic_does() {
    let lab = Lab::new();
    let guests: Vec<Guest> = (0..4)
        .map(|index| Guest::with_offloads(&lab, &format!("tap{index}"), 0))
        .collect();
    let run = |lab: &Lab, ifindex, frame: &[u8]| {
        if frame[12..14] == ipv6::ETHERTYPE.to_be_bytes() {
            return None;
        }
        let is_ip = frame[12..14] == [8, 0];
        // The kernel runs nothing on an IP frame without a whole header.
        if is_ip && (frame.len() < 34 || frame[14] != 0x45) {
            return None;
        }
        let run = lab.run_port_buffer(ifindex, frame).expect("a run");
        Some((run.action, run.frame))
    };
    let verdict = |action| match action {
        // `TC_ACT_SHOT`, `TC_ACT_REDIRECT`
        Action::Drop | Action::Stage { .. } | Action::Pass => 2,
        Action::Bounce | Action::Redirect { .. } => 7,
    };
    agree(&lab, &guests, run, verdict);
}

proptest! {
    /// Whatever a guest sends: no panic, and what passes is its own.
    #[test]
    fn fuzz_any_bytes_are_survived(mut bytes in vec(any::<u8>(), 0..200), head: bool, kind in 0..3u8) {
        let mut ports = [
            port(1, 5, [10, 0, 0, 10], &["g"], [169, 254, 1, 1]),
            port(2, 5, [10, 0, 0, 11], &["g"], [169, 254, 1, 2]),
        ];
        let own = end(&ports[0].1, 0);
        for (last, (_, port)) in (1..).zip(&mut ports) {
            ipv6::give(port, Ipv6Addr::new(0xfd00, 0, 0, 1, 0, 0, 0, last));
        }
        let memory = Memory::new(&policy(ports.clone(), [("g", vec![all_out()])]));
        if head && bytes.len() >= ipv6::PAYLOAD && kind == 2 {
            let (from, to) = (ipv6::end(&ports[0].1, 0), ipv6::end(&ports[1].1, 0));
            let payload = bytes.split_off(ipv6::PAYLOAD);
            let next = bytes.first().copied().unwrap_or_default();
            bytes = ipv6::frame(from, to, next, &payload);
        } else if head && bytes.len() >= 34 {
            bytes[6..12].copy_from_slice(&own.mac);
            let kind = if kind == 1 { 0x0800u16 } else { 0x0806 };
            bytes[12..14].copy_from_slice(&kind.to_be_bytes());
            bytes[14] = 0x45;
            bytes[26..30].copy_from_slice(&own.ip.octets());
        }
        let sent = bytes.clone();
        if memory.run_port(1, &mut bytes) != Action::Drop {
            prop_assert_eq!(&sent[6..12], &own.mac[..]);
        }
        memory.run_svc(&mut bytes);
    }
}
