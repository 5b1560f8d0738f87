//! A port with a network stack of the kernel's behind it instead of a guest.
//!
//! ```text
//!  netns taps                  a namespace of its own
//!  ┌───────────────────────┐   ┌──────────────────────────┐
//!  │ NAME ─▶ TCX port ─▶ … │═══│ eni0  ADDRESS, MAC, MTU  │◀─ sockets
//!  └───────────────────────┘   └──────────────────────────┘
//! ```
//! As a tap does, it lives as long as the process that has it open: the namespace has no name,
//! and the pair goes with it. Its stack forwards nothing, listens nowhere, and knows one
//! neighbour: the router that stands for everybody.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

use ipnet::Ipv4Net;
use ocs_dataplane_shared::layout::ROUTER_MAC;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};

use super::error::{FabricError, system};
use super::programs::Stage;
use super::{Fabric, links, netns, rtnl, set_buffer_stage};
use crate::model::Mac;

/// The stack's end of the pair.
const ENI0: &str = "eni0";

/// What a stack has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StackConfig {
    /// Its Ethernet address.
    pub mac: Mac,
    /// Its address.
    pub address: Ipv4Addr,
    /// Its subnet, whose first address is the router's.
    pub subnet: Ipv4Net,
    /// The longest IP packet that it sends, in bytes.
    pub mtu: u16,
}

/// A stack; gone when it is dropped, together with what its sockets have open.
#[derive(Debug)]
pub struct Stack {
    namespace: OwnedFd,
    /// Its port's index in the taps' namespace.
    pub ifindex: u32,
}

impl Fabric {
    /// Makes a stack behind a port of a name, which passes nothing until a policy names its
    /// interface. One that a predecessor left under that name is replaced.
    pub fn create_stack(&self, name: &str, config: &StackConfig) -> Result<Stack, FabricError> {
        let mut state = self.state();
        let state = &mut *state;
        for stage in Stage::needed(&state.contents.entries) {
            set_buffer_stage(&mut state.programs, &mut state.maps, stage)?;
        }
        let namespace = netns::unnamed()?;
        let inner = format!("{name}.");
        let programs = &mut state.programs;
        let ifindex = netns::within(self.taps_netns.as_fd(), || {
            if let Some(left) = rtnl::find(name)? {
                rtnl::remove(left)?;
            }
            rtnl::add_veth(name, &inner)?;
            let ifindex = rtnl::index_of(name)?;
            rtnl::move_to(rtnl::index_of(&inner)?, namespace.as_raw_fd())?;
            programs.attach_buffer(&self.pins, name, ifindex)?;
            rtnl::set_mtu(ifindex, config.mtu.into())?;
            rtnl::set_up(ifindex)?;
            Ok(ifindex)
        })?;
        let stack = Stack { namespace, ifindex };
        netns::within(stack.namespace.as_fd(), || configure(&inner, config))?;
        Ok(stack)
    }

    /// Removes a stack at once, where dropping it leaves that to the kernel's leisure.
    pub fn remove_stack(&self, stack: Stack) -> Result<(), FabricError> {
        let _state = self.state();
        netns::within(self.taps_netns.as_fd(), || rtnl::remove(stack.ifindex))
    }
}

/// Sets the stack's end up, in its namespace.
fn configure(inner: &str, config: &StackConfig) -> Result<(), FabricError> {
    links::disable_ipv6()?;
    netns::sysctl("ipv4/ip_forward", "0")?;
    let index = rtnl::index_of(inner)?;
    rtnl::rename(index, ENI0)?;
    // Frames come whole to whoever they go to.
    links::turn_off_tx_checksums(ENI0)?;
    rtnl::set_mac(index, config.mac.0)?;
    rtnl::set_mtu(index, config.mtu.into())?;
    rtnl::set_up(index)?;
    // What XDP redirects here arrives: the kernel tells the other end of it while this is up.
    links::turn_on_gro(ENI0)?;
    let subnet = config.subnet.trunc();
    let router = subnet.hosts().next().unwrap_or(subnet.network());
    let everybody = (Ipv4Addr::UNSPECIFIED, 0);
    rtnl::set_addresses(index, config.address, (router, ROUTER_MAC), everybody)
}

impl Stack {
    /// A new TCP socket of the stack's, which does not block.
    pub fn tcp_socket(&self) -> Result<OwnedFd, FabricError> {
        netns::within(self.namespace.as_fd(), || {
            socket_with(
                AddressFamily::INET,
                SocketType::STREAM,
                SocketFlags::CLOEXEC | SocketFlags::NONBLOCK,
                None,
            )
            .map_err(std::io::Error::from)
            .map_err(system("make a socket of a stack"))
        })
    }
}
