//! Netlink and interface ioctls, all in the thread's namespace.

use std::collections::BTreeMap;
use std::future::Future;
use std::io;
use std::net::Ipv4Addr;

use futures_util::TryStreamExt;
use rtnetlink::packet_route::link::LinkAttribute;
use rtnetlink::packet_route::neighbour::NeighbourState;
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
    found.retain(|_, name| name != "lo" && name != super::links::SVC0);
    Ok(found)
}

/// Makes a pair of interfaces.
pub(super) fn add_veth(name: &str, peer: &str) -> Result<(), FabricError> {
    run(&format!("make {name} and {peer}"), |handle| async move {
        let message = LinkVeth::new(name, peer).build();
        handle.link().add(message).execute().await
    })
}

/// Removes an interface.
pub(super) fn remove(index: u32) -> Result<(), FabricError> {
    run(&format!("remove interface {index}"), |handle| async move {
        handle.link().del(index).execute().await
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

/// Sets an interface's Ethernet address.
pub(super) fn set_mac(index: u32, mac: [u8; 6]) -> Result<(), FabricError> {
    set("set the address", index, |link| link.address(mac.to_vec()))
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
