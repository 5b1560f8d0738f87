//! One connection to a backend.

use super::inflight::Inflight;
use super::plan::{Plan, Ring};
use super::{CONFIG_BYTES, Offer};
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserDirtyLogRegion};
use vmm_sys_util::eventfd::EventFd;

/// Block features passed through (§5.2.3): SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH,
/// TOPOLOGY, CONFIG_WCE, MQ, DISCARD, WRITE_ZEROES.
const BLOCK_FEATURES: u64 =
    1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | F_MQ | 1 << 13 | 1 << 14;
/// `VIRTIO_BLK_F_MQ`.
pub(super) const F_MQ: u64 = 1 << 12;
/// `VHOST_F_LOG_ALL`: the backend notes what it writes; not for the guest.
const F_LOG_ALL: u64 = 1 << 26;
const GUEST_FEATURES: u64 = BLOCK_FEATURES | F_VERSION_1 | F_EVENT_IDX | F_INDIRECT_DESC;

/// Why a backend is given up.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The protocol failed.
    #[error("cannot {what}: {source}")]
    Protocol {
        /// What was asked of the backend.
        what: &'static str,
        /// Its answer.
        source: vhost::Error,
    },
    /// It lacks something.
    #[error("the backend {0}")]
    Lacks(String),
    /// The system failed.
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

fn ask(what: &'static str) -> impl Fn(vhost::Error) -> SessionError {
    move |source| SessionError::Protocol { what, source }
}

/// An agreed connection.
pub struct Session {
    frontend: Frontend,
    stream: Arc<UnixStream>,
    /// What this backend offers a guest.
    pub offer: Offer,
    can_log: bool,
}

impl Session {
    /// Shakes hands. `before` is what an earlier backend offered, perhaps before a snapshot;
    /// this one must offer no less. The inflight region is made at the first connection and given back at
    /// all others. At most `most_queues` are used.
    ///
    /// A backend may take its time: it is heard until it or [`super::WorkerThread::join`] hangs
    /// up. A time-out on the socket would not end a wait (the `vhost` crate tries again), and
    /// a ring that is not known to have stopped may still be written to.
    pub fn open(
        stream: Arc<UnixStream>,
        before: Option<Offer>,
        most_queues: u16,
        inflight: &mut Option<Inflight>,
    ) -> Result<Self, SessionError> {
        let mut frontend = Frontend::from_stream(stream.try_clone()?, u64::from(most_queues));
        let features = frontend.get_features().map_err(ask("get features"))?;
        frontend.set_owner().map_err(ask("own the device"))?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(SessionError::Lacks("has no protocol features".to_owned()));
        }
        if features & F_VERSION_1 == 0 {
            return Err(SessionError::Lacks("does not speak virtio 1".to_owned()));
        }
        let protocol = negotiate(&mut frontend)?;
        let can_log =
            protocol.contains(VhostUserProtocolFeatures::LOG_SHMFD) && features & F_LOG_ALL != 0;
        let has_several = most_queues > 1
            && protocol.contains(VhostUserProtocolFeatures::MQ)
            && features & F_MQ != 0;
        let served = match has_several {
            true => frontend.get_queue_num().map_err(ask("count the queues"))?,
            false => 1,
        };
        let queues = u16::try_from(served)
            .unwrap_or(u16::MAX)
            .clamp(1, most_queues);

