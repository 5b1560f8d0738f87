//! Peers that are not ours: the kernel's own VXLAN device, and a bridge behind it.

use std::io::{BufRead, BufReader};
use std::net::{Ipv4Addr, UdpSocket};
use std::process::{Child, Command, Stdio};
use std::rc::Rc;
use std::sync::mpsc::{self, Receiver};
use std::time::Duration;

use ocs_dataplane::model::{Mac, Port, PortId};

use super::support::Guest;
use super::support::frames::{checksums_hold, icmp, payload, udp};
use super::support::policy::{all_out, end, policy, port};
use super::support::underlay::{Netns, run};
use super::{Host, VNI, remote};

/// `ETHTOOL_SGRO`, `ETHTOOL_STXCSUM` (linux/ethtool.h).
const TAKE_REDIRECTED: u32 = 0x2c;
const CHECKSUMS_BY_DEVICE: u32 = 0x17;

/// Turns an interface's feature on or off.
fn ethtool(netns: &Netns, interface: &str, feature: u32, on: bool) {
    let script = "import fcntl,socket,struct,array,sys\n\
                  value=array.array('I',[int(sys.argv[2]),int(sys.argv[3])])\n\
                  request=struct.pack('16sP',sys.argv[1].encode(),value.buffer_info()[0])\n\
                  fcntl.ioctl(socket.socket(),0x8946,request)";
    let words = [feature, u32::from(on)].map(|word| word.to_string());
    netns.within(|| run(&["python3", "-c", script, interface, &words[0], &words[1]]));
}

const FOREIGN: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 50);

/// A on a host of ours, and a namespace whose VXLAN device is the kernel's: `vx0`.
struct Foreign {
    host: Host,
    foreign: Rc<Netns>,
    a: Guest,
    port_a: (PortId, Port),
    far: Port,
}

fn text(mac: Mac) -> String {
    mac.0.map(|byte| format!("{byte:02x}")).join(":")
}

impl Foreign {
    fn new() -> Self {
        let host = Host::new(1);
        let foreign = Rc::new(Netns::new());
        host.netns.cable("up0", &foreign, "up1");
        host.attach("up0");
        let a = Guest::new(&host.lab, "tap-a");
        let port_a = port(a.ifindex, VNI, [10, 0, 0, 10], &["a"], [169, 254, 1, 1]);
        let far = port(0, VNI, FAR.octets(), &["far"], [169, 254, 1, 2]).1;
        // A veth takes redirected frames only with that, or a program.
        ethtool(&foreign, "up1", TAKE_REDIRECTED, true);
        foreign.ip(&format!("addr add {FOREIGN}/24 dev up1"));
        foreign.ip(&format!(
            "link add vx0 type vxlan id {VNI} dstport 4789 local {FOREIGN} dev up1"
        ));
        let new = Self {
            host,
            foreign,
            a,
            port_a,
            far,
        };
        let mac = text(new.port_a.1.mac);
        new.foreign.within(|| {
            let words = ["append", &mac, "dev", "vx0", "dst", "192.0.2.1"];
            run(&[&["bridge", "fdb"][..], &words].concat())
        });
        let mut wanted = policy([new.port_a.clone()], [("a", vec![all_out()])]);
        wanted.remotes.extend([remote(&new.far, FOREIGN)]);
        new.host.apply(&wanted);
        new
    }

    /// Gives an interface of a namespace the far address, and says where A is.
    fn settle(&self, netns: &Netns, interface: &str) {
        let (far, a) = (text(self.far.mac), text(self.port_a.1.mac));
        netns.ip(&format!("link set {interface} address {far} mtu 1450 up"));
        netns.ip(&format!("addr add {FAR}/24 dev {interface}"));
        netns.ip(&format!("neigh add 10.0.0.10 lladdr {a} dev {interface}"));
    }

