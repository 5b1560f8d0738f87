//! What `connect`, `udp` and `ping` share: a schedule, a bound on what is in flight,
//! and folded reports.

use crate::console::say;
use crate::net::Net;
use crate::{clock, executor};
use alloc::rc::Rc;
use alloc::string::String;
use core::cell::{Cell, RefCell};
use core::future::Future;
use core::net::IpAddr;
use ocs_probe_logic::fold::{Fold, Outcome};

/// Attempts of one order in flight at once.
const MAX_IN_FLIGHT: usize = 4;
const MIN_TIMEOUT_US: u64 = 300_000;
/// A peer that does not answer is looked for this often.
const SOLICIT_US: u64 = 1_000_000;

/// One order's attempts.
pub struct Attempts {
    /// `connect: 172.31.0.5:9000`.
    label: String,
    every_us: u64,
    in_flight: Cell<usize>,
    fold: RefCell<Fold>,
    net: Rc<Net>,
    peer: IpAddr,
    /// When the peer's Ethernet address may be asked for again; never while it answers.
    solicit_at_us: Cell<Option<u64>>,
}

impl Attempts {
    /// Attempts that start every `every_ms` and report under `label`.
    pub fn new(
        net: &Rc<Net>,
        peer: IpAddr,
        label: String,
        every_ms: u32,
        report_us: u64,
    ) -> Rc<Self> {
        Rc::new(Self {
            net: net.clone(),
            peer,
            solicit_at_us: Cell::new(Some(0)),
            label,
            every_us: u64::from(every_ms) * 1000,
            in_flight: Cell::new(0),
            fold: RefCell::new(Fold::new(report_us)),
        })
    }

    /// How long one attempt may take.
    fn timeout_us(&self) -> u64 {
        self.every_us.max(MIN_TIMEOUT_US)
    }

    /// Starts an attempt at each interval, for ever; skips those for which there is no
    /// room. `attempt` gets a number, and gives its outcome or is dropped in time.
    pub async fn run<F>(self: Rc<Self>, mut attempt: impl FnMut(u16) -> F)
    where
        F: Future<Output = Outcome> + 'static,
    {
        let mut next_us = clock::now_us();
        for number in (0..=u16::MAX).cycle() {
            executor::sleep_until(next_us).await;
            // Missed starts are not made up for.
            next_us = clock::now_us().max(next_us + self.every_us);
            if self.in_flight.get() < MAX_IN_FLIGHT {
                self.in_flight.set(self.in_flight.get() + 1);
                self.solicit();
                let work = attempt(number);
                let all = self.clone();
                executor::spawn(async move {
                    let start_us = clock::now_us();
                    let outcome = executor::until(start_us + all.timeout_us(), work).await;
                    all.in_flight.set(all.in_flight.get() - 1);
                    all.report(outcome.unwrap_or(Outcome::Timeout), start_us);
                });
            }
        }
    }

    fn solicit(&self) {
        let now_us = clock::now_us();
        if self.solicit_at_us.get().is_some_and(|at| now_us >= at) {
            self.solicit_at_us.set(Some(now_us + SOLICIT_US));
            self.net.solicit(self.peer);
        }
    }

    fn report(&self, outcome: Outcome, start_us: u64) {
        let now_us = clock::now_us();
        if outcome == Outcome::Timeout {
            let at_us = self.solicit_at_us.get().unwrap_or(now_us);
            self.solicit_at_us.set(Some(at_us));
        } else {
            self.solicit_at_us.set(None);
        }
        let mut fold = self.fold.borrow_mut();
        if !fold.record(outcome, now_us) {
            return;
        }
        let (ok, failed) = (fold.ok_total, fold.failed_total);
        let us = now_us - start_us;
        let label = &self.label;
        if outcome == Outcome::Ok {
            say!("{label} ok us={us} ok_total={ok} failed_total={failed}");
        } else {
            say!("{label} {outcome} ok_total={ok} failed_total={failed}");
        }
    }
}
