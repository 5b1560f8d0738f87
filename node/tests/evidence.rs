//! The evidence socket over a real packet path: what `ocs explain`, `top`, `metrics` and
//! `capture` are told.

use ocs_dataplane::fabric::{Fabric, FabricConfig, Tap};
use ocs_dataplane::model::{
    Direction, Group, GroupId, Mac, Peer, Policy, Port, PortId, Rate, Rule, Tracking, Traffic, Vni,
};
use ocs_node::agent::evidence;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];

/// A packet path with two ports, and its socket. Removed in the end, panic or not.
struct Bed {
    config: FabricConfig,
    socket: PathBuf,
    tap_a: Tap,
    _tap_b: Tap,
    _folder: tempfile::TempDir,
}

impl Bed {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let config = FabricConfig::under(folder.path());
        let fabric = Arc::new(Fabric::open(config.clone()).unwrap());
        let tap_a = fabric.create_tap("tap-a").unwrap();
        let tap_b = fabric.create_tap("tap-b").unwrap();
        let mut policy = Policy::default();
        policy.groups.insert(GroupId("sg-1".into()), group());
        for (name, last, tap) in [("eni-a", 1, &tap_a), ("eni-b", 2, &tap_b)] {
            let port = Port {
                ifindex: tap.ifindex,
                vni: Vni(9),
                mac: Mac([2, 0, 0, 0, 0, last]),
                addresses: vec![IpAddr::V4(address(last))],
                subnet: "10.0.0.0/24".parse().unwrap(),
                ipv6_subnet: None,
                groups: BTreeSet::from([GroupId("sg-1".into())]),
                service_address: Ipv4Addr::new(169, 254, 1, last),
                resolver: None,
                meter: None,
                rate: Rate {
                    baseline_bps: 8_000_000,
                    peak_bps: 80_000_000,
                    credit_bytes: 1_000_000,
                    packets_per_s: 0,
                },
                table: None,
                acl: None,
                source_dest_check: true,
                publics: BTreeMap::new(),
                tracking: Tracking::default(),
                mtu: 1500,
            };
            policy.ports.insert(PortId(name.into()), port);
        }
        fabric.apply(&policy).unwrap();
        let socket = folder.path().join("evidence.sock");
        evidence::serve(&fabric, &socket).unwrap();
        Self {
            config,
            socket,
            tap_a,
            _tap_b: tap_b,
            _folder: folder,
        }
    }

    fn open(&self, request: &str) -> BufReader<UnixStream> {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream.write_all(b"\n").unwrap();
        BufReader::new(stream)
    }

    fn ask(&self, request: &str) -> String {
        let mut text = String::new();
        self.open(request).read_to_string(&mut text).unwrap();
        text
    }

    /// A sends a SYN to B.
    fn send(&self, port: u16) {
        let mut frame = vec![0; 12];
        frame.extend([2, 0, 0, 0, 0, 2]);
        frame.extend(MAC_A);
        frame.extend([8, 0, 0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6, 0, 0]);
        frame.extend(address(1).octets());
        frame.extend(address(2).octets());
        frame.extend(4_000_u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        frame.extend([0, 0, 0, 1, 0, 0, 0, 0, 0x50, 2, 0x20, 0, 0, 0, 0, 0]);
        rustix::io::write(&self.tap_a.fd, &frame).unwrap();
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        if let Err(error) = Fabric::destroy(&self.config) {
            eprintln!("the packet path is not gone: {error}");
        }
    }
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}

fn group() -> Group {
    let rule = |direction, traffic| Rule {
        direction,
        traffic,
        peer: Peer::Group(GroupId("sg-1".into())),
    };
    let web = Traffic::Ports {
        protocol: 6,
        from: 443,
        to: 443,
    };
    Group {
        rules: BTreeSet::from([
            rule(Direction::Egress, Traffic::All),
            rule(Direction::Ingress, web),
        ]),
    }
}

