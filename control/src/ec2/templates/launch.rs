//! A template's part in RunInstances.

use super::{over, version, which};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;

/// `LaunchTemplate` of RunInstances.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Launch {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    version: Option<String>,
}

/// A RunInstances request with its template's parameters below its own; and the
/// tags that EC2 gives such instances.
///
/// # Errors
/// EC2's codes.
pub fn apply(view: &View, scope: &Scope, request: Value) -> Result<(Value, Tags), ApiError> {
    let Some(named) = request.get("LaunchTemplate").cloned() else {
        return Ok((request, Tags::new()));
    };
    let named: Launch =
        serde_json::from_value(named).map_err(|error| ApiError::internal(&error))?;
    let template =
        which(&named.launch_template_id, &named.launch_template_name).find(view, scope)?;
    let version = version(
        view,
        scope,
        &template,
        named.version.as_deref().unwrap_or("$Default"),
    )?;
    let mut merged = over(&version.data, &request);
    if let Some(object) = merged.as_object_mut() {
        object.shift_remove("LaunchTemplate");
        // The same disk by another spelling.
        if let Some(disk) = object.shift_remove("RamDiskId") {
            object.entry("RamdiskId").or_insert(disk);
        }
    }
    let tags = [
        ("aws:ec2launchtemplate:id", template.id.to_string()),
        ("aws:ec2launchtemplate:version", version.id.1.to_string()),
    ];
    Ok((
        merged,
        tags.map(|(key, value)| (key.to_owned(), value)).into(),
    ))
}