        let (_, payload) = frontend
            .get_config(
                0,
                u32::try_from(CONFIG_BYTES).unwrap_or(0),
                VhostUserConfigFlags::empty(),
                &[0; CONFIG_BYTES],
            )
            .map_err(ask("read the configuration"))?;
        let config = <[u8; CONFIG_BYTES]>::try_from(payload).map_err(|payload| {
            SessionError::Lacks(format!("gave a configuration of {} bytes", payload.len()))
        })?;
        let mut offer = Offer {
            features: features & GUEST_FEATURES,
            config,
        };
        offer.limit_queues(queues);
        if offer.queues() == 1 {
            offer.features &= !F_MQ;
        }
        if let Some(before) = before
            && (before.features & !offer.features != 0
                || before.sectors() > offer.sectors()
                || before.queues() > offer.queues())
        {
            return Err(SessionError::Lacks(format!(
                "offers {:#x}, {} sectors and {} queues, less than the {:#x}, {} and {} before",
                offer.features,
                offer.sectors(),
                offer.queues(),
                before.features,
                before.sectors(),
                before.queues()
            )));
        }
        let region = match inflight.take() {
            Some(kept) => kept,
            None => {
                let (info, file) = frontend
                    .get_inflight_fd(&Inflight::wanted(queues))
                    .map_err(ask("get an inflight region"))?;
                Inflight::new(info, file)?
            }
        };
        // A new region too takes effect only when it is set.
        let region = inflight.insert(region);
        frontend
            .set_inflight_fd(&region.info, region.fd())
            .map_err(ask("hand over the inflight region"))?;
        Ok(Self {
            frontend,
            stream,
            offer,
            can_log,
        })
    }

    /// Readable when the backend is gone: it never speaks first.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// The connection itself.
    pub fn line(&self) -> Arc<UnixStream> {
        Arc::clone(&self.stream)
    }

    /// Starts the rings of `plan`; the backend signals `broken` when the driver breaks the
    /// queue's rules.
    pub fn start(&mut self, plan: &Plan<'_>, broken: &EventFd) -> Result<(), SessionError> {
        let frontend = &mut self.frontend;
        let mut features = plan.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits();
        if let Some(log) = plan.log {
            let region = VhostUserDirtyLogRegion {
                mmap_size: log.bytes() as u64,
                mmap_offset: 0,
                mmap_handle: log.file().as_raw_fd(),
            };
            frontend
                .set_log_base(0, Some(region))
                .map_err(ask("hand over the dirty log"))?;
            features |= F_LOG_ALL;
        }
        frontend
            .set_features(features)
            .map_err(ask("set features"))?;
        frontend
            .set_mem_table(&plan.regions)
            .map_err(ask("share guest memory"))?;
        for ring in &plan.rings {
            self.start_ring(ring, broken)?;
            // A kick or an interrupt may have died with an earlier backend; one too many is
            // harmless, and a full counter already means "signalled".
            let _ = ring.kick.write(1);
            if plan.resumed {
                let _ = ring.call.write(1);
            }
        }
        Ok(())
    }

    fn start_ring(&mut self, ring: &Ring<'_>, broken: &EventFd) -> Result<(), SessionError> {
        let (index, frontend) = (ring.index, &mut self.frontend);
        frontend
            .set_vring_num(index, ring.addresses.queue_size)
            .map_err(ask("set the queue size"))?;
        frontend
            .set_vring_base(index, ring.base)
            .map_err(ask("set the ring's base"))?;
        frontend
            .set_vring_addr(index, &ring.addresses)
            .map_err(ask("set the ring's addresses"))?;
        frontend
            .set_vring_call(index, ring.call)
            .map_err(ask("hand over the interrupt"))?;
        frontend
            .set_vring_err(index, broken)
            .map_err(ask("hand over the error event"))?;
        frontend
            .set_vring_kick(index, ring.kick)
            .map_err(ask("hand over the kick"))?;
        frontend
            .set_vring_enable(index, true)
            .map_err(ask("enable the ring"))
    }

    /// Can this backend note what it writes?
    pub fn can_log(&self) -> bool {
        self.can_log
    }

    /// Stops the rings of these numbers; when this returns, nothing is in flight: the next
    /// available index of each.
    pub fn stop(&mut self, rings: &[u16]) -> Result<Vec<u16>, SessionError> {
        let mut bases = Vec::new();
        for ring in rings {
            let base = self
                .frontend
                .get_vring_base(usize::from(*ring))
                .map_err(ask("stop the ring"))?;
            bases.push(u16::try_from(base).map_err(|_| {
                SessionError::Lacks(format!("stopped its ring at {base}, which is no index"))
            })?);
        }
        Ok(bases)
    }
}

/// Agrees on the protocol's features: which.
fn negotiate(frontend: &mut Frontend) -> Result<VhostUserProtocolFeatures, SessionError> {
    let needed = VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::INFLIGHT_SHMFD;
    let offered = frontend
        .get_protocol_features()
        .map_err(ask("get protocol features"))?;
    if !offered.contains(needed) {
        return Err(SessionError::Lacks(format!(
            "lacks protocol features {:?}",
            needed - offered
        )));
    }
    let optional = VhostUserProtocolFeatures::REPLY_ACK
        | VhostUserProtocolFeatures::LOG_SHMFD
        | VhostUserProtocolFeatures::MQ;
    let chosen = offered & (needed | optional);
    frontend
        .set_protocol_features(chosen)
        .map_err(ask("set protocol features"))?;
    if chosen.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(chosen)
}
