//! The real `ocs-responder` in a real namespace, asked by several service addresses.
//!
//! ```text
//!  netns ocs-g-PID: svc0 169.254.1.1, .2, .3 ═══ veth ═══ svc1 169.254.169.254 :netns ocs-s-PID
//! ```

mod bed;

use bed::{Bed, Http, RESOLVER_IPV6, RESPONDER_IPV6};
use dhcproto::v4::{DhcpOption, Message, MessageType};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::time::Duration;

const A: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 1);
const B: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 2);
const STRANGER: Ipv4Addr = Ipv4Addr::new(169, 254, 1, 3);
const TTL: &str = "X-aws-ec2-metadata-token-ttl-seconds: 60";

fn discover(mac: [u8; 6]) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(1, none, none, none, none, &mac);
    let kind = DhcpOption::MessageType(MessageType::Discover);
    message.opts_mut().insert(kind);
    let mut bytes = Vec::new();
    message.encode(&mut Encoder::new(&mut bytes)).unwrap();
    bytes
}

fn token_header(token: &str) -> String {
    format!("X-aws-ec2-metadata-token: {token}")
}

#[test]
fn two_enis_with_one_private_address_are_told_apart() {
    let bed = Bed::new();
    bed.put(A, "i-a", |_| {});
    bed.put(B, "i-b", |_| {});
    let _responder = bed.start();

    for (peer, expected) in [(A, Some("i-a")), (B, Some("i-b")), (STRANGER, None)] {
        let offer = bed.datagram(peer, &discover([2, 0, 0, 0, 0, 0x2a]));
        let address =
            offer.map(|bytes| Message::decode(&mut Decoder::new(&bytes)).unwrap().yiaddr());
        assert_eq!(
            address,
            expected.map(|_| Ipv4Addr::new(172, 31, 16, 5)),
            "{peer}"
        );

        let http = bed.http(peer);
        let Some(expected) = expected else {
            assert!(http.ask("PUT", "/latest/api/token", &[TTL]).is_none());
            continue;
        };
        let token = http.ask("PUT", "/latest/api/token", &[TTL]).unwrap();
        assert_eq!(token.status, 200);
        let token = token_header(&token.body);
        let id = http.ask("GET", "/latest/meta-data/instance-id", &[&token]);
        assert_eq!(id.unwrap().body, expected);
        let other = bed.http(if peer == A { B } else { A });
        let stolen = other.ask("GET", "/latest/meta-data/instance-id", &[&token]);
        assert_eq!(stolen.unwrap().status, 401);
    }
}

