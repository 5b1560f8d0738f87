//! The machine: does each [`Step`], and surveys how far an instance has come.

use super::blocks::Blocks;
use super::cgroup::Cgroups;
use super::config::Config;
use super::connect::Endpoints;
use super::durable::{self, Lasts};
use super::error::{Doing, EffectError};
use super::ledger::{Credits, Ended, Ledger, Record};
use super::owner::{Owner, RunDir};
use super::plan::{Ask, End, Page, Run, STOP_PATIENCE, Seen, Step, Vmm};
use super::policy::Switchboard;
use super::process::{self, Process};
use super::vmm::{self, Vmms};
use crate::responder::record;
use ocs_node_api as api;
use ocs_vmm_spec::control::{Reply, Request};
use std::fs::File;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How long a VMM may take to answer.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(2);
/// How long one [`Step::Confirm`] waits for a vCPU before it is tried again.
const CONFIRM_TIMEOUT: Duration = Duration::from_secs(2);

/// Everything that steps act upon.
pub struct Machine {
    /// Settings.
    pub config: Config,
    /// What is allotted.
    pub ledger: Ledger,
    /// storaged.
    pub blocks: Box<dyn Blocks>,
    /// The packet path.
    pub board: Switchboard,
    /// Instance-connect endpoints.
    pub endpoints: Arc<Endpoints>,
    /// VMMs.
    pub vmms: Box<dyn Vmms>,
    /// Control groups.
    pub cgroups: Cgroups,
    /// The network namespace of every VMM: empty.
    pub netns: Option<File>,
    /// This boot of the host.
    pub boot_id: String,
}

/// One instance as the machine holds it.
#[derive(Clone, Debug, Default)]
pub struct Body {
    /// What the planner sees.
    pub seen: Seen,
    /// The process behind [`Vmm::Alive`].
    pub process: Option<Arc<Process>>,
}

impl From<&Record> for Page {
    fn from(record: &Record) -> Self {
        Self {
            starts: record.starts,
            stores: !record.stores.is_empty(),
            ended: record.ended.as_ref().map(|ended| End {
                starts: ended.starts,
                failed: ended.failed,
                reason_code: ended.reason_code.clone(),
                message: ended.message.clone(),
            }),
        }
    }
}

impl Machine {
    /// Instance `id` as it is: ledger, run directory, process. What is known of
    /// `before` and is on no disk is kept.
    pub fn survey(&self, id: &str, before: &Body) -> Result<Body, EffectError> {
        let mut body = Body {
            seen: Seen {
                page: self.ledger.get(id).as_ref().map(Page::from),
                run: None,
                retry_at: before.seen.retry_at,
                been_up: before.seen.been_up,
            },
            process: None,
        };
        let dir = RunDir::of(&self.config.layout, id);
        if !dir.exists() {
            return Ok(body);
        }
        let before = before.seen.run.as_ref();
        let mut run = Run {
            starts: 0,
            reboots: 0,
            up: false,
            vmm: Vmm::Absent,
            told: before.and_then(|run| run.told),
            asked: before.and_then(|run| run.asked),
        };
        if let Some(owner) = dir.owner() {
            run.starts = owner.starts;
            run.reboots = owner.reboots;
            run.up = owner.up_since_s.is_some();
            if run.up {
                body.seen.been_up = Some(owner.starts);
            }
            body.process = process::find(&dir, &owner, &self.boot_id)
                .doing("looking for the VMM")?
                .map(Arc::new);
            run.vmm = match (&body.process, vmm::last_words(&dir)) {
                (Some(_), _) => Vmm::Alive,
                (None, _) if owner.boot_id != self.boot_id => Vmm::Absent,
                (None, Some(words)) => Vmm::Dead(Some(words)),
                (None, None) if owner.process.is_some() => Vmm::Dead(None),
                (None, None) => Vmm::Absent,
            };
        }
        body.seen.run = Some(run);
        Ok(body)
    }

    /// States a surveyed instance's ports to the switchboard, so that the first
    /// policy of a restarted node keeps them open.
    pub fn adopt(&self, desired: &api::Instance, body: &Body) {
        let alive = body.process.is_some();
        let dir = RunDir::of(&self.config.layout, &desired.id);
        if let (true, Some(record), Some(owner)) =
            (alive, self.ledger.get(&desired.id), dir.owner())
        {
            self.plug(desired, &record, &owner);
        }
    }

