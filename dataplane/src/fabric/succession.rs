//! A predecessor of another layout is succeeded, and nothing that it tracks is lost.
//!
//! ```text
//!  open    our maps, empty · its programs stay where they are, by its maps
//!  apply   our maps filled · its flows carried over · each link's program swapped for ours
//!          · flows of meanwhile carried over · its pins removed, and so its maps
//! ```
//!
//! What is in all other maps the policy says again, but for IPv6 addresses' numbers, by which
//! flows know them: these stay. A flow is carried over as a program would remember it, so each
//! layout's tables are read by ordinary code (`succession/table.rs`); no packet pays for it.
//! Counters, credits and what is watched begin anew.
//!
//! What cannot be read is forgotten: a flow that begins anew is better than a policy that
//! is not in force. Killed at any point, it is done again at the next `open` and `apply`.

use std::collections::BTreeMap;
use std::error::Error;
use std::net::Ipv6Addr;

use aya::maps::{ArrayOfMaps, DevMap, Map, MapData};
use ocs_dataplane_shared::flow::{Bucket, WAYS};
use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{
    EndpointKey, FIRST_PORT_SLOT, FLOW_BUCKETS, FLOWS_SINCE, LAYOUT_VERSION, NAT_BUCKETS,
    TRANSLATES,
};

use super::bpf;
use super::bpffs::Before;
use super::error::{FabricError, map};
use super::maps::{self, DEVICES, ENDPOINTS, ENDPOINTS_IPV6, FLOWS, KernelMaps, NATS};
use crate::compiler::{Entries, ipv6_ports};
use crate::model::{Policy, Vni};

mod table;

use table::Table;

/// Times that a way is tried which another CPU is writing to.
const TRIES: usize = 100;

/// The numbers that a predecessor gave to IPv6 addresses of a policy: its flows know them by
/// these.
pub(super) fn numbers(before: &Before, policy: &Policy) -> Vec<((Vni, Ipv6Addr), u32)> {
    let mut addresses = ipv6_ports::addresses(policy).peekable();
    if !is_known(before) || addresses.peek().is_none() {
        return Vec::new();
    }
    let found = MapData::from_pin(before.map(ENDPOINTS_IPV6)).map_err(map(ENDPOINTS_IPV6));
    let found = found.and_then(|endpoints| {
        let mut numbers = Vec::new();
        for (vni, address) in addresses {
            let key = ipv6_ports::key(vni, address);
            let mut bytes = [0; size_of::<ipv6::EndpointKey>()];
            let (front, back) = bytes.split_at_mut(4);
            front.copy_from_slice(&key.vni.to_ne_bytes());
            back.copy_from_slice(&ipv6::bytes(&key.address));
            let value = bpf::look_up(&endpoints, &bytes, ENDPOINTS_IPV6)?;
            let number = value.and_then(|value| value.first_chunk().copied());
            let number = number.map(u32::from_be_bytes);
            let number = number.filter(|number| (1..ipv6::MAX_NUMBER).contains(number));
            numbers.extend(number.map(|number| ((vni, address), number)));
        }
        Ok(numbers)
    });
    found.unwrap_or_else(|error| {
        let version = before.version;
        tracing::warn!(version, %error, "IPv6 flows are forgotten");
        Vec::new()
    })
}

/// Whether a predecessor's flow tables are of a form that is known.
fn is_known(before: &Before) -> bool {
    (FLOWS_SINCE..LAYOUT_VERSION).contains(&before.version)
}

/// Carries over the flows of ports and gateways that were a predecessor's and are ours.
/// Those that we know already stay as they are. How many there were.
pub(super) fn carry(maps: &KernelMaps, entries: &Entries, before: &Before, now: u64) -> usize {
    if !is_known(before) {
        tracing::warn!(
            version = before.version,
            "flow tables of a layout that is not known; what they track is forgotten"
        );
        return 0;
    }
    let flows = or_forgotten(carry_ports(maps, entries, before, now), before);
    let translations = or_forgotten(carry_gateways(maps, entries, before, now), before);
    flows + translations
}

