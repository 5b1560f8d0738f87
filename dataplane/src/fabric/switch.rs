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
//! 3. rules that come, come
//! 4. flow tables and interfaces of new slots, and how fast each slot may be
//! 5. ports that changed are somebody again; then new ports
//! 6. what old slots held goes
//!
//! Where a single port changes, to a set that is new or from one that nobody else has, its
//! one step is the whole of the change: new rules speak of nobody before it and old ones
//! of nobody after it. Then it never becomes nobody, and old rules go last.

use std::collections::BTreeSet;

use ocs_dataplane_shared::layout::{Endpoint, EndpointKey, Identity, MAX_RULES, RuleKey, Tap};

use super::contents::{Contents, Tables, Writer};
use super::error::FabricError;
use crate::compiler::{Entries, check_size};

#[cfg(test)]
mod tests;

type Rule = (RuleKey, u32);

/// Makes the maps hold `target`; how many elements were written. On an error they hold
/// what they held.
pub(super) fn switch(
    contents: &mut Contents,
    maps: &mut dyn Tables,
    target: Entries,
) -> Result<usize, FabricError> {
    let before = contents.entries.clone();
    match try_switch(contents, maps, &target) {
        Ok(writes) => Ok(writes),
        Err(error) => {
            if let Err(second) = try_switch(contents, maps, &before) {
                tracing::error!(%second, "maps could not be put back; the next policy will");
            }
            Err(error)
        }
    }
}

fn try_switch(
    contents: &mut Contents,
    maps: &mut dyn Tables,
    target: &Entries,
) -> Result<usize, FabricError> {
    let plan = Plan::new(&contents.entries, target);
    if plan.one_step {
        let peak = contents.entries.rules.len() + plan.rules_come.len();
        check_size("RULES", peak, MAX_RULES)?;
    }
    let mut writer = contents.writer(maps);
    remove_ports(&mut writer, target)?;
    if !plan.one_step {
        blank_ports(&mut writer, target)?;
        remove_rules(&mut writer, &plan.rules_go)?;
    }
    for rule in &plan.rules_come {
        writer.add_rule(*rule)?;
    }
    make_slots(&mut writer, target)?;
    for new in [false, true] {
        write_ports(&mut writer, target, new)?;
    }
    if plan.one_step {
        remove_rules(&mut writer, &plan.rules_go)?;
    }
    release_slots(&mut writer, target)?;
    Ok(writer.writes)
}

struct Plan {
    rules_go: Vec<Rule>,
    rules_come: Vec<Rule>,
    one_step: bool,
}

impl Plan {
    fn new(now: &Entries, target: &Entries) -> Self {
        let rules_go: Vec<Rule> = now.rules.difference(&target.rules).copied().collect();
        let rules_come: Vec<Rule> = target.rules.difference(&now.rules).copied().collect();
        let numbers_now = now.numbers();
        let numbers_then = target.numbers();
        let one_step = changed_slots(now, target).len() <= 1
            && speak_of_nobody(&rules_come, &numbers_now)
            && speak_of_nobody(&rules_go, &numbers_then);
        Self {
            rules_go,
            rules_come,
            one_step,
        }
    }
}

/// Whether each rule has a side that no port is.
fn speak_of_nobody(rules: &[Rule], numbers: &BTreeSet<u32>) -> bool {
    rules
        .iter()
        .all(|(rule, _)| !numbers.contains(&rule.policy) || !numbers.contains(&rule.peer))
}

/// Slots of ports that stay and are judged otherwise.
fn changed_slots(now: &Entries, target: &Entries) -> BTreeSet<u32> {
    let taps = now.taps.iter().filter_map(|(ifindex, tap)| {
        let then = target.taps.get(ifindex)?;
        (then.slot == tap.slot && then != tap).then_some(tap.slot)
    });
    let endpoints = now.endpoints.iter().filter_map(|(key, endpoint)| {
        let then = target.endpoints.get(key)?;
        (then.slot == endpoint.slot && then != endpoint).then_some(endpoint.slot)
    });
    taps.chain(endpoints).collect()
}

