//! Where and as whom the responder runs: it enters its namespace, binds, and
//! gives up everything that made that possible.

use super::Config;
use super::dhcp::SERVER;
use ocs_dataplane::shared::ipv6::layout::{METADATA, RESOLVER};
use ocs_dataplane::shared::layout::DNS_LINK_LOCAL_PORT;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::Errno;
use rustix::net::netdevice::name_to_index;
use rustix::net::sockopt::{
    set_ipv6_freebind, set_ipv6_unicast_hops, set_ipv6_v6only, set_socket_recv_buffer_size,
    set_socket_reuseaddr,
};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, ipproto, listen, socket_with};
use rustix::process::{Gid, Resource, Rlimit, Uid, setrlimit};
use rustix::thread::{
    LinkNameSpaceType, move_into_link_name_space, set_no_new_privs, set_thread_groups,
    set_thread_res_gid, set_thread_res_uid,
};
use std::io;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::linux::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Where questions come: those to the VPC's own address, and those to 169.254.169.253.
const DNS_PORTS: [u16; 2] = [53, DNS_LINK_LOCAL_PORT];
/// DHCPv6 servers' port (RFC 8415 §7.2).
const DHCPV6: u16 = 547;
/// Connections that may wait to be accepted.
const BACKLOG: i32 = 128;
const RETRY: Duration = Duration::from_millis(200);
/// Two descriptors a connection, and room.
const MAX_OPEN_FILES: u64 = 2 * super::limits::CONNECTIONS as u64 + 256;

/// The bound sockets, and how to tell that their place is gone.
pub struct Place {
    /// UDP, [`SERVER`]:67.
    pub dhcp: UdpSocket,
    /// TCP, [`SERVER`]:80.
    pub imds: TcpListener,
    /// UDP, [`SERVER`] at each of [`DNS_PORTS`].
    pub dns_datagrams: Vec<UdpSocket>,
    /// TCP, likewise.
    pub dns_connections: Vec<TcpListener>,
    /// What of the host's kernel speaks IPv6; none: it does not.
    pub ipv6: Option<Ipv6>,
    netns: Option<PathBuf>,
    netns_inode: u64,
    interface: String,
    index: u32,
}

/// Sockets at [`METADATA`]; those of [`RESOLVER`] are among IPv4's.
pub struct Ipv6 {
    /// UDP, port 547.
    pub dhcp: UdpSocket,
    /// TCP, port 80.
    pub imds: TcpListener,
    /// ICMPv6: what the router says.
    pub router: UdpSocket,
}

/// Waits until namespace, interface and address are there, then binds.
///
/// Moves the calling thread: call it before any other thread is started.
pub fn enter(config: &Config) -> io::Result<Place> {
    let mut waiting = String::new();
    loop {
        match try_enter(config) {
            Ok(place) => return Ok(place),
            Err(error) if is_not_yet(&error) => {
                let text = error.to_string();
                if text != waiting {
                    tracing::info!(netns = ?config.netns, interface = config.interface, error = text, "waiting");
                    waiting = text;
                }
                std::thread::sleep(RETRY);
            }
            Err(error) => return Err(error),
        }
    }
}

/// Absent, not a namespace yet (the file before its mount), or without its address.
fn is_not_yet(error: &io::Error) -> bool {
    [
        Errno::NOENT,
        Errno::INVAL,
        Errno::NODEV,
        Errno::ADDRNOTAVAIL,
    ]
    .contains(&Errno::from_io_error(error).unwrap_or(Errno::IO))
}

