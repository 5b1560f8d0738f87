//! Netlink and interface ioctls, all in the thread's namespace.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures_util::TryStreamExt;
use ipnet::IpNet;
use rtnetlink::packet_core::DefaultNla;
use rtnetlink::packet_route::address::AddressHeaderFlags;
use rtnetlink::packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo};
use rtnetlink::packet_route::neighbour::{NeighbourAddress, NeighbourAttribute, NeighbourState};
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteHeader, RouteMessage, RouteScope,
};
use rtnetlink::{Handle, LinkMessageBuilder, LinkUnspec, LinkVeth, RouteMessageBuilder};

use super::error::{FabricError, system};

/// Runs requests to the end on a runtime of this thread's.
fn run<T, F: Future<Output = Result<T, rtnetlink::Error>>>(
    what: &str,
    requests: impl FnOnce(Handle) -> F,
) -> Result<T, FabricError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_io()
        .build()
        .map_err(system("start a runtime for netlink"))?;
    runtime.block_on(async {
        let (connection, handle, _) =
            rtnetlink::new_connection().map_err(system("open a netlink socket"))?;
        let connection = tokio::spawn(connection);
        let result = requests(handle).await;
        connection.abort();
        result.map_err(|source| FabricError::Netlink {
            what: what.to_owned(),
            source,
        })
    })
}

/// The index of an interface.
pub(super) fn index_of(name: &str) -> Result<u32, FabricError> {
    find(name)?.ok_or_else(|| {
        system(format!("find interface {name}"))(io::Error::from_raw_os_error(libc::ENODEV))
    })
}

/// The index of an interface, if there is one of that name.
pub(super) fn find(name: &str) -> Result<Option<u32>, FabricError> {
    Ok(list()?
        .into_iter()
        .find_map(|(index, found)| (found == name).then_some(index)))
}

fn list() -> Result<BTreeMap<u32, String>, FabricError> {
    run("list interfaces", |handle| async move {
        let mut links = handle.link().get().execute();
        let mut found = BTreeMap::new();
        while let Some(link) = links.try_next().await? {
            for attribute in link.attributes {
                if let LinkAttribute::IfName(name) = attribute {
                    found.insert(link.header.index, name);
                }
            }
        }
        Ok(found)
    })
}

/// Interfaces of the taps' namespace that are taps.
pub(super) fn taps() -> Result<BTreeMap<u32, String>, FabricError> {
    let mut found = list()?;
    let own = [
        "lo",
        super::links::SVC0,
        super::uplink::OUT0,
        super::uplink::ONWARD0,
    ];
    found.retain(|_, name| !own.contains(&name.as_str()));
    Ok(found)
}

/// Makes a pair of interfaces.
pub(super) fn add_veth(name: &str, peer: &str) -> Result<(), FabricError> {
    run(&format!("make {name} and {peer}"), |handle| async move {
        let message = LinkVeth::new(name, peer).build();
        handle.link().add(message).execute().await
    })
}

/// Removes an interface. One that is gone already is no error: half of a pair goes with the
/// namespace that the other half is in, some time after that.
pub(super) fn remove(index: u32) -> Result<(), FabricError> {
    run(&format!("remove interface {index}"), |handle| async move {
        match handle.link().del(index).execute().await {
            Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::ENODEV => {
                Ok(())
            }
            result => result,
        }
    })
}

fn set(
    what: &str,
    index: u32,
    change: impl FnOnce(LinkMessageBuilder<LinkUnspec>) -> LinkMessageBuilder<LinkUnspec>,
) -> Result<(), FabricError> {
    run(
        &format!("{what} of interface {index}"),
        |handle| async move {
            let message = change(LinkUnspec::new_with_index(index)).build();
            handle.link().set(message).execute().await
        },
    )
}

/// Sets an interface up.
pub(super) fn set_up(index: u32) -> Result<(), FabricError> {
    set("set up", index, LinkMessageBuilder::up)
}

/// Lets an interface hear all that is sent to many.
pub(super) fn set_all_multicast(index: u32) -> Result<(), FabricError> {
    run(
        &format!("let interface {index} hear all multicast"),
        |handle| async move {
            let mut message = LinkUnspec::new_with_index(index).build();
            message.header.flags |= LinkFlags::Allmulti;
            message.header.change_mask |= LinkFlags::Allmulti;
            handle.link().set(message).execute().await
        },
    )
}

/// Sets an interface's Ethernet address.
pub(super) fn set_mac(index: u32, mac: [u8; 6]) -> Result<(), FabricError> {
    set("set the address", index, |link| link.address(mac.to_vec()))
}

/// Sets the longest IP packet of an interface, in bytes.
pub(super) fn set_mtu(index: u32, mtu: u32) -> Result<(), FabricError> {
    set("set the MTU", index, |link| link.mtu(mtu))
}

