//! CPU credits of burstable instances: earned always, spent by what their VMM's processes
//! use, and once they are gone the control group has the baseline and no more.
//!
//! ```text
//!   control group's usage ─▶ Account: balance = balance + earned − used, at most a day's
//!                               │ standard, and next to nothing left: held
//!                               ▼
//!                      quota of the control group: the baseline, or none
//! ```
//! A credit is a minute of one CPU (EC2 user guide, "Key concepts for burstable performance
//! instances"). Here it is counted in nanoseconds of CPU time, and whatever works for the
//! guest counts, its devices too. What is on disk is a balance and the usage it was reckoned
//! with, so a node that was away reckons on without loss.

use super::cgroup::Cgroups;
use super::durable::{self, Lasts};
use super::engine::Engine;
use super::machine::Machine;
use ocs_node_api as api;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::task::JoinHandle;

/// How often the accounts of those that may soon be held are looked at.
pub(super) const TICK: Duration = Duration::from_secs(1);
const TICK_MS: u64 = 1_000;
/// Every so many looks, all accounts are, and are written down.
const TICKS_OF_ALL: u32 = 60;
/// What a stopped instance keeps is lost after a week (EC2: T3 and later).
const KEPT_MS: u64 = 7 * 86_400 * 1_000;
/// Nanoseconds of CPU time of a thousandth of a credit.
const NS_PER_MILLI: i64 = 60_000_000;
/// Milliseconds of an hour.
const HOUR_MS: u64 = 3_600_000;
const NS_PER_S: i64 = 1_000_000_000;

/// What control says of an instance's credits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Terms {
    earned_per_hour_milli: u64,
    at_start_milli: u64,
    most_milli: u64,
    survive_stop: bool,
    unlimited: bool,
    vcpus: u32,
}

impl Terms {
    fn of(desired: &api::Instance) -> Option<Self> {
        let credits = desired.cpu_credits.as_ref()?;
        Some(Self {
            earned_per_hour_milli: credits.earned_per_hour_milli,
            at_start_milli: credits.at_start_milli,
            most_milli: credits.most_milli,
            survive_stop: credits.survive_stop,
            unlimited: credits.unlimited,
            vcpus: desired.vcpus,
        })
    }

    /// CPU time that is earned in this long.
    fn earned_ns(&self, ms: u64) -> i64 {
        // A day's worth is the most that counts, so nothing overflows.
        let ms = ms.min(24 * HOUR_MS).cast_signed();
        let per_hour = ns(self.earned_per_hour_milli);
        per_hour / HOUR_MS.cast_signed() * ms
    }

    /// The baseline, in millionths of a CPU.
    fn baseline_ppm(&self) -> u64 {
        // Earned per hour, in CPU hours.
        self.earned_per_hour_milli * 1_000 / 60
    }

    /// What all its CPUs may use until the next look.
    fn tick_ns(&self) -> i64 {
        i64::from(self.vcpus.max(1)) * NS_PER_S
    }
}

fn ns(milli: u64) -> i64 {
    i64::try_from(milli)
        .unwrap_or(i64::MAX)
        .saturating_mul(NS_PER_MILLI)
}

/// An instance's credits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Account {
    /// The run that it is of.
    starts: u64,
    /// CPU time that is left; below zero: surplus, of an unlimited one.
    balance_ns: i64,
    /// What the run's control group had used when that was so.
    usage_ns: u64,
    /// When it was so, in milliseconds since 1970.
    at_ms: u64,
    /// Nothing is left: it has the baseline.
    held: bool,
    /// When a look may first change that.
    #[serde(skip)]
    due_ms: u64,
}

impl Account {
    /// Of a new run, which has used so much already.
    fn opened(
        before: Option<&Self>,
        terms: &Terms,
        starts: u64,
        usage_ns: u64,
        at_ms: u64,
    ) -> Self {
        let kept = before
            .filter(|account| terms.survive_stop && at_ms.saturating_sub(account.at_ms) < KEPT_MS)
            .map(|account| account.balance_ns.max(0));
        Self {
            starts,
            balance_ns: kept.unwrap_or_else(|| ns(terms.at_start_milli)),
            usage_ns,
            at_ms,
            held: false,
            due_ms: at_ms,
        }
    }