    /// Ends whatever runs in the control group of instance `id`, and removes the group.
    pub fn destroy_stray(&self, id: &str) -> Result<(), EffectError> {
        for pid in self.cgroups.processes(id).doing("control groups")? {
            let Some(process) = Process::open_pid(pid).doing("a stray VMM")? else {
                continue;
            };
            process.kill().doing("a stray VMM")?;
            let patience = Instant::now() + STOP_PATIENCE;
            while !process.has_exited() && Instant::now() < patience {
                std::thread::sleep(Duration::from_millis(5));
            }
        }
        self.cgroups.remove(id).doing("control groups")
    }

    /// Has endpoints and packet path be as stated.
    pub fn settle(&self) -> Result<(), EffectError> {
        let made = self.endpoints.converge(&self.board, &self.ledger);
        self.board.settle()?;
        self.endpoints.collect(&self.board, &self.ledger)?;
        made
    }

    /// Does `step` for instance `id`. On error `body` is stale: survey again.
    pub fn execute(
        &self,
        id: &str,
        step: &Step,
        desired: Option<&api::Instance>,
        body: &mut Body,
    ) -> Result<(), EffectError> {
        let want =
            || desired.ok_or_else(|| EffectError::Permanent(format!("{id} is desired by nobody")));
        match step {
            Step::Rest | Step::WaitUntil(_) => Ok(()),
            Step::Launch => self.launch(want()?, body),
            Step::Confirm => self.confirm(id, body),
            Step::Publish => self.publish(want()?, body),
            Step::Ask(ask) => self.ask(id, *ask, body),
            Step::End(end) => self.end(id, end, body),
            Step::Clear => self.clear(id, body),
            Step::Erase => self.erase(id, body),
            Step::Forget => self.forget(id, body),
        }
    }

