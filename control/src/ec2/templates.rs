//! Launch templates and their versions.
//!
//! A version holds a request's parameters as they came. RunInstances lays its own
//! over them and goes on as ever, so a parameter that this cloud does not honour is
//! refused by name when a template with it is launched (`launch`).

mod instance;
mod launch;
mod list;

pub use instance::data;
pub use launch::apply;
pub use list::{describe, describe_versions};

use super::list::tag_set;
use super::params::TagSpecification;
use super::{Ctx, present, quotas, tags};
use crate::core::now_s;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::{Map, json};
use std::sync::Arc;

/// Most versions that DeleteLaunchTemplateVersions takes at once.
const MAX_DELETED: usize = 200;

/// A template by id or by name.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Which {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
}

fn no_name(name: &str) -> ApiError {
    ApiError::new(
        "InvalidLaunchTemplateName.NotFoundException",
        format!("The specified launch template, with template name {name}, does not exist."),
    )
}

fn no_version(template: LaunchTemplateId, version: &str) -> ApiError {
    ApiError::new(
        "InvalidLaunchTemplateId.VersionNotFound",
        format!(
            "Could not find the specified version {version} for the launch template with ID {template}."
        ),
    )
}

impl Which {
    fn find(&self, view: &View, scope: &Scope) -> Result<Arc<LaunchTemplate>, ApiError> {
        match (&self.launch_template_id, &self.launch_template_name) {
            (Some(_), Some(_)) => Err(ApiError::combination(
                "You can specify either a launch template ID or a launch template name, but not both.",
            )),
            (None, None) => Err(ApiError::new(
                "MissingParameter",
                "Either a launch template ID or a launch template name must be specified in the request.",
            )),
            (Some(text), None) => view
                .get::<LaunchTemplate>(scope, &LaunchTemplateId::parse(text)?)
                .cloned()
                .ok_or_else(|| LaunchTemplateId::not_found(text)),
            (None, Some(name)) => view
                .all::<LaunchTemplate>(scope)
                .find(|row| row.name == *name)
                .cloned()
                .ok_or_else(|| no_name(name)),
        }
    }
}

/// A version's number, of `$Default`, `$Latest` or digits.
fn number(template: &LaunchTemplate, text: &str) -> Result<u64, ApiError> {
    match text {
        "$Default" => Ok(template.default_version),
        "$Latest" => Ok(template.latest_version),
        _ => text.parse().map_err(|_| {
            ApiError::new(
                "InvalidLaunchTemplateId.VersionNotFound",
                format!("Invalid launch template version: {text}. Must be a number, $Latest or $Default."),
            )
        }),
    }
}

fn version(
    view: &View,
    scope: &Scope,
    template: &LaunchTemplate,
    text: &str,
) -> Result<Arc<TemplateVersion>, ApiError> {
    let number = number(template, text)?;
    view.get::<TemplateVersion>(scope, &TemplateVersionId(template.id, number))
        .cloned()
        .ok_or_else(|| no_version(template.id, text))
}

fn created_by(scope: &Scope) -> String {
    format!("arn:aws:iam::{}:root", scope.account)
}

fn show(scope: &Scope, row: &LaunchTemplate) -> Value {
    json!({
        "LaunchTemplateId": row.id.to_string(),
        "LaunchTemplateName": row.name,
        "CreateTime": present::timestamp(row.created_at_s),
        "CreatedBy": created_by(scope),
        "DefaultVersionNumber": row.default_version,
        "LatestVersionNumber": row.latest_version,
        "Tags": tag_set(&row.tags),
    })
}