/// A question for an address of a name (RFC 1035 §4.1).
fn question(labels: &[&str]) -> Vec<u8> {
    let mut bytes = vec![0, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
    for label in labels {
        bytes.push(u8::try_from(label.len()).unwrap());
        bytes.extend(label.as_bytes());
    }
    bytes.extend([0, 0, 1, 0, 1]);
    bytes
}

#[test]
fn names_are_answered_by_datagram_and_connection_at_both_ports() {
    let bed = Bed::new();
    bed.put(A, "i-a", |_| {});
    bed.put(B, "i-b", |record| {
        record.interfaces[0].options.no_dns = true
    });
    let _responder = bed.start();
    let own = question(&["ip-172-31-16-5", "ec2", "internal"]);
    for port in [53, 5300] {
        let answer = bed.datagram_to(A, port, &own).unwrap();
        assert_eq!(answer[..2], [0, 7]);
        assert_eq!(answer[answer.len() - 4..], [172, 31, 16, 5]);
        assert_eq!(bed.framed(A, port, &own), answer);
        let refused = bed.datagram_to(B, port, &own).unwrap();
        assert_eq!(refused[3] & 0x0f, 5, "enableDnsSupport is off");
        assert_eq!(bed.datagram_to(STRANGER, port, &own), None);
    }
}

/// DHCPv6, names and metadata by IPv6, of the same ENIs; metadata only where it is switched on.
#[test]
fn an_eni_is_known_by_ipv6_too() {
    let bed = Bed::new();
    let address: Ipv6Addr = "fd01:2:3:4::5".parse().unwrap();
    for (peer, name, metadata) in [(A, "i-a", true), (B, "i-b", false)] {
        bed.put(peer, name, |record| {
            record.interfaces[0].ipv6.addresses = vec![address];
            record.instance.http_protocol_ipv6 = metadata;
        });
    }
    let _responder = bed.start();
    let mut solicit = vec![1, 0, 0, 1, 0, 1, 0, 4, 0, 3, 0, 1];
    solicit.extend([0, 3, 0, 12, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 0]);
    let own = question(&["ip-172-31-16-5", "ec2", "internal"]);
    let routers = std::net::UdpSocket::from(bed.advertisements());
    routers
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    for peer in [A, B] {
        let advertised = bed.ipv6_datagram(peer, (RESPONDER_IPV6, 547).into(), &solicit);
        let advertised = advertised.unwrap();
        assert_eq!(advertised[..4], [2, 0, 0, 1]);
        let named = |bytes: &[u8]| bytes == address.octets();
        assert!(advertised.windows(16).any(named));
        let mut message = [0; 64];
        while routers.recv(&mut message).unwrap() != 32 || message[0] != 134 {}
        assert_eq!(message[4..8], [64, 0xc0, 0x07, 0x08]);
        assert_eq!(
            message[24..32],
            [5, 1, 0, 0, 0, 0, 0x05, 0xdc],
            "the MTU, 1,500"
        );
        let answer = bed.ipv6_datagram(peer, (RESOLVER_IPV6, 53).into(), &own);
        assert_eq!(answer.unwrap().last_chunk(), Some(&[172, 31, 16, 5]));
    }
    let put = format!(
        "PUT /latest/api/token HTTP/1.1\r\nHost: [{RESPONDER_IPV6}]\r\n{TTL}\r\nConnection: close\r\n\r\n"
    );
    let token = Http::raw(bed.ipv6_connect(A), &put).unwrap();
    assert_eq!(token.status, 200);
    // It is the same ENI's by IPv4.
    let header = token_header(&token.body);
    let told = bed.http(A).ask("GET", "/latest/meta-data/ipv6", &[&header]);
    assert_eq!(told.unwrap().body, address.to_string());
    assert!(Http::raw(bed.ipv6_connect(B), &put).is_none());
    for (peer, port) in [(STRANGER, 547), (A, 546)] {
        let to = (RESPONDER_IPV6, port).into();
        assert_eq!(bed.ipv6_datagram(peer, to, &solicit), None);
    }
}

#[test]
fn tokens_survive_the_responder_and_records_are_read_afresh() {
    let bed = Bed::new();
    bed.put(A, "i-a", |_| {});
    let responder = bed.start();
    let token = bed.http(A).ask("PUT", "/latest/api/token", &[TTL]).unwrap();
    let token = token_header(&token.body);
    drop(responder);
    let _responder = bed.start();
    let ask = |headers: &[&str]| bed.http(A).ask("GET", "/latest/meta-data/mac", headers);
    assert_eq!(ask(&[&token]).unwrap().status, 200);
    assert_eq!(ask(&[]).unwrap().status, 401);
    bed.put(A, "i-a", |record| {
        record.instance.http_tokens_required = false
    });
    assert_eq!(ask(&[]).unwrap().status, 200);
    bed.remove(A);
    assert!(ask(&[&token]).is_none());
}

#[test]
fn a_token_s_answer_goes_no_further_than_the_hop_limit() {
    let bed = Bed::new();
    bed.put(A, "i-a", |record| {
        record.instance.http_tokens_required = false
    });
    bed.put(B, "i-b", |record| {
        record.instance.http_put_response_hop_limit = 2
    });
    let _responder = bed.start();
    // A socket that takes no packet of fewer than two hops stands for a guest's router.
    let near = bed.http(A).min_ttl(2);
    assert_eq!(
        near.ask("GET", "/latest/meta-data/mac", &[])
            .unwrap()
            .status,
        200
    );
    let put = near
        .patience(Duration::from_millis(500))
        .ask("PUT", "/latest/api/token", &[TTL]);
    assert!(put.is_none());
    let far = bed.http(B).min_ttl(2);
    assert_eq!(
        far.ask("PUT", "/latest/api/token", &[TTL]).unwrap().status,
        200
    );
}

#[test]
fn a_later_request_carries_no_token_further() {
    let bed = Bed::new();
    bed.put(A, "i-a", |record| {
        record.instance.http_tokens_required = false
    });
    let _responder = bed.start();
    // The answer to PUT is lost on its way and stays with the kernel, to be sent again.
    let near = bed.http(A).min_ttl(2).patience(Duration::from_secs(2));
    let put = format!("PUT /latest/api/token HTTP/1.1\r\nHost: a\r\n{TTL}\r\n\r\n");
    let get = "GET /latest/meta-data/mac HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(Http::raw(near.connect(), &(put + get)).is_none());
}

#[test]
fn one_eni_s_idle_connections_cost_the_others_nothing() {
    let bed = Bed::new();
    bed.put(A, "i-a", |_| {});
    bed.put(B, "i-b", |_| {});
    let _responder = bed.start();
    let mut held = Vec::new();
    bed.until("the 33rd connection is refused", || {
        // Those of an attempt before may have been idle for too long by now.
        held.extend((0..32).map(|_| bed.connect(A)));
        bed.http(A)
            .ask("PUT", "/latest/api/token", &[TTL])
            .is_none()
    });
    assert_eq!(
        bed.http(B)
            .ask("PUT", "/latest/api/token", &[TTL])
            .unwrap()
            .status,
        200
    );
    drop(held);
    bed.until("the first ENI is served again", || {
        bed.http(A)
            .ask("PUT", "/latest/api/token", &[TTL])
            .is_some()
    });
}

#[test]
fn hostile_requests_end_their_connection_only() {
    let bed = Bed::new();
    bed.put(A, "i-a", |_| {});
    let _responder = bed.start();
    let long = format!("GET /{} HTTP/1.1\r\n\r\n", "x".repeat(100_000));
    let many = format!("GET / HTTP/1.1\r\n{}\r\n", "a: b\r\n".repeat(1000));
    for request in [
        long.as_str(),
        &many,
        "\0\0\0\0\r\n\r\n",
        "GET\r\n\r\n",
        "\r\n\r\n\r\n",
    ] {
        let answer = Http::raw(bed.connect(A), request);
        assert!(
            answer.is_none_or(|answer| answer.status >= 400),
            "{request:.40?}"
        );
    }
    assert_eq!(
        bed.http(A)
            .ask("PUT", "/latest/api/token", &[TTL])
            .unwrap()
            .status,
        200
    );
}

#[test]
fn it_has_no_privilege_and_leaves_when_its_interface_does() {
    let bed = Bed::new();
    bed.put(A, "i-a", |_| {});
    let mut responder = bed.start();
    assert!(
        bed.http(A)
            .ask("PUT", "/latest/api/token", &[TTL])
            .is_some()
    );
    let status = std::fs::read_to_string(format!("/proc/{}/status", responder.id())).unwrap();
    for line in [
        "Uid:\t64002\t64002\t64002\t64002",
        "Gid:\t64002\t64002\t64002\t64002",
        "Groups:\t ",
        "CapEff:\t0000000000000000",
        "CapPrm:\t0000000000000000",
        "CapAmb:\t0000000000000000",
        "NoNewPrivs:\t1",
        "Seccomp:\t2",
    ] {
        assert!(
            status.lines().any(|l| l == line),
            "no {line:?} in\n{status}"
        );
    }
    bed.cut();
    assert!(!responder.wait().success());
}

#[test]
fn it_waits_for_its_namespace_and_its_address() {
    let bed = Bed::without_address();
    bed.put(A, "i-a", |_| {});
    let _responder = bed.spawn();
    bed.add_address();
    bed.until_listening();
    let token = bed.http(A).ask("PUT", "/latest/api/token", &[TTL]);
    assert_eq!(token.unwrap().status, 200);
}
