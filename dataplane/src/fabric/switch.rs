//! From what the maps hold to what they shall, in an order in which no packet passes that
//! neither allows.
//!
//! A packet asks the sender's entries and the receiver's, and each asks who the other is.
//! While those change one by one, a packet could meet an old answer here and a new one
//! there. So:
//!
//! 1. ports that go, go; ports that change who they are become nobody: rules match nobody,
//!    while what is tracked goes on
//! 2. rules that go, go
//! 3. rules, route tables and ACLs that come, come
//! 4. flow tables and interfaces of new slots, and how fast each slot may be; then what networks see of addresses, by
//!    atoms whose rules are all there
//! 5. ports that changed are somebody again; then new ports
//! 6. what old slots, tables and ACLs held goes
//!
//! Where a single port changes, to a set that is new or from one that nobody else has, its
//! one step is the whole of the change: new rules speak of nobody before it and old ones
//! of nobody after it. Then it never becomes nobody, and old rules go last.
//!
//! In a prefix tree longer prefixes come first and go last, so that an address meets its
//! old entry or its new one and nothing between.

use std::collections::{BTreeMap, BTreeSet};

use ocs_dataplane_shared::ipv6::layout as ipv6;
use ocs_dataplane_shared::layout::{Endpoint, Identity, MAX_RULES, UPLINK_SLOT};

use super::contents::{Change, Contents, Tables};
use super::error::FabricError;
use crate::compiler::{Entries, Prefixed, check_size};

#[cfg(test)]
mod tests;

/// Makes the maps hold `target`; how many elements were written. On an error they hold
/// what they held.
pub(super) fn switch(
    contents: &mut Contents,
    maps: &mut dyn Tables,
    target: &Entries,
) -> Result<usize, FabricError> {
    let changes = plan(contents, target)?;
    let writes = changes.len();
    let mut undone = Vec::new();
    for change in changes {
        if let Err(error) = maps.make(&change) {
            put_back(contents, maps, undone);
            return Err(error);
        }
        undone.push(contents.note(change));
    }
    Ok(writes)
}

/// Makes the maps hold what they held before these changes, in as safe an order.
fn put_back(contents: &mut Contents, maps: &mut dyn Tables, undone: Vec<Change>) {
    let mut before = contents.clone();
    for change in undone.into_iter().rev() {
        before.note(change);
    }
    let back = plan(contents, &before.entries).and_then(|changes| {
        changes.into_iter().try_for_each(|change| {
            maps.make(&change)?;
            contents.note(change);
            Ok(())
        })
    });
    if let Err(error) = back {
        tracing::error!(%error, "maps could not be put back; the next policy will");
    }
}

/// The changes, in order.
fn plan(contents: &Contents, target: &Entries) -> Result<Vec<Change>, FabricError> {
    let now = &contents.entries;
    let rules = Diff::of(&now.rules, &target.rules);
    let places = Diff::of(&now.places, &target.places);
    let one_step = places.is_empty()
        && now.places_ipv6 == target.places_ipv6
        && changed_ports(now, target).len() <= 1
        && speak_of_nobody(&rules.come, now)
        && speak_of_nobody(&rules.go, target);
    if one_step {
        check_size("RULES", now.rules.len() + rules.come.len(), MAX_RULES)?;
    }
    let mut changes = Vec::new();
    remove_ports(&mut changes, now, target);
    if !one_step {
        blank_ports(&mut changes, now, target);
        rules.goes(&mut changes, Change::Rule);
    }
    rules.comes(&mut changes, Change::Rule);
    let routes = Diff::of(&now.routes, &target.routes);
    let acl_rules = Diff::of(&now.acl_rules, &target.acl_rules);
    let acl_classes = Diff::of(&now.acl_classes, &target.acl_classes);
    let routes_ipv6 = Diff::of(&now.routes_ipv6, &target.routes_ipv6);
    routes.comes(&mut changes, Change::Route);
    routes_ipv6.comes(&mut changes, Change::RouteIpv6);
    let places_ipv6 = Diff::of(&now.places_ipv6, &target.places_ipv6);
    acl_rules.comes(&mut changes, Change::AclRule);
    acl_classes.comes(&mut changes, Change::AclClass);
    make_slots(&mut changes, contents, target);
    places.comes(&mut changes, Change::Place);
    places_ipv6.comes(&mut changes, Change::PlaceIpv6);
    // Those that became nobody are no longer as `now` has them, and different all the same.
    for new in [false, true] {
        write_ports(&mut changes, now, target, new);
    }
    if one_step {
        rules.goes(&mut changes, Change::Rule);
    }
    places.goes(&mut changes, Change::Place);
    places_ipv6.goes(&mut changes, Change::PlaceIpv6);
    routes.goes(&mut changes, Change::Route);
    routes_ipv6.goes(&mut changes, Change::RouteIpv6);
    acl_classes.goes(&mut changes, Change::AclClass);
    acl_rules.goes(&mut changes, Change::AclRule);
    release_slots(&mut changes, contents, target);
    Ok(changes)
}