    /// A pings the far one, then asks it something by UDP.
    fn converse(&mut self, netns: &Netns) {
        let (a, far) = (end(&self.port_a.1, 40_000), end(&self.far, 7));
        self.a.send(&icmp(a, far, 8, 0, 77, b"hello"));
        let answer = self.a.receive();
        assert_eq!(payload(&answer)[0], 0, "an echo reply of the kernel");
        assert_eq!(&payload(&answer)[8..], b"hello");
        assert!(checksums_hold(&answer));

        let socket = netns.within(|| UdpSocket::bind((FAR, 7)));
        let socket = socket.expect("a socket");
        socket
            .set_read_timeout(Some(Duration::from_secs(5)))
            .expect("a time-out");
        self.a.send(&udp(a, far, b"question"));
        let mut bytes = [0; 64];
        let (length, from) = socket.recv_from(&mut bytes).expect("a datagram");
        assert_eq!(&bytes[..length], b"question");
        assert_eq!(from.to_string(), "10.0.0.10:40000");
        socket.send_to(b"answer", from).expect("an answer");
        assert_eq!(&payload(&self.a.receive())[8..], b"answer");
    }
}

#[test]
fn a_kernel_vxlan_device_is_a_peer() {
    let mut net = Foreign::new();
    let foreign = Rc::clone(&net.foreign);
    net.settle(&foreign, "vx0");
    net.converse(&foreign);
}

/// The kernel's bridge has the VXLAN device as a port, and another namespace behind another.
#[test]
fn a_bridge_behind_a_kernel_vxlan_device_is_a_peer() {
    let mut net = Foreign::new();
    let behind = Netns::new();
    net.foreign.cable("p0", &behind, "eth0");
    for line in [
        "link add br0 type bridge",
        "link set p0 master br0",
        "link set vx0 master br0 up",
        "link set br0 up",
    ] {
        net.foreign.ip(line);
    }
    ethtool(&behind, "eth0", CHECKSUMS_BY_DEVICE, false);
    net.settle(&behind, "eth0");
    net.converse(&behind);
}

/// A dissector that is not ours, on the cable.
struct Tshark {
    child: Child,
    lines: Receiver<String>,
}

impl Tshark {
    /// Says these fields of each frame of VXLAN.
    fn watch(netns: &Netns, interface: &str, fields: &[&str]) -> Self {
        let mut words = vec!["-l", "-n", "-i", interface, "-f", "udp port 4789"];
        words.extend([
            "-o",
            "ip.check_checksum:TRUE",
            "-o",
            "udp.check_checksum:TRUE",
        ]);
        words.extend(["-T", "fields"]);
        words.extend(fields.iter().flat_map(|field| ["-e", field]));
        let mut child = netns.within(|| {
            Command::new("tshark")
                .args(words)
                .stdout(Stdio::piped())
                .stderr(Stdio::null())
                .spawn()
                .expect("tshark, a Debian package")
        });
        let (tell, lines) = mpsc::channel();
        let said = BufReader::new(child.stdout.take().expect("a pipe"));
        std::thread::spawn(move || {
            let mut said = said.lines().map_while(Result::ok);
            while said.next().is_some_and(|line| tell.send(line).is_ok()) {}
        });
        Self { child, lines }
    }
}

impl Drop for Tshark {
    fn drop(&mut self) {
        let _ended = self.child.kill();
        let _status = self.child.wait();
    }
}

#[test]
fn a_dissector_reads_what_crosses() {
    let mut net = Foreign::new();
    let foreign = Rc::clone(&net.foreign);
    net.settle(&foreign, "vx0");
    let watched = Tshark::watch(
        &foreign,
        "up1",
        &[
            "vxlan.vni",
            "vxlan.flags",
            "ip.src",
            "ip.dst",
            "udp.dstport",
            "ip.checksum.status",
            "udp.checksum.status",
            "icmp.checksum.status",
            "_ws.malformed",
        ],
    );
    let (a, far) = (end(&net.port_a.1, 40_000), end(&net.far, 7));
    // It takes its time until it listens.
    let line = (0..100).find_map(|_| {
        net.a.send(&icmp(a, far, 8, 0, 77, b"hello"));
        net.a.receive();
        watched.lines.recv_timeout(Duration::from_millis(200)).ok()
    });
    // RFC 7348 §5: the I flag alone. Checksums are good (1), but for UDP's outside, which is
    // not there (3); and nothing is malformed.
    let expected = "5\t0x0800\t192.0.2.1,10.0.0.10\t192.0.2.2,10.0.0.50\t4789\t1,1\t3\t1\t";
    assert_eq!(line.as_deref(), Some(expected));
}
