//! The ledger: what the node allotted to each instance, and how its last run
//! ended. One file an instance in `DIR/node/instances/`, durable before it is used.

use super::durable::{self, Lasts};
use super::layout::is_plain_id;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// User ids for this many instances; a host holds fewer.
const SLOTS: u32 = 20_000;
/// Service addresses: 169.254.1.0 to 169.254.254.255 without .169.254, .169.253.
const ADDRESS_FIRST: u32 = 0xa9fe_0100;
const ADDRESS_END: u32 = 0xa9fe_ff00;
const ADDRESSES_RESERVED: [u32; 2] = [0xa9fe_a9fe, 0xa9fe_a9fd];

/// One instance's page.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Its user id is the base's + 100 + this.
    pub slot: u32,
    /// By ENI id; unique on this host.
    pub service_addresses: BTreeMap<String, Ipv4Addr>,
    /// The start (`node.proto` `Instance.starts`) whose instance stores may exist.
    pub starts: u64,
    /// Names of those instance stores, at storaged.
    pub stores: BTreeSet<String>,
    /// Set once a run has ended of itself; no further run until `starts` grows.
    pub ended: Option<Ended>,
    /// What the last run left of its network credits; none: all that there may be.
    #[serde(default)]
    pub network_credits: Option<Credits>,
}

/// Network credits at the end of a run; they grow at the baseline's rate.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Credits {
    /// So many.
    pub bytes: u64,
    /// Unix seconds.
    pub at_s: i64,
    /// The run's nonce.
    pub run: String,
}

/// How a run ended that was not asked to.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ended {
    /// The start that ended.
    pub starts: u64,
    /// It never came up.
    pub failed: bool,
    /// EC2's StateReason code.
    pub reason_code: String,
    /// One sentence.
    pub message: String,
    /// Unix seconds.
    pub at_s: i64,
}

/// Every page, and what is taken.
pub struct Ledger {
    folder: PathBuf,
    pages: Mutex<Pages>,
}

#[derive(Default)]
struct Pages {
    records: HashMap<String, Record>,
    slots: BTreeSet<u32>,
    addresses: BTreeSet<u32>,
    next_address: u32,
}