#[test]
fn root_is_told_why_and_how_much_and_sees_frames() {
    let bed = Bed::new();
    let mode = std::fs::metadata(&bed.socket).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);

    let explain = |port| {
        bed.ask(&format!(
            r#"{{"ask":"explain","from":"eni-a","to":"10.0.0.2","protocol":6,"source_port":9,"destination_port":{port}}}"#
        ))
    };
    let passes = explain(443);
    assert!(passes.starts_with("ok\nPASSES forwarded\n"), "{passes}");
    assert!(
        passes.contains("ingress  allowed by sg-1: tcp 443-443 from sg-1"),
        "{passes}"
    );
    let dropped = explain(22);
    assert!(
        dropped.starts_with("ok\nDROPPED ingress_denied\n"),
        "{dropped}"
    );
    assert!(dropped.contains("no rule of sg-1 allows it"), "{dropped}");

    let mut capture = bed.open(r#"{"ask":"capture","of":"eni-a","snap_bytes":60}"#);
    let mut status = String::new();
    capture.read_line(&mut status).unwrap();
    assert_eq!(status, "ok\n");
    bed.send(443);
    bed.send(22);
    let (mut kinds, mut shown) = (Vec::new(), Vec::new());
    while kinds.len() < 4 {
        let mut head = [0; 8];
        capture.read_exact(&mut head).unwrap();
        let length = u32::from_ne_bytes(head[4..].try_into().unwrap()) as usize;
        let mut body = vec![0; length - 8];
        capture.read_exact(&mut body).unwrap();
        kinds.push(u32::from_ne_bytes(head[..4].try_into().unwrap()));
        shown.push(body);
    }
    assert_eq!(kinds, [0x0a0d_0d0a, 1, 6, 6]);
    assert_eq!(shown[2][20 + 6..20 + 12], MAC_A);
    assert_eq!(shown[3][20 + 36..20 + 38], 22_u16.to_be_bytes());

    let top = bed.ask(r#"{"ask":"top"}"#);
    let row = |way: &str, reason: &str| {
        top.lines().any(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            words == ["eni-b", way, reason, "1"]
        })
    };
    assert!(
        row("ingress", "forwarded") && row("ingress", "ingress_denied"),
        "{top}"
    );
    let metrics = bed.ask(r#"{"ask":"metrics"}"#);
    for line in [
        r#"ocs_eni_packets_total{eni="eni-a",direction="egress",reason="forwarded"} 1"#,
        r#"ocs_eni_network_credit_bytes{eni="eni-b",direction="ingress"} "#,
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn what_makes_no_sense_is_refused_in_a_line() {
    let bed = Bed::new();
    for (request, says) in [
        ("nonsense", "error: request: "),
        (r#"{"ask":"destroy"}"#, "error: request: "),
        (
            r#"{"ask":"explain","from":"eni-x","to":"10.0.0.2","protocol":6}"#,
            "error: no port eni-x",
        ),
        (
            r#"{"ask":"explain","from":"eni-a","to":"fd00::2","protocol":6}"#,
            "error: no port eni-a with an IPv6 address",
        ),
        (
            r#"{"ask":"explain","from":"eni-a","to":"fd00::2","source":"10.0.0.1","protocol":6}"#,
            "error: 10.0.0.1 sends no packet to fd00::2: ",
        ),
        (
            r#"{"ask":"capture","of":"eni-x","snap_bytes":60}"#,
            "error: no port eni-x",
        ),
    ] {
        let told = bed.ask(request);
        assert!(told.starts_with(says), "{request}: {told}");
        assert_eq!(told.lines().count(), 1);
    }
    // One that says nothing, and one that says too much.
    drop(UnixStream::connect(&bed.socket).unwrap());
    let long = "x".repeat(10_000);
    let mut stream = UnixStream::connect(&bed.socket).unwrap();
    let _cut_off = stream.write_all(long.as_bytes());
    let mut told = String::new();
    let _reset = stream.read_to_string(&mut told);
    assert!(bed.ask(r#"{"ask":"top"}"#).starts_with("ok\n"));
}
