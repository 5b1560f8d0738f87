//! The network: one virtio-net device under smoltcp.
//!
//! ```text
//!  tasks ── tcp, udp, icmp (async) ──▶ SocketSet ──▶ Interface ──▶ device
//!           dhcp, ipv6 give addresses and routes ─────────┘
//! ```

mod arp;
pub mod device;
pub mod dhcp;
pub mod http;
pub mod ipv6;
pub mod tcp;

use crate::{clock, executor};
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::string::{String, ToString as _};
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use device::NetDevice;
use smoltcp::iface::{Config, Interface, PollResult, SocketHandle, SocketSet};
use smoltcp::socket::AnySocket;
use smoltcp::time::Instant;
use smoltcp::wire::{EthernetAddress, IpCidr, Ipv4Address, Ipv4Cidr, Ipv6Address, Ipv6Cidr};

/// All sockets of all orders together.
const MAX_SOCKETS: usize = 160;
/// How soon to look again when the device holds every send buffer.
const FULL_RETRY_US: u64 = 500;
const FIRST_EPHEMERAL_PORT: u16 = 49152;
/// Of link-local addresses (RFC 4291 §2.5.6).
const LINK_PREFIX: u8 = 64;

struct Inner {
    interface: Interface,
    device: NetDevice,
    sockets: SocketSet<'static>,
    count: usize,
}

/// The interface and its sockets.
pub struct Net {
    inner: RefCell<Inner>,
    next_port: Cell<u16>,
    /// The lease's.
    resolver: Cell<Option<Ipv4Address>>,
}

fn now() -> Instant {
    Instant::from_micros(i64::try_from(clock::now_us()).unwrap_or(i64::MAX))
}

impl Net {
    /// Starts the interface, without an address.
    pub fn new(mut device: NetDevice) -> Rc<Self> {
        let mut config = Config::new(EthernetAddress(device.mac()).into());
        let seed = clock::entropy();
        config.random_seed = seed;
        let interface = Interface::new(config, &mut device, now());
        let offset = (seed >> 32) as u16 % (u16::MAX - FIRST_EPHEMERAL_PORT);
        let net = Rc::new(Self {
            inner: RefCell::new(Inner {
                interface,
                device,
                sockets: SocketSet::new(Vec::new()),
                count: 0,
            }),
            next_port: Cell::new(FIRST_EPHEMERAL_PORT + offset),
            resolver: Cell::new(None),
        });
        let driven = net.clone();
        executor::add_driver(move || driven.poll());
        net
    }

    /// Moves packets; true if a socket may have changed.
    fn poll(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        let Inner {
            interface,
            device,
            sockets,
            ..
        } = &mut *inner;
        let now = now();
        let result = interface.poll(now, device, sockets);
        if device.is_full() {
            executor::wake_at(clock::now_us() + FULL_RETRY_US);
        } else if let Some(at) = interface.poll_at(now, sockets) {
            executor::wake_at(u64::try_from(at.total_micros()).unwrap_or(0));
        }
        result == PollResult::SocketStateChanged
    }

    /// Whether every frame has left the machine; looks again by itself when not.
    pub fn has_sent_all(&self) -> bool {
        let idle = self.inner.borrow().device.is_idle();
        if !idle {
            executor::wake_at(clock::now_us() + FULL_RETRY_US);
        }
        idle
    }