/// Gives an interface that is down another name.
pub(super) fn rename(index: u32, name: &str) -> Result<(), FabricError> {
    set("change the name", index, |link| link.name(name.to_owned()))
}

/// Moves an interface to another namespace.
pub(super) fn move_to(index: u32, namespace: std::os::fd::RawFd) -> Result<(), FabricError> {
    set("change the namespace", index, |link| {
        link.setns_by_fd(namespace)
    })
}

/// Gives an interface an address, a neighbour that never expires, and a route by it.
pub(super) fn set_addresses(
    index: u32,
    address: Ipv4Addr,
    neighbour: (Ipv4Addr, [u8; 6]),
    network: (Ipv4Addr, u8),
) -> Result<(), FabricError> {
    run(
        &format!("set addresses and routes of interface {index}"),
        |handle| async move {
            handle
                .address()
                .add(index, address.into(), 32)
                .replace()
                .execute()
                .await?;
            let (next_hop, mac) = neighbour;
            handle
                .neighbours()
                .add(index, next_hop.into())
                .link_layer_address(&mac)
                .state(NeighbourState::Permanent)
                .replace()
                .execute()
                .await?;
            let route = RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(network.0, network.1)
                .gateway(next_hop)
                .output_interface(index)
                .onlink()
                .build();
            handle.route().add(route).replace().execute().await
        },
    )
}

/// [`set_addresses`] of IPv6, which nobody else has, so that none need be asked.
pub(super) fn set_ipv6_addresses(
    index: u32,
    addresses: [Ipv6Addr; 2],
    neighbour: (Ipv6Addr, [u8; 6]),
    network: (Ipv6Addr, u8),
) -> Result<(), FabricError> {
    run(
        &format!("set IPv6 addresses and routes of interface {index}"),
        |handle| async move {
            for address in addresses {
                let mut request = handle.address().add(index, address.into(), 128).replace();
                request.message_mut().header.flags = AddressHeaderFlags::Nodad;
                request.execute().await?;
            }
            let (next_hop, mac) = neighbour;
            handle
                .neighbours()
                .add(index, next_hop.into())
                .link_layer_address(&mac)
                .state(NeighbourState::Permanent)
                .replace()
                .execute()
                .await?;
            let route = RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(network.0, network.1)
                .gateway(next_hop)
                .output_interface(index)
                .build();
            handle.route().add(route).replace().execute().await
        },
    )
}

/// What there is to know of an interface.
pub(super) struct Link {
    pub ifindex: u32,
    pub mac: [u8; 6],
    pub mtu: u32,
    /// It is a cable to another interface of this machine.
    pub is_veth: bool,
}

/// An interface by its name.
pub(super) fn link(name: &str) -> Result<Link, FabricError> {
    let ifindex = index_of(name)?;
    let what = format!("look at interface {name}");
    run(&what, |handle| async move {
        let mut links = handle.link().get().match_index(ifindex).execute();
        let mut link = Link {
            ifindex,
            mac: [0; 6],
            mtu: 0,
            is_veth: false,
        };
        while let Some(message) = links.try_next().await? {
            for attribute in message.attributes {
                match attribute {
                    LinkAttribute::Address(address) => {
                        if let Ok(mac) = address.try_into() {
                            link.mac = mac;
                        }
                    }
                    LinkAttribute::Mtu(mtu) => link.mtu = mtu,
                    LinkAttribute::LinkInfo(infos) => {
                        link.is_veth = infos.contains(&LinkInfo::Kind(InfoKind::Veth));
                    }
                    _ => {}
                }
            }
        }
        Ok(link)
    })
}

/// Neighbours of an interface whose Ethernet addresses are known.
pub(super) fn neighbours(ifindex: u32) -> Result<BTreeMap<IpAddr, [u8; 6]>, FabricError> {
    run("list neighbours", |handle| async move {
        let mut neighbours = handle.neighbours().get().execute();
        let mut found = BTreeMap::new();
        while let Some(message) = neighbours.try_next().await? {
            if message.header.ifindex != ifindex || message.header.state == NeighbourState::Failed {
                continue;
            }
            let (mut address, mut mac) = (None, None);
            for attribute in message.attributes {
                match attribute {
                    NeighbourAttribute::Destination(NeighbourAddress::Inet(is)) => {
                        address = Some(IpAddr::V4(is));
                    }
                    NeighbourAttribute::Destination(NeighbourAddress::Inet6(is)) => {
                        address = Some(IpAddr::V6(is));
                    }
                    NeighbourAttribute::LinkLayerAddress(is) => mac = is.try_into().ok(),
                    _ => {}
                }
            }
            if let (Some(address), Some(mac)) = (address, mac) {
                found.insert(address, mac);
            }
        }
        Ok(found)
    })
}

