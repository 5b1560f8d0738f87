//! From the parts that a killed `ocs up` left to those of the next one.
//!
//! All are stopped but storaged: the next one takes over from it while guests go on. It is
//! stopped only if that fails, and its guests see a restart.

use super::STOP_GRACE;
use super::supervise::Supervisor;
use crate::part::{Part, Running};
use crate::state::State;
use anyhow::{Context, Result};
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// How long a storaged may take to hand over: longer than it waits for its guests.
const HAND_OVER: Duration = Duration::from_secs(40);
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// Stops what a killed `ocs up` left, but storaged; the instances run on.
pub fn stop_stale_parts(state: &State) -> Result<()> {
    for part in Part::ALL.into_iter().rev() {
        if part != Part::Storaged {
            stop_stale(state, part)?;
        }
    }
    Ok(())
}

/// Stops a storaged from which none took over, if there is one.
pub fn stop_storaged(state: &State) -> Result<()> {
    stop_stale(state, Part::Storaged)
}

/// Waits until `predecessor` has handed over to the storaged that was just started and
/// has ended; ends it if that one fails.
pub async fn hand_over(predecessor: Running, supervisor: &Supervisor) -> Result<()> {
    let pid = predecessor.pid;
    let until = Instant::now() + HAND_OVER;
    loop {
        if predecessor.ends_within(Duration::ZERO)? {
            info!(pid, "storaged has handed over");
            return Ok(());
        }
        if supervisor.has_ended(Part::Storaged) || Instant::now() > until {
            warn!(pid, "stopping a storaged that does not hand over");
            let stop = move || predecessor.stop(STOP_GRACE);
            let stopped = tokio::task::spawn_blocking(stop).await?;
            return stopped.context("stopping ocs-storaged");
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
}

fn stop_stale(state: &State, part: Part) -> Result<()> {
    if let Some(running) = Running::find(state, part) {
        warn!(
            part = part.name(),
            pid = running.pid,
            "stopping a part left by a killed `ocs up`"
        );
        running
            .stop(STOP_GRACE)
            .with_context(|| format!("stopping {}", part.program()))?;
    }
    Ok(())
}
