//! What a guest leaves to others, and others to it: each kind of unfinished frame from each
//! kind of port to each kind of receiver. Whoever receives one verifies its checksums.

#[path = "offloads/linux.rs"]
mod linux;
mod support;

use std::net::{IpAddr, Ipv6Addr};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use ocs_dataplane::fabric::FabricError;
use ocs_dataplane::model::{Direction, Peer, Port, PortId, Rule, Traffic};
use ocs_dataplane::shared::layout::{Direction as Way, LAYOUT_VERSION, Reason};
use support::policy::{all_out, cidr, end, policy, port, tcp_in};
use support::{Guest, HEADER, Lab, frames, ipv6};

/// `TUN_F_*` of linux/if_tun.h.
const CSUM: u32 = 1;
const TSO4: u32 = 2;
const TSO6: u32 = 4;
const TSO_ECN: u32 = 8;
/// Of `virtio_net_hdr_v1` (virtio 1.3 §5.1.6).
const NEEDS_CSUM: u8 = 1;
const DATA_VALID: u8 = 2;
const GSO_TCPV4: u8 = 1;
const GSO_TCPV6: u8 = 4;
const GSO_ECN: u8 = 0x80;

const MSS: usize = 1_000;
const DATA: usize = 10_500;
const LONGEST: usize = 1_514;

/// Either IP: where TCP begins, how it is cut, and which of the tap's flags says so.
#[derive(Clone, Copy, Debug)]
struct Ip {
    transport: usize,
    gso: u8,
    tso: u32,
}

const V4: Ip = Ip {
    transport: 34,
    gso: GSO_TCPV4,
    tso: TSO4,
};
const V6: Ip = Ip {
    transport: 54,
    gso: GSO_TCPV6,
    tso: TSO6,
};

/// What a header says.
#[derive(Clone, Copy, Debug)]
struct Header {
    flags: u8,
    gso: u8,
    gso_size: u16,
    transport: usize,
    checksum_at: usize,
}

impl Header {
    fn bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0] = self.flags;
        bytes[1] = self.gso;
        let mut put = |at: usize, value: usize| {
            let value = u16::try_from(value).expect("an offset");
            bytes[at..at + 2].copy_from_slice(&value.to_le_bytes());
        };
        if self.gso != 0 {
            put(2, self.transport + 20);
            put(4, self.gso_size.into());
        }
        if self.flags & NEEDS_CSUM != 0 {
            put(6, self.transport);
            put(8, self.checksum_at);
        }
        bytes
    }
}

impl Ip {
    fn whole(self) -> Header {
        Header {
            flags: 0,
            gso: 0,
            gso_size: 0,
            transport: self.transport,
            checksum_at: 16,
        }
    }

    fn segmented(self, gso_size: u16) -> Header {
        Header {
            flags: NEEDS_CSUM,
            gso: self.gso,
            gso_size,
            ..self.whole()
        }
    }

    /// All that a guest's header may say of TCP.
    fn headers(self) -> [Header; 6] {
        let segmented = self.segmented(MSS as u16);
        let flagged = |flags| Header {
            flags,
            ..self.whole()
        };
        [
            self.whole(),
            flagged(NEEDS_CSUM),
            flagged(DATA_VALID),
            segmented,
            Header {
                gso: self.gso | GSO_ECN,
                ..segmented
            },
            Header {
                flags: 0,
                ..segmented
            },
        ]
    }

    /// From one port's address to another's.
    fn tcp(self, from: &Port, to: &Port, data: &[u8]) -> Vec<u8> {
        if self.transport == V6.transport {
            let (from, to) = (ipv6::end(from, 4_000), ipv6::end(to, 80));
            let segment = ipv6::tcp_segment_with(from, to, frames::ACK, data);
            return ipv6::frame(from, to, ipv6::TCP, &segment);
        }
        let (from, to) = (end(from, 4_000), end(to, 80));
        frames::tcp_at(from, to, frames::ACK, frames::ONES, data)
    }