fn try_enter(config: &Config) -> io::Result<Place> {
    if let Some(netns) = &config.netns {
        let file = open(netns, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?;
        move_into_link_name_space(file.as_fd(), Some(LinkNameSpaceType::Network))?;
    }
    let netns_inode = inode(Path::new("/proc/self/ns/net"))?;
    let dhcp = UdpSocket::bind((SERVER, 67))?;
    let imds = TcpListener::bind((SERVER, 80))?;
    let index = name_to_index(&dhcp, &config.interface)?;
    let dns_datagrams = DNS_PORTS.map(|port| UdpSocket::bind((SERVER, port)));
    let mut dns_datagrams = dns_datagrams.into_iter().collect::<io::Result<Vec<_>>>()?;
    let dns_connections = DNS_PORTS.map(|port| TcpListener::bind((SERVER, port)));
    let mut dns_connections = dns_connections
        .into_iter()
        .collect::<io::Result<Vec<_>>>()?;
    let ipv6 = match socket_with(
        AddressFamily::INET6,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    ) {
        Err(Errno::AFNOSUPPORT) => None,
        Err(error) => return Err(error.into()),
        Ok(_) => {
            dns_datagrams.push(ipv6_socket(SocketType::DGRAM, RESOLVER, DNS_PORTS[0])?.into());
            dns_connections.push(ipv6_socket(SocketType::STREAM, RESOLVER, DNS_PORTS[0])?.into());
            let dhcp: UdpSocket = ipv6_socket(SocketType::DGRAM, METADATA, DHCPV6)?.into();
            let imds: TcpListener = ipv6_socket(SocketType::STREAM, METADATA, 80)?.into();
            dhcp.set_nonblocking(true)?;
            imds.set_nonblocking(true)?;
            let router = router_socket()?.into();
            Some(Ipv6 { dhcp, imds, router })
        }
    };
    for socket in &dns_datagrams {
        socket.set_nonblocking(true)?;
    }
    for listener in &dns_connections {
        listener.set_nonblocking(true)?;
    }
    dhcp.set_nonblocking(true)?;
    imds.set_nonblocking(true)?;
    Ok(Place {
        dhcp,
        imds,
        dns_datagrams,
        dns_connections,
        ipv6,
        netns: config.netns.clone(),
        netns_inode,
        interface: config.interface.clone(),
        index,
    })
}

/// A socket that hears at an address, whether the interface has it yet or not: one that has
/// served IPv4 alone gets it when the packet path is opened again.
fn ipv6_socket(kind: SocketType, address: [u8; 16], port: u16) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::INET6, kind, SocketFlags::CLOEXEC, None)?;
    set_ipv6_v6only(&socket, true)?;
    set_ipv6_freebind(&socket, true)?;
    if kind == SocketType::STREAM {
        set_socket_reuseaddr(&socket, true)?;
    }
    bind(&socket, &SocketAddr::from((address, port)))?;
    if kind == SocketType::STREAM {
        listen(&socket, BACKLOG)?;
    }
    Ok(socket)
}

/// A socket whose messages have crossed no router. Nobody reads what it hears, of which there
/// is as little as the kernel lets there be.
fn router_socket() -> io::Result<OwnedFd> {
    let (family, flags) = (
        AddressFamily::INET6,
        SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
    );
    let socket = socket_with(family, SocketType::RAW, flags, Some(ipproto::ICMPV6))?;
    set_ipv6_freebind(&socket, true)?;
    set_ipv6_unicast_hops(&socket, Some(u8::MAX))?;
    set_socket_recv_buffer_size(&socket, 0)?;
    bind(&socket, &SocketAddr::from((METADATA, 0)))?;
    Ok(socket)
}

/// Gives up root for good: no identity, no capability, no way back through `execve`.
///
/// Like [`enter`] for the calling thread and those it starts later.
pub fn drop_privileges(uid: u32, gid: u32) -> io::Result<()> {
    let files = Some(MAX_OPEN_FILES);
    setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files,
            maximum: files,
        },
    )?;
    if uid == u32::MAX || gid == u32::MAX {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    set_thread_groups(&[])?;
    set_thread_res_gid(gid, gid, gid)?;
    // From root to another uid the kernel empties the permitted, effective and
    // ambient capability sets (capabilities(7)).
    set_thread_res_uid(uid, uid, uid)?;
    set_no_new_privs(true)?;
    Ok(())
}

impl Place {
    /// The interface that guests are behind.
    #[must_use]
    pub fn interface(&self) -> &str {
        &self.interface
    }

    /// Whether another namespace or interface has taken the place of ours, so
    /// that nobody asks here any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        if name_to_index(&self.dhcp, &self.interface) != Ok(self.index) {
            return true;
        }
        match self.netns.as_deref().map(inode) {
            Some(Ok(now)) => now != self.netns_inode,
            Some(Err(error)) => error.kind() == io::ErrorKind::NotFound,
            None => false,
        }
    }
}

fn inode(path: &Path) -> io::Result<u64> {
    Ok(std::fs::metadata(path)?.st_ino())
}