/// Those of ports.
fn carry_ports(
    maps: &KernelMaps,
    entries: &Entries,
    before: &Before,
    now: u64,
) -> Result<usize, FabricError> {
    let theirs = tables(before, FLOWS)?;
    let slots = slots_of_interfaces(before)?;
    let mut carried = 0;
    for (slot, ifindex) in &entries.devices {
        let Some(former) = slots.get(ifindex) else {
            continue;
        };
        let old = Table::theirs(&theirs, *former, FLOW_BUCKETS, FLOWS);
        let new = Table::ours(maps.flow_tables(), *slot, FLOW_BUCKETS, FLOWS);
        carried += or_forgotten(between(old, new, carry_flows, now), before);
    }
    Ok(carried)
}

/// Those of NAT gateways.
fn carry_gateways(
    maps: &KernelMaps,
    entries: &Entries,
    before: &Before,
    now: u64,
) -> Result<usize, FabricError> {
    let gateways = entries.endpoints.iter();
    let mut gateways = gateways
        .filter(|(_, endpoint)| endpoint.flags & TRANSLATES != 0)
        .peekable();
    if gateways.peek().is_none() {
        return Ok(0);
    }
    let theirs = tables(before, NATS)?;
    let endpoints = MapData::from_pin(before.map(ENDPOINTS)).map_err(map(ENDPOINTS))?;
    let mut carried = 0;
    for (key, endpoint) in gateways {
        let Some(former) = slot_of_endpoint(&endpoints, key)? else {
            continue;
        };
        let old = Table::theirs(&theirs, former, NAT_BUCKETS, NATS);
        let new = Table::ours(maps.nat_tables(), endpoint.slot, NAT_BUCKETS, NATS);
        carried += or_forgotten(between(old, new, carry_places, now), before);
    }
    Ok(carried)
}

/// What was carried over; nothing, where a table could not be read.
fn or_forgotten(carried: Result<usize, FabricError>, before: &Before) -> usize {
    carried.unwrap_or_else(|error| {
        let cause = error.source().map(ToString::to_string);
        let version = before.version;
        tracing::warn!(version, %error, cause, "what this tracks is forgotten");
        0
    })
}

/// Carries over from one table to another, if there are both.
fn between(
    old: Result<Option<Table>, FabricError>,
    new: Result<Option<Table>, FabricError>,
    carry: fn(&[Bucket], &[Bucket], u64) -> usize,
    now: u64,
) -> Result<usize, FabricError> {
    match (old?, new?) {
        (Some(old), Some(new)) => Ok(carry(old.buckets(), new.buckets(), now)),
        _ => Ok(0),
    }
}

/// Each flow where its key leads.
fn carry_flows(old: &[Bucket], new: &[Bucket], now: u64) -> usize {
    let flows = old
        .iter()
        .flat_map(|bucket| (0..WAYS).filter_map(|way| bucket.entry(way, now)));
    flows
        .filter(|(key, found)| {
            let Some(bucket) = new.get(key.bucket() as usize) else {
                return false;
            };
            let keep = || bucket.keep(key, found.progress, now, found.deadline());
            // Most are known the second time; one that another CPU was faster with is tried again.
            (0..TRIES).any(|_| bucket.find(key, now).is_some() || keep())
        })
        .count()
}

/// Each flow in its place, which is its port.
fn carry_places(old: &[Bucket], new: &[Bucket], now: u64) -> usize {
    let mut carried = 0;
    for (old, new) in old.iter().zip(new) {
        for way in 0..WAYS {
            if let Some((key, found)) = old.entry(way, now) {
                let kept = new.keep_in(way, &key, found.progress, now, found.deadline());
                carried += usize::from(kept);
            }
        }
    }
    carried
}

/// A predecessor's tables by slot.
fn tables(
    before: &Before,
    name: &'static str,
) -> Result<ArrayOfMaps<MapData, MapData>, FabricError> {
    maps::tables(
        MapData::from_pin(before.map(name)).map_err(map(name))?,
        name,
    )
}

/// A predecessor's slots of ports, by interface.
fn slots_of_interfaces(before: &Before) -> Result<BTreeMap<u32, u32>, FabricError> {
    let data = MapData::from_pin(before.map(DEVICES)).map_err(map(DEVICES))?;
    let found = Map::from_map_data(data).map_err(map(DEVICES))?;
    let devices = maps::read_devices(&DevMap::try_from(found).map_err(map(DEVICES))?)?;
    Ok(devices
        .into_iter()
        .map(|(slot, ifindex)| (ifindex, slot))
        .collect())
}

