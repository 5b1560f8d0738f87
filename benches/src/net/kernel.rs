//! Linux's own path, and the bare redirect: each in a namespace of its own that
//! goes with its thread.

use super::bpf::Program;
use super::{FRAME_BYTES, cpu_s, udp_frame};
use anyhow::{Context, Result, bail, ensure};
use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::OpenOptionsExt;
use std::process::{Command, Stdio};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

const TUNSETIFF: libc::c_ulong = 0x4004_54ca;
const MAC_A: [u8; 6] = [2, 0, 0, 0, 0, 1];
const MAC_B: [u8; 6] = [2, 0, 0, 0, 0, 2];
const ADDRESS_A: [u8; 4] = [10, 0, 0, 1];
const ADDRESS_B: [u8; 4] = [10, 0, 0, 2];
const PORT: u16 = 10_020;
/// How long conntrack remembers a flow that nobody answered, in a peer that is sent new
/// flows: else it would know them all after a few runs.
const FORGET_S: u64 = 1;
/// How long until it has forgotten.
pub const FORGETS: Duration = Duration::from_millis(FORGET_S * 1_000 + 100);

/// How the peer's forward chain is written. All accept what is established first.
#[derive(Clone, Copy)]
pub enum Chain {
    /// One rule a port, so many.
    Linear(u16),
    /// One verdict map of so many ports.
    Map(u16),
}

impl Chain {
    /// The commands that make it; the ports end at [`PORT`].
    fn commands(self) -> Vec<String> {
        let ports = |count: u16| PORT + 1 - count..=PORT;
        match self {
            Self::Linear(count) => {
                let rule = |port| format!("add rule ip filter forward udp dport {port} accept");
                ports(count).map(rule).collect()
            }
            Self::Map(count) => {
                let element = |port: u16| format!("{port} : accept");
                let elements: Vec<String> = ports(count).map(element).collect();
                vec![format!(
                    "add rule ip filter forward udp dport vmap {{ {} }}",
                    elements.join(", ")
                )]
            }
        }
    }
}

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
                let start = cpu_s();
                let result = work(frames);
                let used = cpu_s() - start;
                let _ = outbox.send(result.map(|()| f64::from(frames) / used / 1e6));
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
    /// Sets it up and shows that it accepts the flow and drops another. `new_flows`: each
    /// frame that is sent is another flow's.
    pub fn new(chain: Chain, new_flows: bool) -> Result<Self> {
        Worker::start(move || {
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
            nft(&chain.commands())?;
            let pass = Program::pass()?;
            let there = udp_frame((&MAC_A, ADDRESS_A, PORT), (&MAC_B, ADDRESS_B, PORT));
            let back = udp_frame((&MAC_B, ADDRESS_B, PORT), (&MAC_A, ADDRESS_A, PORT));
            let other = udp_frame((&MAC_A, ADDRESS_A, 7), (&MAC_B, ADDRESS_B, 7));
            // A bridge port learns for a moment before it forwards.
            std::thread::sleep(Duration::from_millis(200));
            pass.send(tap_b.index, &back, 1)?;
            pass.send(tap_a.index, &there, 1)?;
            pass.send(tap_b.index, &back, 1)?;
            ensure!(tap_b.drain()? > 0 && tap_a.drain()? > 0, "the bridge forwards nothing");
            pass.send(tap_a.index, &other, 1)?;
            ensure!(tap_b.drain()? == 0, "nftables lets everything through");
            let sender = if new_flows {
                std::fs::write(
                    "/proc/sys/net/netfilter/nf_conntrack_udp_timeout",
                    FORGET_S.to_string(),
                )
                .context("conntrack's timeout")?;
                Program::pass_new_flows()?
            } else {
                pass
            };
            Ok(move |frames| {
                let _open = (&tap_a, &tap_b);
                sender.send(tap_a.index, &there, frames)
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
    /// Sets it up. `new_flows`: with the sender that makes each frame another flow's.
    pub fn new(new_flows: bool) -> Result<Self> {
        Self::by(move |ifindex| match new_flows {
            true => Program::redirect_new_flows(ifindex),
            false => Program::redirect(ifindex),
        })
    }

    /// The same after one look-up in a hash map of so many entries, in no order.
    pub fn after_look_up(entries: u32) -> Result<Self> {
        Self::by(move |ifindex| Program::redirect_after_look_up(ifindex, entries))
    }

    fn by(program: impl FnOnce(u32) -> Result<Program> + Send + 'static) -> Result<Self> {
        Worker::start(move || {
            let (tap_a, mut tap_b) = (Tap::new("tap-a")?, Tap::new("tap-b")?);
            for link in ["tap-a", "tap-b"] {
                run(&format!("ip link set {link} up"))?;
            }
            let redirect = program(tap_b.index)?;
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

/// A tap of the thread's namespace.
pub struct Tap {
    /// The guest's end; does not block.
    pub file: File,
    /// The interface's index.
    pub index: u32,
}

impl Tap {
    /// Makes it; it is down.
    pub fn new(name: &str) -> Result<Self> {
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

fn nft(commands: &[String]) -> Result<()> {
    let mut child = Command::new("nft")
        .args(["-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run nft")?;
    let mut input = child.stdin.take().context("nft has no input")?;
    input.write_all(commands.join("\n").as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "nft refuses the peer's rules");
    Ok(())
}

/// Runs a command of which no word has spaces.
pub fn run(command: &str) -> Result<()> {
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