/// How a prefix tree differs.
struct Diff<Key, Value> {
    /// New or changed, longest first.
    come: Vec<(Prefixed<Key>, Value)>,
    /// Gone, shortest first.
    go: Vec<(Prefixed<Key>, Value)>,
}

impl<Key: Ord + Copy, Value: PartialEq + Copy> Diff<Key, Value> {
    fn of(now: &BTreeMap<Prefixed<Key>, Value>, then: &BTreeMap<Prefixed<Key>, Value>) -> Self {
        let mut come: Vec<_> = then
            .iter()
            .map(|(key, value)| (*key, *value))
            .filter(|(key, value)| now.get(key) != Some(value))
            .collect();
        let mut go: Vec<_> = now
            .iter()
            .map(|(key, value)| (*key, *value))
            .filter(|(key, _)| !then.contains_key(key))
            .collect();
        come.sort_by_key(|((_, bits), _)| std::cmp::Reverse(*bits));
        go.sort_by_key(|((_, bits), _)| *bits);
        Self { come, go }
    }

    fn is_empty(&self) -> bool {
        self.come.is_empty() && self.go.is_empty()
    }

    fn comes(
        &self,
        changes: &mut Vec<Change>,
        change: impl Fn(Prefixed<Key>, Option<Value>) -> Change,
    ) {
        let made = self
            .come
            .iter()
            .map(|(key, value)| change(*key, Some(*value)));
        changes.extend(made);
    }

    fn goes(
        &self,
        changes: &mut Vec<Change>,
        change: impl Fn(Prefixed<Key>, Option<Value>) -> Change,
    ) {
        changes.extend(self.go.iter().map(|(key, _)| change(*key, None)));
    }
}

/// Whether each rule has a side that no port, and no address, is.
fn speak_of_nobody(
    rules: &[(Prefixed<ocs_dataplane_shared::layout::RuleKey>, u32)],
    entries: &Entries,
) -> bool {
    if rules.is_empty() {
        return true;
    }
    let numbers = entries.numbers();
    rules
        .iter()
        .all(|((rule, _), _)| !numbers.contains(&rule.policy) || !numbers.contains(&rule.peer))
}

/// Ports that stay and are judged otherwise: by slot, those on other hosts by Ethernet
/// address.
fn changed_ports(now: &Entries, target: &Entries) -> BTreeSet<(u32, [u8; 6])> {
    let taps = now.taps.iter().filter_map(|(ifindex, tap)| {
        let then = target.taps.get(ifindex)?;
        (then.slot == tap.slot && then != tap).then_some((tap.slot, [0; 6]))
    });
    let endpoints = changed(&now.endpoints, &target.endpoints);
    let ipv6 = changed(&now.endpoints_ipv6, &target.endpoints_ipv6);
    taps.chain(endpoints).chain(ipv6).collect()
}

/// Who receives at an address of either family.
trait Receives: Copy + PartialEq {
    /// What receives.
    fn endpoint(&mut self) -> &mut Endpoint;

    /// The slot that it is at.
    fn slot(mut self) -> u32 {
        self.endpoint().slot
    }
}

