//! The life of a machine's parts: stop, save, load, go on.
//!
//! ```text
//!                 load                 pause                save (any number of times)
//!   [built] ──────────────▶ [paused] ◀─────── [running] ◀─┐   │
//!      │                       │  ▲              ▲        │   ▼
//!      │ first run             │  └──────────────┼──── [paused]
//!      └───────────────────────┴──── resume ─────┘
//! ```
//! *Who may call when.* One thread at a time calls these methods, and only while every vCPU
//! stands still at the gate ([`crate::cpu::Gate`]), so no guest register access runs beside
//! them; other threads of the part itself may. A part is built *running* with nothing to do,
//! since no driver has set it up.
//!
//! * [`pause`](Lifecycle::pause), when it returns `Ok`, has ended every access to guest memory
//!   on the part's behalf, by any thread of this process and any other process: queues are
//!   stopped, what was in flight has completed and is in the used rings. Idempotent. An error
//!   says why that is not so; the caller resumes all parts, and the machine goes on.
//! * [`save`](Lifecycle::save) may be called only between `pause` and `resume`. It reads, and
//!   changes nothing that the guest could notice.
//! * [`load`](Lifecycle::load) may be called only on a part as it was built, before any vCPU has
//!   run. It leaves the part paused. An error leaves the part unusable: the process ends.
//!   State is not trusted; `load` checks it as it would check a guest's writes.
//! * [`resume`](Lifecycle::resume) lets it go on, and looks for what came meanwhile: a kick, a
//!   frame. Idempotent, and without effect on a running part.
//!
//! `save` after `load` gives the same bytes again; every part has a test that holds it to this.
//! Interrupts that were on their way when the vCPUs stopped may be lost in KVM: `load` raises
//! those of active queues once more, since a spurious interrupt is harmless and a lost one is not.

use crate::memory::dirty::BackendLog;
use crate::persist::State;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// A part of the machine that survives in a snapshot. See the module's documentation for who
/// may call when.
pub trait Lifecycle: Send + Sync {
    /// Ends all activity; on return nothing touches guest memory on this part's behalf.
    fn pause(&self) -> Result<(), String> {
        Ok(())
    }

    /// The part's state, while paused.
    fn save(&self) -> Result<State, String>;

    /// Takes over a state, before the first vCPU runs; the part is then paused.
    fn load(&self, state: &State) -> Result<(), String>;

    /// Goes on.
    fn resume(&self) {}

    /// While paused, for a part that moves to another process: what a descriptor that it holds
    /// for others is, and the descriptor.
    fn hand_over(&self) -> Option<(Vec<u8>, OwnedFd)> {
        None
    }

    /// Takes what the same part of another process handed over, before `load`.
    fn take_over(&self, _info: &[u8], _fd: OwnedFd) -> Result<(), String> {
        Err("takes nothing over".to_owned())
    }

    /// While paused: from `resume` on, other processes note in `log` what they write into
    /// guest memory for this part, or no longer. What this process writes is noted anyway.
    fn log_dirty(&self, _log: Option<&Arc<BackendLog>>) -> Result<(), String> {
        Ok(())
    }
}

/// A state that is not the one that was saved: for tests that hold `load` to `save`.
#[cfg(test)]
pub(crate) fn assert_round_trip(saved: &dyn Lifecycle, fresh: &dyn Lifecycle) {
    saved.pause().unwrap();
    let state = saved.save().unwrap();
    assert_ne!(
        fresh.save().unwrap(),
        state,
        "nothing was set that a load could restore"
    );
    fresh.load(&state).unwrap();
    assert_eq!(fresh.save().unwrap(), state);
    let cut = State {
        version: state.version,
        bytes: state.bytes[..state.bytes.len() - 1].to_vec(),
    };
    assert!(fresh.load(&cut).is_err(), "a cut state was taken");
    let newer = State {
        version: state.version + 1,
        bytes: state.bytes,
    };
    let refusal = fresh.load(&newer).unwrap_err();
    assert!(refusal.contains("this VMM reads"), "{refusal}");
}
