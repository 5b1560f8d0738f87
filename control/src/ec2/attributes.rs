//! Attributes of instances: protection, shutdown behaviour, type, groups,
//! metadata options; modified and described.

use super::params::Is;
use super::{Ctx, groups, metadata, present, run, types};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    instance_id: String,
    attribute: Option<String>,
    value: Option<String>,
    disable_api_termination: Option<Is<bool>>,
    disable_api_stop: Option<Is<bool>>,
    instance_initiated_shutdown_behavior: Option<Is<String>>,
    instance_type: Option<Is<String>>,
    user_data: Option<Is<String>>,
    source_dest_check: Option<Is<bool>>,
    #[serde(default)]
    groups: Vec<String>,
}

/// One change of an attribute.
enum Change {
    DisableTermination(bool),
    DisableStop(bool),
    TerminateOnShutdown(bool),
    Type(types::InstanceType),
    Groups(Vec<String>),
    UserData(String),
    SourceDestCheck(bool),
}

fn flag(text: &str) -> Result<bool, ApiError> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        _ => Err(ApiError::value(text, "Value", "Expected a boolean.")),
    }
}

fn behaviour(text: &str) -> Result<bool, ApiError> {
    match text {
        "stop" => Ok(false),
        "terminate" => Ok(true),
        _ => Err(ApiError::value(
            text,
            "InstanceInitiatedShutdownBehavior",
            "Expected stop or terminate.",
        )),
    }
}

impl Modify {
    /// The one change that a call makes.
    fn change(&self) -> Result<Change, ApiError> {
        let mut changes = Vec::new();
        if let Some(attribute) = &self.attribute {
            let text = self
                .value
                .as_deref()
                .ok_or_else(|| ApiError::missing("Value"))?;
            changes.push(match attribute.as_str() {
                "disableApiTermination" => Change::DisableTermination(flag(text)?),
                "disableApiStop" => Change::DisableStop(flag(text)?),
                "instanceInitiatedShutdownBehavior" => {
                    Change::TerminateOnShutdown(behaviour(text)?)
                }
                "instanceType" => Change::Type(types::find(text)?),
                "userData" => Change::UserData(text.to_owned()),
                "sourceDestCheck" => Change::SourceDestCheck(flag(text)?),
                other => {
                    return Err(ApiError::new(
                        "UnsupportedOperation",
                        format!("The attribute {other} cannot be modified in this cloud."),
                    ));
                }
            });
        } else if self.value.is_some() {
            return Err(ApiError::missing("Attribute"));
        }
        changes.extend(
            self.disable_api_termination
                .as_ref()
                .map(|is| Change::DisableTermination(is.value)),
        );
        changes.extend(
            self.disable_api_stop
                .as_ref()
                .map(|is| Change::DisableStop(is.value)),
        );
        if let Some(is) = &self.instance_initiated_shutdown_behavior {
            changes.push(Change::TerminateOnShutdown(behaviour(&is.value)?));
        }
        if let Some(is) = &self.instance_type {
            changes.push(Change::Type(types::find(&is.value)?));
        }
        if let Some(is) = &self.source_dest_check {
            changes.push(Change::SourceDestCheck(is.value));
        }
        if let Some(is) = &self.user_data {
            changes.push(Change::UserData(is.value.clone()));
        }
        if !self.groups.is_empty() {
            changes.push(Change::Groups(self.groups.clone()));
        }
        match changes.len() {
            0 => Err(ApiError::missing("Attribute")),
            1 => Ok(changes.remove(0)),
            _ => Err(ApiError::combination(
                "Fields for multiple attribute types specified.",
            )),
        }
    }
}

fn instance(tx: &Tx<'_>, text: &str) -> Result<Arc<Instance>, ApiError> {
    let id = InstanceId::parse(text)?;
    tx.get::<Instance>(&id)
        .filter(|row| row.state != State::Terminated)
        .ok_or_else(|| InstanceId::not_found(text))
}