    fn udp(self, from: &Port, to: &Port, data: &[u8]) -> Vec<u8> {
        if self.transport == V6.transport {
            return ipv6::udp(ipv6::end(from, 4_000), ipv6::end(to, 80), data);
        }
        frames::udp(end(from, 4_000), end(to, 80), data)
    }

    fn checksums_hold(self, frame: &[u8]) -> bool {
        if self.transport == V6.transport {
            return ipv6::checksum_holds(frame);
        }
        frames::checksums_hold(frame)
    }

    /// Makes a frame what its header says: of its checksum there is only what the addresses add.
    fn unfinish(self, frame: &mut [u8], header: Header) {
        if header.flags & NEEDS_CSUM == 0 {
            return;
        }
        let at = self.transport + header.checksum_at;
        let length = u16::try_from(frame.len() - self.transport).expect("a packet");
        // Both addresses lie in front of what follows.
        let (addresses, protocol) = match self.gso {
            GSO_TCPV6 => (22..54, frame[20]),
            _ => (26..34, frame[23]),
        };
        let mut bytes = frame[addresses].to_vec();
        bytes.extend_from_slice(&[0, protocol]);
        bytes.extend_from_slice(&length.to_be_bytes());
        let sum = !ocs_dataplane::shared::checksum::checksum(&bytes);
        frame[at..at + 2].copy_from_slice(&sum.to_ne_bytes());
    }
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
    sender: Port,
    id: PortId,
    receivers: Vec<(Option<u32>, Guest, Port)>,
}

/// The receivers: a port by the XDP program, and ports by its twin whose guests take more and
/// more.
const RECEIVERS: [Option<u32>; 4] = [
    None,
    Some(0),
    Some(CSUM),
    Some(CSUM | TSO4 | TSO6 | TSO_ECN),
];

/// A port in group `sg` of both IPs.
fn at(ifindex: u32, last: u8) -> (PortId, Port) {
    let (id, mut port) = port(ifindex, 1, [10, 0, 0, last], &["sg"], [169, 254, 1, last]);
    let address = Ipv6Addr::new(0xfd00, 0, 0, 0, 0, 0, 0, last.into());
    ipv6::give(&mut port, address);
    (id, port)
}

/// All in one group, which everybody may reach.
fn guests() -> Guests {
    let lab = Lab::new();
    let from = Guest::with_offloads(&lab, "from", 0);
    let (id, sender) = at(from.ifindex, 10);
    let mut ports = vec![(id.clone(), sender.clone())];
    let receivers = (11..)
        .zip(RECEIVERS)
        .map(|(last, takes)| {
            let name = format!("to-{last}");
            let guest = match takes {
                Some(flags) => Guest::with_offloads(&lab, &name, flags),
                None => Guest::new(&lab, &name),
            };
            let made = at(guest.ifindex, last);
            ports.push(made.clone());
            (takes, guest, made.1)
        })
        .collect();
    lab.apply(&policy(ports, [("sg", open())]))
        .expect("a policy");
    Guests {
        lab,
        from,
        sender,
        id,
        receivers,
    }
}

/// Rules that let everything of both IPs pass both ways.
fn open() -> Vec<Rule> {
    let everywhere = ["0.0.0.0/0", "::/0"].map(|cidr| cidr.parse().expect("a prefix"));
    let ways = [Direction::Ingress, Direction::Egress];
    let rule = |direction| {
        everywhere.map(|cidr| Rule {
            direction,
            traffic: Traffic::All,
            peer: Peer::Cidr(cidr),
        })
    };
    ways.into_iter().flat_map(rule).collect()
}

#[test]
fn what_is_left_unfinished_arrives_as_its_receiver_can_take_it() {
    let mut guests = guests();
    let forwarded = [V4, V6].map(|ip| unfinished_arrives(&mut guests, ip));
    let counters = guests.lab.counters(&guests.id).expect("counters");
    let counted = counters.get(Way::Egress, Reason::Forwarded);
    assert_eq!(counted, forwarded.iter().sum());
}