/// `NDA_FLAGS_EXT` and `NTF_EXT_MANAGED` of linux/neighbour.h.
const NDA_FLAGS_EXT: u16 = 15;
const NTF_EXT_MANAGED: u32 = 1;

/// Lets the kernel find a neighbour's Ethernet address, and keep it up to date
/// (Linux 5.16).
pub(super) fn manage_neighbour(ifindex: u32, address: IpAddr) -> Result<(), FabricError> {
    run(&format!("find neighbour {address}"), |handle| async move {
        let mut request = handle
            .neighbours()
            .add(ifindex, address)
            .state(NeighbourState::None)
            .replace();
        let flags = DefaultNla::new(NDA_FLAGS_EXT, NTF_EXT_MANAGED.to_ne_bytes().to_vec());
        request
            .message_mut()
            .attributes
            .push(NeighbourAttribute::Other(flags));
        request.execute().await
    })
}

/// A route: its destination's address and length, and its gateway.
type Way = (IpAddr, u8, Option<IpAddr>);

/// Routes of the main table by an interface; `asked` says of which IP.
fn routes(ifindex: u32, asked: RouteMessage) -> Result<Vec<Way>, FabricError> {
    run("list routes", |handle| async move {
        let mut routes = handle.route().get(asked).execute();
        let mut found = Vec::new();
        while let Some(route) = routes.try_next().await? {
            let (mut to, mut by, mut gateway) = (Ipv4Addr::UNSPECIFIED.into(), None, None);
            for attribute in route.attributes {
                match attribute {
                    RouteAttribute::Destination(is) => to = ip(is).unwrap_or(to),
                    RouteAttribute::Oif(is) => by = Some(is),
                    RouteAttribute::Gateway(is) => gateway = ip(is),
                    _ => {}
                }
            }
            if by == Some(ifindex) && route.header.table == RouteHeader::RT_TABLE_MAIN {
                found.push((to, route.header.destination_prefix_length, gateway));
            }
        }
        Ok(found)
    })
}

fn ip(address: RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(is) => Some(is.into()),
        RouteAddress::Inet6(is) => Some(is.into()),
        _ => None,
    }
}

/// The gateway to an IPv4 address by an interface; `None`: it is on the link, or not reached.
pub(super) fn gateway_to(ifindex: u32, address: IpAddr) -> Result<Option<IpAddr>, FabricError> {
    let covers =
        |to: IpAddr, length: u8| IpNet::new(to, length).is_ok_and(|net| net.contains(&address));
    let best = routes(ifindex, RouteMessageBuilder::<Ipv4Addr>::new().build())?
        .into_iter()
        .filter(|(to, length, _)| covers(*to, *length))
        .max_by_key(|(_, length, _)| *length);
    Ok(best.and_then(|(_, _, gateway)| gateway))
}

/// The gateway of an interface's default route.
pub(super) fn default_gateway(ifindex: u32) -> Result<Option<IpAddr>, FabricError> {
    let routes = routes(ifindex, RouteMessageBuilder::<Ipv4Addr>::new().build())?;
    Ok(of_default(&routes))
}

/// [`default_gateway`] of IPv6.
pub(super) fn default_gateway_ipv6(ifindex: u32) -> Result<Option<IpAddr>, FabricError> {
    let routes = routes(ifindex, RouteMessageBuilder::<Ipv6Addr>::new().build())?;
    Ok(of_default(&routes))
}

fn of_default(routes: &[Way]) -> Option<IpAddr> {
    routes
        .iter()
        .find_map(|(_, length, gateway)| gateway.filter(|_| *length == 0))
}

/// Adds a route to addresses that are on an interface's link.
pub(super) fn add_link_route(ifindex: u32, prefix: IpNet) -> Result<(), FabricError> {
    run(&format!("route {prefix}"), |handle| async move {
        let route = match prefix {
            IpNet::V4(prefix) => RouteMessageBuilder::<Ipv4Addr>::new()
                .destination_prefix(prefix.network(), prefix.prefix_len())
                .output_interface(ifindex)
                .scope(RouteScope::Link)
                .build(),
            IpNet::V6(prefix) => RouteMessageBuilder::<Ipv6Addr>::new()
                .destination_prefix(prefix.network(), prefix.prefix_len())
                .output_interface(ifindex)
                .build(),
        };
        handle.route().add(route).replace().execute().await
    })
}

#[cfg(test)]
mod tests {
    #[test]
    fn an_interface_that_is_gone_is_removed() {
        let highest = u32::MAX >> 1;
        super::remove(highest).expect("nothing to remove");
    }
}
