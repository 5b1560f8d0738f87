//! What the packet path did and would do, for the operator: a socket that root can open.
//!
//! ```text
//!  ocs explain|top|metrics|capture ── one line of JSON ──▶ run/evidence.sock
//!                                  ◀── "ok" or "error: …", then the answer to its end
//! ```
//! Each connection has a thread; there are few. Nothing here changes what the packet path
//! does, and a capture ends with its connection.

mod flow_log;
mod pcapng;
mod report;

use ocs_dataplane::fabric::{Explanation, Fabric, Packet};
use ocs_dataplane::model::PortId;
use serde::Deserialize;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::IpAddr;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, SystemTime};

pub use flow_log::FlowLogs;

/// Connections at once.
const CONNECTIONS: usize = 16;
/// The longest request.
const REQUEST_BYTES: u64 = 4096;
/// How long a client may take to ask, or to take what it is told.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a capture without frames looks whether its client is still there.
const TICK_MS: i64 = 200;

#[derive(Deserialize)]
#[serde(rename_all = "snake_case", tag = "ask")]
enum Request {
    /// What would become of a packet?
    Explain {
        from: String,
        to: IpAddr,
        source: Option<IpAddr>,
        protocol: u8,
        #[serde(default)]
        source_port: u16,
        #[serde(default)]
        destination_port: u16,
    },
    /// What became of each port's packets?
    Top,
    /// The same for Prometheus.
    Metrics,
    /// A port's frames, as pcapng.
    Capture { of: String, snap_bytes: usize },
}

/// Serves on `path` until the process ends.
pub fn serve(fabric: &Arc<Fabric>, path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    let fabric = Arc::clone(fabric);
    std::thread::Builder::new()
        .name("evidence".to_owned())
        .spawn(move || accept(&listener, &fabric))?;
    Ok(())
}

fn accept(listener: &UnixListener, fabric: &Arc<Fabric>) {
    let busy = Arc::new(AtomicUsize::new(0));
    for stream in listener.incoming() {
        let Ok(stream) = stream else {
            // Out of descriptors, for example: others will close some.
            std::thread::sleep(Duration::from_millis(100));
            continue;
        };
        if busy.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS {
            busy.fetch_sub(1, Ordering::Relaxed);
            continue;
        }
        let (fabric, done) = (Arc::clone(fabric), Arc::clone(&busy));
        let thread = std::thread::Builder::new().spawn(move || {
            if let Err(error) = answer(&stream, &fabric) {
                tracing::debug!(%error, "a client of the evidence socket left");
            }
            done.fetch_sub(1, Ordering::Relaxed);
        });
        if thread.is_err() {
            busy.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

fn answer(stream: &UnixStream, fabric: &Fabric) -> io::Result<()> {
    stream.set_read_timeout(Some(PATIENCE))?;
    stream.set_write_timeout(Some(PATIENCE))?;
    let mut line = String::new();
    BufReader::new(stream.take(REQUEST_BYTES)).read_line(&mut line)?;
    let mut to = stream;
    let request = match serde_json::from_str(&line) {
        Ok(request) => request,
        Err(error) => return refuse(to, &format!("request: {error}")),
    };
    let told = match request {
        Request::Explain {
            from,
            to,
            source,
            protocol,
            source_port,
            destination_port,
        } => explain(fabric, &PortId(from), source, to, |source| Packet {
            source,
            destination: to,
            protocol,
            source_port,
            destination_port,
        }),
        Request::Top => report::top(fabric).map_err(chain),
        Request::Metrics => report::metrics(fabric).map_err(chain),
        Request::Capture { of, snap_bytes } => {
            return capture(stream, fabric, &PortId(of), snap_bytes);
        }
    };
    match told {
        Ok(text) => {
            to.write_all(b"ok\n")?;
            to.write_all(text.as_bytes())
        }
        Err(text) => refuse(to, &text),
    }
}

fn refuse(mut to: &UnixStream, text: &str) -> io::Result<()> {
    to.write_all(format!("error: {}\n", text.replace('\n', " ")).as_bytes())
}

fn chain(error: impl std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

fn explain(
    fabric: &Fabric,
    port: &PortId,
    source: Option<IpAddr>,
    to: IpAddr,
    packet: impl FnOnce(IpAddr) -> Packet,
) -> Result<String, String> {
    let source = source
        .or_else(|| fabric.first_address(port, to))
        .ok_or_else(|| {
            let ip = if to.is_ipv6() { "IPv6" } else { "IPv4" };
            format!("no port {} with an {ip} address", port.0)
        })?;
    let Explanation {
        verdict,
        passes,
        steps,
    } = fabric.explain(port, packet(source)).map_err(chain)?;
    let mut text = format!("{} {verdict}\n", if passes { "PASSES" } else { "DROPPED" });
    for step in steps {
        text.push_str(&format!("{:<8} {}\n", step.stage, step.found));
    }
    Ok(text)
}

/// Sends frames until the client leaves.
fn capture(stream: &UnixStream, fabric: &Fabric, port: &PortId, snap: usize) -> io::Result<()> {
    let mut capture = match fabric.capture(port) {
        Ok(capture) => capture,
        Err(error) => return refuse(stream, &chain(error)),
    };
    let sent = send_frames(stream, &mut capture, port, snap);
    if let Err(error) = fabric.end_capture(&capture) {
        tracing::error!(
            port = port.0,
            error = chain(error),
            "a capture could not be ended"
        );
    }
    sent
}

fn send_frames(
    mut stream: &UnixStream,
    capture: &mut ocs_dataplane::fabric::Capture,
    port: &PortId,
    snap: usize,
) -> io::Result<()> {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let offset_ns = unix_ns() - monotonic_ns();
    let mut bytes = b"ok\n".to_vec();
    bytes.extend(pcapng::header(&port.0, snap));
    stream.write_all(&bytes)?;
    let tick = Timespec {
        tv_sec: 0,
        tv_nsec: TICK_MS * 1_000_000,
    };
    loop {
        bytes.clear();
        while let Some(frame) = capture.next_frame() {
            pcapng::frame(&mut bytes, &frame, offset_ns, snap);
            if bytes.len() > 1 << 20 {
                break;
            }
        }
        stream.write_all(&bytes)?;
        let gone = {
            let mut waits = [
                PollFd::from_borrowed_fd(capture.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(stream.as_fd(), PollFlags::RDHUP),
            ];
            poll(&mut waits, Some(&tick))?;
            waits[1]
                .revents()
                .intersects(PollFlags::RDHUP | PollFlags::HUP)
        };
        if gone {
            return Ok(());
        }
    }
}

fn unix_ns() -> i128 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .map_or(0, |since| i128::try_from(since.as_nanos()).unwrap_or(0))
}

/// The clock of captured frames, which the standard library does not show.
fn monotonic_ns() -> i128 {
    let mut now = libc::timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    // SAFETY: clock_gettime(2) writes one `timespec`; this clock always exists.
    unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) };
    i128::from(now.tv_sec) * 1_000_000_000 + i128::from(now.tv_nsec)
}
