//! What control is to be told: the latest of each object, and which of it is news.
//!
//! Level-triggered, so that it is bounded by the number of objects: a session
//! that lags learns where things stand, not each station on the way.

use super::machine::now_s;
use super::plan::Observed;
use ocs_node_api as api;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// Shared by the engine, which writes, and the session, which sends.
#[derive(Default)]
pub struct Outbox {
    state: Mutex<State>,
    news: Notify,
}

#[derive(Default)]
struct State {
    boot_id: String,
    latest: BTreeMap<String, api::Report>,
    unsent: BTreeSet<String>,
}

impl Outbox {
    /// Empty; `boot_id` is this boot of the host.
    #[must_use]
    pub fn new(boot_id: String) -> Self {
        let state = State {
            boot_id,
            ..State::default()
        };
        Self {
            state: Mutex::new(state),
            news: Notify::new(),
        }
    }

    /// Instance `id` is so, in answer to desired `generation`.
    pub fn instance(&self, id: &str, generation: u64, observed: Observed) {
        let mut state = self.lock();
        let mut now = api::ObservedInstance {
            id: id.to_owned(),
            phase: observed.phase.into(),
            reason_code: observed.reason_code,
            message: observed.message,
            reboots: observed.reboots,
            since_s: now_s(),
            disks_generation: observed.disks_generation,
        };
        if let Some(api::report::Object::Instance(before)) =
            state.latest.get(id).and_then(|r| r.object.as_ref())
            && before.phase == now.phase
        {
            now.since_s = before.since_s;
        }
        self.put(
            &mut state,
            id,
            generation,
            api::report::Object::Instance(now),
        );
    }

    /// Volume `id` is so, in answer to desired `generation`.
    pub fn volume(&self, id: &str, generation: u64, phase: api::Phase, message: String) {
        let now = api::ObservedVolume {
            id: id.to_owned(),
            phase: phase.into(),
            message,
        };
        self.put(
            &mut self.lock(),
            id,
            generation,
            api::report::Object::Volume(now),
        );
    }

    /// A snapshot is so, in answer to desired `generation`.
    pub fn snapshot(&self, generation: u64, observed: api::ObservedSnapshot) {
        let id = observed.id.clone();
        let object = api::report::Object::Snapshot(observed);
        self.put(&mut self.lock(), &id, generation, object);
    }

    /// A NAT gateway or an instance-connect endpoint is so, in answer to desired `generation`.
    pub fn carried(&self, id: &str, generation: u64, phase: api::Phase) {
        let now = api::ObservedCarried {
            id: id.to_owned(),
            phase: phase.into(),
            message: String::new(),
        };
        self.put(
            &mut self.lock(),
            id,
            generation,
            api::report::Object::Carried(now),
        );
    }

    /// Everything, for a session's first message; nothing is news after it.
    #[must_use]
    pub fn everything(&self) -> Vec<api::Report> {
        let mut state = self.lock();
        state.unsent.clear();
        let all = state.latest.values().cloned().collect();
        state.latest.retain(|_, report| !is_gone(report));
        all
    }

    /// Waits for news and takes it.
    pub async fn news(&self) -> Vec<api::Report> {
        loop {
            let heard = self.news.notified();
            let taken = self.take();
            if !taken.is_empty() {
                return taken;
            }
            heard.await;
        }
    }

    fn take(&self) -> Vec<api::Report> {
        let mut state = self.lock();
        let mut news = Vec::new();
        for id in std::mem::take(&mut state.unsent) {
            if let Some(report) = state.latest.get(&id).cloned() {
                if is_gone(&report) {
                    state.latest.remove(&id);
                }
                news.push(report);
            }
        }
        news
    }

    fn put(&self, state: &mut State, id: &str, generation: u64, object: api::report::Object) {
        let report = api::Report {
            boot_id: state.boot_id.clone(),
            generation,
            object: Some(object),
        };
        if state.latest.get(id) != Some(&report) {
            state.latest.insert(id.to_owned(), report);
            state.unsent.insert(id.to_owned());
            self.news.notify_one();
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Once told, there is nothing left to tell: control that missed it asks again
/// by desiring the absence again.
fn is_gone(report: &api::Report) -> bool {
    let phase = match &report.object {
        Some(api::report::Object::Instance(instance)) => instance.phase(),
        Some(api::report::Object::Volume(volume)) => volume.phase(),
        Some(api::report::Object::Snapshot(snapshot)) => snapshot.phase(),
        Some(api::report::Object::Carried(carried)) => carried.phase(),
        None => return true,
    };
    phase == api::Phase::Gone
}

#[cfg(test)]
mod tests {
    use super::*;

    fn observed(phase: api::Phase) -> Observed {
        Observed {
            phase,
            reason_code: String::new(),
            message: String::new(),
            reboots: 0,
            disks_generation: 0,
        }
    }

    #[tokio::test]
    async fn news_is_told_once_and_the_latest_only() {
        let outbox = Outbox::new("boot".into());
        outbox.instance("i-1", 1, observed(api::Phase::Starting));
        outbox.instance("i-1", 1, observed(api::Phase::Up));
        outbox.volume("vol-1", 1, api::Phase::Up, String::new());
        let news = outbox.news().await;
        assert_eq!(news.len(), 2);
        assert_eq!(news[0].boot_id, "boot");
        // The same again is no news; another generation is.
        outbox.instance("i-1", 1, observed(api::Phase::Up));
        assert!(outbox.take().is_empty());
        outbox.instance("i-1", 2, observed(api::Phase::Up));
        assert_eq!(outbox.take()[0].generation, 2);
        assert_eq!(outbox.everything().len(), 2);
    }

    #[tokio::test]
    async fn what_is_gone_is_told_and_forgotten() {
        let outbox = Outbox::new("boot".into());
        outbox.instance("i-1", 1, observed(api::Phase::Gone));
        assert_eq!(outbox.news().await.len(), 1);
        assert!(outbox.everything().is_empty());
        // Asked again, told again.
        outbox.instance("i-1", 1, observed(api::Phase::Gone));
        assert_eq!(outbox.everything().len(), 1);
        assert!(outbox.everything().is_empty());
        assert!(outbox.take().is_empty());
    }
}
