//! Two namespaces, a veth pair and a state folder, all removed at the end.

use ocs_node::responder::record::{
    Facts, Instance, Interface, Ipv6, Options, RECORD_VERSION, Record,
};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::{File, Permissions};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::PermissionsExt;
use std::process::{Child, Command, ExitStatus};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const RESPONDER: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
pub const RESPONDER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254);
pub const RESOLVER_IPV6: Ipv6Addr = Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x253);
const UID: &str = "64002";
/// Long enough for a machine under load; no test waits for it but to fail.
const PATIENCE: Duration = Duration::from_secs(20);
/// How long silence must last to be believed.
const SILENCE: Duration = Duration::from_millis(500);

pub struct Bed {
    server: String,
    guests: String,
    state: tempfile::TempDir,
}

/// The responder; killed when dropped.
pub struct Responder(Child);

impl Bed {
    pub fn new() -> Self {
        let bed = Self::without_address();
        bed.add_address();
        bed
    }

    pub fn without_address() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let name = format!(
            "{}-{}",
            std::process::id(),
            NEXT.fetch_add(1, Ordering::Relaxed)
        );
        let state = tempfile::tempdir().unwrap();
        std::fs::set_permissions(state.path(), Permissions::from_mode(0o755)).unwrap();
        let records = state.path().join("run/responder");
        std::fs::create_dir_all(&records).unwrap();
        let bed = Self {
            server: format!("ocs-s-{name}"),
            guests: format!("ocs-g-{name}"),
            state,
        };
        ip(&["netns", "add", &bed.server]);
        ip(&["netns", "add", &bed.guests]);
        let (server, guests) = (bed.server.as_str(), bed.guests.as_str());
        ip(&[
            "-n", guests, "link", "add", "svc0", "type", "veth", "peer", "name", "svc1", "netns",
            server,
        ]);
        for last in 1..=3 {
            let address = format!("169.254.1.{last}/16");
            ip(&["-n", guests, "addr", "add", &address, "dev", "svc0"]);
            let address = format!("{}/32", as_ipv6([169, 254, 1, last].into()));
            ip(&[
                "-n", guests, "addr", "add", &address, "dev", "svc0", "nodad",
            ]);
        }
        ip(&["-n", guests, "link", "set", "svc0", "up"]);
        ip(&["-n", server, "link", "set", "svc1", "up"]);
        bed
    }

    pub fn add_address(&self) {
        let address = format!("{RESPONDER}/16");
        ip(&["-n", &self.server, "addr", "add", &address, "dev", "svc1"]);
        for address in [RESPONDER_IPV6, RESOLVER_IPV6] {
            let address = format!("{address}/32");
            ip(&[
                "-n",
                &self.server,
                "addr",
                "add",
                &address,
                "dev",
                "svc1",
                "nodad",
            ]);
        }
    }

    /// Takes the interface away.
    pub fn cut(&self) {
        ip(&["-n", &self.guests, "link", "del", "svc0"]);
    }

    pub fn put(&self, address: Ipv4Addr, instance: &str, change: impl FnOnce(&mut Record)) {
        let mut record = record(instance);
        change(&mut record);
        let folder = self.state.path().join("run/responder");
        record
            .write(&folder, address, UID.parse().unwrap())
            .unwrap();
    }

    pub fn remove(&self, address: Ipv4Addr) {
        Record::remove(&self.state.path().join("run/responder"), address).unwrap();
    }

    pub fn spawn(&self) -> Responder {
        let child = Command::new(env!("CARGO_BIN_EXE_ocs-responder"))
            .arg("--state")
            .arg(self.state.path())
            .arg("--netns")
            .arg(format!("/run/netns/{}", self.server))
            .args(["--uid", UID, "--gid", UID])
            .spawn()
            .unwrap();
        Responder(child)
    }

    /// Spawns a responder and waits until it takes connections.
    pub fn start(&self) -> Responder {
        let responder = self.spawn();
        self.until_listening();
        responder
    }

    pub fn until_listening(&self) {
        self.until("the responder listens", || {
            self.inside(|| TcpStream::connect((RESPONDER, 80)).is_ok())
        });
    }

    pub fn until(&self, what: &str, mut done: impl FnMut() -> bool) {
        let deadline = Instant::now() + PATIENCE;
        while !done() {
            assert!(Instant::now() < deadline, "not in time: {what}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// One datagram of `peer`, port 68, and its answer.
    pub fn datagram(&self, peer: Ipv4Addr, bytes: &[u8]) -> Option<Vec<u8>> {
        self.datagram_to(peer, 67, bytes)
    }

    /// A datagram to a port of the responder's, from a DHCP client's, and what comes back.
    pub fn datagram_to(&self, peer: Ipv4Addr, port: u16, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = self.inside(|| UdpSocket::bind((peer, 68)).unwrap());
        socket.send_to(bytes, (RESPONDER, port)).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let mut buffer = [0u8; 2048];
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, SocketAddr::from((RESPONDER, port)));
        Some(buffer[..length].to_vec())
    }

    /// A datagram from an ENI's address by IPv6, from a DHCPv6 client's port, and what comes back.
    pub fn ipv6_datagram(&self, peer: Ipv4Addr, to: SocketAddr, bytes: &[u8]) -> Option<Vec<u8>> {
        let socket = self.inside(|| UdpSocket::bind((as_ipv6(peer), 546)).unwrap());
        socket.send_to(bytes, to).unwrap();
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        let mut buffer = [0u8; 2048];
        let (length, from) = socket.recv_from(&mut buffer).ok()?;
        assert_eq!(from, to);
        Some(buffer[..length].to_vec())
    }

    /// What an ENI's address hears of its router: hop limit's and the message's bytes.
    pub fn advertisements(&self) -> std::os::fd::OwnedFd {
        use rustix::net::{AddressFamily, SocketType, ipproto, socket};
        let icmp = Some(ipproto::ICMPV6);
        self.inside(|| socket(AddressFamily::INET6, SocketType::RAW, icmp).unwrap())
    }

    /// A message behind its length on a connection, and the one that comes back.
    pub fn framed(&self, peer: Ipv4Addr, port: u16, message: &[u8]) -> Vec<u8> {
        let mut stream = self.connect_to(peer, port);
        let length = u16::try_from(message.len()).unwrap().to_be_bytes();
        stream.write_all(&[&length, message].concat()).unwrap();
        let mut length = [0; 2];
        stream.read_exact(&mut length).unwrap();
        let mut answer = vec![0; usize::from(u16::from_be_bytes(length))];
        stream.read_exact(&mut answer).unwrap();
        answer
    }

    pub fn connect(&self, peer: Ipv4Addr) -> TcpStream {
        self.connect_to(peer, 80)
    }

    pub fn ipv6_connect(&self, peer: Ipv4Addr) -> TcpStream {
        self.connect_as(as_ipv6(peer).into(), (RESPONDER_IPV6, 80).into())
    }

    fn connect_to(&self, peer: Ipv4Addr, port: u16) -> TcpStream {
        self.connect_as(peer.into(), (RESPONDER, port).into())
    }

    fn connect_as(&self, own: IpAddr, to: SocketAddr) -> TcpStream {
        // std cannot bind before it connects.
        self.inside(|| {
            use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
            let family = match own {
                IpAddr::V4(_) => AddressFamily::INET,
                IpAddr::V6(_) => AddressFamily::INET6,
            };
            let socket = socket(family, SocketType::STREAM, None).unwrap();
            bind(&socket, &SocketAddr::from((own, 0))).unwrap();
            connect(&socket, &to).unwrap();
            let stream = TcpStream::from(socket);
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream
        })
    }

    pub fn http(&self, peer: Ipv4Addr) -> Http<'_> {
        Http {
            bed: self,
            peer,
            min_ttl: 0,
            patience: PATIENCE,
        }
    }

    /// Runs `f` in the guests' namespace, on a thread of its own.
    fn inside<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let netns = File::open(format!("/run/netns/{}", self.guests)).unwrap();
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
                f()
            });
            thread.join().unwrap()
        })
    }
}