/// A predecessor's slot of an endpoint of this host.
fn slot_of_endpoint(endpoints: &MapData, key: &EndpointKey) -> Result<Option<u32>, FabricError> {
    let [a, b, c, d] = key.vni.to_ne_bytes();
    let [e, f, g, h] = key.address.to_ne_bytes();
    let value = bpf::look_up(endpoints, &[a, b, c, d, e, f, g, h], ENDPOINTS)?;
    let slot = value.and_then(|value| value.first_chunk().copied());
    let slot = slot.map(u32::from_ne_bytes);
    Ok(slot.filter(|slot| *slot >= FIRST_PORT_SLOT))
}

#[cfg(test)]
mod tests {
    use super::*;
    use ocs_dataplane_shared::flow::{BUCKET_WORDS, FlowKey, Progress, State};

    const NOW: u64 = 1_000;

    fn key(port: u16) -> FlowKey {
        FlowKey {
            own: 1,
            peer: 2,
            own_port: port,
            peer_port: 80,
            protocol: 6,
            kind: 0,
        }
    }

    fn progress(state: State) -> Progress {
        Progress {
            state,
            opened_by_own: true,
            finished_by_own: false,
        }
    }

    fn table() -> Vec<Bucket> {
        (0..FLOW_BUCKETS).map(|_| Bucket::default()).collect()
    }

    fn at<'a>(table: &'a [Bucket], key: &FlowKey) -> &'a Bucket {
        &table[key.bucket() as usize]
    }

    #[test]
    fn live_flows_are_carried_and_newer_news_stands() {
        let (old, new) = (table(), table());
        for port in 0..100 {
            let until = if port < 10 {
                NOW
            } else {
                NOW + u64::from(port)
            };
            let progress = progress(State::Continued);
            assert!(at(&old, &key(port)).insert(&key(port), progress, NOW - 1, until));
        }
        let closed = progress(State::Closed);
        assert!(at(&new, &key(50)).insert(&key(50), closed, NOW, NOW + 1));
        assert_eq!(carry_flows(&old, &new, NOW), 90);
        for port in 0..100 {
            let found = at(&new, &key(port)).find(&key(port), NOW);
            let found = found.map(|found| (found.progress.state, found.deadline()));
            let expected = match port {
                0..10 => None,
                50 => Some((State::Closed, NOW + 1)),
                _ => Some((State::Continued, NOW + u64::from(port))),
            };
            assert_eq!(found, expected, "{port}");
        }
        carry_flows(&old, &new, NOW);
        assert_eq!(new.iter().map(|bucket| bucket.live(NOW)).sum::<usize>(), 90);
    }

    #[test]
    fn what_changes_while_it_is_copied_is_left_out() {
        let mut first = [0; BUCKET_WORDS];
        for (words, own_port) in first.chunks_mut(3).zip(1_u64..4) {
            words.copy_from_slice(&[own_port << 48 | State::Opening as u64, 5, NOW + 1]);
        }
        let mut second = first;
        second[2] += 1; // The first way's deadline.
        second[3] += 1 << 48; // The second's port.
        second[7] += 1; // The third's peers.
        let bucket = Bucket::of_copies(first, second);
        let found = [0, 1, 2].map(|way| bucket.entry(way, NOW).map(|(key, _)| key.own_port));
        assert_eq!(found, [Some(1), None, None]);
    }

    #[test]
    fn translations_stay_in_their_places() {
        let (old, new) = (table(), table());
        let progress = progress(State::Continued);
        assert!(old[7].keep_in(5, &key(1), progress, NOW, NOW + 9));
        assert!(old[7].keep_in(6, &key(2), progress, NOW, NOW + 9));
        assert!(new[7].keep_in(6, &key(3), progress, NOW, NOW + 9));
        assert_eq!(carry_places(&old, &new, NOW), 1);
        let keys = [5, 6].map(|way| new[7].entry(way, NOW).map(|(key, _)| key));
        assert_eq!(
            keys,
            [Some(key(1)), Some(key(3))],
            "a place that is taken stays"
        );
    }
}