    /// Reckons up to now.
    fn observe(&mut self, terms: &Terms, usage_ns: u64, at_ms: u64) {
        let earned = terms.earned_ns(at_ms.saturating_sub(self.at_ms));
        // A group made anew begins at nothing.
        let used = usage_ns.checked_sub(self.usage_ns).unwrap_or(usage_ns);
        let most = ns(terms.most_milli);
        let least = if terms.unlimited { -most } else { 0 };
        let balance = self.balance_ns.saturating_add(earned);
        let balance = balance.saturating_sub(i64::try_from(used).unwrap_or(i64::MAX));
        self.balance_ns = balance.clamp(least, most);
        (self.usage_ns, self.at_ms) = (usage_ns, at_ms);
        // It never spends until the next look what it does not have.
        let enough = terms.tick_ns() * if self.held { 2 } else { 1 };
        self.held = !terms.unlimited && self.balance_ns < enough;
        // At full use it has this long.
        let left_ticks = u64::try_from(self.balance_ns / terms.tick_ns()).unwrap_or(0);
        let ticks = match self.held || terms.unlimited {
            true => 1,
            false => left_ticks.clamp(1, u64::from(TICKS_OF_ALL)),
        };
        self.due_ms = at_ms + (ticks - 1) * TICK_MS;
    }
}

/// All accounts of this host.
#[derive(Default)]
pub(super) struct CpuCredits {
    accounts: BTreeMap<String, Account>,
    /// What each control group was last told.
    told: BTreeMap<String, (u64, Option<u64>)>,
    ticks: u32,
    /// What is on disk is of before.
    unwritten: bool,
    writing: Option<JoinHandle<()>>,
}

impl CpuCredits {
    /// Those that an earlier node wrote down.
    pub(super) fn load(machine: &Machine) -> Self {
        let read = durable::read(&machine.config.layout.cpu_credits());
        let accounts = read.unwrap_or_else(|error| {
            tracing::error!(%error, "the CPU credits are not readable; all begin anew");
            None
        });
        Self {
            accounts: accounts.unwrap_or_default(),
            ..Self::default()
        }
    }

    /// Looks at an instance that runs; whether its account was opened.
    fn look(&mut self, cgroups: &Cgroups, desired: &api::Instance, starts: u64) -> bool {
        let id = desired.id.as_str();
        let terms = Terms::of(desired);
        let mut opened = false;
        let quota = match &terms {
            None => None,
            Some(terms) => {
                let Ok(Some(usage_ns)) = cgroups.usage_ns(id) else {
                    return false;
                };
                let at_ms = now_ms();
                let known = self.accounts.get(id).copied();
                let account = match known.filter(|account| account.starts == starts) {
                    Some(mut account) => {
                        account.observe(terms, usage_ns, at_ms);
                        account
                    }
                    None => {
                        opened = true;
                        let mut account =
                            Account::opened(known.as_ref(), terms, starts, usage_ns, at_ms);
                        account.observe(terms, usage_ns, at_ms);
                        account
                    }
                };
                self.accounts.insert(id.to_owned(), account);
                account.held.then(|| terms.baseline_ppm())
            }
        };
        if self.told.get(id) != Some(&(starts, quota)) {
            match cgroups.set_quota(id, quota) {
                Ok(()) => {
                    tracing::info!(instance = id, quota_ppm = quota, "CPU");
                    self.told.insert(id.to_owned(), (starts, quota));
                }
                Err(error) => tracing::warn!(instance = id, %error, "the CPU quota is not told"),
            }
        }
        opened
    }