impl Drop for Bed {
    fn drop(&mut self) {
        for name in [&self.server, &self.guests] {
            let _ = Command::new("ip").args(["netns", "del", name]).status();
        }
    }
}

impl Responder {
    pub fn id(&self) -> u32 {
        self.0.id()
    }

    pub fn wait(&mut self) -> ExitStatus {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(status) = self.0.try_wait().unwrap() {
                return status;
            }
            assert!(Instant::now() < deadline, "the responder is still there");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Requests of one service address, each on a connection of its own.
pub struct Http<'a> {
    bed: &'a Bed,
    peer: Ipv4Addr,
    min_ttl: i32,
    patience: Duration,
}

pub struct Answer {
    pub status: u16,
    pub body: String,
}

impl Http<'_> {
    pub fn min_ttl(mut self, hops: i32) -> Self {
        self.min_ttl = hops;
        self
    }

    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// `None` where the connection ends, or nothing comes, without an answer.
    pub fn ask(&self, method: &str, path: &str, headers: &[&str]) -> Option<Answer> {
        let mut request = format!("{method} {path} HTTP/1.1\r\nHost: {RESPONDER}\r\n");
        for header in headers {
            request += header;
            request += "\r\n";
        }
        Self::raw(self.connect(), &(request + "Connection: close\r\n\r\n"))
    }

