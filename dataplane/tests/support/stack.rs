//! A Linux network stack as a guest: a namespace with a tap of its own, and threads that
//! carry frames between that tap and the guest's.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};

const FRAME_LONGEST: usize = 65_549;

/// Frames that hold TCP, one way.
type Count = Arc<AtomicU64>;

/// The namespace, its tap, its carriers. Gone with this.
pub struct Stack {
    namespace: File,
    ends: Arc<AtomicBool>,
    carriers: Vec<JoinHandle<()>>,
    sent: Count,
    received: Count,
}

/// `TUN_F_CSUM`, `TUN_F_TSO4`, `TUN_F_TSO6` and `TUN_F_TSO_ECN` of linux/if_tun.h.
const OFFLOADS: libc::c_uint = 1 | 2 | 4 | 8;
/// Length of `virtio_net_hdr_v1`.
const VNET_HEADER: usize = 12;

impl Stack {
    /// Behind a guest's tap, whose frames follow a header of so many bytes: with the guest's
    /// Ethernet address and its address. Each frame is whole.
    pub fn new(guest: File, header: usize, mac: [u8; 6], address: Ipv4Addr) -> Self {
        let (tap, namespace) = eth0(false, mac, address);
        Self::behind(tap, namespace, (guest, header), (0, header))
    }

    /// The same where checksums and segmentation are left to the other end, both ways: frames
    /// follow a `virtio_net_hdr_v1` that says so.
    pub fn with_offloads(guest: File, mac: [u8; 6], address: Ipv4Addr) -> Self {
        let (tap, namespace) = eth0(true, mac, address);
        set_offloads(&guest, OFFLOADS);
        Self::behind(tap, namespace, (guest, VNET_HEADER), (VNET_HEADER, 0))
    }

    /// `header` bytes come before each of the guest's frames, `own` before each of the stack's,
    /// of which `added` are not carried over but written.
    fn behind(
        tap: File,
        namespace: File,
        (guest, header): (File, usize),
        (own, added): (usize, usize),
    ) -> Self {
        let (ends, sent, received) = (Arc::default(), Count::default(), Count::default());
        let copy = |file: &File| file.try_clone().expect("a descriptor");
        let there = Carrier {
            header: own,
            skip: 0,
            add: added,
        };
        let back = Carrier {
            header,
            skip: added,
            add: 0,
        };
        let carriers = vec![
            there.carry(copy(&tap), copy(&guest), &sent, &ends),
            back.carry(guest, tap, &received, &ends),
        ];
        Self {
            namespace,
            ends,
            carriers,
            sent,
            received,
        }
    }

    /// TCP frames that the stack has sent, and those that have reached it.
    pub fn counts(&self) -> (u64, u64) {
        let of = |count: &Count| count.load(Ordering::SeqCst);
        (of(&self.sent), of(&self.received))
    }

    /// Gives it an IPv6 address in a /64, too.
    pub fn give_ipv6(&self, address: Ipv6Addr) {
        let given = self.spawn(move || {
            for of in ["all", "eth0"] {
                let switch = format!("/proc/sys/net/ipv6/conf/{of}/disable_ipv6");
                std::fs::write(switch, "0").expect("a sysctl");
            }
            ip(&format!("-6 addr add {address}/64 dev eth0 nodad"));
        });
        given.join().expect("an address");
    }

    /// Does something in the namespace, on a thread of its own.
    pub fn spawn<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> T + Send + 'static,
    ) -> JoinHandle<T> {
        let namespace = self.namespace.try_clone().expect("a descriptor");
        std::thread::spawn(move || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))
                .expect("entering a namespace");
            work()
        })
    }

    /// Counters of TCP by their names in `/proc/net/snmp` (RFC 4022).
    pub fn tcp(&self, name: &'static str) -> u64 {
        let read = self.spawn(move || {
            let text = std::fs::read_to_string("/proc/thread-self/net/snmp").expect("counters");
            let mut lines = text.lines().filter(|line| line.starts_with("Tcp:"));
            let mut words = || lines.next().expect("TCP's line").split_whitespace();
            let at = words().position(|word| word == name).expect("a counter");
            words().nth(at).expect("a value").parse().expect("a number")
        });
        read.join().expect("counters")
    }
}

