//! What the maps hold at the moment, and each step that changes it.

use std::collections::{BTreeMap, BTreeSet};

use ocs_dataplane_shared::layout::{ATOM, Endpoint, EndpointKey, Identity, RuleKey, Service, Tap};

use ocs_dataplane_shared::limit::Limits;

use super::error::FabricError;
use crate::compiler::Entries;

/// What the maps hold. Each change is made to the maps first, so this is never ahead of
/// them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Contents {
    pub(super) entries: Entries,
    /// Slots that have a flow table.
    pub(super) tables: BTreeSet<u32>,
}

impl Entries {
    /// Entries of each map.
    pub(super) fn sizes(&self) -> BTreeMap<String, usize> {
        [
            ("TAPS", self.taps.len()),
            ("ENDPOINTS", self.endpoints.len()),
            ("SERVICES", self.services.len()),
            ("RULES", self.rules.len()),
            ("DEVICES", self.devices.len()),
            ("LIMITS", self.limits.len()),
        ]
        .map(|(name, size)| (name.to_owned(), size))
        .into()
    }

    /// Numbers that some address is judged by.
    pub(super) fn numbers(&self) -> BTreeSet<u32> {
        let taps = self.taps.values().map(|tap| tap.identity);
        let endpoints = self.endpoints.values().map(|endpoint| endpoint.identity);
        taps.chain(endpoints)
            .flat_map(|Identity { set, atom }| [set, atom])
            .filter(|number| *number != 0)
            .collect()
    }
}

/// Maps that can be written, element by element.
pub(super) trait Tables {
    /// Writes or deletes an element of `TAPS`.
    fn put_tap(&mut self, ifindex: u32, tap: Option<Tap>) -> Result<(), FabricError>;
    /// Writes or deletes an element of `ENDPOINTS`.
    fn put_endpoint(
        &mut self,
        key: EndpointKey,
        endpoint: Option<Endpoint>,
    ) -> Result<(), FabricError>;
    /// Writes or deletes an element of `SERVICES`.
    fn put_service(&mut self, address: u32, service: Option<Service>) -> Result<(), FabricError>;
    /// Adds a rule.
    fn add_rule(&mut self, rule: (RuleKey, u32)) -> Result<(), FabricError>;
    /// Removes a rule.
    fn remove_rule(&mut self, rule: (RuleKey, u32)) -> Result<(), FabricError>;
    /// Gives a slot an empty flow table, counters of zero and full credits.
    fn make_table(&mut self, slot: u32) -> Result<(), FabricError>;
    /// Takes a slot's flow table away.
    fn remove_table(&mut self, slot: u32) -> Result<(), FabricError>;
    /// Sets how fast a slot may be; what it has spent stays.
    fn put_limits(&mut self, slot: u32, limits: Option<Limits>) -> Result<(), FabricError>;
    /// Sets or clears a slot's interface; in the taps' namespace.
    fn put_device(&mut self, slot: u32, ifindex: Option<u32>) -> Result<(), FabricError>;
}

/// A change of the maps, and how many elements were written.
pub(super) struct Writer<'a> {
    contents: &'a mut Contents,
    maps: &'a mut dyn Tables,
    pub(super) writes: usize,
}

impl Contents {
    /// The highest number in use, without its [`ATOM`] bit.
    pub(super) fn highest_number(&self) -> u32 {
        let rules = self
            .entries
            .rules
            .iter()
            .flat_map(|(rule, _)| [rule.policy, rule.peer]);
        self.entries
            .numbers()
            .into_iter()
            .chain(rules)
            .map(|number| number & !ATOM)
            .max()
            .unwrap_or(0)
    }

    pub(super) fn writer<'a>(&'a mut self, maps: &'a mut dyn Tables) -> Writer<'a> {
        Writer {
            contents: self,
            maps,
            writes: 0,
        }
    }
}

impl Writer<'_> {
    /// What the maps hold by now.
    pub(super) fn entries(&self) -> &Entries {
        &self.contents.entries
    }

    /// Slots that have a flow table by now.
    pub(super) fn tables(&self) -> &BTreeSet<u32> {
        &self.contents.tables
    }

    pub(super) fn tap(&mut self, ifindex: u32, tap: Option<Tap>) -> Result<(), FabricError> {
        self.maps.put_tap(ifindex, tap)?;
        self.writes += 1;
        put(&mut self.contents.entries.taps, ifindex, tap);
        Ok(())
    }

    pub(super) fn endpoint(
        &mut self,
        key: EndpointKey,
        endpoint: Option<Endpoint>,
    ) -> Result<(), FabricError> {
        self.maps.put_endpoint(key, endpoint)?;
        self.writes += 1;
        put(&mut self.contents.entries.endpoints, key, endpoint);
        Ok(())
    }

    pub(super) fn service(
        &mut self,
        address: u32,
        service: Option<Service>,
    ) -> Result<(), FabricError> {
        self.maps.put_service(address, service)?;
        self.writes += 1;
        put(&mut self.contents.entries.services, address, service);
        Ok(())
    }

    pub(super) fn add_rule(&mut self, rule: (RuleKey, u32)) -> Result<(), FabricError> {
        self.maps.add_rule(rule)?;
        self.writes += 1;
        self.contents.entries.rules.insert(rule);
        Ok(())
    }

    pub(super) fn remove_rule(&mut self, rule: (RuleKey, u32)) -> Result<(), FabricError> {
        self.maps.remove_rule(rule)?;
        self.writes += 1;
        self.contents.entries.rules.remove(&rule);
        Ok(())
    }

    pub(super) fn make_table(&mut self, slot: u32) -> Result<(), FabricError> {
        self.maps.make_table(slot)?;
        self.writes += 1;
        self.contents.tables.insert(slot);
        Ok(())
    }

    pub(super) fn remove_table(&mut self, slot: u32) -> Result<(), FabricError> {
        self.maps.remove_table(slot)?;
        self.writes += 1;
        self.contents.tables.remove(&slot);
        Ok(())
    }

    pub(super) fn limits(&mut self, slot: u32, limits: Option<Limits>) -> Result<(), FabricError> {
        self.maps.put_limits(slot, limits)?;
        self.writes += 1;
        put(&mut self.contents.entries.limits, slot, limits);
        Ok(())
    }

    pub(super) fn device(&mut self, slot: u32, ifindex: Option<u32>) -> Result<(), FabricError> {
        self.maps.put_device(slot, ifindex)?;
        self.writes += 1;
        put(&mut self.contents.entries.devices, slot, ifindex);
        Ok(())
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => map.insert(key, value),
        None => map.remove(&key),
    };
}