    /// A connection as far away and as patient as was said.
    pub fn connect(&self) -> TcpStream {
        let stream = self.bed.connect(self.peer);
        stream.set_read_timeout(Some(self.patience)).unwrap();
        if self.min_ttl > 0 {
            let size = u32::try_from(size_of::<i32>()).unwrap();
            // SAFETY: the option's value is an int that outlives the call.
            let done = unsafe {
                libc::setsockopt(
                    stream.as_raw_fd(),
                    libc::IPPROTO_IP,
                    libc::IP_MINTTL,
                    (&raw const self.min_ttl).cast(),
                    size,
                )
            };
            assert_eq!(done, 0);
        }
        stream
    }

    /// Sends `request` as it is.
    pub fn raw(mut stream: TcpStream, request: &str) -> Option<Answer> {
        let _ = stream.write_all(request.as_bytes());
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        let text = String::from_utf8_lossy(&bytes);
        let (head, body) = text.split_once("\r\n\r\n")?;
        Some(Answer {
            status: head.split(' ').nth(1)?.parse().ok()?,
            body: body.to_owned(),
        })
    }
}

/// What the responder takes an ENI for that asks by IPv6.
fn as_ipv6(peer: Ipv4Addr) -> Ipv6Addr {
    let [a, b, c, d] = peer.octets().map(u16::from);
    Ipv6Addr::new(0xfd00, 0x0ec2, a << 8 | b, c << 8 | d, 0, 0, 0, 5)
}

fn ip(arguments: &[&str]) {
    let status = Command::new("ip").args(arguments).status();
    assert!(
        status.is_ok_and(|status| status.success()),
        "ip {arguments:?} failed (needs root and iproute2)"
    );
}

fn record(instance: &str) -> Record {
    let text = String::from;
    Record {
        version: RECORD_VERSION,
        instance: Instance {
            id: text(instance),
            account_id: text("123456789012"),
            ami_id: text("ami-1"),
            instance_type: text("t3.micro"),
            region: text("us-east-1"),
            availability_zone: text("us-east-1a"),
            availability_zone_id: text("use1-az1"),
            reservation_id: text("r-1"),
            ami_launch_index: 0,
            hostname: text("ip-172-31-16-5.ec2.internal"),
            public_ip: None,
            public_hostname: String::new(),
            user_data: Vec::new(),
            security_group_names: Vec::new(),
            vpc_id: text("vpc-1"),
            subnet_id: text("subnet-1"),
            key_name: String::new(),
            public_key: String::new(),
            http_endpoint_enabled: true,
            http_tokens_required: true,
            http_protocol_ipv6: true,
            http_put_response_hop_limit: 1,
            instance_metadata_tags: false,
            tags: [].into(),
            launch_time_s: 0,
            block_device_mapping: [].into(),
            placement_group_name: String::new(),
            partition_number: 0,
        },
        interfaces: vec![Interface {
            id: format!("eni-of-{instance}"),
            mac: text("02:00:00:00:00:2a"),
            private_ip: [172, 31, 16, 5].into(),
            secondary: Vec::new(),
            subnet_cidr: "172.31.16.0/20".parse().unwrap(),
            vpc_cidr: "172.31.0.0/16".parse().unwrap(),
            security_groups: Vec::new(),
            ipv6: Ipv6::default(),
            mtu: 1500,
            domain_name: text("ec2.internal"),
            options: Options::default(),
            facts: Facts::default(),
        }],
        interface: 0,
    }
}
