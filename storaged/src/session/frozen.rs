//! A session laid down and taken up again, in this process or another: what its
//! frontend has told so far, as data and descriptors.
//!
//! The frontend notices nothing: the connection stays, its rings pause for as long as
//! the requests in flight take, and go on where they were.

use super::{Session, Vring};
use crate::dirty::DirtyLog;
use crate::inflight::Region;
use crate::memory::Memory;
use crate::queue::Addresses;
use serde::{Deserialize, Serialize};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// What a frontend has told, but for the descriptors.
#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Virtio features that it accepted.
    pub features: u64,
    /// Protocol features that it accepted.
    pub protocol_features: u64,
    /// Its memory, a descriptor each.
    regions: Vec<RegionRecord>,
    /// Its queues, up to three descriptors each.
    rings: Vec<RingRecord>,
    /// Where its in-flight region is in its descriptor, if it has one.
    inflight: Option<InflightRecord>,
    /// Where its dirty log is in its descriptor, and its length, if it has one.
    #[serde(default)]
    log: Option<(u64, u64)>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RegionRecord {
    guest: u64,
    user: u64,
    len: u64,
    offset: u64,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct RingRecord {
    size: u32,
    /// Descriptor table, available ring, used ring.
    addresses: Option<(u64, u64, u64)>,
    base: u16,
    enabled: bool,
    runs: bool,
    /// Which of kick, call and err there are.
    events: [bool; 3],
    /// Guest address of the used ring, where it is logged.
    #[serde(default)]
    log_used: Option<u64>,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
struct InflightRecord {
    offset: u64,
    queues: u16,
    size: u16,
}

/// A session at rest.
pub struct Frozen {
    /// What was told.
    pub record: Record,
    /// In the order of the record: regions, rings, in-flight region, dirty log.
    pub files: Vec<OwnedFd>,
}

impl Session {
    /// Stops every queue once nothing of it is in flight, and gives up the device.
    pub fn freeze(&mut self) -> super::Result<Frozen> {
        let runs: Vec<bool> = self.rings.iter().map(|ring| ring.runs).collect();
        for index in 0..self.rings.len() as u32 {
            self.stop(index)?;
        }
        self.remove_device();
        let mut files: Vec<OwnedFd> = Vec::new();
        let mut regions = Vec::new();
        for region in self.memory.regions() {
            files.push(region.file().map_err(super::refuse)?.into());
            regions.push(RegionRecord {
                guest: region.guest,
                user: region.user,
                len: region.len,
                offset: region.offset,
            });
        }
        let mut rings = Vec::new();
        for (ring, runs) in self.rings.iter_mut().zip(runs) {
            let events = [ring.kick.take(), ring.call.take(), ring.err.take()];
            rings.push(RingRecord {
                size: ring.size,
                addresses: ring.addresses.map(|a| (a.desc, a.avail, a.used)),
                base: ring.base,
                enabled: ring.enabled,
                runs,
                events: events.each_ref().map(Option::is_some),
                log_used: ring.log_used,
            });
            files.extend(events.into_iter().flatten().map(OwnedFd::from));
        }
        let inflight = match &self.inflight {
            Some(region) => {
                files.push(region.file().map_err(super::refuse)?.into());
                Some(InflightRecord {
                    offset: region.offset(),
                    queues: region.queues(),
                    size: region.size(),
                })
            }
            None => None,
        };
        let log = match &self.log {
            Some(log) => {
                let (file, offset, bytes) = log.parts();
                files.push(file.try_clone().map_err(super::refuse)?.into());
                Some((offset, bytes))
            }
            None => None,
        };
        // Not `end`: the region stays in use.
        (self.secrets, self.inflight) = (None, None);
        Ok(Frozen {
            record: Record {
                features: self.features,
                protocol_features: self.protocol_features,
                regions,
                rings,
                inflight,
                log,
            },
            files,
        })
    }

    /// Takes up what a session with the same volume laid down; its features were told
    /// it again already.
    pub fn thaw(&mut self, frozen: Frozen) -> super::Result<()> {
        let missing = || super::refuse("a descriptor of the session is missing");
        let mut files = frozen.files.into_iter().map(File::from);
        let mut memory = Memory::default();
        for region in &frozen.record.regions {
            let file = files.next().ok_or_else(missing)?;
            let region = crate::memory::Region::new(
                region.guest,
                region.user,
                region.len,
                &file,
                region.offset,
                self.trust,
            );
            memory
                .add(region.map_err(super::refuse)?)
                .map_err(super::refuse)?;
        }
        self.memory = memory;
        if frozen.record.rings.len() != self.rings.len() {
            return Err(super::refuse("the session has another number of queues"));
        }
        let mut events = Vec::new();
        for ring in &frozen.record.rings {
            let mut next = |there: bool| match there {
                true => files.next().map(Some).ok_or_else(missing),
                false => Ok(None),
            };
            let [kick, call, err] = ring.events;
            events.push([next(kick)?, next(call)?, next(err)?]);
        }
        if let Some(record) = &frozen.record.inflight {
            let file = files.next().ok_or_else(missing)?;
            let region = Region::open(&file, record.offset, record.queues, record.size);
            self.track(region.map_err(super::refuse)?)?;
        }
        if let Some((offset, bytes)) = frozen.record.log {
            let file = files.next().ok_or_else(missing)?;
            let log = DirtyLog::new(&file, offset, bytes, self.trust);
            self.log = Some(Arc::new(log.map_err(super::refuse)?));
        }
        for (index, (record, [kick, call, err])) in
            frozen.record.rings.iter().zip(events).enumerate()
        {
            self.rings[index] = Vring {
                size: record.size,
                addresses: record.addresses.map(|(desc, avail, used)| Addresses {
                    desc,
                    avail,
                    used,
                }),
                base: record.base,
                kick,
                call,
                err,
                enabled: record.enabled,
                log_used: record.log_used,
                runs: false,
            };
            if record.runs {
                self.try_start(index as u32)?;
            }
        }
        Ok(())
    }
}
