//! One connection to a backend.

use super::inflight::Inflight;
use super::{Active, CONFIG_BYTES, Offer};
use crate::virtio::{F_EVENT_IDX, F_INDIRECT_DESC, F_VERSION_1, Position};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use vhost::vhost_user::message::{
    VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserProtocolFeatures, VhostUserVirtioFeatures,
};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use virtio_queue::QueueT;
use vm_memory::{GuestAddress, GuestMemoryBackend};
use vmm_sys_util::eventfd::EventFd;

/// Block features passed through (§5.2.3): SIZE_MAX, SEG_MAX, RO, BLK_SIZE, FLUSH,
/// TOPOLOGY, CONFIG_WCE, DISCARD, WRITE_ZEROES.
const BLOCK_FEATURES: u64 =
    1 << 1 | 1 << 2 | 1 << 5 | 1 << 6 | 1 << 9 | 1 << 10 | 1 << 11 | 1 << 13 | 1 << 14;
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
}

impl Session {
    /// Shakes hands. `before` is what an earlier backend offered, perhaps before a snapshot;
    /// this one must offer no less. The inflight region is made at the first connection and given back at
    /// all others.
    ///
    /// A backend may take its time: it is heard until it or [`super::WorkerThread::join`] hangs
    /// up. A time-out on the socket would not end a wait (the `vhost` crate tries again), and
    /// a ring that is not known to have stopped may still be written to.
    pub fn open(
        stream: Arc<UnixStream>,
        before: Option<Offer>,
        inflight: &mut Option<Inflight>,
    ) -> Result<Self, SessionError> {
        let mut frontend = Frontend::from_stream(stream.try_clone()?, 1);
        let features = frontend.get_features().map_err(ask("get features"))?;
        frontend.set_owner().map_err(ask("own the device"))?;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            return Err(SessionError::Lacks("has no protocol features".to_owned()));
        }
        if features & F_VERSION_1 == 0 {
            return Err(SessionError::Lacks("does not speak virtio 1".to_owned()));
        }
        negotiate(&mut frontend)?;

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
        let offer = Offer {
            features: features & GUEST_FEATURES,
            config,
        };
        if let Some(before) = before
            && (before.features & !offer.features != 0 || before.sectors() > offer.sectors())
        {
            return Err(SessionError::Lacks(format!(
                "offers {:#x} and {} sectors, less than the {:#x} and {} of its predecessor",
                offer.features,
                offer.sectors(),
                before.features,
                before.sectors()
            )));
        }
        let region = match inflight.take() {
            Some(kept) => kept,
            None => {
                let (info, file) = frontend
                    .get_inflight_fd(&Inflight::wanted())
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
        })
    }

    /// Readable when the backend is gone: it never speaks first.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    /// Starts the ring. `resumed` rings go on where the used index stands. `no_call` stands in
    /// for an interrupt that the driver does not want; the backend signals `broken` when the
    /// driver breaks the queue's rules.
    pub fn start(
        &mut self,
        active: &Active,
        resumed: bool,
        no_call: &EventFd,
        broken: &EventFd,
    ) -> Result<(), SessionError> {
        let queue = active.queue.ring();
        let frontend = &mut self.frontend;
        frontend
            .set_features(active.features | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits())
            .map_err(ask("set features"))?;
        let mut regions = Vec::new();
        for region in active.ram.iter() {
            regions.push(
                VhostUserMemoryRegionInfo::from_guest_region(region)
                    .map_err(ask("describe guest memory"))?,
            );
        }
        frontend
            .set_mem_table(&regions)
            .map_err(ask("share guest memory"))?;
        frontend
            .set_vring_num(0, queue.size())
            .map_err(ask("set the queue size"))?;
        let base = if resumed { used_index(active)? } else { 0 };
        frontend
            .set_vring_base(0, base)
            .map_err(ask("set the ring's base"))?;
        let host = |guest: u64| {
            active
                .ram
                .get_host_address(GuestAddress(guest))
                .map(|at| at as u64)
                .map_err(|e| SessionError::Lacks(format!("cannot reach the ring: {e}")))
        };
        let addresses = VringConfigData {
            queue_max_size: queue.max_size(),
            queue_size: queue.size(),
            flags: 0,
            desc_table_addr: host(queue.desc_table())?,
            used_ring_addr: host(queue.used_ring())?,
            avail_ring_addr: host(queue.avail_ring())?,
            log_addr: None,
        };
        frontend
            .set_vring_addr(0, &addresses)
            .map_err(ask("set the ring's addresses"))?;
        frontend
            .set_vring_call(0, active.queue.call().unwrap_or(no_call))
            .map_err(ask("hand over the interrupt"))?;
        frontend
            .set_vring_err(0, broken)
            .map_err(ask("hand over the error event"))?;
        frontend
            .set_vring_kick(0, active.queue.kick())
            .map_err(ask("hand over the kick"))?;
        frontend
            .set_vring_enable(0, true)
            .map_err(ask("enable the ring"))?;
        // A kick or an interrupt may have died with an earlier backend; one too many is harmless,
        // and a full counter already means "signalled".
        let _ = active.queue.kick().write(1);
        if resumed && let Some(call) = active.queue.call() {
            let _ = call.write(1);
        }
        Ok(())
    }

    /// Stops the ring; when this returns, nothing is in flight: where it stands.
    pub fn stop(&mut self, active: &Active) -> Result<Position, SessionError> {
        let base = self
            .frontend
            .get_vring_base(0)
            .map_err(ask("stop the ring"))?;
        Ok(Position {
            next_avail: u16::try_from(base).map_err(|_| {
                SessionError::Lacks(format!("stopped its ring at {base}, which is no index"))
            })?,
            next_used: used_index(active)?,
        })
    }
}

/// The used index in guest memory. Between the two everything popped is in flight.
fn used_index(active: &Active) -> Result<u16, SessionError> {
    let index = active
        .queue
        .ring()
        .used_idx(&active.ram, std::sync::atomic::Ordering::Acquire)
        .map_err(|e| SessionError::Lacks(format!("cannot be told where the ring stands: {e}")))?;
    Ok(index.0)
}

fn negotiate(frontend: &mut Frontend) -> Result<(), SessionError> {
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
    let chosen = offered & (needed | VhostUserProtocolFeatures::REPLY_ACK);
    frontend
        .set_protocol_features(chosen)
        .map_err(ask("set protocol features"))?;
    if chosen.contains(VhostUserProtocolFeatures::REPLY_ACK) {
        frontend.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
    }
    Ok(())
}
