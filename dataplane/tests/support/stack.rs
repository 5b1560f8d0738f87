//! A Linux network stack as a guest: a namespace with a tap of its own, and threads that
//! carry frames between that tap and the guest's.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::net::Ipv4Addr;
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

impl Stack {
    /// Behind a guest's tap, whose frames follow a header of so many bytes: with the guest's
    /// Ethernet address and its address.
    pub fn new(guest: File, header: usize, mac: [u8; 6], address: Ipv4Addr) -> Self {
        let (tap, namespace) = std::thread::spawn(move || {
            // SAFETY: this thread alone leaves its namespace.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }.expect("a namespace");
            std::fs::write("/proc/sys/net/ipv6/conf/all/disable_ipv6", "1").expect("a sysctl");
            let tap = open_tap("eth0");
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
        .expect("a stack");
        let (ends, sent, received) = (Arc::default(), Count::default(), Count::default());
        let copy = |file: &File| file.try_clone().expect("a descriptor");
        let carriers = vec![
            carry(copy(&tap), 0, copy(&guest), header, &sent, &ends),
            carry(guest, header, tap, 0, &received, &ends),
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

/// A tap without `vnet_hdr` in the thread's namespace.
pub fn open_tap(name: &str) -> File {
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
    request.ifr_ifru.ifru_flags =
        libc::c_short::try_from(libc::IFF_TAP | libc::IFF_NO_PI).expect("flags");
    // SAFETY: TUNSETIFF reads and writes one `ifreq`.
    let made = unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    assert_eq!(made, 0, "{}", std::io::Error::last_os_error());
    file
}

/// Carries frames until `ends`, leaving out `skip` bytes before each and writing `add`
/// zeros in their place.
fn carry(
    mut from: File,
    skip: usize,
    mut to: File,
    add: usize,
    count: &Count,
    ends: &Arc<AtomicBool>,
) -> JoinHandle<()> {
    let (count, ends) = (Arc::clone(count), Arc::clone(ends));
    std::thread::spawn(move || {
        let mut bytes = vec![0; skip + FRAME_LONGEST];
        let mut out = Vec::new();
        while !ends.load(Ordering::SeqCst) {
            match from.read(&mut bytes) {
                Ok(length) => {
                    let frame = &bytes[skip..length];
                    let is_tcp = frame.get(12..14) == Some(&[8, 0]) && frame.get(23) == Some(&6);
                    count.fetch_add(u64::from(is_tcp), Ordering::SeqCst);
                    out.clear();
                    out.resize(add, 0);
                    out.extend_from_slice(frame);
                    to.write_all(&out).expect("a tap takes a frame");
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    wait_for(&from);
                }
                Err(error) => panic!("reading from a tap: {error}"),
            }
        }
    })
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