/// A guest that declined offloads goes by the XDP program from then on, and what others leave
/// unfinished arrives at it finished.
#[test]
fn a_guest_that_declined_offloads_goes_by_xdp() {
    let mut guests = guests();
    let links = guests.lab.pins_of(LAYOUT_VERSION).join("links");
    let (_, declines, _) = &guests.receivers[1];
    let declined = declines.ifindex;
    let twin = links.join(format!("buffer-{declined}"));
    assert!(twin.exists());
    let before = guests.lab.inventory().expect("an inventory").links;
    for _ in 0..2 {
        guests.lab.finish_tap(declined).expect("a tap by XDP");
        assert!(!twin.exists() && links.join(declined.to_string()).exists());
    }
    let after = guests.lab.inventory().expect("an inventory").links;
    let by_xdp = guests.receivers[0].1.ifindex;
    assert_eq!(after[&declined], after[&by_xdp], "the XDP program");
    assert_ne!(after[&declined], before[&declined]);
    for ip in [V4, V6] {
        unfinished_arrives(&mut guests, ip);
        // And back, which a TCX program does not see.
        let data = [7; MSS];
        let (_, guest, own) = &mut guests.receivers[1];
        let frame = ip.tcp(own, &guests.sender, &data);
        guest.send(&frame);
        let heard = guests.from.poll().expect("a frame");
        assert!(ip.checksums_hold(&heard));
        assert_eq!(heard[14..22], frame[14..22]);
    }
    // A restarted loader keeps it, and says the same again.
    guests.lab.restart();
    guests.lab.finish_tap(declined).expect("a tap by XDP");
    let (_, guest, own) = &mut guests.receivers[1];
    guest.send(&V4.tcp(own, &guests.sender, b"again"));
    guests.from.poll().expect("a frame");
    guests.lab.detach(declined).expect("a tap without program");
    let (_, guest, own) = &mut guests.receivers[1];
    guest.send(&V4.tcp(own, &guests.sender, b"closed"));
    guests.from.hears_nothing();
}

/// While a program of another layout is in force, ours, which would know nobody, stays off.
#[test]
fn a_tap_goes_by_xdp_only_once_its_policy_is_there() {
    let mut guests = guests();
    guests.lab.succeed();
    let declined = guests.from.ifindex;
    let refused = guests.lab.finish_tap(declined);
    assert!(matches!(refused, Err(FabricError::Succeeds)), "{refused:?}");
    let receivers = guests.receivers.iter().map(|(_, guest, _)| guest.ifindex);
    let ports = (10..).zip([declined].into_iter().chain(receivers));
    let ports: Vec<_> = ports.map(|(last, ifindex)| at(ifindex, last)).collect();
    let policy = policy(ports, [("sg", open())]);
    guests.lab.apply(&policy).expect("a policy");
    guests.lab.finish_tap(declined).expect("a tap by XDP");
    let frame = V4.tcp(&guests.sender, &guests.receivers[0].2, b"by XDP");
    guests.from.send(&frame);
    guests.receivers[0].1.poll().expect("a frame");
}

/// No frame is lost, sent twice or overtaken while a tap's program becomes another.
#[test]
fn nothing_is_lost_while_a_tap_changes_over() {
    const FRAMES: u32 = 1_000;
    let Guests {
        lab,
        mut from,
        sender,
        mut receivers,
        ..
    } = guests();
    let (_, mut to, receiver) = receivers.swap_remove(0);
    let declined = from.ifindex;
    let (at, changed) = (AtomicU32::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let sending = scope.spawn(|| {
            let mut after = 0;
            for n in 0_u32.. {
                from.send(&V4.udp(&sender, &receiver, &n.to_be_bytes()));
                let heard = to.poll().unwrap_or_else(|| panic!("frame {n} is lost"));
                assert_eq!(heard[42..46], n.to_be_bytes());
                to.hears_nothing();
                at.store(n, Ordering::Relaxed);
                after += u32::from(changed.load(Ordering::Relaxed));
                if after == FRAMES {
                    break;
                }
            }
        });
        while at.load(Ordering::Relaxed) < FRAMES && !sending.is_finished() {
            std::thread::yield_now();
        }
        let changed_over = lab.finish_tap(declined);
        changed.store(true, Ordering::Relaxed);
        changed_over.expect("a tap by XDP");
    });
}

