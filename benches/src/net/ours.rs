//! The real fabric with two ports and the policy of the peer: so many rules, default deny.

use super::bpf::{ANY_PORT, Program};
use super::{cpu_s, kernel, udp_frame};
use anyhow::{Context, Result, bail, ensure};
use ipnet::IpNet;
use ocs_dataplane::fabric::{Fabric, FabricConfig, FabricError, Tap, UplinkConfig};
use ocs_dataplane::model::{
    Direction, Group, GroupId, Mac, Peer, Policy, Port, PortId, Rate, Remote, Rule, Tracking,
    Traffic, Vni,
};
use ocs_dataplane::shared::layout::{Direction as Way, Reason};
use std::collections::BTreeMap;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsRawFd;

const UDP: u8 = 17;
pub const PORT: u16 = 10_020;
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
    policy: Policy,
    _dir: tempfile::TempDir,
}

impl Path {
    /// Sets it up, with rules for so many ports, and shows that the flow is established.
    pub fn new(rule_count: u16) -> Result<Self> {
        Self::between(rule_count, Fabric::create_tap)
    }

    /// The same between guests that leave checksums and segmentation to each other.
    pub fn with_offloads(rule_count: u16) -> Result<Self> {
        Self::between(rule_count, Fabric::create_offload_tap)
    }

    fn between(
        rule_count: u16,
        create_tap: impl Fn(&Fabric, &str) -> Result<Tap, FabricError>,
    ) -> Result<Self> {
        let dir = tempfile::tempdir()?;
        std::fs::create_dir_all(dir.path().join("netns"))?;
        std::fs::create_dir_all(dir.path().join("bpf"))?;
        let fabric = Fabric::open(FabricConfig::under(dir.path()))?;
        let tap_a = create_tap(&fabric, "tap-a")?;
        let tap_b = create_tap(&fabric, "tap-b")?;
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
            let service_address = Ipv4Addr::new(169, 254, 1, last);
            let port = port(tap.ifindex, mac(last), address(last), service_address)?;
            policy.ports.insert(PortId(name.into()), port);
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
        let new_flows = Program::call_with_flows(&fabric.port_program()?, ANY_PORT)?;
        Ok(Self {
            new_flows,
            policy,
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

    /// Two more guests, of the same group.
    pub fn neighbours(
        &mut self,
        create_tap: impl Fn(&Fabric, &str) -> Result<Tap, FabricError>,
    ) -> Result<[End; 2]> {
        let fabric = self.fabric.as_ref().context("the fabric is gone")?;
        let mut make = |name: &str, last| {
            let tap = create_tap(fabric, name)?;
            let service_address = Ipv4Addr::new(169, 254, 1, last);
            let port = port(tap.ifindex, mac(last), address(last), service_address)?;
            self.policy.ports.insert(PortId(name.into()), port);
            anyhow::Ok(End {
                file: tap.fd.into(),
                mac: mac(last).0,
                address: address(last),
            })
        };
        let ends = [make("tap-c", 13)?, make("tap-d", 14)?];
        fabric.apply(&self.policy)?;
        Ok(ends)
    }

    /// Sends frames of which each but a few is another flow's: there are 65,536 source
    /// ports, and each port's table holds 4,096 flows.
    pub fn send_new_mpps(&self, frames: u32) -> Result<f64> {
        self.send_by_mpps(&self.new_flows, frames)
    }

    /// A sender of so many flows' frames, in no order; a power of two.
    pub fn sender_of(&self, flows: u16) -> Result<Program> {
        let fabric = self.fabric.as_ref().context("the fabric is gone")?;
        Program::call_with_flows(&fabric.port_program()?, flows - 1)
    }

    /// Sends frames by such a sender.
    pub fn send_by_mpps(&self, sender: &Program, frames: u32) -> Result<f64> {
        let Some(fabric) = &self.fabric else {
            bail!("the fabric is gone")
        };
        let before = forwarded(fabric)?;
        let namespace = fabric.taps_namespace();
        let used = std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: changes this thread's network namespace alone.
                let entered = unsafe { libc::setns(namespace.as_raw_fd(), libc::CLONE_NEWNET) };
                ensure!(entered == 0, "cannot enter the taps' namespace");
                let start = cpu_s();
                sender.send(self.tap_a.ifindex, &self.there, frames)?;
                Ok(cpu_s() - start)
            });
            thread
                .join()
                .unwrap_or_else(|_| bail!("the sender panicked"))
        })?;
        let passed = forwarded(fabric)? - before;
        ensure!(
            passed == u64::from(frames),
            "of {frames} frames {passed} were forwarded"
        );
        Ok(f64::from(frames) / used / 1e6)
    }
}

/// A path to a port on another host: judged, wrapped, and sent out of the uplink, here a
/// tap that nobody reads, too.
pub struct Encap {
    path: Path,
    _uplink: kernel::Tap,
}

/// Where the other host is, and whom it has.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
/// Where we are.
pub const OWN_HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
pub const FAR: u8 = 12;

