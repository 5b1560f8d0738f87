//! Launch templates and their versions.
//!
//! A version holds a request's parameters as they came. RunInstances lays its own
//! over them and goes on as ever, so a parameter that this cloud does not honour is
//! refused by name when a template with it is launched.

use super::list::{Query, lookup, tag_set};
use super::params::{Filter, TagSpecification};
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

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    launch_template_ids: Vec<String>,
    #[serde(default)]
    launch_template_names: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeLaunchTemplates.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let all = params.launch_template_ids.is_empty() && params.launch_template_names.is_empty();
    let query = Query {
        action,
        member: "LaunchTemplates",
        by_id: !all,
        filters: &params.filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let mut rows: Vec<Arc<LaunchTemplate>> = lookup(
            &params.launch_template_ids,
            LaunchTemplateId::parse,
            |id| view.get::<LaunchTemplate>(scope, &id).cloned(),
            |text| LaunchTemplateId::not_found(text),
        )?;
        for name in &params.launch_template_names {
            let found = view
                .all::<LaunchTemplate>(scope)
                .find(|row| row.name == *name);
            rows.push(found.cloned().ok_or_else(|| no_name(name))?);
        }
        if all {
            rows = view.all::<LaunchTemplate>(scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        query.answer(
            rows.iter()
                .map(|row| (row.id.to_string(), show(scope, row))),
        )
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DescribeVersions {
    launch_template_id: Option<String>,
    launch_template_name: Option<String>,
    #[serde(default)]
    versions: Vec<String>,
    min_version: Option<String>,
    max_version: Option<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeLaunchTemplateVersions: of one template, or `$Latest` and `$Default`
/// of all; the newest first.
///
/// # Errors
/// EC2's codes.
pub async fn describe_versions(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: DescribeVersions = ctx.params(action, request)?;
    let which = which(&params.launch_template_id, &params.launch_template_name);
    let one = params.launch_template_id.is_some() || params.launch_template_name.is_some();
    let named = |text: &String| matches!(text.as_str(), "$Latest" | "$Default");
    if !one && (params.versions.is_empty() || !params.versions.iter().all(named)) {
        return Err(ApiError::new(
            "MissingParameter",
            "Either a launch template ID or a launch template name must be specified in the request.",
        ));
    }
    let bounded = params.min_version.is_some() || params.max_version.is_some();
    if bounded && !params.versions.is_empty() {
        return Err(ApiError::combination(
            "You cannot specify a list of versions together with a minimum or maximum version.",
        ));
    }
    let query = Query {
        action,
        member: "LaunchTemplateVersions",
        by_id: false,
        filters: &params.filters,
        paths: PATHS,
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let templates: Vec<Arc<LaunchTemplate>> = if one {
            vec![which.find(view, scope)?]
        } else {
            view.all::<LaunchTemplate>(scope).cloned().collect()
        };
        let mut items = Vec::new();
        for template in &templates {
            let mut rows: Vec<Arc<TemplateVersion>> = Vec::new();
            for text in &params.versions {
                rows.push(version(view, scope, template, text)?);
            }
            if params.versions.is_empty() {
                let bound = |text: &Option<String>, or: u64| {
                    text.as_deref()
                        .map_or(Ok(or), |text| number(template, text))
                };
                let range = bound(&params.min_version, 0)?..=bound(&params.max_version, u64::MAX)?;
                let all = view.all::<TemplateVersion>(scope);
                rows.extend(
                    all.filter(|row| row.id.0 == template.id && range.contains(&row.id.1))
                        .cloned(),
                );
            }
            items.extend(rows.iter().map(|row| {
                // Keys count down, so that the newest come first.
                let key = format!("{}.{:020}", template.id, u64::MAX - row.id.1);
                (key, show_version(scope, template, row))
            }));
        }
        items.sort_by(|a, b| a.0.cmp(&b.0));
        items.dedup_by(|a, b| a.0 == b.0);
        query.answer(items)
    })
    .await
}

/// Where filter names of DescribeLaunchTemplateVersions lead.
const PATHS: super::filters::Paths = &[
    ("create-time", "CreateTime"),
    ("ebs-optimized", "LaunchTemplateData.EbsOptimized"),
    (
        "http-endpoint",
        "LaunchTemplateData.MetadataOptions.HttpEndpoint",
    ),
    (
        "http-protocol-ipv4",
        "LaunchTemplateData.MetadataOptions.HttpEndpoint",
    ),
    (
        "host-resource-group-arn",
        "LaunchTemplateData.Placement.HostResourceGroupArn",
    ),
    (
        "http-tokens",
        "LaunchTemplateData.MetadataOptions.HttpTokens",
    ),
    (
        "iam-instance-profile",
        "LaunchTemplateData.IamInstanceProfile.Name",
    ),
    ("image-id", "LaunchTemplateData.ImageId"),
    ("instance-type", "LaunchTemplateData.InstanceType"),
    ("is-default-version", "DefaultVersion"),
    ("kernel-id", "LaunchTemplateData.KernelId"),
    (
        "license-configuration-arn",
        "LaunchTemplateData.LicenseSpecifications.LicenseConfigurationArn",
    ),
    (
        "network-card-index",
        "LaunchTemplateData.NetworkInterfaces.NetworkCardIndex",
    ),
    ("ram-disk-id", "LaunchTemplateData.RamDiskId"),
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    instance_id: String,
}

/// GetLaunchTemplateData: what would launch an instance like this one.
///
/// # Errors
/// EC2's codes.
pub async fn data(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.read(|view| {
        let scope = &ctx.scope;
        let id = InstanceId::parse(&params.instance_id)?;
        let row = view
            .get::<Instance>(scope, &id)
            .filter(|row| row.state != State::Terminated)
            .ok_or_else(|| InstanceId::not_found(id))?;
        let shown = present::instance(view, scope, row);
        let disks = row.mappings.iter().filter_map(|mapping| {
            let volume = view.get::<Volume>(scope, &mapping.volume)?;
            let attachment = volume.attachment.as_ref()?;
            let mut ebs = json!({
                "DeleteOnTermination": attachment.delete_on_termination,
                "VolumeSize": volume.size_gib,
                "VolumeType": volume.volume_type,
            });
            if let Some(snapshot) = volume.snapshot {
                ebs["SnapshotId"] = snapshot.to_string().into();
            }
            Some(json!({"DeviceName": mapping.device, "Ebs": ebs}))
        });
        let interfaces = row.interfaces.iter().filter_map(|id| {
            let interface = view.get::<Interface>(scope, id)?;
            let attachment = interface.attachment.as_ref()?;
            Some(json!({
                "DeleteOnTermination": attachment.delete_on_termination,
                "Description": interface.description,
                "DeviceIndex": attachment.device_index,
                "Groups": interface.groups.iter().map(ToString::to_string).collect::<Vec<_>>(),
                "SubnetId": interface.subnet.to_string(),
            }))
        });
        let behaviour = if row.terminate_on_shutdown {
            "terminate"
        } else {
            "stop"
        };
        let mut data = json!({
            "BlockDeviceMappings": disks.collect::<Vec<_>>(),
            "NetworkInterfaces": interfaces.collect::<Vec<_>>(),
            "ImageId": row.boot.image.to_string(),
            "InstanceType": row.instance_type,
            "Monitoring": {"Enabled": row.monitoring},
            "Placement": {"AvailabilityZone": row.zone},
            "DisableApiTermination": row.disable_termination,
            "DisableApiStop": row.disable_stop,
            "InstanceInitiatedShutdownBehavior": behaviour,
        });
        let metadata = &shown["MetadataOptions"];
        for name in [
            "HttpTokens",
            "HttpPutResponseHopLimit",
            "HttpEndpoint",
            "InstanceMetadataTags",
        ] {
            data["MetadataOptions"][name] = metadata[name].clone().into();
        }
        if !row.key_name.is_empty() {
            data["KeyName"] = row.key_name.clone().into();
        }
        if let Some(text) = super::attributes::user_data(view, scope, row) {
            data["UserData"] = text.into();
        }
        if !row.tags.is_empty() {
            data["TagSpecifications"] =
                json!([{"ResourceType": "instance", "Tags": tag_set(&row.tags)}]);
        }
        Ok(json!({"LaunchTemplateData": data}))
    })
    .await
}

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