    /// Adds a socket, unless there are too many.
    pub fn add<T: AnySocket<'static>>(self: &Rc<Self>, socket: T) -> Option<Handle> {
        let mut inner = self.inner.borrow_mut();
        if inner.count >= MAX_SOCKETS {
            return None;
        }
        inner.count += 1;
        Some(Handle {
            socket: inner.sockets.add(socket),
            net: self.clone(),
        })
    }

    /// A port that no other socket of this machine has used lately.
    pub fn ephemeral_port(&self) -> u16 {
        let port = self.next_port.get();
        self.next_port
            .set(port.checked_add(1).unwrap_or(FIRST_EPHEMERAL_PORT));
        port
    }

    /// The name server that the lease names first.
    pub fn resolver(&self) -> Option<Ipv4Address> {
        self.resolver.get()
    }

    /// Its Ethernet address, as the metadata service writes it.
    pub fn mac(&self) -> String {
        let address = self.inner.borrow().interface.hardware_addr().to_string();
        address.replace('-', ":")
    }

    /// Its Ethernet address.
    fn mac_bytes(&self) -> [u8; 6] {
        self.inner.borrow().device.mac()
    }

    /// Has a link-local address.
    fn add_link_local(&self, address: Ipv6Address) {
        let mut inner = self.inner.borrow_mut();
        inner.interface.update_ip_addrs(|list| {
            // Eight fit, and the lease's is the only other one.
            let _ = list.push(IpCidr::Ipv6(Ipv6Cidr::new(address, LINK_PREFIX)));
        });
    }

    /// Has these IPv6 addresses besides, as far as there is room, and a router.
    fn configure_ipv6(&self, addresses: &[Ipv6Address], router: Option<Ipv6Address>) {
        let mut inner = self.inner.borrow_mut();
        inner.interface.update_ip_addrs(|list| {
            list.retain(|cidr| match cidr {
                IpCidr::Ipv4(_) => true,
                IpCidr::Ipv6(cidr) => cidr.prefix_len() == LINK_PREFIX,
            });
            for address in addresses {
                // Nobody is on the link but who the router says.
                if list
                    .push(IpCidr::Ipv6(Ipv6Cidr::new(*address, 128)))
                    .is_err()
                {
                    return;
                }
            }
        });
        let routes = inner.interface.routes_mut();
        routes.remove_default_ipv6_route();
        if let Some(router) = router {
            // The table has room for two and holds one other.
            let _ = routes.add_default_ipv6_route(router);
        }
    }

    /// Has these addresses beside the lease's, as far as there is room. Yields how many of
    /// IPv4 it has in all.
    pub fn add_addresses(&self, more: &[Ipv4Address]) -> usize {
        let mut inner = self.inner.borrow_mut();
        inner.interface.update_ip_addrs(|list| {
            let mut is_first = true;
            list.retain(|cidr| match cidr {
                IpCidr::Ipv4(_) => core::mem::take(&mut is_first),
                IpCidr::Ipv6(_) => true,
            });
            let first = list.iter().find_map(|cidr| match cidr {
                IpCidr::Ipv4(first) => Some(*first),
                IpCidr::Ipv6(_) => None,
            });
            let Some(first) = first else {
                return;
            };
            for address in more.iter().filter(|address| **address != first.address()) {
                if list
                    .push(IpCidr::Ipv4(Ipv4Cidr::new(*address, first.prefix_len())))
                    .is_err()
                {
                    return;
                }
            }
        });
        let all = inner.interface.ip_addrs().iter();
        all.filter(|cidr| matches!(cidr, IpCidr::Ipv4(_))).count()
    }

    /// Sets or takes away address and default route.
    fn configure(&self, address: Option<(Ipv4Cidr, Option<Ipv4Address>)>) {
        let mut inner = self.inner.borrow_mut();
        inner.interface.update_ip_addrs(|list| {
            list.retain(|cidr| matches!(cidr, IpCidr::Ipv6(_)));
            if let Some((cidr, _)) = address {
                // Eight fit. The lease's comes first.
                let _ = list.insert(0, IpCidr::Ipv4(cidr));
            }
        });
        let routes = inner.interface.routes_mut();
        routes.remove_default_ipv4_route();
        if let Some((_, Some(router))) = address {
            // The table has room for two and holds no other.
            let _ = routes.add_default_ipv4_route(router);
        }
    }
}

/// A socket of the set; dropping it removes the socket.
pub struct Handle {
    net: Rc<Net>,
    socket: SocketHandle,
}

impl Handle {
    /// Works on the socket and lets the loop send what that produced.
    pub fn with<T: AnySocket<'static>, R>(&self, f: impl FnOnce(&mut T) -> R) -> R {
        let mut inner = self.net.inner.borrow_mut();
        f(inner.sockets.get_mut::<T>(self.socket))
    }

    /// The same with what connecting and ICMP need of the interface.
    pub fn with_context<T: AnySocket<'static>, R>(
        &self,
        f: impl FnOnce(&mut T, &mut smoltcp::iface::Context) -> R,
    ) -> R {
        let mut inner = self.net.inner.borrow_mut();
        let Inner {
            interface, sockets, ..
        } = &mut *inner;
        f(sockets.get_mut::<T>(self.socket), interface.context())
    }

    /// The network that the socket belongs to.
    pub fn net(&self) -> &Rc<Net> {
        &self.net
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        let mut inner = self.net.inner.borrow_mut();
        inner.sockets.remove(self.socket);
        inner.count -= 1;
    }
}

/// Zeroed memory for a socket's ring that lives as long as the socket.
pub fn ring(len: usize) -> Vec<u8> {
    alloc::vec![0; len]
}

/// A buffer for the rest of the program's life.
pub fn leaked(len: usize) -> &'static mut [u8] {
    Box::leak(ring(len).into_boxed_slice())
}