impl Receives for Endpoint {
    fn endpoint(&mut self) -> &mut Endpoint {
        self
    }
}

impl Receives for ipv6::Endpoint {
    fn endpoint(&mut self) -> &mut Endpoint {
        &mut self.is
    }
}

/// Endpoints that stay where they are and are judged otherwise.
fn changed<Key: Ord, Value: Receives>(
    now: &BTreeMap<Key, Value>,
    target: &BTreeMap<Key, Value>,
) -> impl Iterator<Item = (u32, [u8; 6])> {
    now.iter().filter_map(|(key, value)| {
        let then = target.get(key)?;
        let endpoint = *value.clone().endpoint();
        let mac = match endpoint.slot {
            UPLINK_SLOT => endpoint.mac,
            _ => [0; 6],
        };
        (then.slot() == endpoint.slot && then != value).then_some((endpoint.slot, mac))
    })
}

/// Removes endpoints that are not wanted, or belong to another slot.
fn remove_endpoints<Key: Ord + Copy, Value: Receives>(
    changes: &mut Vec<Change>,
    now: &BTreeMap<Key, Value>,
    target: &BTreeMap<Key, Value>,
    change: impl Fn(Key, Option<Value>) -> Change,
) {
    for (key, value) in now {
        if target.get(key).map(|then| then.slot()) != Some(value.slot()) {
            changes.push(change(*key, None));
        }
    }
}

/// Makes nobody of endpoints that will be judged otherwise.
fn blank_endpoints<Key: Ord + Copy, Value: Receives>(
    changes: &mut Vec<Change>,
    now: &BTreeMap<Key, Value>,
    target: &BTreeMap<Key, Value>,
    change: impl Fn(Key, Option<Value>) -> Change,
) {
    for (key, value) in now {
        let Some(mut then) = target.get(key).copied() else {
            continue;
        };
        let mut nobody = *value;
        let endpoint = nobody.endpoint();
        let then = then.endpoint();
        if then.slot == endpoint.slot && then.identity != endpoint.identity {
            endpoint.identity = Identity::default();
            changes.push(change(*key, Some(nobody)));
        }
    }
}

/// Writes endpoints that differ: those that are there, or those that are not.
fn write_endpoints<Key: Ord + Copy, Value: Receives>(
    changes: &mut Vec<Change>,
    now: &BTreeMap<Key, Value>,
    target: &BTreeMap<Key, Value>,
    new: bool,
    change: impl Fn(Key, Option<Value>) -> Change,
) {
    for (key, value) in target {
        let there = now.get(key);
        let stays = there.is_some_and(|there| there.slot() == value.slot());
        if stays != new && there != Some(value) {
            changes.push(change(*key, Some(*value)));
        }
    }
}

/// Removes elements that are not wanted, or belong to another slot.
fn remove_ports(changes: &mut Vec<Change>, now: &Entries, target: &Entries) {
    for (ifindex, tap) in &now.taps {
        if target.taps.get(ifindex).map(|then| then.slot) != Some(tap.slot) {
            changes.push(Change::Tap(*ifindex, None));
        }
    }
    let (from, to) = (&now.endpoints, &target.endpoints);
    remove_endpoints(changes, from, to, Change::Endpoint);
    let (from, to) = (&now.endpoints_ipv6, &target.endpoints_ipv6);
    remove_endpoints(changes, from, to, Change::EndpointIpv6);
    for slot in now.ports_ipv6.keys() {
        if !target.ports_ipv6.contains_key(slot) {
            changes.push(Change::PortIpv6(*slot, None));
        }
    }
    for (address, service) in &now.services {
        if target.services.get(address) != Some(service) {
            changes.push(Change::Service(*address, None));
        }
    }
    for (address, key) in &now.publics {
        if target.publics.get(address) != Some(key) {
            changes.push(Change::Public(*address, None));
        }
    }
    for (address, vni) in &now.publics_ipv6 {
        if target.publics_ipv6.get(address) != Some(vni) {
            changes.push(Change::PublicIpv6(*address, None));
        }
    }
    for (key, address) in &now.forwarders {
        if target.forwarders.get(key) != Some(address) {
            changes.push(Change::Forwarder(*key, None));
        }
    }
}