    /// Writes the accounts down, aside, if what is on disk is of before; while that is under way
    /// the next tick does.
    fn write(&mut self, path: PathBuf) {
        let busy = self.writing.as_ref().is_some_and(|one| !one.is_finished());
        if !self.unwritten || busy {
            return;
        }
        self.unwritten = false;
        let accounts = self.accounts.clone();
        self.writing = Some(tokio::task::spawn_blocking(move || {
            let written = match accounts.is_empty() {
                true => durable::remove(&path, Lasts::Always),
                false => durable::replace(&path, &accounts, Lasts::Always),
            };
            if let Err(error) = written {
                tracing::error!(%error, "the CPU credits are not written down");
            }
        }));
    }
}

impl Engine {
    /// Looks at the accounts: each time of those that can be held.
    pub(super) fn tick_cpu_credits(&mut self) {
        let credits = &mut self.cpu_credits;
        credits.ticks = (credits.ticks + 1) % TICKS_OF_ALL;
        let all = credits.ticks == 0;
        let units = &self.units;
        let known = credits.accounts.len();
        credits.accounts.retain(|id, _| units.contains_key(id));
        credits.told.retain(|id, _| units.contains_key(id));
        let mut write = known != credits.accounts.len() || all && known > 0;
        let now = now_ms();
        for (id, unit) in &self.units {
            let (Some(desired), Some(run)) = (&unit.desired, &unit.body.seen.run) else {
                continue;
            };
            if unit.body.process.is_none() || run.starts == 0 {
                continue;
            }
            let standard = desired
                .cpu_credits
                .is_some_and(|credits| !credits.unlimited);
            let told = credits
                .told
                .get(id)
                .is_some_and(|told| told.0 == run.starts);
            let account = credits.accounts.get(id);
            let held = account.is_some_and(|account| account.held);
            let due = account.is_none_or(|account| account.due_ms <= now);
            if standard && due || held || all || !told {
                write |= credits.look(&self.machine.cgroups, desired, run.starts);
            }
        }
        credits.unwritten |= write;
        credits.write(self.machine.config.layout.cpu_credits());
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    now.map_or(0, |now| u64::try_from(now.as_millis()).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// t3.nano: 6 credits an hour, two CPUs, 144 at most.
    fn nano(unlimited: bool) -> Terms {
        Terms {
            earned_per_hour_milli: 6_000,
            at_start_milli: 0,
            most_milli: 144_000,
            survive_stop: true,
            unlimited,
            vcpus: 2,
        }
    }

    fn credits(account: &Account) -> f64 {
        account.balance_ns as f64 / 60e9
    }

    #[test]
    fn an_idle_instance_earns_what_ec2_documents_and_no_more_than_a_day() {
        let terms = nano(false);
        assert_eq!(terms.baseline_ppm(), 100_000);
        let mut account = Account::opened(None, &terms, 1, 0, 0);
        account.observe(&terms, 0, 0);
        assert!(account.held, "it begins with nothing");
        account.observe(&terms, 0, HOUR_MS);
        assert!((credits(&account) - 6.0).abs() < 0.01 && !account.held);
        account.observe(&terms, 0, 40 * HOUR_MS);
        assert_eq!(credits(&account), 144.0);
    }

    #[test]
    fn a_busy_instance_is_held_before_it_owes_and_an_unlimited_one_never() {
        for unlimited in [false, true] {
            let terms = nano(unlimited);
            let mut account = Account::opened(None, &terms, 1, 0, 0);
            account.balance_ns = ns(1_000);
            let (mut used, mut busy_s) = (0, 0);
            for second in 1..=120 {
                // All that its quota lets it.
                used += if account.held {
                    100_000_000
                } else {
                    2_000_000_000
                };
                account.observe(&terms, used, second * 1_000);
                busy_s += u32::from(!account.held);
                assert!(unlimited || account.balance_ns >= 0);
            }
            // A credit is a minute of one CPU, so half a minute of two.
            let expected = if unlimited { 120..=120 } else { 27..=31 };
            assert!(expected.contains(&busy_s), "{busy_s}");
            assert_eq!(account.balance_ns < 0, unlimited);
        }
    }

    #[test]
    fn who_has_much_is_looked_at_seldom_and_still_owes_nothing() {
        let terms = nano(false);
        let mut account = Account::opened(None, &terms, 1, 0, 0);
        account.balance_ns = ns(6_000);
        account.observe(&terms, 0, 0);
        let (mut looks, mut used) = (0, 0);
        for second in 1..=300_u64 {
            used += if account.held {
                100_000_000
            } else {
                2_000_000_000
            };
            if account.held || account.due_ms <= second * 1_000 {
                looks += u32::from(!account.held);
                account.observe(&terms, used, second * 1_000);
            }
            assert!(account.balance_ns >= 0, "{second}");
        }
        assert!(account.held && looks <= 12, "{looks}");
    }

    #[test]
    fn a_stop_keeps_credits_for_a_week_where_the_type_does() {
        let (keeps, terms) = (nano(false), nano(false));
        let mut account = Account::opened(None, &keeps, 1, 0, 0);
        account.balance_ns = ns(50_000);
        let day = 24 * HOUR_MS;
        let again = |terms: &Terms, at| Account::opened(Some(&account), terms, 2, 0, at).balance_ns;
        assert_eq!(again(&keeps, day), ns(50_000));
        assert_eq!(again(&keeps, 8 * day), 0);
        let launch = Terms {
            survive_stop: false,
            at_start_milli: 30_000,
            ..terms
        };
        assert_eq!(again(&launch, day), ns(30_000));
    }

    #[test]
    fn a_busy_group_without_credits_has_its_baseline_until_it_is_unlimited() {
        use crate::agent::cgroup::Limits;
        use std::io::Write;
        use std::time::Instant;
        struct Busy(std::process::Child, Cgroups);
        impl Drop for Busy {
            fn drop(&mut self) {
                let _ = self.0.kill();
                let _ = self.0.wait();
                let _ = self.1.remove("i-1");
                let _ = self.1.remove_all();
            }
        }
        let state = std::path::PathBuf::from(format!("/test/credits/{}", std::process::id()));
        let groups = Cgroups::detect(&state).unwrap();
        let limits = Limits {
            vcpus: 2,
            memory_mib: 64,
        };
        let joins = groups.create("i-1", limits).unwrap();
        if joins.is_empty() {
            // A host without controllers holds nobody.
            return;
        }
        let child = std::process::Command::new("sh")
            .args(["-c", "while :; do :; done"])
            .spawn()
            .unwrap();
        let busy = Busy(child, groups);
        for mut group in joins {
            write!(group, "{}", busy.0.id()).unwrap();
        }
        let share = || {
            let (began, before) = (Instant::now(), busy.1.usage_ns("i-1").unwrap().unwrap());
            std::thread::sleep(Duration::from_millis(600));
            let used = busy.1.usage_ns("i-1").unwrap().unwrap() - before;
            used as f64 / began.elapsed().as_nanos() as f64
        };
        let mut desired = api::Instance {
            id: "i-1".into(),
            vcpus: 2,
            cpu_credits: Some(api::CpuCredits {
                earned_per_hour_milli: 6_000,
                most_milli: 144_000,
                ..api::CpuCredits::default()
            }),
            ..api::Instance::default()
        };
        let mut credits = CpuCredits::default();
        assert!(credits.look(&busy.1, &desired, 1), "its account is new");
        let held = share();
        assert!(held < 0.13, "{held}");
        desired.cpu_credits.as_mut().unwrap().unlimited = true;
        assert!(!credits.look(&busy.1, &desired, 1));
        assert_eq!(credits.told["i-1"], (1, None));
    }

    proptest! {
        #[test]
        fn looking_more_often_changes_no_balance(
            steps in proptest::collection::vec((1_u64..5_000, 0_u64..100_000_000), 1..40),
        ) {
            // Between the bounds, reckoning is a sum.
            let terms = nano(true);
            let mut often = Account::opened(None, &terms, 1, 0, 0);
            let mut once = often;
            let (mut at, mut used) = (0, 0);
            for (ms, ns) in steps {
                (at, used) = (at + ms, used + ns);
                often.observe(&terms, used, at);
            }
            once.observe(&terms, used, at);
            prop_assert_eq!(often.balance_ns, once.balance_ns);
        }
    }
}
