//! A tap in a network namespace of its own, and frames on its host side.

use std::fs::{File, OpenOptions};
use std::net::TcpListener;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// The host's address where it has an echo server.
const HOST_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];

/// The host's side of a tap: an `AF_PACKET` socket. The namespace dies with the
/// descriptors.
pub struct HostSide(OwnedFd);

/// Makes a tap (12-byte header, up) as the node would; runs on a thread of its own,
/// whose namespace nobody else enters.
pub fn make() -> (File, HostSide) {
    let (tap, host, ()) = make_with(|_| ());
    (tap, host)
}

/// Likewise, with the host's own TCP at 172.31.0.1, where the guest of `dhcp` looks for it: an
/// echo server on port 7777 that serves until the test ends.
pub fn make_with_echo() -> (File, HostSide) {
    let (tap, host, ()) = make_with(|request| {
        // SAFETY: a socket that is checked and then owned; the ioctl gets an ifreq with an
        // address, which has the layout of a sockaddr_in.
        unsafe {
            let fd = libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0);
            assert!(fd >= 0);
            let fd = OwnedFd::from_raw_fd(fd);
            // The same everywhere: a machine that comes to another such host finds its neighbour.
            let hardware = &mut request.ifr_ifru.ifru_hwaddr;
            hardware.sa_family = libc::ARPHRD_ETHER;
            for (slot, byte) in hardware.sa_data.iter_mut().zip(HOST_MAC) {
                *slot = byte.cast_signed();
            }
            let set = libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFHWADDR, &raw mut *request);
            assert_eq!(set, 0);
            for (command, address) in [
                (libc::SIOCSIFADDR, [172, 31, 0, 1]),
                (libc::SIOCSIFNETMASK, [255, 255, 240, 0]),
            ] {
                let mut at: libc::sockaddr_in = std::mem::zeroed();
                at.sin_family = libc::AF_INET.try_into().unwrap();
                at.sin_addr.s_addr = u32::from_ne_bytes(address);
                request.ifr_ifru.ifru_addr =
                    std::mem::transmute::<libc::sockaddr_in, libc::sockaddr>(at);
                assert_eq!(libc::ioctl(fd.as_raw_fd(), command, &raw mut *request), 0);
            }
        }
        let listener = TcpListener::bind("172.31.0.1:7777").unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                std::thread::spawn(move || {
                    let mut other = stream.try_clone().unwrap();
                    let _ = std::io::copy(&mut stream, &mut other);
                });
            }
        });
    });
    (tap, host)
}

fn make_with<R: Send + 'static>(
    more: impl FnOnce(&mut libc::ifreq) -> R + Send + 'static,
) -> (File, HostSide, R) {
    std::thread::spawn(|| {
        // SAFETY: unshares the network namespace of this thread, which ends below.
        let unshared = unsafe { libc::unshare(libc::CLONE_NEWNET) };
        assert_eq!(unshared, 0, "needs root");
        let tap = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")
            .unwrap();
        // SAFETY: ifreq is plain data, for which zero is valid.
        let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
        for (slot, byte) in request.ifr_name.iter_mut().zip(b"tap0") {
            *slot = byte.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap();
        let size: libc::c_int = 12;
        // SAFETY: each call gets a pointer to what it expects.
        unsafe {
            assert_eq!(
                libc::ioctl(tap.as_raw_fd(), libc::TUNSETIFF, &raw mut request),
                0
            );
            assert_eq!(
                libc::ioctl(tap.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const size),
                0
            );
        }
        // SAFETY: creates descriptors that are checked and then owned; ioctls get an ifreq.
        let host = unsafe {
            let protocol = i32::from(0x0003u16.to_be());
            let fd = libc::socket(
                libc::AF_PACKET,
                libc::SOCK_RAW | libc::SOCK_CLOEXEC,
                protocol,
            );
            assert!(fd >= 0);
            let fd = OwnedFd::from_raw_fd(fd);
            assert_eq!(
                libc::ioctl(fd.as_raw_fd(), libc::SIOCGIFINDEX, &raw mut request),
                0
            );
            let index = request.ifr_ifru.ifru_ifindex;
            let mut address: libc::sockaddr_ll = std::mem::zeroed();
            address.sll_family = libc::AF_PACKET.try_into().unwrap();
            address.sll_protocol = 0x0003u16.to_be();
            address.sll_ifindex = index;
            let len = size_of::<libc::sockaddr_ll>().try_into().unwrap();
            assert_eq!(
                libc::bind(fd.as_raw_fd(), (&raw const address).cast(), len),
                0
            );
            request.ifr_ifru.ifru_flags = libc::IFF_UP.try_into().unwrap();
            assert_eq!(
                libc::ioctl(fd.as_raw_fd(), libc::SIOCSIFFLAGS, &raw mut request),
                0
            );
            let timeout = libc::timeval {
                tv_sec: 1,
                tv_usec: 0,
            };
            libc::setsockopt(
                fd.as_raw_fd(),
                libc::SOL_SOCKET,
                libc::SO_RCVTIMEO,
                (&raw const timeout).cast(),
                size_of::<libc::timeval>().try_into().unwrap(),
            );
            fd
        };
        let more = more(&mut request);
        (tap, HostSide(host), more)
    })
    .join()
    .unwrap()
}

impl HostSide {
    /// Sends a frame to the guest.
    pub fn send(&self, frame: &[u8]) {
        // SAFETY: sends from a slice.
        let sent = unsafe { libc::send(self.0.as_raw_fd(), frame.as_ptr().cast(), frame.len(), 0) };
        assert_eq!(sent, isize::try_from(frame.len()).unwrap());
    }

    /// Takes at least `count` frames off the wire.
    pub fn drain(&self, count: usize) {
        for _ in 0..count {
            self.receive("frame", |_| Some(()));
        }
    }

    /// The next frame on the wire that `wanted` likes.
    pub fn receive<T>(&self, what: &str, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> T {
        let end = std::time::Instant::now() + Duration::from_secs(60);
        let mut buffer = [0u8; 65536];
        while std::time::Instant::now() < end {
            // SAFETY: receives into a buffer of this length.
            let got = unsafe {
                libc::recv(
                    self.0.as_raw_fd(),
                    buffer.as_mut_ptr().cast(),
                    buffer.len(),
                    0,
                )
            };
            if let Ok(bytes) = usize::try_from(got)
                && let Some(value) = wanted(&buffer[..bytes])
            {
                return value;
            }
        }
        panic!("no {what} from the guest");
    }
}
