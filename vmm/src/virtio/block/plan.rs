//! What a backend is told of rings: the guest's own, or the one of the bounce region.

use super::bounce::Bounce;
use super::session::SessionError;
use super::{Active, Positions};
use crate::memory::dirty::BackendLog;
use crate::virtio::queue::VirtQueue;
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, Position};
use vhost::{VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

/// `VHOST_VRING_F_LOG`: note what is written to the used ring, too.
const RING_LOG: u32 = 1;

/// One ring, ready to be started.
pub struct Ring<'a> {
    /// Its number.
    pub index: usize,
    /// Sizes and addresses.
    pub addresses: VringConfigData,
    /// Where it begins.
    pub base: u16,
    /// Driver to device.
    pub kick: &'a EventFd,
    /// Device to driver.
    pub call: &'a EventFd,
}

/// All rings of a disk.
pub struct Plan<'a> {
    /// Accepted by whoever drives the ring.
    pub features: u64,
    /// What the backend maps.
    pub regions: Vec<VhostUserMemoryRegionInfo>,
    /// The rings in use.
    pub rings: Vec<Ring<'a>>,
    /// They were served before.
    pub resumed: bool,
    /// Where the backend notes what it writes.
    pub log: Option<&'a BackendLog>,
}

impl<'a> Plan<'a> {
    /// The guest's own rings, in memory that the backend maps. `no_call` stands in for an
    /// interrupt that the driver does not want.
    pub fn direct(
        active: &'a Active,
        resumed: bool,
        no_call: &'a EventFd,
        log: Option<&'a BackendLog>,
    ) -> Result<Self, SessionError> {
        let mut regions = Vec::new();
        for region in active.ram.iter() {
            let region = VhostUserMemoryRegionInfo::from_guest_region(region);
            regions.push(region.map_err(|source| SessionError::Protocol {
                what: "describe guest memory",
                source,
            })?);
        }
        let host = |guest: u64| {
            active
                .ram
                .get_host_address(GuestAddress(guest))
                .map(|at| at as u64)
                .map_err(|e| SessionError::Lacks(format!("cannot reach the ring: {e}")))
        };
        let mut rings = Vec::new();
        for (index, queue) in active.queues() {
            let ring = queue.ring();
            let addresses = VringConfigData {
                queue_max_size: ring.max_size(),
                queue_size: ring.size(),
                flags: if log.is_some() { RING_LOG } else { 0 },
                desc_table_addr: host(ring.desc_table())?,
                used_ring_addr: host(ring.used_ring())?,
                avail_ring_addr: host(ring.avail_ring())?,
                log_addr: log.map(|_| ring.used_ring()),
            };
            rings.push(Ring {
                index: usize::from(index),
                addresses,
                base: if resumed {
                    active.used_index(queue)?
                } else {
                    0
                },
                kick: queue.kick(),
                call: queue.call().unwrap_or(no_call),
            });
        }
        Ok(Self {
            features: active.features,
            regions,
            rings,
            resumed,
            log,
        })
    }

    /// The ring of the bounce region, of which only one side is the guest's.
    pub fn bounced(features: u64, bounce: &'a Bounce) -> Self {
        let (size, [desc, avail, used]) = bounce.ring();
        Self {
            features: features & !(F_EVENT_IDX | F_INDIRECT_DESC),
            regions: vec![bounce.region()],
            rings: vec![Ring {
                index: 0,
                addresses: VringConfigData {
                    queue_max_size: size,
                    queue_size: size,
                    flags: 0,
                    desc_table_addr: desc,
                    used_ring_addr: used,
                    avail_ring_addr: avail,
                    log_addr: None,
                },
                base: bounce.base(),
                kick: bounce.kick(),
                call: bounce.call(),
            }],
            resumed: true,
            log: None,
        }
    }
}

impl Active {
    /// Where the queues stand, whose rings the backend stopped at `bases`.
    pub(super) fn stopped_at(&self, bases: &[u16]) -> Result<Positions, SessionError> {
        let mut positions = vec![None; self.places];
        for ((index, queue), next_avail) in self.queues().zip(bases) {
            if let Some(place) = positions.get_mut(usize::from(index)) {
                *place = Some(Position {
                    next_avail: *next_avail,
                    next_used: self.used_index(queue)?,
                });
            }
        }
        Ok(positions)
    }

    /// The used index in guest memory: what was popped behind it is in flight.
    fn used_index(&self, queue: &VirtQueue) -> Result<u16, SessionError> {
        let ring = queue.ring();
        let index = ring.used_idx(&self.ram, std::sync::atomic::Ordering::Acquire);
        index
            .map(|index| index.0)
            .map_err(|e| SessionError::Lacks(format!("cannot be told where the ring stands: {e}")))
    }
}
