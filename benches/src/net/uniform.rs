//! A million flows in no order: what it takes to reach one, against one look-up in a hash map of
//! as many.
//!
//! The flows are of many ports, each with half of what its table holds, so that few of them
//! crowd each other out. Their frames come from another host, so that one interface receives
//! them all. What is left once the rules are gone shows that they were tracked.

use super::bpf::Program;
use super::kernel::{self, Redirect};
use super::ours::{self, FAR, HOST, OWN_HOST, PORT};
use super::{cpu_s, udp_frame};
use crate::alternate::alternate;
use crate::report::{Better, Row};
use anyhow::{Context, Result, bail, ensure};
use ocs_dataplane::fabric::{Fabric, FabricConfig, Tap};
use ocs_dataplane::model::{
    Direction, Group, GroupId, Mac, Peer, Policy, PortId, Rule, Traffic, Vni,
};
use ocs_dataplane::shared::layout::{Direction as Way, Reason};
use std::fs::File;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::process::{Command, Stdio};

const PORTS: u16 = 512;
const FLOWS_OF_PORT: u16 = 2_048;
const FLOWS: u32 = PORTS as u32 * FLOWS_OF_PORT as u32;
/// The last 16 bits of the first port's address.
const FIRST: u16 = 0x100;
/// Frames that make nearly all flows known: of each so many on average.
const FILL: u32 = 6;
/// Frames that wait for a guest: none reads them.
const QUEUE: u32 = 4;
/// So much of what is sent is tracked, or the flows are not there.
const TRACKED: f64 = 0.95;
const UDP: u8 = 17;
const PEER: &str = "redirect after one look-up in a hash map of 1,048,576";
const PEER_NS: &str = "one look-up in a hash map of 1,048,576, in no order";

/// Measures it.
pub fn measure(runs: usize, frames: u32) -> Result<Vec<Row>> {
    let crowd = Crowd::new()?;
    let (uniform, single) = (crowd.sender(true)?, crowd.sender(false)?);
    let look_up = Redirect::after_look_up(FLOWS)?;
    let redirect = Redirect::new(true)?;
    for _ in 0..FILL {
        crowd.send_mpps(&uniform, FLOWS)?;
    }
    let figures = alternate(
        runs,
        &mut [
            &mut || Ok(vec![crowd.send_mpps(&uniform, frames)?]),
            &mut || Ok(vec![look_up.send_mpps(frames)?]),
            &mut || Ok(vec![crowd.send_mpps(&single, frames)?]),
            &mut || Ok(vec![redirect.send_mpps(frames)?]),
        ],
    )?;
    crowd.check(&uniform)?;
    let [uniform, look_up, single, redirect] = [0, 1, 2, 3].map(|side: usize| &figures[side][0]);
    let over = |many: &[f64], few: &[f64]| -> Vec<f64> {
        let pairs = many.iter().zip(few);
        pairs.map(|(many, few)| 1e3 / many - 1e3 / few).collect()
    };
    Ok(vec![
        Row::new(
            "uniform_1048576_flows_mpps",
            "Mpps",
            Better::Higher,
            uniform,
        )
        .against(PEER, look_up),
        Row::new(
            "uniform_1048576_flows_over_one_ns",
            "ns",
            Better::Lower,
            &over(uniform, single),
        )
        .against(PEER_NS, &over(look_up, redirect)),
    ])
}

/// Ports whose flows' other ends are on another host.
struct Crowd {
    fabric: Option<Fabric>,
    policy: Policy,
    /// The uplink and its namespace.
    uplink: kernel::Tap,
    namespace: File,
    frame: Vec<u8>,
    _taps: Vec<Tap>,
    _dir: tempfile::TempDir,
}

