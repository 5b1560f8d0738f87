//! Packets too long, in fragments, with headers before the payload, cut short.

use super::*;

#[test]
fn what_is_too_long_is_answered() {
    let mut desired = three([A, B, C]);
    for port in desired.ports.values_mut() {
        port.mtu = 1450;
    }
    let bench = Bench::of(desired);
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    assert!(bench.passes(A, &udp(a, b, &[0; 1450 - 48])));
    let long = udp(a, b, &[0; 1450 - 47]);
    let (action, answer) = bench.run(A, &long);
    assert_eq!(action, Action::Bounce);
    assert_eq!(answer[..6], a.mac);
    assert_eq!(ipv6::source(&answer), ipv6::router().ip);
    assert_eq!(ipv6::destination(&answer), a.ip);
    assert_eq!(answer[20..22], [ICMPV6, 255]);
    assert_eq!(answer[PAYLOAD..PAYLOAD + 2], [2, 0]);
    assert_eq!(answer[PAYLOAD + 4..PAYLOAD + 8], 1450u32.to_be_bytes());
    assert_eq!(answer[PAYLOAD + 8..], long[14..14 + 64]);
    assert!(checksum_holds(&answer));
    // An error is not answered by one; an echo is.
    let error = ipv6::error(a, b, 1, &long);
    bench.refused(A, &error, A, Direction::Egress, Reason::TooLong);
    let message = ipv6::icmp_message(a, b, 128, 0, &[0; 1450]);
    assert_eq!(
        bench.run(A, &frame(a, b, ICMPV6, &message)).0,
        Action::Bounce
    );
}

#[test]
fn later_fragments_follow_their_first() {
    let bench = Bench::new();
    let (a, b) = (bench.end(A, 4000), bench.end(B, 53));
    let datagram = udp_of(a, b, 64);
    let part = |offset: u16, more, id| {
        let at = usize::from(offset) * 8;
        let bytes = &datagram[at..at + 32];
        frame(
            a,
            b,
            FRAGMENT,
            &ipv6::fragment(UDP, offset, more, id, bytes),
        )
    };
    let high = 0xabcd_0000;
    bench.refused(
        A,
        &part(4, false, 7),
        A,
        Direction::Egress,
        Reason::Fragment,
    );
    assert!(bench.passes(A, &part(0, true, 7)));
    assert!(bench.passes(A, &part(4, false, 7)));
    // The whole of an identification counts.
    bench.refused(
        A,
        &part(4, false, 7 | high),
        A,
        Direction::Egress,
        Reason::Fragment,
    );
    // A datagram that the rules refuse does not begin.
    let closed = udp_of(a, End { port: 54, ..b }, 64);
    let first = frame(
        a,
        b,
        FRAGMENT,
        &ipv6::fragment(UDP, 0, true, 9, &closed[..32]),
    );
    bench.refused(A, &first, B, Direction::Ingress, Reason::IngressDenied);
    bench.refused(
        A,
        &part(4, false, 9),
        A,
        Direction::Egress,
        Reason::Fragment,
    );
    // What overwrites a TCP header, a first without one, extensions of what is cut.
    let c = bench.end(C, 80);
    let segment = ipv6::tcp_segment(a, c, SYN);
    for payload in [
        ipv6::fragment(TCP, 1, false, 1, &[0; 16]),
        ipv6::fragment(TCP, 2, false, 1, &[0; 16]),
        ipv6::fragment(TCP, 0, true, 1, &segment[..16]),
        ipv6::fragment(60, 0, true, 1, &[UDP, 0, 0, 0, 0, 0, 0, 0]),
        ipv6::fragment(FRAGMENT, 0, true, 1, &segment),
    ] {
        let cut = frame(a, c, FRAGMENT, &payload);
        bench.refused(A, &cut, A, Direction::Egress, Reason::Malformed);
    }
    // One of one is a whole (RFC 6946).
    let atomic = frame(a, c, FRAGMENT, &ipv6::fragment(TCP, 0, false, 1, &segment));
    assert!(bench.passes(A, &atomic));
}

fn udp_of(from: End, to: End, length: usize) -> Vec<u8> {
    ipv6::udp_datagram(from, to, &vec![7; length])
}

/// `kinds` of extension headers in front of a TCP segment, each of `words` × 8 bytes.
fn chained(from: End, to: End, kinds: &[u8], words: u8) -> Vec<u8> {
    let mut payload = Vec::new();
    for (index, _) in kinds.iter().enumerate() {
        let next = kinds.get(index + 1).copied().unwrap_or(TCP);
        // PadN to the end (RFC 8200 §4.2).
        let length = usize::from(words) * 8;
        payload.extend_from_slice(&[next, words - 1, 1, u8::try_from(length - 4).expect("few")]);
        payload.extend(std::iter::repeat_n(0, length - 4));
    }
    payload.extend(ipv6::tcp_segment(from, to, SYN));
    frame(from, to, kinds.first().copied().unwrap_or(TCP), &payload)
}

#[test]
fn extension_headers_hide_nothing() {
    let bench = Bench::new();
    let (a, c) = (bench.end(A, 4000), bench.end(C, 80));
    let closed = End { port: 81, ..c };
    for (count, kinds) in [&[60u8][..], &[0], &[0, 60], &[60, 60, 60, 60]]
        .iter()
        .enumerate()
    {
        for words in [1, 3, 20] {
            let port = 5000 + u16::from(words) * 8 + u16::try_from(count).expect("few");
            let from = End { port, ..a };
            assert!(
                bench.passes(A, &chained(from, c, kinds, words)),
                "{kinds:?}"
            );
            let denied = chained(from, closed, kinds, words);
            bench.refused(A, &denied, C, Direction::Ingress, Reason::IngressDenied);
        }
    }
    for kinds in [
        &[60u8, 60, 60, 60, 60][..],
        &[60, 0],
        &[0, 0],
        &[43],
        &[60, 43],
    ] {
        bench.refused(
            A,
            &chained(a, c, kinds, 1),
            A,
            Direction::Egress,
            Reason::Malformed,
        );
    }
}

#[test]
fn whatever_is_cut_short_is_refused() {
    let bench = Bench::new();
    let (a, b, c) = (bench.end(A, 4000), bench.end(B, 53), bench.end(C, 80));
    let fragment = ipv6::fragment(UDP, 0, true, 7, &udp_of(a, b, 24));
    for whole in [
        udp(a, b, b"question"),
        tcp(a, c, SYN),
        echo(a, c, 128, 7),
        chained(a, c, &[0, 60], 2),
        frame(a, b, FRAGMENT, &fragment),
        solicitation(a, b.ip),
    ] {
        for length in 14..whole.len() {
            let cut = &whole[..length];
            bench.refused(A, cut, A, Direction::Egress, Reason::Malformed);
            // And one that says so itself: no longer than its headers.
            let mut honest = cut.to_vec();
            if length >= PAYLOAD {
                let left = u16::try_from(length - PAYLOAD).expect("short");
                honest[18..20].copy_from_slice(&left.to_be_bytes());
                let (action, _) = bench.run(A, &honest);
                let dropped = action == Action::Drop;
                let whole_headers = length - PAYLOAD >= 8;
                assert!(dropped || whole_headers, "{length} of {whole:02x?}");
            }
        }
        assert_ne!(bench.run(A, &whole).0, Action::Drop);
    }
    // Lengths that lie.
    for (at, value) in [(14, 0x40), (18, 0xff)] {
        let mut lies = udp(a, b, b"question");
        lies[at] = value;
        bench.refused(A, &lies, A, Direction::Egress, Reason::Malformed);
    }
}