/// Removes elements that are not wanted, or belong to another slot.
fn remove_ports(writer: &mut Writer<'_>, target: &Entries) -> Result<(), FabricError> {
    let now = writer.entries().clone();
    for (ifindex, tap) in &now.taps {
        if target.taps.get(ifindex).map(|then| then.slot) != Some(tap.slot) {
            writer.tap(*ifindex, None)?;
        }
    }
    for (key, endpoint) in &now.endpoints {
        if target.endpoints.get(key).map(|then| then.slot) != Some(endpoint.slot) {
            writer.endpoint(*key, None)?;
        }
    }
    for (address, service) in &now.services {
        if target.services.get(address) != Some(service) {
            writer.service(*address, None)?;
        }
    }
    Ok(())
}

/// Makes nobody of ports that will be judged otherwise.
fn blank_ports(writer: &mut Writer<'_>, target: &Entries) -> Result<(), FabricError> {
    let now = writer.entries().clone();
    for (ifindex, tap) in now.taps {
        if target.taps.get(&ifindex).map(|then| then.identity) != Some(tap.identity) {
            let nobody = Tap {
                identity: Identity::default(),
                ..tap
            };
            writer.tap(ifindex, Some(nobody))?;
        }
    }
    for (key, endpoint) in now.endpoints {
        if target.endpoints.get(&key).map(|then| then.identity) != Some(endpoint.identity) {
            let nobody = Endpoint {
                identity: Identity::default(),
                ..endpoint
            };
            writer.endpoint(key, Some(nobody))?;
        }
    }
    Ok(())
}

fn remove_rules(writer: &mut Writer<'_>, rules: &[Rule]) -> Result<(), FabricError> {
    rules.iter().try_for_each(|rule| writer.remove_rule(*rule))
}

/// Gives new slots their flow tables and interfaces.
fn make_slots(writer: &mut Writer<'_>, target: &Entries) -> Result<(), FabricError> {
    for (slot, ifindex) in &target.devices {
        if !writer.tables().contains(slot) {
            writer.make_table(*slot)?;
        }
        let limits = target.limits.get(slot).copied();
        if writer.entries().limits.get(slot).copied() != limits {
            writer.limits(*slot, limits)?;
        }
        if writer.entries().devices.get(slot) != Some(ifindex) {
            writer.device(*slot, Some(*ifindex))?;
        }
    }
    Ok(())
}

/// Writes elements that differ: those that are there, or those that are not. Where a port
/// receives comes before where it sends.
fn write_ports(writer: &mut Writer<'_>, target: &Entries, new: bool) -> Result<(), FabricError> {
    let is_due = |there: bool| there != new;
    let endpoints: Vec<(EndpointKey, Endpoint)> = target
        .endpoints
        .iter()
        .filter(|(key, endpoint)| {
            let now = writer.entries().endpoints.get(key);
            is_due(now.is_some()) && now != Some(endpoint)
        })
        .map(|(key, endpoint)| (*key, *endpoint))
        .collect();
    for (key, endpoint) in endpoints {
        writer.endpoint(key, Some(endpoint))?;
    }
    for (address, service) in &target.services {
        let now = writer.entries().services.get(address);
        if is_due(now.is_some()) && now != Some(service) {
            writer.service(*address, Some(*service))?;
        }
    }
    for (ifindex, tap) in &target.taps {
        let now = writer.entries().taps.get(ifindex);
        if is_due(now.is_some()) && now != Some(tap) {
            writer.tap(*ifindex, Some(*tap))?;
        }
    }
    Ok(())
}

/// Takes flow tables and interfaces from slots that no port has.
fn release_slots(writer: &mut Writer<'_>, target: &Entries) -> Result<(), FabricError> {
    let devices: Vec<u32> = writer.entries().devices.keys().copied().collect();
    for slot in devices {
        if !target.devices.contains_key(&slot) {
            writer.device(slot, None)?;
        }
    }
    for slot in writer.tables().clone() {
        if !target.devices.contains_key(&slot) {
            writer.remove_table(slot)?;
        }
    }
    let limited: Vec<u32> = writer.entries().limits.keys().copied().collect();
    for slot in limited {
        if !target.devices.contains_key(&slot) {
            writer.limits(slot, None)?;
        }
    }
    Ok(())
}