/// A namespace with a tap of its own, and the other end of that.
fn eth0(offloads: bool, mac: [u8; 6], address: Ipv4Addr) -> (File, File) {
    std::thread::spawn(move || {
        // SAFETY: this thread alone leaves its namespace.
        unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a namespace");
        std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("a sysctl");
        let tap = open_tap("eth0", offloads);
        let mac = mac.map(|byte| format!("{byte:02x}")).join(":");
        for command in [
            format!("link set eth0 address {mac} up"),
            format!("addr add {address}/24 dev eth0"),
            "link set lo up".to_owned(),
        ] {
            ip(&command);
        }
        let namespace = File::open("/proc/thread-self/ns/net").expect("its own namespace");
        (tap, namespace)
    })
    .join()
    .expect("a stack")
}

impl Drop for Stack {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::SeqCst);
        for carrier in self.carriers.drain(..) {
            let _panicked = carrier.join();
        }
    }
}

pub fn ip(arguments: &str) {
    let status = Command::new("ip")
        .args(arguments.split_whitespace())
        .status()
        .expect("ip (Debian: iproute2)");
    assert!(status.success(), "ip {arguments}");
}

/// A tap in the thread's namespace, with `vnet_hdr` if there are to be offloads.
pub fn open_tap(name: &str, offloads: bool) -> File {
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")
        .expect("/dev/net/tun");
    // SAFETY: `ifreq` is made of integers, arrays and unions of them: zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    let header = if offloads { libc::IFF_VNET_HDR } else { 0 };
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI | header).expect("flags");
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    if offloads {
        let length = libc::c_int::try_from(VNET_HEADER).expect("a length");
        let at = file.as_raw_fd();
        // SAFETY: TUNSETVNETHDRSZ takes a pointer to an int.
        let set = unsafe { libc::ioctl(at, libc::TUNSETVNETHDRSZ, &raw const length) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
        set_offloads(&file, OFFLOADS);
    }
    file
}

/// Says what may be left to whoever reads a tap (`TUN_F_*`).
pub fn set_offloads(tap: &File, flags: libc::c_uint) {
    // SAFETY: TUNSETOFFLOAD takes its flags by value.
    let set = unsafe { libc::ioctl(tap.as_raw_fd(), libc::TUNSETOFFLOAD, flags) };
    assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
}

/// How frames are carried from tap to tap.
struct Carrier {
    /// Bytes before each frame that is read.
    header: usize,
    /// How many of them are left out,
    skip: usize,
    /// and how many zeros are written.
    add: usize,
}

impl Carrier {
    /// Carries frames until `ends`.
    fn carry(
        self,
        mut from: File,
        mut to: File,
        count: &Count,
        ends: &Arc<AtomicBool>,
    ) -> JoinHandle<()> {
        let (count, ends) = (Arc::clone(count), Arc::clone(ends));
        let Self { header, skip, add } = self;
        std::thread::spawn(move || {
            // What is added goes in front.
            let mut bytes = vec![0; add + header + FRAME_LONGEST];
            while !ends.load(Ordering::SeqCst) {
                match from.read(&mut bytes[add..]) {
                    Ok(length) => {
                        let end = add + length;
                        let frame = &bytes[add + header..end];
                        let is_tcp = match frame.get(12..14) {
                            Some([8, 0]) => frame.get(23) == Some(&6),
                            Some([0x86, 0xdd]) => frame.get(20) == Some(&6),
                            _ => false,
                        };
                        count.fetch_add(u64::from(is_tcp), Ordering::SeqCst);
                        to.write_all(&bytes[skip..end])
                            .expect("a tap takes a frame");
                    }
                    Err(error) if error.kind() == ErrorKind::WouldBlock => {
                        wait_for(&from);
                    }
                    Err(error) => panic!("reading from a tap: {error}"),
                }
            }
        })
    }
}

/// Waits until a tap can be read, but not for long.
fn wait_for(tap: &File) {
    let mut wait = libc::pollfd {
        fd: tap.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    // SAFETY: poll(2) reads and writes one `pollfd`.
    unsafe { libc::poll(&raw mut wait, 1, 50) };
}
