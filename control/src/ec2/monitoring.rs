//! MonitorInstances, UnmonitorInstances and ReportInstanceStatus.

use super::Ctx;
use super::instances::named;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// Most instances of one call: more would exceed what one transaction may hold.
const MAX_INSTANCES: usize = 1_000;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    instance_ids: Vec<String>,
}

/// MonitorInstances and UnmonitorInstances.
///
/// # Errors
/// EC2's codes.
pub async fn set(ctx: &Ctx, action: &str, request: Value, on: bool) -> Result<Value, ApiError> {
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
    ctx.write(|tx| {
        let rows = named(tx.view, &tx.scope, &params.instance_ids)?;
        let mut items = Vec::with_capacity(rows.len());
        for row in rows {
            if row.state.is_ending() {
                return Err(ApiError::new(
                    "IncorrectInstanceState",
                    format!(
                        "The instance '{}' is not in a state in which it can be monitored.",
                        row.id
                    ),
                ));
            }
            let state = match (on, row.monitoring) {
                (true, true) => "enabled",
                (true, false) => "pending",
                (false, true) => "disabling",
                (false, false) => "disabled",
            };
            items.push(json!({
                "InstanceId": row.id.to_string(), "Monitoring": {"State": state},
            }));
            if row.monitoring != on {
                let mut row = row.as_ref().clone();
                row.monitoring = on;
                tx.put(row)?;
            }
        }
        Ok(json!({"InstanceMonitorings": items}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Report {
    instances: Vec<String>,
    status: String,
    reason_codes: Vec<String>,
    #[serde(rename = "StartTime")]
    _start: Option<Value>,
    #[serde(rename = "EndTime")]
    _end: Option<Value>,
    #[serde(rename = "Description")]
    _description: Option<Value>,
}

/// ReportInstanceStatus: heard, and in the audit log with who said it; as in EC2 it changes
/// no status.
///
/// # Errors
/// EC2's codes.
pub async fn report(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Report = ctx.params(action, request)?;
    for (list, name) in [
        (&params.instances, "InstanceId"),
        (&params.reason_codes, "ReasonCode"),
    ] {
        if list.is_empty() {
            return Err(ApiError::missing(name));
        }
    }
    ctx.read(|view| {
        let rows = named(view, &ctx.scope, &params.instances)?;
        match rows.iter().find(|row| row.state != State::Running) {
            Some(row) => Err(ApiError::new(
                "IncorrectInstanceState",
                format!("The instance '{}' is not 'running'.", row.id),
            )),
            None => {
                tracing::info!(status = params.status, reasons = ?params.reason_codes, "reported");
                Ok(json!({}))
            }
        }
    })
    .await
}
