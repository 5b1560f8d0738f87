//! Taps.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::error::{FabricError, system};

/// A guest's interface.
#[derive(Debug)]
pub struct Tap {
    /// Frames, each behind a 12-byte `virtio_net_hdr_v1` (virtio 1.3 §5.1.6); does not
    /// block. The tap is gone when the last copy is closed.
    pub fd: OwnedFd,
    /// Its index in the taps' namespace.
    pub ifindex: u32,
}

/// Size of `virtio_net_hdr_v1`.
const HEADER_LEN: libc::c_int = 12;

/// An `ifreq` for an interface.
pub(super) fn request(name: &str) -> Result<libc::ifreq, FabricError> {
    let valid = (1..libc::IFNAMSIZ).contains(&name.len())
        && name
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
        && name != "."
        && name != "..";
    if !valid {
        return Err(FabricError::TapName {
            name: name.to_owned(),
        });
    }
    // SAFETY: `ifreq` is made of integers and arrays and unions of them: zeros are valid.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(name.bytes()) {
        *to = libc::c_char::from_ne_bytes([from]);
    }
    Ok(request)
}

/// Does something with a socket of the thread's namespace, as interface ioctls want.
pub(super) fn with_socket<T>(work: impl FnOnce(&OwnedFd) -> io::Result<T>) -> io::Result<T> {
    let socket = socket_with(
        AddressFamily::INET,
        SocketType::DGRAM,
        SocketFlags::CLOEXEC,
        None,
    )?;
    work(&socket)
}

/// Makes a tap in the thread's namespace. It is down.
pub(super) fn create(name: &str) -> Result<Tap, FabricError> {
    let mut request = request(name)?;
    let fd: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK | libc::O_CLOEXEC)
        .open("/dev/net/tun")
        .map_err(system("open /dev/net/tun"))?
        .into();
    let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | libc::IFF_TUN_EXCL;
    request.ifr_ifru.ifru_flags = libc::c_short::from_ne_bytes(
        u16::try_from(flags)
            .map_err(|_| system("make tap flags")(io::Error::from(io::ErrorKind::InvalidInput)))?
            .to_ne_bytes(),
    );
    // SAFETY: TUNSETIFF takes an `ifreq` with name and flags, which lives until it returns.
    let made = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETIFF as _, &raw mut request) };
    check(made, || format!("make tap {name}"))?;
    let length = HEADER_LEN;
    // SAFETY: TUNSETVNETHDRSZ takes a pointer to an int.
    let set = unsafe {
        libc::ioctl(
            fd.as_raw_fd(),
            libc::TUNSETVNETHDRSZ as _,
            &raw const length,
        )
    };
    check(set, || format!("set the header size of tap {name}"))?;
    // SAFETY: TUNSETOFFLOAD takes flags by value; none: frames come whole and checksummed.
    let set = unsafe { libc::ioctl(fd.as_raw_fd(), libc::TUNSETOFFLOAD as _, 0) };
    check(set, || format!("turn off offloads of tap {name}"))?;
    let ifindex = super::rtnl::index_of(name)?;
    Ok(Tap { fd, ifindex })
}

fn check(result: libc::c_int, what: impl FnOnce() -> String) -> Result<(), FabricError> {
    if result < 0 {
        return Err(system(what())(io::Error::last_os_error()));
    }
    Ok(())
}
