//! Linux's own path, and the bare redirect: each in a namespace of its own that
//! goes with its thread.

use super::bpf::Program;
use super::{FRAME_BYTES, udp_frame};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::Read;
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Instant;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ADDRESS_A: [u8; 4] = [10, 0, 0, 1];
const ADDRESS_B: [u8; 4] = [10, 0, 0, 2];
const PORT: u16 = 10_020;

/// Frames to send in, millions of frames a second out.
struct Worker {
    orders: Sender<u32>,
    figures: Receiver<Result<f64>>,
}

impl Worker {
    /// Runs `prepare` in a fresh network namespace and then what it answers, per order.
    fn start<W, P>(prepare: P) -> Result<Self>
    where
        W: FnMut(u32) -> Result<()>,
        P: FnOnce() -> Result<W> + Send + 'static,
    {
        let (orders, inbox) = channel();
        let (outbox, figures) = channel();
        let (ready, prepared) = channel();
        std::thread::spawn(move || {
            // SAFETY: changes this thread's network namespace alone.
            let own = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
            let work = if own {
                prepare()
            } else {
                Err(std::io::Error::last_os_error().into())
            };
            let mut work = match work {
                Ok(work) => {
                    let _ = ready.send(Ok(()));
                    work
                }
                Err(error) => {
                    let _ = ready.send(Err(error));
                    return;
                }
            };
            for frames in inbox {
                let start = Instant::now();
                let result = work(frames);
                let elapsed = start.elapsed().as_secs_f64();
                let _ = outbox.send(result.map(|()| f64::from(frames) / elapsed / 1e6));
            }
        });
        prepared.recv().context("the sender's thread ended")??;
        Ok(Self { orders, figures })
    }

    fn send_mpps(&self, frames: u32) -> Result<f64> {
        self.orders
            .send(frames)
            .context("the sender's thread ended")?;
        self.figures.recv().context("the sender's thread ended")?
    }
}

/// Bridge, nftables, conntrack.
pub struct Path(Worker);

impl Path {
    /// Sets it up and shows that it accepts the flow and drops another.
    pub fn new() -> Result<Self> {
        Worker::start(|| {
            let (mut tap_a, mut tap_b) = (Tap::new("tap-a")?, Tap::new("tap-b")?);
            run("ip link add br0 type bridge")?;
            for link in ["tap-a", "tap-b"] {
                run(&format!("ip link set {link} master br0 up"))?;
            }
            run("ip link set br0 up")?;
            std::fs::write("/proc/sys/net/bridge/bridge-nf-call-iptables", "1")
                .context("br_netfilter")?;
            run("nft add table ip filter")?;
            run("nft add chain ip filter forward { type filter hook forward priority 0 ; policy drop ; }")?;
            run("nft add rule ip filter forward ct state established,related accept")?;
            for port in PORT - 19..=PORT {
                run(&format!("nft add rule ip filter forward udp dport {port} accept"))?;
            }
            let pass = Program::pass()?;
            let there = udp_frame((&MAC_A, ADDRESS_A, PORT), (&MAC_B, ADDRESS_B, PORT));
            let back = udp_frame((&MAC_B, ADDRESS_B, PORT), (&MAC_A, ADDRESS_A, PORT));
            let other = udp_frame((&MAC_A, ADDRESS_A, 7), (&MAC_B, ADDRESS_B, 7));
            // A bridge port learns for a moment before it forwards.
            std::thread::sleep(std::time::Duration::from_millis(200));
            pass.send(tap_b.index, &back, 1)?;
            pass.send(tap_a.index, &there, 1)?;
            pass.send(tap_b.index, &back, 1)?;
            ensure!(tap_b.drain()? > 0 && tap_a.drain()? > 0, "the bridge forwards nothing");
            pass.send(tap_a.index, &other, 1)?;
            ensure!(tap_b.drain()? == 0, "nftables lets everything through");
            Ok(move |frames| {
                let _open = (&tap_a, &tap_b);
                pass.send(tap_a.index, &there, frames)
            })
        })
        .map(Self)
    }

    /// Sends established frames.
    pub fn send_mpps(&self, frames: u32) -> Result<f64> {
        self.0.send_mpps(frames)
    }
}

/// XDP redirect from tap to tap and nothing else: the limit of any XDP path.
pub struct Redirect(Worker);

impl Redirect {
    /// Sets it up.
    pub fn new() -> Result<Self> {
        Worker::start(|| {
            let (tap_a, mut tap_b) = (Tap::new("tap-a")?, Tap::new("tap-b")?);
            for link in ["tap-a", "tap-b"] {
                run(&format!("ip link set {link} up"))?;
            }
            let redirect = Program::redirect(tap_b.index)?;
            let frame = udp_frame((&MAC_A, ADDRESS_A, PORT), (&MAC_B, ADDRESS_B, PORT));
            redirect.send(tap_a.index, &frame, 1)?;
            ensure!(tap_b.drain()? > 0, "the redirect delivers nothing");
            Ok(move |frames| {
                let _open = (&tap_a, &tap_b);
                redirect.send(tap_a.index, &frame, frames)
            })
        })
        .map(Self)
    }

    /// Sends frames.
    pub fn send_mpps(&self, frames: u32) -> Result<f64> {
        self.0.send_mpps(frames)
    }
}

struct Tap {
    file: File,
    index: u32,
}

impl Tap {
    fn new(name: &str) -> Result<Self> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(libc::O_NONBLOCK)
            .open("/dev/net/tun")?;
        // SAFETY: `ifreq` is made of integers, arrays and unions of them: zeros are valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
            *to = libc::c_char::from_ne_bytes([from]);
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI)?;
        // SAFETY: TUNSETIFF reads and writes one `ifreq`.
        if unsafe { libc::ioctl(file.as_raw_fd(), TUNSETIFF, &mut request) } < 0 {
            bail!("cannot make {name}: {}", std::io::Error::last_os_error());
        }
        // SAFETY: the name is NUL-terminated: the structure was zeroed and names are short.
        let index = unsafe { libc::if_nametoindex(request.ifr_name.as_ptr()) };
        ensure!(index > 0, "{name} has no index");
        Ok(Self { file, index })
    }

    /// Reads what has arrived; how many of the test's frames there were.
    fn drain(&mut self) -> Result<usize> {
        let (mut buffer, mut count) = ([0u8; 2048], 0);
        loop {
            match self.file.read(&mut buffer) {
                Ok(FRAME_BYTES) if buffer[12..14] == [0x08, 0x00] => count += 1,
                Ok(_) => {}
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => return Ok(count),
                Err(error) => return Err(error.into()),
            }
        }
    }
}

fn run(command: &str) -> Result<()> {
    let mut words = command.split_whitespace();
    let output = Command::new(words.next().unwrap_or_default())
        .args(words)
        .output()
        .with_context(|| format!("cannot run `{command}`"))?;
    ensure!(
        output.status.success(),
        "`{command}` failed: {}",
        String::from_utf8_lossy(&output.stderr).trim()
    );
    Ok(())
}
