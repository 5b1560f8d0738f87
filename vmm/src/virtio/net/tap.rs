//! The tap: checked when inherited, opened by name when started by hand.

use super::HEADER_BYTES;
use crate::inherit;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

/// A tap that moves frames with a 12-byte virtio header.
pub struct Tap(File);

impl Tap {
    /// Checks that `file` is what the spec asks for, and makes it non-blocking: a
    /// blocking tap runs XDP in the slow generic mode.
    pub fn new(file: File) -> io::Result<Self> {
        let mut request = request();
        // SAFETY: TUNGETIFF fills an ifreq, which the argument points to; on a descriptor of
        // another kind the ioctl fails.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNGETIFF, &raw mut request) })?;
        // SAFETY: TUNGETIFF set the flags member.
        let flags = i32::from(unsafe { request.ifr_ifru.ifru_flags });
        let wanted = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        if flags & wanted != wanted {
            return Err(io::Error::other(format!(
                "not an IFF_TAP | IFF_NO_PI | IFF_VNET_HDR tap (flags {flags:#x})"
            )));
        }
        let bytes = libc::c_int::try_from(HEADER_BYTES).unwrap_or(0);
        // SAFETY: the argument points to an int, as TUNSETVNETHDRSZ expects.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETVNETHDRSZ, &raw const bytes) })?;
        inherit::set_nonblocking(&file)?;
        let tap = Self(file);
        tap.set_offloads(0)?;
        Ok(tap)
    }

    /// Which unfinished frames (`TUN_F_*`) the guest takes.
    pub fn set_offloads(&self, flags: libc::c_uint) -> io::Result<()> {
        // SAFETY: TUNSETOFFLOAD takes its flags as a plain integer.
        check(unsafe { libc::ioctl(self.0.as_raw_fd(), libc::TUNSETOFFLOAD, flags) })
    }

    /// Opens the tap called `name`, making it if need be.
    pub fn open(name: &Path) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/net/tun")?;
        let mut request = request();
        let name = name.as_os_str().as_bytes();
        if name.is_empty() || name.len() >= libc::IFNAMSIZ {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "a tap's name has 1 to 15 bytes",
            ));
        }
        for (slot, byte) in request.ifr_name.iter_mut().zip(name) {
            *slot = byte.cast_signed();
        }
        let flags = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(flags).unwrap_or(0);
        // SAFETY: TUNSETIFF reads and writes an ifreq, which the argument points to.
        check(unsafe { libc::ioctl(file.as_raw_fd(), libc::TUNSETIFF, &raw mut request) })?;
        Ok(file)
    }
}

impl std::os::fd::AsFd for Tap {
    fn as_fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

fn request() -> libc::ifreq {
    // SAFETY: ifreq is plain integers and unions of them, for which zero is valid.
    unsafe { std::mem::zeroed() }
}

fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
