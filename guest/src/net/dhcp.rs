//! DHCP (RFC 2131): keeps the interface's address, reports each change.

use super::{Net, leaked};
use crate::console::say;
use crate::executor;
use alloc::rc::Rc;
use core::cell::Cell;
use smoltcp::socket::dhcpv4::{Event, Socket};
use smoltcp::time::Duration;
use smoltcp::wire::{DhcpPacket, Ipv4Address, Ipv4Cidr};

/// RFC 2132 §3.3, §3.5, §3.8, §5.1.
const SUBNET_MASK: u8 = 1;
const ROUTER: u8 = 3;
const DNS: u8 = 6;
const INTERFACE_MTU: u8 = 26;
const LEASE_TIME: u8 = 51;

/// What a task waits for before it uses the network.
pub struct Lease {
    address: Cell<Option<Ipv4Address>>,
}

impl Lease {
    /// Starts the client.
    pub fn acquire(net: &Rc<Net>) -> Option<Rc<Self>> {
        let mut socket = Socket::new();
        let mut retry = socket.get_retry_config();
        retry.discover_timeout = Duration::from_secs(1);
        retry.initial_request_timeout = Duration::from_secs(1);
        socket.set_retry_config(retry);
        socket.set_receive_packet_buffer(leaked(1500));
        socket.set_parameter_request_list(&[SUBNET_MASK, ROUTER, DNS, INTERFACE_MTU]);
        let handle = net.add(socket)?;
        let lease = Rc::new(Self {
            address: Cell::new(None),
        });
        let kept = lease.clone();
        executor::spawn(async move {
            // What the socket says first, before it has asked anybody.
            let mut known = Change::of(Event::Deconfigured);
            loop {
                let change =
                    executor::wait(|| handle.with(|s: &mut Socket| s.poll().map(Change::of))).await;
                if change == known {
                    continue;
                }
                handle
                    .net()
                    .configure(change.address.map(|a| (a, change.router)));
                handle.net().resolver.set(change.dns);
                kept.address.set(change.address.map(|a| a.address()));
                change.report();
                known = change;
            }
        });
        Some(lease)
    }

    /// Waits for an address.
    pub async fn address(&self) -> Ipv4Address {
        executor::wait(|| self.address.get()).await
    }
}

/// What a DHCP event says, copied out of the socket.
#[derive(PartialEq, Eq)]
struct Change {
    address: Option<Ipv4Cidr>,
    router: Option<Ipv4Address>,
    dns: Option<Ipv4Address>,
    mtu: Option<u16>,
    lease_s: Option<u32>,
}

impl Change {
    fn of(event: Event<'_>) -> Self {
        match event {
            Event::Deconfigured => Self {
                address: None,
                router: None,
                dns: None,
                mtu: None,
                lease_s: None,
            },
            Event::Configured(config) => {
                let packet = config.packet.as_ref();
                Self {
                    address: Some(config.address),
                    router: config.router,
                    dns: config.dns_servers.first().copied(),
                    mtu: packet.and_then(|p| option(p, INTERFACE_MTU).map(u16::from_be_bytes)),
                    lease_s: packet.and_then(|p| option(p, LEASE_TIME).map(u32::from_be_bytes)),
                }
            }
        }
    }

    fn report(&self) {
        let Some(address) = self.address else {
            say!("dhcp: address=none");
            return;
        };
        say!(
            "dhcp: address={address} router={} dns={} mtu={} lease_s={}",
            OrNone(self.router),
            OrNone(self.dns),
            OrNone(self.mtu),
            OrNone(self.lease_s),
        );
    }
}

fn option<const N: usize>(packet: &DhcpPacket<&[u8]>, kind: u8) -> Option<[u8; N]> {
    packet
        .options()
        .find(|option| option.kind == kind)
        .and_then(|option| option.data.try_into().ok())
}

struct OrNone<T>(Option<T>);

impl<T: core::fmt::Display> core::fmt::Display for OrNone<T> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("none"),
        }
    }
}
