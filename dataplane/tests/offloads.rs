//! What a guest leaves to others, and others to it: each kind of unfinished frame from each
//! kind of port to each kind of receiver. Whoever receives one verifies its checksums.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::Duration;

use ocs_dataplane::fabric::UplinkConfig;
use ocs_dataplane::model::{Direction, PortId, Remote, Rule};
use ocs_dataplane::shared::layout::{Direction as Way, Reason};
use support::frames::{self, End, checksums_hold};
use support::policy::{all_out, end, policy, port};
use support::stack::Stack;
use support::underlay::Netns;
use support::{Guest, HEADER, Lab, responder};

/// `TUN_F_*` of linux/if_tun.h.
const CSUM: u32 = 1;
const TSO4: u32 = 2;
const TSO_ECN: u32 = 8;
/// Of `virtio_net_hdr_v1` (virtio 1.3 §5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_ECN: u8 = 0x80;

const TRANSPORT: usize = 34;
const MSS: usize = 1_000;
const DATA: usize = 10_500;
const LONGEST: usize = 1_514;

/// What a header says.
#[derive(Clone, Copy, Debug)]
struct Header {
    flags: u8,
    gso: u8,
    gso_size: u16,
    checksum_at: u16,
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso;
        let unfinished = self.flags & NEEDS_CSUM != 0;
        if self.gso != 0 {
            bytes[2..4].copy_from_slice(&54_u16.to_le_bytes());
            bytes[4..6].copy_from_slice(&self.gso_size.to_le_bytes());
        }
        if unfinished {
            bytes[6..8].copy_from_slice(&(TRANSPORT as u16).to_le_bytes());
            bytes[8..10].copy_from_slice(&self.checksum_at.to_le_bytes());
        }
        bytes
    }
}

const WHOLE: Header = Header {
    flags: 0,
    gso: 0,
    gso_size: 0,
    checksum_at: 16,
};

/// All that a guest's header may say of TCP.
fn headers() -> [Header; 6] {
    let gso = |gso| Header {
        flags: NEEDS_CSUM,
        gso,
        gso_size: MSS as u16,
        ..WHOLE
    };
    let flagged = |flags| Header { flags, ..WHOLE };
    [
        WHOLE,
        flagged(NEEDS_CSUM),
        flagged(DATA_VALID),
        gso(GSO_TCPV4),
        gso(GSO_TCPV4 | GSO_ECN),
        Header {
            flags: 0,
            ..gso(GSO_TCPV4)
        },
    ]
}

