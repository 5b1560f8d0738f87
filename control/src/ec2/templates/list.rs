//! DescribeLaunchTemplates and DescribeLaunchTemplateVersions.

use super::{no_name, number, show, show_version, version, which};
use crate::ec2::Ctx;
use crate::ec2::list::{Query, lookup};
use crate::ec2::params::Filter;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use std::sync::Arc;

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
const PATHS: crate::ec2::filters::Paths = &[
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
