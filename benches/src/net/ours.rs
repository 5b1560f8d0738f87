//! The real fabric with two ports and the policy of the peer: so many rules, default deny.

use super::bpf::Program;
use super::{cpu_s, udp_frame};
use anyhow::{Result, bail, ensure};
use ipnet::IpNet;
use ocs_dataplane::fabric::{Fabric, FabricConfig, Tap};
use ocs_dataplane::model::{
    Direction, Group, GroupId, Mac, Peer, Policy, Port, PortId, Rate, Rule, Tracking, Traffic, Vni,
};
use ocs_dataplane::shared::layout::{Direction as Way, Reason};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

const UDP: u8 = 17;
const PORT: u16 = 10_020;
/// Live frames in flight, as the peer's sender has them.
const BATCH: u32 = 64;

/// Bytes before each frame of the guest's end (`virtio_net_hdr_v1`).
pub const HEADER_BYTES: usize = 12;

/// A guest's end.
pub struct End {
    pub file: File,
    pub mac: [u8; 6],
    pub address: Ipv4Addr,
}

/// Two taps under policy.
pub struct Path {
    fabric: Option<Fabric>,
    tap_a: Tap,
    tap_b: Tap,
    there: Vec<u8>,
    new_flows: Program,
    _dir: tempfile::TempDir,
}

impl Path {
    /// Sets it up, with rules for so many ports, and shows that the flow is established.
    pub fn new(rule_count: u16) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("netns"))?;
        std::fs::create_dir_all(dir.path().join("bpf"))?;
        let fabric = Fabric::open(FabricConfig::under(dir.path()))?;
        let tap_a = fabric.create_tap("tap-a")?;
        let tap_b = fabric.create_tap("tap-b")?;
        let tcp_in = Rule {
            direction: Direction::Ingress,
            traffic: Traffic::Protocol(6),
            peer: Peer::Group(GroupId("sg".into())),
        };
        let all_out = Rule {
            direction: Direction::Egress,
            traffic: Traffic::All,
            peer: Peer::Cidr(IpNet::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0)?),
        };
        let mut rules = std::collections::BTreeSet::from([all_out, tcp_in]);
        for port in PORT + 1 - rule_count..=PORT {
            rules.insert(Rule {
                direction: Direction::Ingress,
                traffic: Traffic::Ports {
                    protocol: UDP,
                    from: port,
                    to: port,
                },
                peer: Peer::Group(GroupId("sg".into())),
            });
        }
        let mut policy = Policy::default();
        policy.groups.insert(GroupId("sg".into()), Group { rules });
        for (name, last, tap) in [("a", 10, &tap_a), ("b", 11, &tap_b)] {
            policy.ports.insert(
                PortId(name.into()),
                Port {
                    ifindex: tap.ifindex,
                    vni: Vni(1),
                    mac: mac(last),
                    addresses: [IpAddr::V4(address(last))].into(),
                    subnet: IpNet::new(IpAddr::V4(address(0)), 24)?,
                    groups: [GroupId("sg".into())].into(),
                    service_address: Ipv4Addr::new(169, 254, 1, last),
                    rate: Rate::default(),
                    table: None,
                    acl: None,
                    source_dest_check: true,
                    publics: BTreeMap::new(),
                    tracking: Tracking::default(),
                    mtu: 1500,
                },
            );
        }
        fabric.apply(&policy)?;
        let end = |last: u8| (mac(last).0, address(last).octets());
        let (a, b) = (end(10), end(11));
        let there = udp_frame((&a.0, a.1, PORT), (&b.0, b.1, PORT));
        let back = udp_frame((&b.0, b.1, PORT), (&a.0, a.1, PORT));
        for (ifindex, frame) in [(tap_a.ifindex, &there), (tap_b.ifindex, &back)] {
            fabric.run_port(ifindex, frame, 1, Some(1))?;
        }
        let mut buffer = [0u8; 2048];
        for tap in [&tap_a, &tap_b] {
            let read = rustix::io::read(&tap.fd, &mut buffer)?;
            ensure!(read > super::FRAME_BYTES, "the path delivers nothing");
        }
        let new_flows = Program::call_with_new_flows(&fabric.port_program()?)?;
        Ok(Self {
            new_flows,
            fabric: Some(fabric),
            tap_a,
            tap_b,
            there,
            _dir: dir,
        })
    }

    /// Sends established frames; millions a second. Each must have been forwarded.
    pub fn send_mpps(&self, frames: u32) -> Result<f64> {
        let Some(fabric) = &self.fabric else {
            bail!("the fabric is gone")
        };
        let before = forwarded(fabric)?;
        let start = cpu_s();
        fabric.run_port(self.tap_a.ifindex, &self.there, frames, Some(BATCH))?;
        let used = cpu_s() - start;
        let passed = forwarded(fabric)? - before;
        ensure!(
            passed == u64::from(frames),
            "of {frames} frames {passed} were forwarded: {:?}",
            fabric.counters(&PortId("a".into()))?
        );
        Ok(f64::from(frames) / used / 1e6)
    }
}

impl Path {
    /// Copies of the guests' ends.
    pub fn ends(&self) -> Result<[End; 2]> {
        let end = |tap: &Tap, last| {
            anyhow::Ok(End {
                file: tap.fd.try_clone()?.into(),
                mac: mac(last).0,
                address: address(last),
            })
        };
        Ok([end(&self.tap_a, 10)?, end(&self.tap_b, 11)?])
    }

    /// Sends frames of which each but a few is another flow's: there are 65,536 source
    /// ports, and each port's table holds 4,096 flows.
    pub fn send_new_mpps(&self, frames: u32) -> Result<f64> {
        let Some(fabric) = &self.fabric else {
            bail!("the fabric is gone")
        };
        let before = forwarded(fabric)?;
        let namespace = fabric.taps_namespace();
        let used = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                // SAFETY: changes this thread's network namespace alone.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                ensure!(entered == 0, "cannot enter the taps' namespace");
                let start = cpu_s();
                self.new_flows
                    .send(self.tap_a.ifindex, &self.there, frames)?;
                Ok(cpu_s() - start)
            });
            sender
                .join()
                .unwrap_or_else(|_| bail!("the sender panicked"))
        })?;
        let passed = forwarded(fabric)? - before;
        ensure!(
            passed == u64::from(frames),
            "of {frames} frames of new flows {passed} were forwarded"
        );
        Ok(f64::from(frames) / used / 1e6)
    }
}

fn forwarded(fabric: &Fabric) -> Result<u64> {
    let counters = fabric.counters(&PortId("a".into()))?;
    Ok(counters.get(Way::Egress, Reason::Forwarded))
}

impl Drop for Path {
    fn drop(&mut self) {
        if let Some(fabric) = self.fabric.take()
            && let Err(error) = fabric.teardown()
        {
            eprintln!("the fabric is not gone: {error}");
        }
    }
}

fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, last])
}

fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}
