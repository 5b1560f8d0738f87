//! Stop, start, reboot, terminate: what is desired changes, the node follows.
//!
//! ```text
//!              start                  up
//!   stopped ──────────▶ pending ───────────▶ running
//!      ▲                   │                    │ stop
//!      └──── stopping ◀────┼────────────────────┤
//!                │         │ terminate          │
//!                └─────────┴─▶ shutting-down ◀──┘ ──gone──▶ terminated
//! ```

use super::list::lookup;
use super::{Ctx, place, present, public};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// Most instances of one call, as EC2 documents for TerminateInstances.
const MAX_INSTANCES: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    instance_ids: Vec<String>,
}

type Change = dyn Fn(&Ctx, &mut Tx<'_>, &mut Instance) -> Result<(), ApiError> + Sync;

/// Instances of one transaction: more would exceed what one may hold.
const GROUP: usize = 250;

/// Changes every named instance, or none, as far as one transaction goes; of
/// more than that, those before the first that cannot be changed.
async fn change(
    ctx: &Ctx,
    action: &str,
    request: Value,
    member: &str,
    change: &Change,
) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    if params.instance_ids.is_empty() {
        return Err(ApiError::missing("InstanceId"));
    }
    if params.instance_ids.len() > MAX_INSTANCES {
        return Err(ApiError::value(
            params.instance_ids.len(),
            "InstanceId",
            &format!("At most {MAX_INSTANCES} instances may be named."),
        ));
    }
    let mut ids = ctx
        .core
        .read(|view| {
            lookup(
                &params.instance_ids,
                InstanceId::parse,
                |id| view.get::<Instance>(&ctx.scope, &id).map(|row| row.id),
                |text| InstanceId::not_found(text),
            )
        })
        .await?;
    ids.sort();
    ids.dedup();
    let mut items = Vec::with_capacity(ids.len());
    for group in ids.chunks(GROUP) {
        items.extend(ctx.write(|tx| group_of(ctx, tx, group, change)).await?);
    }
    Ok(json!({member: items}))
}

fn group_of(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    ids: &[InstanceId],
    change: &Change,
) -> Result<Vec<Value>, ApiError> {
    let mut items = Vec::with_capacity(ids.len());
    for id in ids {
        let before = tx
            .get::<Instance>(id)
            .ok_or_else(|| InstanceId::not_found(id))?;
        let mut row = before.as_ref().clone();
        change(ctx, tx, &mut row)?;
        items.push(json!({
            "InstanceId": row.id.to_string(),
            "PreviousState": present::state(before.state),
            "CurrentState": present::state(row.state),
        }));
        if row != *before {
            tx.put(row)?;
        }
    }
    Ok(items)
}

fn wrong_state(row: &Instance, what: &str) -> ApiError {
    ApiError::new(
        "IncorrectInstanceState",
        format!(
            "The instance '{}' is not in a state from which it can be {what}.",
            row.id
        ),
    )
}

/// Sets what is desired, and why.
pub fn desire(row: &mut Instance, state: State, code: &str, message: &str) {
    // Nodes may send the message with its code, as EC2 shows it.
    let message = message
        .strip_prefix(code)
        .map_or(message, |rest| rest.trim_start_matches(": "));
    row.state = state;
    row.generation += 1;
    row.state_generation = row.generation;
    row.reason = Some(Reason {
        code: code.to_owned(),
        message: format!("{code}: {message}"),
    });
    row.transition = match code {
        "Client.UserInitiatedShutdown" => format!("User initiated ({})", present::gmt(now_s())),
        _ => format!("{message} ({})", present::gmt(now_s())),
    };
}

/// StopInstances.
///
/// # Errors
/// EC2's codes.
pub async fn stop(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    change(ctx, action, request, "StoppingInstances", &|_, _, row| {
        if row.boot.instance_store {
            return Err(ApiError::new(
                "UnsupportedOperation",
                format!(
                    "The instance '{}' does not have an 'ebs' root device type and cannot be stopped.",
                    row.id
                ),
            ));
        }
        match row.state {
            State::Stopping | State::Stopped => Ok(()),
            State::Running if row.disable_stop => Err(protected(row, "stopped", "disableApiStop")),
            State::Running => {
                let code = "Client.UserInitiatedShutdown";
                desire(row, State::Stopping, code, "User initiated shutdown");
                Ok(())
            }
            State::Pending | State::ShuttingDown | State::Terminated => {
                Err(wrong_state(row, "stopped"))
            }
        }
    })
    .await
}

fn protected(row: &Instance, what: &str, attribute: &str) -> ApiError {
    ApiError::new(
        "OperationNotPermitted",
        format!(
            "The instance '{}' may not be {what}. Modify its '{attribute}' instance attribute and \
             try again.",
            row.id
        ),
    )
}

/// StartInstances.
///
/// # Errors
/// EC2's codes.
pub async fn start(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    change(
        ctx,
        action,
        request,
        "StartingInstances",
        &|ctx, tx, row| match row.state {
            State::Pending | State::Running => Ok(()),
            State::Stopped => {
                place::take_again(ctx, tx, row)?;
                if let [only] = row.interfaces.as_slice()
                    && let Some(interface) = tx.get::<Interface>(only)
                    && present::public_ip(tx.view, &tx.scope, *only).is_none()
                {
                    let mut interface = interface.as_ref().clone();
                    public::assign(&ctx.core, tx, &mut interface)?;
                    tx.put(interface)?;
                }
                row.state = State::Pending;
                row.generation += 1;
                row.state_generation = row.generation;
                row.starts += 1;
                row.launched_at_s = now_s();
                row.reason = Some(Reason {
                    code: "pending".to_owned(),
                    message: "pending".to_owned(),
                });
                row.transition.clear();
                Ok(())
            }
            State::Stopping | State::ShuttingDown | State::Terminated => {
                Err(wrong_state(row, "started"))
            }
        },
    )
    .await
}

/// RebootInstances.
///
/// # Errors
/// EC2's codes.
pub async fn reboot(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    change(
        ctx,
        action,
        request,
        "Rebooted",
        &|_, _, row| match row.state {
            State::Running => {
                row.generation += 1;
                row.reboots += 1;
                Ok(())
            }
            State::Pending => Ok(()),
            _ => Err(wrong_state(row, "rebooted")),
        },
    )
    .await?;
    Ok(json!({}))
}

/// TerminateInstances.
///
/// # Errors
/// EC2's codes.
pub async fn terminate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    change(
        ctx,
        action,
        request,
        "TerminatingInstances",
        &|_, _, row| {
            if row.state.is_ending() {
                return Ok(());
            }
            if row.disable_termination {
                return Err(protected(row, "terminated", "disableApiTermination"));
            }
            let code = "Client.UserInitiatedShutdown";
            desire(row, State::ShuttingDown, code, "User initiated shutdown");
            Ok(())
        },
    )
    .await
}