fn show_version(scope: &Scope, template: &LaunchTemplate, row: &TemplateVersion) -> Value {
    let mut item = json!({
        "LaunchTemplateId": template.id.to_string(),
        "LaunchTemplateName": template.name,
        "VersionNumber": row.id.1,
        "CreateTime": present::timestamp(row.created_at_s),
        "CreatedBy": created_by(scope),
        "DefaultVersion": row.id.1 == template.default_version,
        "LaunchTemplateData": row.data,
    });
    if let Some(description) = &row.description {
        item["VersionDescription"] = description.clone().into();
    }
    item
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    launch_template_name: String,
    version_description: Option<String>,
    launch_template_data: Value,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

fn check_name(name: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "().-/_".contains(c);
    if !(3..=128).contains(&name.len()) || !name.chars().all(plain) {
        return Err(ApiError::new(
            "InvalidLaunchTemplateName.MalformedException",
            format!(
                "The launch template name '{name}' must be 3 to 128 of letters, digits and ( ) . - / _"
            ),
        ));
    }
    Ok(())
}

/// CreateLaunchTemplate: with version 1.
///
/// # Errors
/// `InvalidLaunchTemplateName.AlreadyExistsException`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    check_name(&params.launch_template_name)?;
    let kind = "launch-template";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        let mut known = tx.view.all::<LaunchTemplate>(&tx.scope);
        if known.any(|row| row.name == params.launch_template_name) {
            return Err(ApiError::new(
                "InvalidLaunchTemplateName.AlreadyExistsException",
                "Launch template name already in use.",
            ));
        }
        quotas::room_for_one::<LaunchTemplate>(tx)?;
        let row = LaunchTemplate {
            id: LaunchTemplateId::random(),
            name: params.launch_template_name.clone(),
            created_at_s: now_s(),
            default_version: 1,
            latest_version: 1,
            tags: tags.clone(),
        };
        tx.put(TemplateVersion {
            id: TemplateVersionId(row.id, 1),
            description: params.version_description.clone(),
            created_at_s: row.created_at_s,
            data: params.launch_template_data.clone(),
        })?;
        let answer = json!({"LaunchTemplate": show(&tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateVersion {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    source_version: Option<String>,
    version_description: Option<String>,
    launch_template_data: Value,
}

/// Lays parameters over others, top-level member by member, as EC2 does.
fn over(base: &Value, top: &Value) -> Value {
    let mut all: Map<String, Value> = base.as_object().cloned().unwrap_or_default();
    for (name, value) in top.as_object().into_iter().flatten() {
        all.insert(name.clone(), value.clone());
    }
    Value::Object(all)
}

fn which(id: &Option<String>, name: &Option<String>) -> Which {
    Which {
        launch_template_id: id.clone(),
        launch_template_name: name.clone(),
    }
}

/// CreateLaunchTemplateVersion: on its own, or over a source version.
///
/// # Errors
/// EC2's codes.
pub async fn create_version(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: CreateVersion = ctx.params(action, request)?;
    let which = which(&params.launch_template_id, &params.launch_template_name);
    ctx.write(|tx| {
        let mut template = which.find(tx.view, &tx.scope)?.as_ref().clone();
        let data = match &params.source_version {
            None => params.launch_template_data.clone(),
            Some(text) => {
                let source = version(tx.view, &tx.scope, &template, text)?;
                over(&source.data, &params.launch_template_data)
            }
        };
        template.latest_version += 1;
        let row = TemplateVersion {
            id: TemplateVersionId(template.id, template.latest_version),
            description: params.version_description.clone(),
            created_at_s: now_s(),
            data,
        };
        let answer = json!({"LaunchTemplateVersion": show_version(&tx.scope, &template, &row)});
        tx.put(row)?;
        tx.put(template)?;
        Ok(answer)
    })
    .await
}

/// DeleteLaunchTemplate: with all its versions.
///
/// # Errors
/// EC2's codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let which: Which = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = which.find(tx.view, &tx.scope)?;
        for version in tx.rows::<TemplateVersion>() {
            if version.id.0 == row.id {
                tx.delete::<TemplateVersion>(&version.id);
            }
        }
        tx.delete::<LaunchTemplate>(&row.id);
        Ok(json!({"LaunchTemplate": show(&tx.scope, &row)}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteVersions {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    versions: Vec<String>,
}

/// DeleteLaunchTemplateVersions: each by itself; never the default one.
///
/// # Errors
/// EC2's codes.
pub async fn delete_versions(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: DeleteVersions = ctx.params(action, request)?;
    let which = which(&params.launch_template_id, &params.launch_template_name);
    if params.versions.len() > MAX_DELETED {
        return Err(ApiError::value(
            params.versions.len(),
            "LaunchTemplateVersion",
            "At most 200 versions may be deleted at once.",
        ));
    }
    ctx.write(|tx| {
        let template = which.find(tx.view, &tx.scope)?;
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        for text in &params.versions {
            let number = number(&template, text)?;
            let id = TemplateVersionId(template.id, number);
            let mut item = json!({
                "LaunchTemplateId": template.id.to_string(),
                "LaunchTemplateName": template.name,
                "VersionNumber": number,
            });
            let error = match tx.get::<TemplateVersion>(&id) {
                _ if number == template.default_version => Some((
                    "unexpectedError",
                    "A launch template's default version cannot be deleted.".to_owned(),
                )),
                None => Some((
                    "launchTemplateVersionDoesNotExist",
                    no_version(template.id, text).message,
                )),
                Some(_) => None,
            };
            match error {
                None => {
                    tx.delete::<TemplateVersion>(&id);
                    done.push(item);
                }
                Some((code, message)) => {
                    item["ResponseError"] = json!({"Code": code, "Message": message});
                    failed.push(item);
                }
            }
        }
        Ok(json!({
            "SuccessfullyDeletedLaunchTemplateVersions": done,
            "UnsuccessfullyDeletedLaunchTemplateVersions": failed,
        }))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    default_version: Option<String>,
}

/// ModifyLaunchTemplate: another default version.
///
/// # Errors
/// EC2's codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let which = which(&params.launch_template_id, &params.launch_template_name);
    let text = params
        .default_version
        .as_deref()
        .ok_or_else(|| ApiError::missing("SetDefaultVersion"))?;
    ctx.write(|tx| {
        let mut row = which.find(tx.view, &tx.scope)?.as_ref().clone();
        row.default_version = version(tx.view, &tx.scope, &row, text)?.id.1;
        let answer = json!({"LaunchTemplate": show(&tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}