/// How many frames went.
fn unfinished_arrives(guests: &mut Guests, ip: Ip) -> u64 {
    let mut forwarded = 0;
    let start = ip.transport;
    for (takes, guest, to) in &mut guests.receivers {
        for header in ip.headers() {
            let what = format!("{header:?} to {takes:?}");
            let takes = takes.unwrap_or(0);
            let length = if header.gso == 0 { MSS } else { DATA };
            let data: Vec<u8> = (0..length).map(|n| (n / 3) as u8).collect();
            let mut frame = ip.tcp(&guests.sender, to, &data);
            ip.unfinish(&mut frame, header);
            guests
                .from
                .try_send_as(header.bytes(), &frame)
                .unwrap_or_else(|error| panic!("{what}: {error}"));
            let mut heard = vec![0; length];
            let mut bytes = 0;
            while let Some((said, mut frame)) = guest.poll_whole() {
                assert!(said[0] & NEEDS_CSUM == 0 || takes & CSUM != 0, "{what}");
                assert!(said[1] == 0 || takes & ip.tso != 0, "{what}");
                assert!(said[1] != 0 || frame.len() <= LONGEST, "{what}");
                if said[0] & NEEDS_CSUM != 0 {
                    assert_eq!((usize::from(said[6]), said[8]), (start, 16), "{what}");
                }
                finish(said, &mut frame);
                assert!(ip.checksums_hold(&frame), "{what}");
                let sequence = frame[start + 4..start + 8].try_into().expect("a word");
                let at = u32::from_be_bytes(sequence) as usize - 1;
                let part = &frame[start + 20..];
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
            ..ip.whole()
        };
        let mut frame = ip.udp(&guests.sender, to, b"unfinished");
        ip.unfinish(&mut frame, header);
        guests
            .from
            .try_send_as(header.bytes(), &frame)
            .expect("the tap takes a frame");
        let (said, mut frame) = guest.poll_whole().expect("a frame");
        finish(said, &mut frame);
        assert!(ip.checksums_hold(&frame), "{takes:?}");
        forwarded += 1;
    }
    forwarded
}

/// What would be cut into segments longer than the port may send is answered, as a packet of
/// that length is; one whose segments are short enough is not, however long it is.
#[test]
fn segments_longer_than_the_port_may_send_are_answered() {
    // Too long, say ICMP and ICMPv6, and quote the sender's own address.
    let cases = [
        (V4, 1_460, [3, 4], 34 + 8 + 12),
        (V6, 1_440, [2, 0], 54 + 8 + 8),
    ];
    let mut guests = guests();
    for (ip, longest, kind, quoted_at) in cases {
        let (_, guest, to) = guests.receivers.last_mut().expect("a receiver");
        let data = vec![7; DATA];
        for (gso_size, passes) in [(longest, true), (longest + 1, false)] {
            let header = ip.segmented(gso_size);
            let mut frame = ip.tcp(&guests.sender, to, &data);
            ip.unfinish(&mut frame, header);
            guests
                .from
                .try_send_as(header.bytes(), &frame)
                .expect("the tap takes a frame");
            assert_eq!(guest.poll_whole().is_some(), passes, "{gso_size}");
        }
        let (said, answer) = guests.from.poll_whole().expect("an answer");
        assert_eq!(said, [0; HEADER]);
        assert!(ip.checksums_hold(&answer), "{answer:?}");
        assert_eq!(answer[ip.transport..ip.transport + 2], kind, "{answer:?}");
        let source = match guests.sender.addresses[usize::from(kind == [2, 0])] {
            IpAddr::V4(address) => address.octets().to_vec(),
            IpAddr::V6(address) => address.octets().to_vec(),
        };
        assert_eq!(answer[quoted_at..quoted_at + source.len()], source);
    }
    let counters = guests.lab.counters(&guests.id).expect("counters");
    assert_eq!(counters.get(Way::Egress, Reason::TooLong), 2);
}

/// An IP header with options or extensions would be elsewhere than the checksum is taken to be;
/// a fragment has no checksum to be finished.
#[test]
fn what_the_path_cannot_answer_for_is_refused() {
    let mut guests = guests();
    let (_, guest, to) = guests.receivers.last_mut().expect("a receiver");
    let mut options = V4.udp(&guests.sender, to, b"options");
    options.splice(34..34, [1, 1, 1, 0]);
    let length = u16::from_be_bytes([options[16], options[17]]) + 4;
    options[14] = 0x46;
    options[16..18].copy_from_slice(&length.to_be_bytes());

    let (from, to) = (ipv6::end(&guests.sender, 4_000), ipv6::end(to, 80));
    let segment = ipv6::tcp_segment_with(from, to, frames::ACK, &[7; DATA]);
    let extended = |next, extension: &[u8], payload: &[u8]| {
        ipv6::frame(from, to, next, &[extension, payload].concat())
    };
    let destination_options = extended(60, &[6, 0, 1, 4, 0, 0, 0, 0], &segment[..20]);
    let hop_by_hop = extended(0, &[6, 0, 1, 4, 0, 0, 0, 0], &segment[..20]);
    let first = extended(44, &[6, 0, 0, 1, 0, 0, 0, 9], &segment[..1_000]);
    let cut = extended(44, &[6, 0, 0, 1, 0, 0, 0, 9], &segment);

    let whole = V4.whole();
    let unfinished = Header {
        flags: NEEDS_CSUM,
        ..V6.whole()
    };
    for (header, frame, passes) in [
        (whole, options, false),
        (whole, destination_options.clone(), false),
        (unfinished, destination_options, false),
        (unfinished, hop_by_hop, false),
        (V6.segmented(MSS as u16), cut, false),
        (whole, first, true),
    ] {
        guests
            .from
            .try_send_as(header.bytes(), &frame)
            .expect("the tap takes a frame");
        assert_eq!(guest.poll().is_some(), passes, "{header:?} {frame:?}");
    }
    let counters = guests.lab.counters(&guests.id).expect("counters");
    assert_eq!(counters.get(Way::Egress, Reason::Malformed), 5);
}

/// The kernel writes a checksum after the path has looked at the frame: where a tunnelled
/// packet would have it, and what an ICMP error quotes could lie there.
#[test]
fn no_checksum_is_left_to_be_written_over_a_quote() {
    let mut guests = guests();
    let (_, guest, other) = guests.receivers.first_mut().expect("a receiver");
    let udp_in = Rule {
        traffic: Traffic::Ports {
            protocol: 17,
            from: 80,
            to: 80,
        },
        ..tcp_in(80, 80, cidr("0.0.0.0/0"))
    };
    let ports = [at(guests.from.ifindex, 10), at(guest.ifindex, 11)];
    let narrow = policy(ports, [("sg", vec![all_out(), udp_in])]);
    guests.lab.apply(&narrow).expect("a policy");
    guest.send(&V4.udp(other, &guests.sender, b"question"));
    let question = guests.from.poll().expect("a datagram");
    let [mut plain, mut behind_options] = [question[14..].to_vec(), question[14..].to_vec()];
    plain.resize(90, 0);
    behind_options.splice(20..20, [1; 28]);
    behind_options[0] = 0x4c;
    behind_options.resize(90, 0);
    let ends = (end(&guests.sender, 0), end(other, 0));
    let tunnelled = Header {
        flags: NEEDS_CSUM,
        transport: 84,
        checksum_at: 6,
        ..V4.whole()
    };
    let mut passes = |header: Header, quote: &[u8]| {
        let about = frames::icmp(ends.0, ends.1, 3, 3, 0, quote);
        guests
            .from
            .try_send_as(header.bytes(), &about)
            .expect("the tap takes a frame");
        guest.poll().map(|frame| frame[42..].to_vec())
    };
    assert_eq!(passes(V4.whole(), &plain), Some(plain.clone()));
    // Its ports are 90 bytes from the frame's beginning.
    assert_eq!(passes(tunnelled, &behind_options), None);
    assert_eq!(passes(V4.whole(), &behind_options), None);
    let quote = passes(tunnelled, &plain).expect("an error");
    assert_eq!(quote[..28], plain[..28], "what is asked stays as it was");
}
