//! The namespaces' settings, and the pair of interfaces between them.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::path::Path;

use ocs_dataplane_shared::ipv6::layout::{
    METADATA as METADATA_IPV6, RESOLVER as RESOLVER_IPV6, ROUTER, SERVICES,
};
use ocs_dataplane_shared::layout::{METADATA, SVC0_MAC, SVC1_MAC};

use super::error::{FabricError, system};
use super::uplink::{ONWARD0, OUT0};
use super::{netns, rtnl};
use crate::compiler::NEXT_HOP;

/// The pair's end among the taps.
pub(super) const SVC0: &str = "svc0";
/// The pair's end at the responder.
pub(super) const SVC1: &str = "svc1";

/// Makes the pair and sets both namespaces up; harmless where all is as it should be.
pub(super) fn ensure(taps: BorrowedFd<'_>, svc: BorrowedFd<'_>) -> Result<(), FabricError> {
    let svc_has_end = netns::within(svc, || {
        disable_ipv6()?;
        netns::sysctl("ipv4/ip_forward", "0")?;
        netns::sysctl("ipv4/ip_unprivileged_port_start", "0")?;
        rtnl::set_up(rtnl::index_of("lo")?)?;
        rtnl::find(SVC1)
    })?
    .is_some();
    netns::within(taps, || {
        disable_ipv6()?;
        netns::sysctl("ipv4/ip_forward", "0")?;
        // A tap without a program: not even what is for everybody is for this stack, since no
        // source has a way back (RFC 3704 §2.2).
        netns::sysctl("ipv4/conf/all/rp_filter", "1")?;
        ensure_pair(svc, svc_has_end)
    })?;
    netns::within(svc, || {
        let svc1 = rtnl::index_of(SVC1)?;
        turn_off_tx_checksums(SVC1)?;
        // Addresses that are told, and none besides: no link-local one, no router's.
        for (switch, value) in [
            ("addr_gen_mode", "1"),
            ("accept_ra", "0"),
            ("disable_ipv6", "0"),
        ] {
            netns::sysctl(&format!("ipv6/conf/{SVC1}/{switch}"), value)?;
        }
        rtnl::set_mac(svc1, SVC1_MAC)?;
        rtnl::set_up(svc1)?;
        rtnl::set_addresses(
            svc1,
            Ipv4Addr::from(METADATA),
            (NEXT_HOP, SVC0_MAC),
            (Ipv4Addr::new(169, 254, 0, 0), 16),
        )?;
        if netns::has_ipv6() {
            rtnl::set_ipv6_addresses(
                svc1,
                [METADATA_IPV6, RESOLVER_IPV6].map(Ipv6Addr::from),
                (Ipv6Addr::from(ROUTER), SVC0_MAC),
                (services(), 48),
            )?;
        }
        Ok(())
    })
}

/// What the addresses that the responder knows ports by begin with.
fn services() -> Ipv6Addr {
    let [a, b, c, d] = SERVICES.to_ne_bytes();
    Ipv6Addr::from([a, b, c, d, 169, 254, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0])
}

/// Makes the pair in the taps' namespace and moves one end. A half that a predecessor
/// left behind is replaced.
fn ensure_pair(svc: BorrowedFd<'_>, svc_has_end: bool) -> Result<(), FabricError> {
    match rtnl::find(SVC0)? {
        Some(_) if svc_has_end => {}
        Some(half) => {
            rtnl::remove(half)?;
            make_pair(svc)?;
        }
        None => make_pair(svc)?,
    }
    let svc0 = rtnl::index_of(SVC0)?;
    rtnl::set_mac(svc0, SVC0_MAC)?;
    rtnl::set_up(svc0)
}

fn make_pair(svc: BorrowedFd<'_>) -> Result<(), FabricError> {
    rtnl::add_veth(SVC0, SVC1)?;
    rtnl::move_to(rtnl::index_of(SVC1)?, svc.as_raw_fd())
}

/// Removes the pairs, which would otherwise live until the kernel gets round to the
/// namespace.
pub(super) fn remove(taps_netns: &Path) -> Result<(), FabricError> {
    let Some(taps) = netns::find(taps_netns)? else {
        return Ok(());
    };
    netns::within(taps.as_fd(), || {
        for name in [SVC0, OUT0, ONWARD0] {
            if let Some(end) = rtnl::find(name)? {
                rtnl::remove(end)?;
            }
        }
        Ok(())
    })
}

/// No interface of the thread's namespace has IPv6, until it is told to.
pub(super) fn disable_ipv6() -> Result<(), FabricError> {
    netns::sysctl("ipv6/conf/all/disable_ipv6", "1")?;
    netns::sysctl("ipv6/conf/default/disable_ipv6", "1")
}

/// `struct ethtool_value` of linux/ethtool.h.
#[repr(C)]
struct EthtoolValue {
    command: u32,
    data: u32,
}

/// `ETHTOOL_STXCSUM` and `ETHTOOL_SGRO` of linux/ethtool.h.
const ETHTOOL_STXCSUM: u32 = 0x17;
const ETHTOOL_SGRO: u32 = 0x2c;

/// Makes the stack write whole checksums: XDP does not see that one is missing.
pub(super) fn turn_off_tx_checksums(name: &str) -> Result<(), FabricError> {
    set_feature(name, ETHTOOL_STXCSUM, 0, "turn off checksum offload of")
}

/// Makes a pair's end hear what XDP redirects to the other.
pub(super) fn turn_on_gro(name: &str) -> Result<(), FabricError> {
    set_feature(name, ETHTOOL_SGRO, 1, "turn on receive offload of")
}

fn set_feature(name: &str, command: u32, data: u32, what: &str) -> Result<(), FabricError> {
    let mut value = EthtoolValue { command, data };
    let mut request = super::tap::request(name)?;
    request.ifr_ifru.ifru_data = (&raw mut value).cast();
    super::tap::with_socket(|socket| {
        // SAFETY: the request names an interface and points to an `ethtool_value`, as
        // SIOCETHTOOL wants; both live until the call returns.
        let result =
            unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL as _, &raw mut request) };
        if result < 0 {
            return Err(std::io::Error::last_os_error());
        }
        Ok(())
    })
    .map_err(system(format!("{what} {name}")))
}