impl Crowd {
    fn new() -> Result<Self> {
        let dir = tempfile::tempdir()?;
        for folder in ["netns", "bpf"] {
            std::fs::create_dir_all(dir.path().join(folder))?;
        }
        let fabric = Fabric::open(FabricConfig::under(dir.path()))?;
        let mut policy = Policy::default();
        let (mut taps, mut shorter) = (Vec::new(), String::new());
        for number in 0..PORTS {
            let tap = fabric.create_tap(&format!("t{number}"))?;
            shorter += &format!("link set dev t{number} txqueuelen {QUEUE}\n");
            let [high, low] = (FIRST + number).to_be_bytes();
            let port = ours::port(
                tap.ifindex,
                Mac([2, 0, 0, 0, high, low]),
                Ipv4Addr::new(10, 0, high, low),
                Ipv4Addr::new(169, 254, high, low),
            )?;
            policy.ports.insert(PortId(format!("p{number}")), port);
            taps.push(tap);
        }
        within(fabric.taps_namespace(), || batch(&shorter))?;
        let rule = Rule {
            direction: Direction::Ingress,
            traffic: Traffic::Ports {
                protocol: UDP,
                from: PORT,
                to: PORT,
            },
            peer: Peer::Group(GroupId("sg".into())),
        };
        let rules = [rule].into();
        policy.groups.insert(GroupId("sg".into()), Group { rules });
        let far = IpAddr::V4(ours::address(FAR));
        policy.remotes.insert((Vni(1), far), ours::remote(FAR));
        let (uplink, namespace) = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                let uplink = ours::attach_uplink(&fabric, &policy)?;
                anyhow::Ok((uplink, File::open("/proc/thread-self/ns/net")?))
            });
            let ended = thread.join();
            ended.unwrap_or_else(|_| bail!("the uplink's thread panicked"))
        })?;
        Ok(Self {
            fabric: Some(fabric),
            policy,
            uplink,
            namespace,
            frame: wrapped(),
            _taps: taps,
            _dir: dir,
        })
    }

    fn fabric(&self) -> Result<&Fabric> {
        self.fabric.as_ref().context("the fabric is gone")
    }

    /// A sender of all flows' frames in no order, or of one flow's.
    fn sender(&self, all: bool) -> Result<Program> {
        let [addresses, ports] = if all {
            [PORTS - 1, FLOWS_OF_PORT - 1]
        } else {
            [0, 0]
        };
        let program = self.fabric()?.uplink_program()?;
        Program::call_with_flows_inside(&program, FIRST, addresses, ports)
    }

    /// Sends frames; how many passed, and CPU time used in s.
    fn send(&self, sender: &Program, frames: u32) -> Result<(u64, f64)> {
        let fabric = self.fabric()?;
        let before = forwarded(fabric)?;
        let used = within(self.namespace.as_fd(), || {
            let start = cpu_s();
            sender.send(self.uplink.index, &self.frame, frames)?;
            Ok(cpu_s() - start)
        })?;
        Ok((forwarded(fabric)? - before, used))
    }

    fn send_mpps(&self, sender: &Program, frames: u32) -> Result<f64> {
        let (passed, used) = self.send(sender, frames)?;
        ensure!(
            passed == u64::from(frames),
            "of {frames} frames {passed} were forwarded: {:?}",
            self.fabric()?.uplink_counters()?
        );
        Ok(f64::from(frames) / used / 1e6)
    }

    /// Takes the rules away: what passes still is tracked.
    fn check(&self, sender: &Program) -> Result<()> {
        let mut policy = self.policy.clone();
        policy.groups.insert(GroupId("sg".into()), Group::default());
        self.fabric()?.apply(&policy)?;
        let (passed, _) = self.send(sender, FLOWS)?;
        let tracked = passed as f64 / f64::from(FLOWS);
        ensure!(tracked >= TRACKED, "{tracked:.3} of the flows are tracked");
        Ok(())
    }
}

impl Drop for Crowd {
    fn drop(&mut self) {
        if let Some(fabric) = self.fabric.take()
            && let Err(error) = fabric.teardown()
        {
            eprintln!("the fabric is not gone: {error}");
        }
    }
}

fn forwarded(fabric: &Fabric) -> Result<u64> {
    Ok(fabric
        .uplink_counters()?
        .get(Way::Egress, Reason::Forwarded))
}

/// A frame of the other host's, for the first port.
fn wrapped() -> Vec<u8> {
    let [high, low] = FIRST.to_be_bytes();
    let from = (ours::mac(FAR).0, ours::address(FAR).octets());
    let to = ([2, 0, 0, 0, high, low], [10, 0, high, low]);
    let mut inner = udp_frame((&from.0, from.1, PORT), (&to.0, to.1, PORT));
    // All ones count as nothing in a checksum.
    inner[18..20].fill(0xff);
    let mut outer = udp_frame(
        (&[2, 0, 0, 0, 2, 2], HOST.octets(), 0xc000),
        (&[2, 0, 0, 0, 2, 1], OWN_HOST.octets(), 4_789),
    );
    outer.truncate(42);
    outer.extend_from_slice(&[8, 0, 0, 0, 0, 0, 1, 0]);
    outer.extend_from_slice(&inner);
    let put = |outer: &mut Vec<u8>, at: usize, value: usize| {
        let value = u16::try_from(value).unwrap_or_default();
        outer[at..at + 2].copy_from_slice(&value.to_be_bytes());
    };
    let length = outer.len();
    put(&mut outer, 16, length - 14);
    put(&mut outer, 38, length - 34);
    put(&mut outer, 24, 0);
    let header = outer[14..34].chunks(2);
    let sum: u32 = header
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    put(&mut outer, 24, usize::from(!(folded as u16)));
    outer
}

/// Runs `work` in a thread within a network namespace.
fn within<T: Send>(
    namespace: BorrowedFd<'_>,
    work: impl FnOnce() -> Result<T> + Send,
) -> Result<T> {
    std::thread::scope(|scope| {
        let thread = scope.spawn(|| {
            // SAFETY: changes this thread's network namespace alone.
            let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
            ensure!(entered == 0, "cannot enter a network namespace");
            work()
        });
        let ended = thread.join();
        ended.unwrap_or_else(|_| bail!("the thread in a namespace panicked"))
    })
}

/// Gives `ip` many commands at once.
fn batch(commands: &str) -> Result<()> {
    let mut child = Command::new("ip")
        .args(["-batch", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("cannot run ip")?;
    let mut input = child.stdin.take().context("ip has no input")?;
    input.write_all(commands.as_bytes())?;
    drop(input);
    ensure!(child.wait()?.success(), "ip refuses a command");
    Ok(())
}