/// ModifyInstanceAttribute.
///
/// # Errors
/// `IncorrectInstanceState` for a type while it is not stopped, and EC2's other codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let change = params.change()?;
    if let Change::UserData(text) = &change {
        run::check_user_data(Some(text))?;
    }
    ctx.write(|tx| {
        let mut row = instance(tx, &params.instance_id)?.as_ref().clone();
        match &change {
            Change::DisableTermination(on) => row.disable_termination = *on,
            Change::DisableStop(on) => row.disable_stop = *on,
            Change::TerminateOnShutdown(on) => {
                row.terminate_on_shutdown = *on;
                row.generation += 1;
            }
            Change::Type(kind) => set_type(&mut row, *kind)?,
            Change::Groups(texts) => set_groups(tx, &mut row, texts)?,
            Change::SourceDestCheck(on) => set_source_dest_check(tx, &mut row, *on)?,
            Change::UserData(text) => {
                stopped(&row)?;
                row.user_data = Some(text.clone());
                row.generation += 1;
            }
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// ResetInstanceAttribute: sourceDestCheck, which is on again. No instance has a kernel or a
/// RAM disk that is not its image's.
///
/// # Errors
/// `InvalidParameterValue` for what cannot be reset, `UnsupportedOperation` for kernel and
/// ramdisk.
pub async fn reset(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = instance(tx, &params.instance_id)?.as_ref().clone();
        match params.attribute.as_str() {
            "sourceDestCheck" => set_source_dest_check(tx, &mut row, true)?,
            name @ ("kernel" | "ramdisk") => {
                return Err(ApiError::new(
                    "UnsupportedOperation",
                    format!("The attribute {name} of an hvm instance cannot be reset."),
                ));
            }
            other => {
                return Err(ApiError::value(
                    other,
                    "Attribute",
                    "Expected kernel, ramdisk or sourceDestCheck.",
                ));
            }
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

fn set_source_dest_check(tx: &mut Tx<'_>, row: &mut Instance, on: bool) -> Result<(), ApiError> {
    let primary = row.interfaces.first();
    if let Some(interface) = primary.and_then(|id| tx.get::<Interface>(id)) {
        let mut interface = interface.as_ref().clone();
        interface.source_dest_check = on;
        tx.put(interface)?;
    }
    row.generation += 1;
    Ok(())
}

fn stopped(row: &Instance) -> Result<(), ApiError> {
    if row.state == State::Stopped {
        return Ok(());
    }
    Err(ApiError::new(
        "IncorrectInstanceState",
        format!("The instance '{}' is not in the 'stopped' state.", row.id),
    ))
}

/// An instance's user data, base64: its own, or its reservation's.
pub fn user_data(view: &View, scope: &Scope, row: &Instance) -> Option<String> {
    let text = match &row.user_data {
        Some(own) => Some(own.clone()),
        None => view
            .get::<Reservation>(scope, &row.reservation)
            .map(|reservation| reservation.user_data.clone()),
    };
    text.filter(|text| !text.is_empty())
}

fn set_type(row: &mut Instance, kind: types::InstanceType) -> Result<(), ApiError> {
    stopped(row)?;
    let disks = row
        .store_disks
        .iter()
        .any(|disk| disk.size_bytes != kind.disk_bytes());
    if disks {
        return Err(ApiError::combination(format!(
            "The instance type {} does not have the instance-store disks of '{}'.",
            kind.name, row.id
        )));
    }
    row.instance_type = kind.name.to_owned();
    (row.vcpus, row.memory_mib) = (kind.vcpus, kind.memory_mib);
    row.generation += 1;
    Ok(())
}

fn set_groups(tx: &mut Tx<'_>, row: &mut Instance, texts: &[String]) -> Result<(), ApiError> {
    let ids = groups::named(tx, texts, row.vpc, row.subnet)?;
    row.groups.clone_from(&ids);
    row.generation += 1;
    // EC2 changes the primary interface's groups.
    let primary = row.interfaces.first();
    if let Some(interface) = primary.and_then(|id| tx.get::<Interface>(id)) {
        let mut interface = interface.as_ref().clone();
        interface.groups.clone_from(&ids);
        tx.put(interface)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    instance_id: String,
    attribute: String,
}

/// DescribeInstanceAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    ctx.read(|view| {
        let id = InstanceId::parse(&params.instance_id)?;
        let row = view
            .get::<Instance>(&ctx.scope, &id)
            .filter(|row| row.state != State::Terminated)
            .ok_or_else(|| InstanceId::not_found(id))?;
        let shown = present::instance(view, &ctx.scope, row);
        let is = |value: Value| json!({"Value": value});
        let (member, value) = match params.attribute.as_str() {
            "instanceType" => ("InstanceType", is(row.instance_type.clone().into())),
            "disableApiTermination" => {
                ("DisableApiTermination", is(row.disable_termination.into()))
            }
            "disableApiStop" => ("DisableApiStop", is(row.disable_stop.into())),
            "instanceInitiatedShutdownBehavior" => {
                let text = if row.terminate_on_shutdown {
                    "terminate"
                } else {
                    "stop"
                };
                ("InstanceInitiatedShutdownBehavior", is(text.into()))
            }
            "rootDeviceName" => ("RootDeviceName", is(row.root_device.clone().into())),
            "ebsOptimized" => ("EbsOptimized", is(false.into())),
            "enaSupport" => ("EnaSupport", is(false.into())),
            "sourceDestCheck" => (
                "SourceDestCheck",
                is(shown["SourceDestCheck"].clone().into()),
            ),
            "kernel" => ("KernelId", json!({})),
            "ramdisk" => ("RamdiskId", json!({})),
            "sriovNetSupport" => ("SriovNetSupport", json!({})),
            "productCodes" => ("ProductCodes", json!([])),
            "enclaveOptions" => ("EnclaveOptions", json!({"Enabled": false})),
            "groupSet" => ("Groups", shown["SecurityGroups"].clone().into()),
            "blockDeviceMapping" => (
                "BlockDeviceMappings",
                shown["BlockDeviceMappings"].clone().into(),
            ),
            "userData" => {
                let text = user_data(view, &ctx.scope, row);
                (
                    "UserData",
                    text.map_or_else(|| json!({}), |text| is(text.into())),
                )
            }
            other => {
                return Err(ApiError::value(
                    other,
                    "Attribute",
                    "There is no such attribute.",
                ));
            }
        };
        Ok(json!({"InstanceId": id.to_string(), member: value}))
    })
    .await
}

/// ModifyInstanceMetadataOptions.
///
/// # Errors
/// EC2's codes.
pub async fn modify_metadata(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: metadata::Change = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = instance(tx, &params.instance_id)?.as_ref().clone();
        params.apply(&mut row.metadata)?;
        row.generation += 1;
        let answer = json!({
            "InstanceId": row.id.to_string(),
            "InstanceMetadataOptions": present::metadata_options(&row.metadata),
        });
        tx.put(row)?;
        Ok(answer)
    })
    .await
}