/// Makes a frame what its header says: of its checksum there is only what the addresses add.
fn unfinish(frame: &mut [u8], header: Header) {
    if header.flags & NEEDS_CSUM == 0 {
        return;
    }
    let at = TRANSPORT + usize::from(header.checksum_at);
    let sum = pseudo(frame);
    frame[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

fn pseudo(frame: &[u8]) -> u16 {
    let length = u16::try_from(frame.len() - TRANSPORT).expect("a packet");
    let mut bytes = frame[26..34].to_vec();
    bytes.extend_from_slice(&[0, frame[23]]);
    bytes.extend_from_slice(&length.to_be_bytes());
    !ocs_dataplane::shared::checksum::checksum(&bytes)
}

/// Does what a header leaves to its reader.
fn finish(header: [u8; HEADER], frame: &mut [u8]) {
    if header[0] & NEEDS_CSUM == 0 {
        return;
    }
    let word = |at: usize| usize::from(u16::from_le_bytes([header[at], header[at + 1]]));
    let (start, at) = (word(6), word(6) + word(8));
    let sum = ocs_dataplane::shared::checksum::checksum(&frame[start..]);
    frame[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
}

/// A guest that leaves work to others, and one of each kind that hears it.
struct Guests {
    lab: Lab,
    from: Guest,
    end: End,
    id: PortId,
    receivers: Vec<(Option<u32>, Guest, End)>,
}

/// The receivers: a port by the XDP program, and ports by its twin whose guests take more and
/// more.
const RECEIVERS: [Option<u32>; 4] = [None, Some(0), Some(CSUM), Some(CSUM | TSO4 | TSO_ECN)];

/// All in one group, which everybody may reach.
fn guests() -> Guests {
    let lab = Lab::new();
    let from = Guest::with_offloads(&lab, "from", 0);
    let (id, sender) = port(from.ifindex, 1, [10, 0, 0, 10], &["sg"], [169, 254, 1, 1]);
    let mut ports = vec![(id.clone(), sender.clone())];
    let receivers = (11..)
        .zip(RECEIVERS)
        .map(|(last, takes)| {
            let name = format!("to-{last}");
            let guest = match takes {
                Some(flags) => Guest::with_offloads(&lab, &name, flags),
                None => Guest::new(&lab, &name),
            };
            let made = port(
                guest.ifindex,
                1,
                [10, 0, 0, last],
                &["sg"],
                [169, 254, 1, last],
            );
            ports.push(made.clone());
            (takes, guest, end(&made.1, 80))
        })
        .collect();
    lab.apply(&policy(ports, [("sg", open())]))
        .expect("a policy");
    Guests {
        lab,
        from,
        end: end(&sender, 4_000),
        id,
        receivers,
    }
}

/// Rules that let everything pass both ways.
fn open() -> Vec<Rule> {
    let mut all_in = all_out();
    all_in.direction = Direction::Ingress;
    vec![all_out(), all_in]
}

#[test]
fn what_is_left_unfinished_arrives_as_its_receiver_can_take_it() {
    let mut guests = guests();
    let mut forwarded = 0;
    for (takes, guest, to) in &mut guests.receivers {
        for header in headers() {
            let what = format!("{header:?} to {takes:?}");
            let takes = takes.unwrap_or(0);
            let length = if header.gso == 0 { MSS } else { DATA };
            let data: Vec<u8> = (0..length).map(|n| (n / 3) as u8).collect();
            let mut frame = frames::tcp_at(guests.end, *to, frames::ACK, frames::ONES, &data);
            unfinish(&mut frame, header);
            guests
                .from
                .try_send_as(header.bytes(), &frame)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut heard = vec![0; length];
            let mut bytes = 0;
            while let Some((said, mut frame)) = guest.poll_whole() {
                assert!(said[0] & NEEDS_CSUM == 0 || takes & CSUM != 0, "{what}");
                assert!(said[1] == 0 || takes & TSO4 != 0, "{what}");
                assert!(said[1] != 0 || frame.len() <= LONGEST, "{what}");
                if said[0] & NEEDS_CSUM != 0 {
                    assert_eq!((said[6], said[8]), (TRANSPORT as u8, 16), "{what}");
                }
                finish(said, &mut frame);
                assert!(checksums_hold(&frame), "{what}");
                let sequence = u32::from_be_bytes([frame[38], frame[39], frame[40], frame[41]]);
                let part = &frames::payload(&frame)[20..];
                let at = sequence as usize - 1;
                heard[at..at + part.len()].copy_from_slice(part);
                bytes += part.len();
            }
            assert_eq!((bytes, &heard), (length, &data), "{what}");
            forwarded += 1;
        }
        // The same of UDP, which is never cut.
        let header = Header {
            flags: NEEDS_CSUM,
            checksum_at: 6,
            ..WHOLE
        };
        let mut frame = frames::udp(guests.end, *to, b"unfinished");
        unfinish(&mut frame, header);
        guests
            .from
            .try_send_as(header.bytes(), &frame)
            .expect("the tap takes a frame");
        let (said, mut frame) = guest.poll_whole().expect("a frame");
        finish(said, &mut frame);
        assert!(checksums_hold(&frame), "{takes:?}");
        forwarded += 1;
    }
    let counters = guests.lab.counters(&guests.id).expect("counters");
    assert_eq!(counters.get(Way::Egress, Reason::Forwarded), forwarded);
}

/// What would be cut into segments longer than the port may send is answered, as a packet of
/// that length is; one whose segments are short enough is not, however long it is. An IP
/// header with options would be elsewhere than the checksum is taken to be.
#[test]
fn what_the_path_cannot_answer_for_is_refused() {
    let mut guests = guests();
    let (_, guest, to) = guests.receivers.last_mut().expect("a receiver");
    let data = vec![7; DATA];
    for (gso_size, passes) in [(1_460, true), (1_461, false)] {
        let header = Header {
            flags: NEEDS_CSUM,
            gso: GSO_TCPV4,
            gso_size,
            ..WHOLE
        };
        let mut frame = frames::tcp_at(guests.end, *to, frames::ACK, frames::ONES, &data);
        unfinish(&mut frame, header);
        guests
            .from
            .try_send_as(header.bytes(), &frame)
            .expect("the tap takes a frame");
        assert_eq!(guest.poll_whole().is_some(), passes, "{gso_size}");
    }
    let (said, mut answer) = guests.from.poll_whole().expect("an answer");
    assert_eq!(said, [0; HEADER]);
    assert!(checksums_hold(&answer), "{answer:?}");
    let quoted = answer.split_off(TRANSPORT + 8);
    assert_eq!(
        answer[TRANSPORT..TRANSPORT + 2],
        [3, 4],
        "too long, says {answer:?}"
    );
    assert_eq!(quoted[12..16], guests.end.ip.octets());

    let mut frame = frames::udp(guests.end, *to, b"options");
    frame.splice(34..34, [1, 1, 1, 0]);
    let length = u16::from_be_bytes([frame[16], frame[17]]) + 4;
    frame[14] = 0x46;
    frame[16..18].copy_from_slice(&length.to_be_bytes());
    guests
        .from
        .try_send_as(WHOLE.bytes(), &frame)
        .expect("the tap takes a frame");
    let counters = guests.lab.counters(&guests.id).expect("counters");
    let refused = |reason| counters.get(Way::Egress, reason);
    assert_eq!(
        (refused(Reason::TooLong), refused(Reason::Malformed)),
        (1, 1)
    );
}

/// Two Linux stacks that leave everything to each other, and the responder, which a veth leads
/// to and whose address the path puts in another's place.
#[test]
fn linux_leaves_its_work_to_linux() {
    let lab = Lab::new();
    let taps = ["a", "b"].map(|name| lab.create_offload_tap(name).expect("a tap"));
    let ports = [(10, &taps[0]), (11, &taps[1])].map(|(last, tap)| {
        port(
            tap.ifindex,
            1,
            [10, 0, 0, last],
            &["sg"],
            [169, 254, 1, last],
        )
    });
    let desired = policy(ports.clone(), [("sg", open())]);
    lab.apply(&desired).expect("a policy");
    let [end_a, end_b] = [0, 1].map(|n: usize| end(&ports[n].1, 0));
    let [tap_a, tap_b] = taps;
    let from = Stack::with_offloads(tap_a.fd.into(), end_a.mac, end_a.ip);
    let to = Stack::with_offloads(tap_b.fd.into(), end_b.mac, end_b.ip);

    let server = to.spawn(move || TcpListener::bind((end_b.ip, 80)).expect("a port"));
    let heard = exchange(&from, (end_b.ip, 80), server.join().expect("a server"));
    assert_eq!(heard, PAYLOAD);
    leaves_segmentation(&from);

    let route = from.spawn(|| support::stack::ip("route add 169.254.169.254 dev eth0"));
    route.join().expect("a route");
    let heard = exchange(&from, (responder::ADDRESS, 80), responder::http(&lab));
    assert_eq!(heard, PAYLOAD);
    for stack in [&from, &to] {
        assert_eq!(stack.tcp("InCsumErrors"), 0);
    }
}

/// Two hosts, joined by a cable; on each a Linux stack that leaves everything to others. The
/// cable's end finishes each frame, behind the outer header, whose own lengths then fit.
#[test]
fn what_leaves_the_host_is_finished_at_the_uplink() {
    let hosts = [1, 2].map(|last| (Lab::new(), Netns::new(), Ipv4Addr::new(192, 0, 2, last)));
    hosts[0].1.cable("up0", &hosts[1].1, "up1");
    let taps = [0, 1].map(|n: usize| hosts[n].0.create_offload_tap("tap").expect("a tap"));
    let ports = [(&taps[0], 10), (&taps[1], 11)].map(|(tap, last)| {
        let mut port = port(
            tap.ifindex,
            1,
            [10, 0, 0, last],
            &["sg"],
            [169, 254, 1, last],
        );
        port.1.mtu = 1_450;
        port
    });
    for (n, (lab, netns, address)) in hosts.iter().enumerate() {
        let interface = format!("up{n}");
        netns.ip(&format!("addr add {address}/24 dev {interface}"));
        let uplink = UplinkConfig {
            interface,
            address: *address,
            outside: false,
        };
        netns
            .within(|| lab.set_uplink(uplink))
            .unwrap_or_else(|error| panic!("{}", support::chain(&error)));
        let (_, far) = &ports[1 - n];
        let mut desired = policy([ports[n].clone()], [("sg", open())]);
        let remote = Remote {
            host: hosts[1 - n].2,
            mac: far.mac,
            groups: far.groups.clone(),
            forwards: false,
        };
        desired.remotes.insert((far.vni, far.addresses[0]), remote);
        lab.apply(&desired).expect("a policy");
    }
    for (lab, netns, _) in &hosts {
        for _ in 0..100 {
            if netns.within(|| lab.refresh_hosts()).expect("hosts") == 0 {
                break;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    let ends = [0, 1].map(|n: usize| end(&ports[n].1, 0));
    let [from, to] = taps.map(|tap| tap.fd.into());
    let from = Stack::with_offloads(from, ends[0].mac, ends[0].ip);
    let to = Stack::with_offloads(to, ends[1].mac, ends[1].ip);
    for stack in [&from, &to] {
        let mtu = stack.spawn(|| support::stack::ip("link set eth0 mtu 1450"));
        mtu.join().expect("an MTU");
    }
    let at = ends[1].ip;
    let server = to.spawn(move || TcpListener::bind((at, 80)).expect("a port"));
    let heard = exchange(&from, (at, 80), server.join().expect("a server"));
    assert_eq!(heard, PAYLOAD);
    leaves_segmentation(&from);
    for stack in [&from, &to] {
        assert_eq!(stack.tcp("InCsumErrors"), 0);
    }
    let refused = hosts[1].0.uplink_counters().expect("counters").packets;
    let reasons: Vec<_> = refused
        .keys()
        .filter(|(_, reason)| *reason != Reason::Forwarded)
        .collect();
    assert!(reasons.is_empty(), "{reasons:?}");
}

const PAYLOAD: usize = 2_000_000;

/// Most of the payload left the stack in frames of two segments or more. How many more, and how
/// many acknowledgements go beside them, is the load's affair.
fn leaves_segmentation(from: &Stack) {
    let (frames, _) = from.counts();
    let segments = from.tcp("OutSegs");
    let joined = segments.saturating_sub(frames);
    let needed = PAYLOAD as u64 / 1_460;
    assert!(
        joined > needed / 3,
        "{segments} segments in {frames} frames"
    );
}

/// Sends the payload to a listener, which sends it back; how much arrived.
fn exchange(from: &Stack, to: (Ipv4Addr, u16), listener: TcpListener) -> usize {
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut bytes = vec![0; PAYLOAD];
        stream.read_exact(&mut bytes).expect("the payload");
        stream.write_all(&bytes).expect("an answer");
    });
    let client = from.spawn(move || {
        let mut stream = TcpStream::connect(to).expect("a connection");
        let sent: Vec<u8> = (0..PAYLOAD).map(|n| (n / 7) as u8).collect();
        stream.write_all(&sent).expect("the payload is sent");
        let mut heard = Vec::new();
        stream.read_to_end(&mut heard).expect("an answer");
        assert!(heard == sent, "what came back is not what was sent");
        heard.len()
    });
    server.join().expect("the server");
    client.join().expect("the client")
}