/// Makes nobody of ports that will be judged otherwise.
fn blank_ports(changes: &mut Vec<Change>, now: &Entries, target: &Entries) {
    for (ifindex, tap) in &now.taps {
        let Some(then) = target.taps.get(ifindex) else {
            continue;
        };
        if then.slot == tap.slot && then.identity != tap.identity {
            let mut nobody = *tap;
            nobody.identity = Identity::default();
            changes.push(Change::Tap(*ifindex, Some(nobody)));
        }
    }
    let (from, to) = (&now.endpoints, &target.endpoints);
    blank_endpoints(changes, from, to, Change::Endpoint);
    let (from, to) = (&now.endpoints_ipv6, &target.endpoints_ipv6);
    blank_endpoints(changes, from, to, Change::EndpointIpv6);
}

/// Gives new slots their flow tables and interfaces.
fn make_slots(changes: &mut Vec<Change>, contents: &Contents, target: &Entries) {
    for (slot, ifindex) in &target.devices {
        if !contents.tables.contains(slot) {
            changes.push(Change::Table(*slot, true));
        }
        let limits = target.limits.get(slot).copied();
        if contents.entries.limits.get(slot).copied() != limits {
            changes.push(Change::Limits(*slot, limits));
        }
        if contents.entries.devices.get(slot) != Some(ifindex) {
            changes.push(Change::Device(*slot, Some(*ifindex)));
        }
    }
    for slot in target.nats.difference(&contents.entries.nats) {
        changes.push(Change::Nat(*slot, true));
    }
}

/// Writes elements that differ: those that are there, or those that are not. Where a port
/// receives comes before where it sends. What is there under another slot has been removed
/// before.
fn write_ports(changes: &mut Vec<Change>, now: &Entries, target: &Entries, new: bool) {
    let (from, to) = (&now.endpoints, &target.endpoints);
    write_endpoints(changes, from, to, new, Change::Endpoint);
    let (from, to) = (&now.endpoints_ipv6, &target.endpoints_ipv6);
    write_endpoints(changes, from, to, new, Change::EndpointIpv6);
    if new {
        for (slot, port) in &target.ports_ipv6 {
            if now.ports_ipv6.get(slot) != Some(port) {
                changes.push(Change::PortIpv6(*slot, Some(*port)));
            }
        }
        for (address, service) in &target.services {
            if now.services.get(address) != Some(service) {
                changes.push(Change::Service(*address, Some(*service)));
            }
        }
        for (key, address) in &target.forwarders {
            if now.forwarders.get(key) != Some(address) {
                changes.push(Change::Forwarder(*key, Some(*address)));
            }
        }
        for (address, key) in &target.publics {
            if now.publics.get(address) != Some(key) {
                changes.push(Change::Public(*address, Some(*key)));
            }
        }
        for (address, vni) in &target.publics_ipv6 {
            if now.publics_ipv6.get(address) != Some(vni) {
                changes.push(Change::PublicIpv6(*address, Some(*vni)));
            }
        }
    }
    for (ifindex, tap) in &target.taps {
        let there = now.taps.get(ifindex);
        let stays = there.is_some_and(|there| there.slot == tap.slot);
        if stays != new && there != Some(tap) {
            changes.push(Change::Tap(*ifindex, Some(*tap)));
        }
    }
}

/// Takes tables and interfaces from slots that no port has.
fn release_slots(changes: &mut Vec<Change>, contents: &Contents, target: &Entries) {
    for slot in contents.entries.devices.keys() {
        if !target.devices.contains_key(slot) {
            changes.push(Change::Device(*slot, None));
        }
    }
    for slot in &contents.tables {
        if !target.devices.contains_key(slot) {
            changes.push(Change::Table(*slot, false));
        }
    }
    for slot in contents.entries.limits.keys() {
        if !target.devices.contains_key(slot) {
            changes.push(Change::Limits(*slot, None));
        }
    }
    for slot in contents.entries.nats.difference(&target.nats) {
        changes.push(Change::Nat(*slot, false));
    }
}