impl Encap {
    /// Sets it up, and shows that a frame leaves wrapped.
    pub fn new() -> Result<Self> {
        let mut path = Path::new(20)?;
        path.policy
            .remotes
            .insert((Vni(1), IpAddr::V4(address(FAR))), remote(FAR));
        let mut uplink = std::thread::scope(|scope| {
            let fabric = path.fabric.as_ref().context("the fabric is gone")?;
            let uplink = scope.spawn(|| attach_uplink(fabric, &path.policy));
            uplink
                .join()
                .unwrap_or_else(|_| bail!("the uplink's thread panicked"))
        })?;
        let (a, far) = (mac(10).0, mac(FAR).0);
        path.there = udp_frame(
            (&a, address(10).octets(), PORT),
            (&far, address(FAR).octets(), PORT),
        );
        path.send_mpps(1)?;
        let mut buffer = [0u8; 2048];
        loop {
            // The kernel itself may have said something there before.
            let read = std::io::Read::read(&mut uplink.file, &mut buffer)?;
            if read == super::FRAME_BYTES + 50 && buffer[36..38] == 4789u16.to_be_bytes() {
                break;
            }
        }
        Ok(Self {
            path,
            _uplink: uplink,
        })
    }

    /// Sends established frames; millions a second.
    pub fn send_mpps(&self, frames: u32) -> Result<f64> {
        self.path.send_mpps(frames)
    }
}

pub fn remote(last: u8) -> Remote {
    Remote {
        host: HOST,
        mac: mac(last),
        groups: [GroupId("sg".into())].into(),
        forwards: false,
    }
}

/// Mappings among which an ENI's groups change.
pub const MAPPINGS: u32 = 10_000;

/// The fabric with many mappings, of which one changes its groups.
pub struct Regroup(Path);

impl Regroup {
    /// Sets it up.
    pub fn new() -> Result<Self> {
        let mut path = Path::new(20)?;
        let other = GroupId("other".into());
        path.policy.groups.insert(other.clone(), Group::default());
        for number in 0..MAPPINGS {
            let address = u32::from(Ipv4Addr::new(10, 1, 0, 0)) + number;
            let mut remote = remote(FAR);
            if number == 1 {
                remote.groups = [other.clone()].into();
            }
            path.policy
                .remotes
                .insert((Vni(1), IpAddr::V4(address.into())), remote);
        }
        let mut regroup = Self(path);
        regroup.change_ms(1)?;
        Ok(regroup)
    }

    /// Changes one ENI's groups so often; milliseconds a change.
    pub fn change_ms(&mut self, changes: u32) -> Result<f64> {
        let Path { fabric, policy, .. } = &mut self.0;
        let fabric = fabric.as_ref().context("the fabric is gone")?;
        let key = (Vni(1), IpAddr::V4(Ipv4Addr::new(10, 1, 0, 0)));
        let start = std::time::Instant::now();
        for _ in 0..changes {
            let remote = policy.remotes.get_mut(&key).context("the ENI is gone")?;
            let name = if remote.groups.contains(&GroupId("sg".into())) {
                "other"
            } else {
                "sg"
            };
            remote.groups = [GroupId(name.into())].into();
            ensure!(
                fabric.apply(policy)?.map_writes > 0,
                "a change changed nothing"
            );
        }
        Ok(start.elapsed().as_secs_f64() * 1e3 / f64::from(changes))
    }
}

/// In a namespace of the thread's own: a tap as uplink, and a neighbour behind it.
pub fn attach_uplink(fabric: &Fabric, policy: &Policy) -> Result<kernel::Tap> {
    // SAFETY: changes this thread's network namespace alone.
    if unsafe { libc::unshare(libc::CLONE_NEWNET) } < 0 {
        return Err(std::io::Error::last_os_error().into());
    }
    let uplink = kernel::Tap::new("up0")?;
    kernel::run(&format!("ip address add {OWN_HOST}/24 dev up0"))?;
    kernel::run("ip link set up0 up")?;
    kernel::run(&format!(
        "ip neighbour add {HOST} lladdr 02:00:00:00:02:02 dev up0 nud permanent"
    ))?;
    fabric.set_uplink(UplinkConfig {
        interface: "up0".into(),
        address: OWN_HOST,
        outside: false,
    })?;
    fabric.apply(policy)?;
    ensure!(fabric.refresh_hosts()? == 0, "the other host is not known");
    Ok(uplink)
}

/// A port in group `sg` of 10.0.0.0/16.
pub fn port(ifindex: u32, mac: Mac, address: Ipv4Addr, service: Ipv4Addr) -> Result<Port> {
    Ok(Port {
        ifindex,
        vni: Vni(1),
        mac,
        addresses: [IpAddr::V4(address)].into(),
        subnet: IpNet::new(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 0)), 16)?,
        ipv6_subnet: None,
        groups: [GroupId("sg".into())].into(),
        service_address: service,
        resolver: None,
        rate: Rate::default(),
        meter: None,
        table: None,
        acl: None,
        source_dest_check: true,
        publics: BTreeMap::new(),
        tracking: Tracking::default(),
        mtu: 1500,
    })
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

pub fn mac(last: u8) -> Mac {
    Mac([2, 0, 0, 0, 1, last])
}

pub fn address(last: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 0, 0, last)
}