    fn confirm(&self, id: &str, body: &mut Body) -> Result<(), EffectError> {
        let dir = RunDir::of(&self.config.layout, id);
        let patience = Instant::now() + CONFIRM_TIMEOUT;
        while !body.process.as_ref().is_none_or(|p| p.has_exited()) {
            let reply = self.vmms.call(&dir, &Request::Status, &[], CALL_TIMEOUT);
            if matches!(reply, Ok(Reply::Status { first_run_ns, .. }) if first_run_ns > 0) {
                let mut owner = dir
                    .owner()
                    .ok_or_else(|| EffectError::Transient("owner.json is gone".to_owned()))?;
                owner.up_since_s = Some(now_s());
                dir.set_owner(&owner).doing("owner.json")?;
                body.seen.been_up = Some(owner.starts);
                if let Some(run) = body.seen.run.as_mut() {
                    run.up = true;
                }
                return Ok(());
            }
            if Instant::now() > patience {
                return Err(EffectError::Transient(format!(
                    "the VMM runs no vCPU yet: {reply:?}"
                )));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        // It ended before it ran; the next survey says how.
        *body = self.survey(id, body)?;
        Ok(())
    }

    fn publish(&self, desired: &api::Instance, body: &mut Body) -> Result<(), EffectError> {
        let dir = RunDir::of(&self.config.layout, &desired.id);
        let (Some(record), Some(mut owner)) = (self.ledger.get(&desired.id), dir.owner()) else {
            return Err(EffectError::Transient("owner.json is gone".to_owned()));
        };
        self.plug(desired, &record, &owner);
        self.board.settle()?;
        self.tell_responder(desired, &record)?;
        self.converge_nics(desired, &dir, &mut owner)?;
        self.converge_disks(desired, &dir, &mut owner)?;
        if owner.generation != desired.generation {
            owner.generation = desired.generation;
            dir.set_owner(&owner).doing("owner.json")?;
        }
        if let Some(run) = body.seen.run.as_mut() {
            run.told = Some(desired.generation);
        }
        Ok(())
    }

    /// Writes what each ENI may be told.
    pub(super) fn tell_responder(
        &self,
        desired: &api::Instance,
        page: &Record,
    ) -> Result<(), EffectError> {
        for (index, eni) in desired.network_interfaces.iter().enumerate() {
            let told = record::Record::from_desired(desired, index)
                .map_err(|e| EffectError::Permanent(e.to_string()))?;
            if let Some(address) = page.service_addresses.get(&eni.id) {
                told.write(
                    &self.config.layout.responder(),
                    *address,
                    self.config.responder_gid(),
                )
                .doing("telling the responder")?;
            }
        }
        Ok(())
    }

    /// Escalates at once where a VMM does not listen.
    fn ask(&self, id: &str, ask: Ask, body: &mut Body) -> Result<(), EffectError> {
        let dir = RunDir::of(&self.config.layout, id);
        let asked = match ask {
            Ask::Power => self
                .vmms
                .call(&dir, &Request::PowerButton, &[], CALL_TIMEOUT),
            Ask::Stop => self.vmms.call(&dir, &Request::Stop, &[], CALL_TIMEOUT),
            Ask::Kill => {
                if let Some(process) = &body.process {
                    process.kill().doing("killing the VMM")?;
                }
                Ok(Reply::Ok)
            }
        };
        let patience = match (ask, &asked) {
            (Ask::Power, Ok(Reply::Ok)) => self.config.stop_grace,
            (_, Ok(Reply::Ok)) => STOP_PATIENCE,
            (_, refused) => {
                tracing::warn!(instance = id, ?ask, ?refused, "the VMM does not obey");
                Duration::ZERO
            }
        };
        if let Some(run) = body.seen.run.as_mut() {
            run.asked = Some((ask, Instant::now() + patience));
        }
        Ok(())
    }

    fn end(&self, id: &str, end: &End, body: &mut Body) -> Result<(), EffectError> {
        let ended = Ended {
            starts: end.starts,
            failed: end.failed,
            reason_code: end.reason_code.clone(),
            message: end.message.clone(),
            at_s: now_s(),
        };
        let mut record = match self.ledger.get(id) {
            Some(record) => record,
            None => self.ledger.allot(id, &[], |_| ()).doing("ledger")?,
        };
        record.ended = Some(ended);
        body.seen.page = Some(Page::from(&record));
        self.ledger.put(id, record).doing("ledger")
    }

    /// Undoes the run, whose process is dead: checked here again, since all that
    /// follows pulls the ground from under it.
    fn clear(&self, id: &str, body: &mut Body) -> Result<(), EffectError> {
        let dir = RunDir::of(&self.config.layout, id);
        if let Some(process) = body.process.take() {
            process.reap();
        }
        if let Some(owner) = dir.owner() {
            if process::find(&dir, &owner, &self.boot_id)
                .doing("looking for the VMM")?
                .is_some()
            {
                return Err(EffectError::Transient("the VMM lives".to_owned()));
            }
            self.keep_credits(id, &dir, &owner)?;
            tracing::info!(
                instance = id,
                words = ?vmm::last_words(&dir),
                log = vmm::log_tail(&dir),
                "the VMM has ended"
            );
            for volume in &owner.volumes {
                self.blocks.detach(volume)?;
            }
        }
        self.board.unplug(id);
        self.board.settle()?;
        if let Some(page) = self.ledger.get(id) {
            for address in page.service_addresses.values() {
                record::Record::remove(&self.config.layout.responder(), *address)
                    .doing("the responder's record")?;
            }
        }
        // A VMM whose owner.json was lost is known by its control group alone, and
        // holds taps and sockets until it ends.
        self.destroy_stray(id)?;
        self.board.network().collect_garbage()?;
        dir.remove().doing("run directory")?;
        body.seen.run = None;
        Ok(())
    }

    /// The next run has the network credits that this one left: none, if it had no time to say
    /// how many. Noted once, since its last words go before its `owner.json` does.
    fn keep_credits(&self, id: &str, dir: &RunDir, owner: &Owner) -> Result<(), EffectError> {
        let Some(mut record) = self.ledger.get(id) else {
            return Ok(());
        };
        let noted = record.network_credits.as_ref();
        if noted.is_some_and(|credits| credits.run == owner.nonce) {
            return Ok(());
        }
        let words = vmm::last_words(dir);
        let bytes = match words.map(|words| words.transmit_credits) {
            Some(Some(bytes)) => bytes,
            // It never came so far as to have a limit, or has none.
            Some(None) => return Ok(()),
            None if owner.process.is_none() => return Ok(()),
            None => 0,
        };
        record.network_credits = Some(Credits {
            bytes,
            at_s: now_s(),
            run: owner.nonce.clone(),
        });
        self.ledger.put(id, record).doing("ledger")
    }

    fn erase(&self, id: &str, body: &mut Body) -> Result<(), EffectError> {
        let Some(mut record) = self.ledger.get(id) else {
            return Ok(());
        };
        for store in std::mem::take(&mut record.stores) {
            self.blocks.delete(&store)?;
        }
        body.seen.page = Some(Page::from(&record));
        self.ledger.put(id, record).doing("ledger")
    }

    fn forget(&self, id: &str, body: &mut Body) -> Result<(), EffectError> {
        durable::remove(&self.config.layout.console(id), Lasts::ThisBoot).doing("console")?;
        self.ledger.forget(id).doing("ledger")?;
        body.seen = Seen::default();
        Ok(())
    }
}

/// Unix seconds.
#[must_use]
pub fn now_s() -> i64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .ok()
        .and_then(|since| i64::try_from(since.as_secs()).ok())
        .unwrap_or(0)
}

#[cfg(test)]
mod tests;
