//! One TCP stream between two Linux stacks: by the packet path, and by a bridge.
//!
//! ```text
//! stack ─ eth0 ═ carrier ═ guest's tap ─▶ the path | a bridge ─▶ tap ═ carrier ═ eth0 ─ stack
//! ```
//! Carriers are threads that copy frames from tap to tap, alike on both sides and by far
//! the dearest part. With offloads on everywhere a frame is up to 64 KiB long, of which
//! checksum and segmentation are left to the receiver, who needs neither; with them off each
//! segment crosses by itself.

use super::kernel::run;
use super::ours;
use super::stack::{Stack, open_tap};
use crate::alternate::alternate;
use crate::report::{Better, Row};
use anyhow::{Context, Result};
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::time::{Duration, Instant};

const PORT: u16 = 5_201;

/// A stack at each end of something.
struct Rig<Middle> {
    from: Stack,
    to: Stack,
    server: Ipv4Addr,
    _middle: Middle,
}

impl<Middle> Rig<Middle> {
    /// Gbit/s of payload that arrive.
    fn stream_gbps(&self, length: Duration) -> Result<f64> {
        let server = self.server;
        let listener = self.to.spawn(move || TcpListener::bind((server, PORT)));
        let listener = listener.join().ok().context("the receiver panicked")??;
        let receiver = self.to.spawn(move || {
            let (mut stream, _) = listener.accept()?;
            let (began, mut bytes, mut buffer) = (Instant::now(), 0_u64, vec![0; 1 << 18]);
            loop {
                match stream.read(&mut buffer)? {
                    0 => break,
                    more => bytes += more as u64,
                }
            }
            std::io::Result::Ok(bytes as f64 * 8.0 / began.elapsed().as_secs_f64() / 1e9)
        });
        let sender = self.from.spawn(move || {
            let mut stream = TcpStream::connect((server, PORT))?;
            let (began, buffer) = (Instant::now(), vec![0; 1 << 18]);
            while began.elapsed() < length {
                stream.write_all(&buffer)?;
            }
            std::io::Result::Ok(())
        });
        sender.join().ok().context("the sender panicked")??;
        Ok(receiver.join().ok().context("the receiver panicked")??)
    }
}

fn stack(offloads: bool, end: File, header: usize, mac: [u8; 6], address: Ipv4Addr) -> Stack {
    match offloads {
        true => Stack::with_offloads(end, mac, address),
        false => Stack::new(end, header, mac, address),
    }
}

fn by_bridge(offloads: bool) -> Result<Rig<()>> {
    let ends = std::thread::spawn(move || {
        // SAFETY: changes this thread's network namespace alone.
        if unsafe { libc::unshare(libc::CLONE_NEWNET) } != 0 {
            return Err(std::io::Error::last_os_error().into());
        }
        let ends = ["tap-a", "tap-b"].map(|name| open_tap(name, offloads));
        run("ip link add br0 type bridge")?;
        for link in ["tap-a", "tap-b"] {
            run(&format!("ip link set {link} master br0 up"))?;
        }
        run("ip link set br0 up")?;
        anyhow::Ok(ends)
    });
    let [a, b] = ends.join().ok().context("the bridge's thread panicked")??;
    let address = |last| Ipv4Addr::new(10, 0, 0, last);
    Ok(Rig {
        from: stack(offloads, a, 0, [2, 0, 0, 0, 0, 1], address(1)),
        to: stack(offloads, b, 0, [2, 0, 0, 0, 0, 2], address(2)),
        server: address(2),
        _middle: (),
    })
}

fn by_path(offloads: bool) -> Result<Rig<ours::Path>> {
    let path = match offloads {
        true => ours::Path::with_offloads(1)?,
        false => ours::Path::new(1)?,
    };
    let [a, b] = path.ends()?;
    let header = ours::HEADER_BYTES;
    Ok(Rig {
        from: stack(offloads, a.file, header, a.mac, a.address),
        to: stack(offloads, b.file, header, b.mac, b.address),
        server: b.address,
        _middle: path,
    })
}

/// Measures it, with offloads and without.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let (runs, length) = if quick {
        (3, Duration::from_millis(700))
    } else {
        (9, Duration::from_secs(2))
    };
    let rigs = (
        by_path(true)?,
        by_bridge(true)?,
        by_path(false)?,
        by_bridge(false)?,
    );
    let figures = alternate(
        runs,
        &mut [
            &mut || Ok(vec![rigs.0.stream_gbps(length)?]),
            &mut || Ok(vec![rigs.1.stream_gbps(length)?]),
            &mut || Ok(vec![rigs.2.stream_gbps(length)?]),
            &mut || Ok(vec![rigs.3.stream_gbps(length)?]),
        ],
    )?;
    let row = |name, ours: usize, peer| {
        Row::new(name, "Gbit/s", Better::Higher, &figures[ours][0])
            .against(peer, &figures[ours + 1][0])
    };
    Ok(vec![
        row("tcp_stream_gbps", 0, "bridge, same carriers, offloads on"),
        row(
            "tcp_stream_no_offloads_gbps",
            2,
            "bridge, same carriers, no offloads",
        ),
    ])
}