/// Why an allotment failed.
#[derive(Debug, thiserror::Error)]
pub enum LedgerError {
    /// The disk refused.
    #[error("{path}: {source}")]
    Io {
        /// The page.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// All taken.
    #[error("this host has no {0} left")]
    Exhausted(&'static str),
}

impl Ledger {
    /// Reads all pages in `folder`, making it where it is missing.
    pub fn open(folder: &Path) -> Result<Self, LedgerError> {
        let io = |path: &Path, source| LedgerError::Io {
            path: path.to_owned(),
            source,
        };
        std::fs::create_dir_all(folder).map_err(|e| io(folder, e))?;
        let mut pages = Pages::default();
        for entry in std::fs::read_dir(folder).map_err(|e| io(folder, e))? {
            let path = entry.map_err(|e| io(folder, e))?.path();
            let id = path.file_stem().and_then(|s| s.to_str()).unwrap_or("");
            if path.extension().is_none_or(|e| e != "json") || !is_plain_id(id) {
                continue;
            }
            if let Some(record) = durable::read::<Record>(&path).map_err(|e| io(&path, e))? {
                pages.take(&record);
                pages.records.insert(id.to_owned(), record);
            }
        }
        let last = pages.addresses.last().copied();
        pages.next_address = last.map_or(ADDRESS_FIRST, |a| a + 1);
        Ok(Self {
            folder: folder.to_owned(),
            pages: Mutex::new(pages),
        })
    }

    /// The page of instance `id`.
    #[must_use]
    pub fn get(&self, id: &str) -> Option<Record> {
        self.lock().records.get(id).cloned()
    }

    /// Every instance that has a page.
    #[must_use]
    pub fn ids(&self) -> Vec<String> {
        self.lock().records.keys().cloned().collect()
    }

    /// A page for instance `id` with an address for each of `enis`; what it has, it
    /// keeps. `finish` writes the rest of the page, which is durable on return.
    pub fn allot(
        &self,
        id: &str,
        enis: &[String],
        finish: impl FnOnce(&mut Record),
    ) -> Result<Record, LedgerError> {
        let mut pages = self.lock();
        let mut record = match pages.records.get(id) {
            Some(record) => record.clone(),
            None => Record {
                slot: (0..SLOTS)
                    .find(|slot| !pages.slots.contains(slot))
                    .ok_or(LedgerError::Exhausted("user id"))?,
                service_addresses: BTreeMap::new(),
                starts: 0,
                stores: BTreeSet::new(),
                ended: None,
                network_credits: None,
            },
        };
        record.service_addresses.retain(|eni, address| {
            let kept = enis.contains(eni);
            if !kept {
                pages.addresses.remove(&u32::from(*address));
            }
            kept
        });
        for eni in enis {
            if !record.service_addresses.contains_key(eni) {
                let address = pages.free_address()?;
                pages.addresses.insert(u32::from(address));
                record.service_addresses.insert(eni.clone(), address);
            }
        }
        finish(&mut record);
        pages.take(&record);
        let before = pages.records.get(id).cloned();
        drop(pages);
        if let Err(error) = self.put(id, record.clone()) {
            let mut pages = self.lock();
            pages.release(&record);
            if let Some(before) = before {
                pages.take(&before);
            }
            return Err(error);
        }
        Ok(record)
    }

    /// An address that no instance has, until it is taken back or we end: its ENI is made anew
    /// with each start of ours.
    pub fn lend(&self) -> Result<Ipv4Addr, LedgerError> {
        let mut pages = self.lock();
        let address = pages.free_address()?;
        pages.addresses.insert(u32::from(address));
        Ok(address)
    }

    /// An address that was lent is free.
    pub fn take_back(&self, address: Ipv4Addr) {
        self.lock().addresses.remove(&u32::from(address));
    }

    /// Replaces the page of instance `id`; durable when this returns.
    pub fn put(&self, id: &str, record: Record) -> Result<(), LedgerError> {
        if self.lock().records.get(id) == Some(&record) {
            return Ok(());
        }
        let path = self.page(id);
        durable::replace(&path, &record, Lasts::Always)
            .map_err(|source| LedgerError::Io { path, source })?;
        self.lock().records.insert(id.to_owned(), record);
        Ok(())
    }

    /// Frees all that instance `id` has.
    pub fn forget(&self, id: &str) -> Result<(), LedgerError> {
        let path = self.page(id);
        durable::remove(&path, Lasts::Always).map_err(|source| LedgerError::Io { path, source })?;
        let mut pages = self.lock();
        if let Some(record) = pages.records.remove(id) {
            pages.release(&record);
        }
        Ok(())
    }

    fn page(&self, id: &str) -> PathBuf {
        self.folder.join(format!("{id}.json"))
    }

    fn lock(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn take(&mut self, record: &Record) {
        self.slots.insert(record.slot);
        self.addresses
            .extend(record.service_addresses.values().map(|a| u32::from(*a)));
    }

    fn release(&mut self, record: &Record) {
        self.slots.remove(&record.slot);
        for address in record.service_addresses.values() {
            self.addresses.remove(&u32::from(*address));
        }
    }

    /// The next free address, in turn, so that a freed one rests as long as it can.
    fn free_address(&mut self) -> Result<Ipv4Addr, LedgerError> {
        for _ in ADDRESS_FIRST..ADDRESS_END {
            let address = match self.next_address {
                a if (ADDRESS_FIRST..ADDRESS_END).contains(&a) => a,
                _ => ADDRESS_FIRST,
            };
            self.next_address = address + 1;
            if !ADDRESSES_RESERVED.contains(&address) && !self.addresses.contains(&address) {
                return Ok(Ipv4Addr::from(address));
            }
        }
        Err(LedgerError::Exhausted("service address"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn enis(names: &[&str]) -> Vec<String> {
        names.iter().map(|n| (*n).to_owned()).collect()
    }

    #[test]
    fn allotments_are_unique_and_survive_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::open(dir.path()).unwrap();
        let one = ledger
            .allot("i-1", &enis(&["eni-1", "eni-2"]), |_| ())
            .unwrap();
        let two = ledger.allot("i-2", &enis(&["eni-3"]), |_| ()).unwrap();
        assert_ne!(one.slot, two.slot);
        drop(ledger);

        let ledger = Ledger::open(dir.path()).unwrap();
        assert_eq!(ledger.get("i-1"), Some(one.clone()));
        assert_eq!(
            ledger
                .allot("i-1", &enis(&["eni-1", "eni-2"]), |_| ())
                .unwrap(),
            one
        );
        let three = ledger.allot("i-3", &enis(&["eni-4"]), |_| ()).unwrap();
        let mut all: Vec<_> = [&one, &two, &three]
            .iter()
            .flat_map(|r| r.service_addresses.values())
            .collect();
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 4);

        ledger.forget("i-1").unwrap();
        ledger.forget("i-1").unwrap();
        assert_eq!(ledger.get("i-1"), None);
        assert_eq!(ledger.allot("i-4", &[], |_| ()).unwrap().slot, one.slot);
    }

    #[test]
    fn reserved_addresses_are_never_given_and_the_range_wraps() {
        let mut pages = Pages {
            next_address: 0xa9fe_a9fc,
            ..Pages::default()
        };
        assert_eq!(
            pages.free_address().unwrap(),
            Ipv4Addr::new(169, 254, 169, 252)
        );
        assert_eq!(
            pages.free_address().unwrap(),
            Ipv4Addr::new(169, 254, 169, 255)
        );
        pages.next_address = ADDRESS_END - 1;
        assert_eq!(
            pages.free_address().unwrap(),
            Ipv4Addr::new(169, 254, 254, 255)
        );
        assert_eq!(pages.free_address().unwrap(), Ipv4Addr::new(169, 254, 1, 0));
        pages.addresses = (ADDRESS_FIRST..ADDRESS_END).collect();
        assert!(matches!(
            pages.free_address(),
            Err(LedgerError::Exhausted("service address"))
        ));
    }

    #[test]
    fn a_damaged_page_is_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("i-1.json"), "{").unwrap();
        let error = Ledger::open(dir.path()).err().unwrap().to_string();
        assert!(error.contains("i-1.json"), "{error}");
    }
}
