//! A stand-in for each part: it keeps the promises that `ocs up` builds on (its
//! ready file, its addresses) and does nothing else.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::Duration;

/// Plays `part` until killed.
pub fn run(part: &str, arguments: &[String]) {
    let flags: BTreeMap<&str, &str> = arguments
        .windows(2)
        .filter(|pair| pair[0].starts_with("--"))
        .map(|pair| (pair[0].as_str(), pair[1].as_str()))
        .collect();
    match part {
        "control" => control(&flags),
        "node" if arguments.first().is_some_and(|word| word == "cleanup") => {
            fs::write(Path::new(flags["--state"]).join("cleaned"), "").unwrap();
        }
        "node" => {
            for file in ["--tls-ca", "--tls-cert", "--tls-key"] {
                fs::read(flags[file]).unwrap();
            }
            put(flags["--ready-file"], "");
            sleep();
        }
        "storaged" => {
            assert_eq!(arguments.last().unwrap(), "--take-over");
            storaged(&flags);
        }
        _ => sleep(),
    }
}

/// Takes over from another one, and from then on waits for the next; where a file says
/// `stubborn`, none hands over.
fn storaged(flags: &BTreeMap<&str, &str>) {
    let stubborn = Path::new(flags["--state"]).join("stubborn");
    if let Ok(mut predecessor) = UnixStream::connect(flags["--control"]) {
        assert!(!stubborn.exists(), "it does not hand over");
        predecessor.write_all(b"hand over").unwrap();
        let _ = predecessor.read(&mut [0]);
    }
    // Left by a predecessor, or not there.
    let _ = fs::remove_file(flags["--control"]);
    let listener = UnixListener::bind(flags["--control"]).unwrap();
    for stream in listener.incoming() {
        if stream.unwrap().read(&mut [0; 9]).unwrap() > 0 {
            return;
        }
    }
}

fn control(flags: &BTreeMap<&str, &str>) {
    fs::read(flags["--tls-key"]).unwrap();
    fs::write(Path::new(flags["--state"]).join("store.redb"), "").unwrap();
    let listeners = ["--listen", "--grpc-listen", "--node-listen"]
        .map(|flag| TcpListener::bind(flags[flag]).unwrap());
    let address = |n: usize| listeners[n].local_addr().unwrap().to_string();
    let bootstrap = serde_json::json!({
        "account_id": "123456789012",
        "access_key_id": "AKIAEXAMPLE",
        "secret_access_key": "a+b/c",
        "default_region": "us-east-1",
    });
    put(flags["--bootstrap-file"], &bootstrap.to_string());
    let ready = serde_json::json!({
        "pid": std::process::id(),
        "listen": address(0),
        "grpc_listen": address(1),
        "node_listen": address(2),
        "images": {"us-east-1": {"ocs-probe": "ami-1", "ocs-probe-instance-store": "ami-2"}},
        "zones": {"us-east-1": ["us-east-1a"]},
    });
    put(flags["--ready-file"], &ready.to_string());
    sleep();
}

fn put(path: &str, text: &str) {
    let part = format!("{path}.part");
    fs::write(&part, text).unwrap();
    fs::rename(part, path).unwrap();
}

fn sleep() {
    loop {
        std::thread::sleep(Duration::from_secs(3600));
    }
}
