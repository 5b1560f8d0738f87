//! Someone outside, as a network sees them.

use super::layout::{Address6, Place, PrefixKey, STRANGER, stranger};
use crate::judge::Peer;
use crate::layout::{Address, Identity, Reason};
use crate::maps::Maps;

/// Someone, and the number that stands for the address in flows.
#[derive(Clone, Copy)]
pub(super) struct Known {
    pub number: Address,
    pub peer: Peer,
}

/// What a network sees of an address that is no endpoint of its own. Not inlined: a function of
/// its own has a stack of its own, of which a program has little.
#[inline(never)]
pub(super) fn place(maps: &impl Maps, vni: u32, address: &Address6) -> Place {
    let key = PrefixKey {
        scope: vni,
        address: *address,
    };
    maps.place_ipv6(&key).unwrap_or_default()
}

/// Someone in a place.
#[inline(always)]
pub(super) fn outside(
    maps: &impl Maps,
    place: &Place,
    address: &Address6,
) -> Result<Known, Reason> {
    let secret = maps.secret().ok_or(Reason::Unreachable)?;
    Ok(Known {
        number: stranger(secret, address),
        peer: Peer {
            address: place.number,
            identity: Identity {
                set: 0,
                atom: place.is.atom,
            },
            scope: 0,
        },
    })
}

/// Notes for a port's flow log, if one is kept, what a number stands for.
#[inline(always)]
pub(super) fn name(maps: &impl Maps, slot: u32, number: Address, address: &Address6) {
    if number & STRANGER == STRANGER && maps.is_logged(slot) {
        maps.name(number, address);
    }
}
