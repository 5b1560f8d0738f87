//! An instance sends at its type's rate, by the VMM that shapes: nothing is left for the packet
//! path to drop.

mod rig;

use ocs_node_api as api;
use rig::{Rig, group, id, instance, volume};
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;

const BPS: u64 = 8_000_000;
const PACKETS_PER_S: u64 = 1_000;
const ECHO: &str = "172.31.0.10:7000";

fn rate(bps: u64, packets_per_s: u64) -> Option<api::NetworkRate> {
    Some(api::NetworkRate {
        baseline_bps: bps,
        peak_bps: bps,
        credit_bytes: 0,
        packets_per_s,
    })
}

/// The value behind `name=` in a line of a probe.
fn value(line: &str, name: &str) -> f64 {
    let word = line.split_whitespace().find_map(|w| w.strip_prefix(name));
    let number = word.and_then(|w| w.strip_prefix('=')?.parse().ok());
    number.unwrap_or_else(|| panic!("no {name} in {line:?}"))
}

/// What the packet path has counted of an interface's sending.
fn sent(state: &Path, eni: &str, reason: &str) -> u64 {
    let mut stream = UnixStream::connect(state.join("run/evidence.sock")).unwrap();
    stream.write_all(b"{\"ask\":\"metrics\"}\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("ok\n"), "{text}");
    let name =
        format!("ocs_eni_packets_total{{eni=\"{eni}\",direction=\"egress\",reason=\"{reason}\"}} ");
    let line = text.lines().find_map(|line| line.strip_prefix(&name));
    line.map_or(0, |count| count.parse().unwrap())
}

#[track_caller]
fn close(what: &str, measured: f64, limit: f64) {
    let ratio = measured / limit;
    assert!(
        (0.98..=1.02).contains(&ratio),
        "{what}: {ratio:.4} of the limit"
    );
    eprintln!("{what}: {ratio:.4} of the limit");
}

/// What a new instance `n` fetches from the server, over the server's limit.
fn goodput(rig: &Rig, n: u64) -> f64 {
    let client = instance(n, "http-get http://172.31.0.13:80/body");
    rig.control.desire(api::Delta {
        instances: vec![client.clone()],
        volumes: vec![volume(n)],
        ..api::Delta::default()
    });
    let line = rig.await_line(&client.id, 0, "body", |line| {
        line.contains("http-get: ") && line.contains("status=200")
    });
    value(&line, "bytes") * 8e6 / value(&line, "us") / BPS as f64
}

#[test]
fn instances_send_at_their_types_rate_and_nothing_is_dropped_for_it() {
    let mut rig = Rig::new();
    // One that hears it all; one limited by bytes; one by packets; one that serves over TCP,
    // and, once the others are silent, one that fetches from it.
    let echo = instance(0, "listen udp 7000");
    let mut by_bytes = instance(1, &format!("bench udp {ECHO} 1472 for 4s"));
    by_bytes.network_rate = rate(BPS, 0);
    let mut by_packets = instance(2, &format!("bench udp {ECHO} 18 for 4s"));
    by_packets.network_rate = rate(0, PACKETS_PER_S);
    let mut server = instance(3, "listen http 80 4MiB");
    server.network_rate = rate(BPS, 0);
    let senders = [by_bytes.clone(), by_packets, server];
    rig.control.desire(api::Delta {
        instances: [&[echo.clone()][..], &senders].concat(),
        volumes: (0..4).map(volume).collect(),
        security_groups: vec![group()],
        ..api::Delta::default()
    });
    rig.start_node();
    rig.start_responder();

    let bench = |id: &str| rig.await_line(id, 0, "bench", |line| line.contains("bench: udp"));
    let line = bench(&senders[0].id);
    close("bytes", value(&line, "kbit_per_s") * 1_000.0, BPS as f64);
    let line = bench(&senders[1].id);
    let per_s = value(&line, "sent") * 1e6 / value(&line, "us");
    close("packets", per_s, PACKETS_PER_S as f64);
    // A busy host may hold up both ends of a connection, so there are three tries.
    let enough = (4..7).any(|n| {
        let goodput = goodput(&rig, n);
        eprintln!("TCP goodput: {goodput:.4} of the limit");
        goodput >= 0.95
    });
    assert!(enough, "less than 0.95 of the limit");
    for n in 1..4 {
        let eni = id("eni", n);
        assert!(sent(&rig.state, &eni, "forwarded") > 1_000, "{eni}");
        for reason in ["over_bandwidth", "over_packets"] {
            assert_eq!(sent(&rig.state, &eni, reason), 0, "{eni}: {reason}");
        }
    }

    // Another type at the next start: twice as fast.
    by_bytes.generation = 2;
    by_bytes.desired = api::Desired::Stopped.into();
    let desire = |instance: &api::Instance| {
        rig.control.desire(api::Delta {
            instances: vec![instance.clone()],
            ..api::Delta::default()
        });
    };
    desire(&by_bytes);
    rig.control.await_phase(&by_bytes.id, 2, api::Phase::Down);
    let said = rig.console(&by_bytes.id).len();
    by_bytes.generation = 3;
    by_bytes.starts = 2;
    by_bytes.desired = api::Desired::Running.into();
    by_bytes.network_rate = rate(2 * BPS, 0);
    desire(&by_bytes);
    let line = rig.await_line(&by_bytes.id, said, "bench", |line| {
        line.contains("bench: udp")
    });
    close(
        "another type",
        value(&line, "kbit_per_s") * 1_000.0,
        2.0 * BPS as f64,
    );
}
