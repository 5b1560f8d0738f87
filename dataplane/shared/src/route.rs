//! The way to an address, as the route table of a port's subnet has it.

use crate::judge::Peer;
use crate::layout::{
    Address, Endpoint, EndpointKey, FORWARDS, Identity, PrefixKey, ROUTE_NETWORK, ROUTE_NEXT_HOP,
    ROUTE_OUTSIDE, Reason, Route, TRANSLATES, Tap,
};
use crate::maps::Maps;

/// The way to an address.
pub(crate) struct Way<'a> {
    /// Who gets the packet next; nobody here or on another host: the outside.
    pub receiver: Option<&'a Endpoint>,
    /// The receiver's network.
    pub vni: u32,
    /// The destination as the sender's rules see it.
    pub peer: Peer,
    /// Whether it leaves the sender's subnet.
    pub crosses: bool,
    /// Of IPv6: whether it enters the receiver's.
    pub enters: bool,
}

/// Finds it.
#[inline(always)]
pub(crate) fn find<'a>(
    maps: &'a impl Maps,
    tap: &Tap,
    destination: Address,
) -> Result<Way<'a>, Reason> {
    let inside = destination & tap.mask == tap.subnet;
    let route = if inside || tap.table == 0 {
        Route {
            kind: ROUTE_NETWORK,
            vni: tap.vni,
            address: 0,
        }
    } else {
        let key = PrefixKey {
            scope: tap.table,
            address: destination,
        };
        maps.route(&key).ok_or(Reason::NoRoute)?
    };
    let far = |set| Peer {
        address: destination,
        identity: Identity { set, atom: 0 },
        scope: tap.vni,
    };
    if route.kind == ROUTE_OUTSIDE {
        return Ok(Way {
            receiver: None,
            vni: 0,
            peer: far(0),
            crosses: true,
            enters: false,
        });
    }
    if route.kind != ROUTE_NETWORK && route.kind != ROUTE_NEXT_HOP {
        return Err(Reason::Blackhole);
    }
    let by_hop = route.kind == ROUTE_NEXT_HOP;
    let hop = if by_hop { route.address } else { destination };
    let key = EndpointKey {
        vni: route.vni,
        address: hop,
    };
    let receiver = maps.endpoint(&key).ok_or(Reason::NoEndpoint)?;
    let itself = receiver.slot == tap.slot;
    if itself || (!by_hop && receiver.flags & TRANSLATES != 0) {
        return Err(Reason::NoEndpoint);
    }
    if by_hop && receiver.flags & FORWARDS == 0 {
        return Err(Reason::SourceDestCheck);
    }
    let peer = if by_hop {
        // A port that others forward to is known by its address alone, as in EC2.
        far(0)
    } else if route.vni == tap.vni {
        Peer {
            address: destination,
            identity: receiver.identity,
            scope: 0,
        }
    } else {
        far(receiver.identity.set)
    };
    Ok(Way {
        receiver: Some(receiver),
        vni: route.vni,
        peer,
        crosses: hop & tap.mask != tap.subnet || route.vni != tap.vni,
        enters: false,
    })
}
