//! What EC2 tells of an account as such.

use super::Ctx;
use super::list::Query;
use super::params::Filter;
use crate::rows::Vpc;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attributes {
    #[serde(default)]
    attribute_names: Vec<String>,
}

/// DescribeAccountAttributes.
///
/// # Errors
/// `InvalidParameterValue` for a name that is none.
pub async fn attributes(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attributes = ctx.params(action, request)?;
    ctx.read(|view| {
        let default = view.all::<Vpc>(&ctx.scope).find(|vpc| vpc.default);
        let default = default.map_or_else(|| "none".to_owned(), |vpc| vpc.id.to_string());
        let known = [
            ("supported-platforms", "VPC".to_owned()),
            ("default-vpc", default),
            ("max-instances", "20".to_owned()),
            ("max-elastic-ips", "5".to_owned()),
            ("vpc-max-elastic-ips", "5".to_owned()),
            ("vpc-max-security-groups-per-interface", "5".to_owned()),
        ];
        let names = &params.attribute_names;
        let stranger = names
            .iter()
            .find(|name| !known.iter().any(|(known, _)| known == name));
        if let Some(name) = stranger {
            return Err(ApiError::value(
                name,
                "AttributeName",
                "There is no such attribute.",
            ));
        }
        let items: Vec<Value> = known
            .iter()
            .filter(|(name, _)| names.is_empty() || names.iter().any(|wanted| wanted == name))
            .map(|(name, value)| {
                json!({"AttributeName": name, "AttributeValues": [{"AttributeValue": value}]})
            })
            .collect();
        Ok(json!({"AccountAttributes": items}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associations {
    #[serde(default)]
    association_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeIamInstanceProfileAssociations: this cloud has no instance profiles.
///
/// # Errors
/// `NoSuchAssociation` for every id.
pub async fn profile_associations(
    ctx: &Ctx,
    action: &str,
    request: Value,
) -> Result<Value, ApiError> {
    let params: Associations = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "IamInstanceProfileAssociations",
        by_id: !params.association_ids.is_empty(),
        filters: &params.filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|_| match params.association_ids.first() {
        Some(id) => Err(ApiError::new(
            "NoSuchAssociation",
            format!("An invalid association-id of '{id}' was given"),
        )),
        None => query.answer([]),
    })
    .await
}

/// Kinds of resources whose ids EC2 once let accounts choose the length of.
const LONG_IDS: [&str; 25] = [
    "bundle",
    "conversion-task",
    "customer-gateway",
    "dhcp-options",
    "elastic-ip-allocation",
    "elastic-ip-association",
    "export-task",
    "flow-log",
    "image",
    "import-task",
    "instance",
    "internet-gateway",
    "network-acl",
    "network-acl-association",
    "network-interface",
    "network-interface-attachment",
    "prefix-list",
    "reservation",
    "route-table",
    "route-table-association",
    "security-group",
    "snapshot",
    "subnet",
    "volume",
    "vpc",
];

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct IdFormat {
    resource: Option<String>,
}

fn formats<'a>(kinds: impl Iterator<Item = &'a &'a str>) -> Value {
    kinds
        .map(|kind| json!({"Resource": kind, "UseLongIds": true}))
        .collect()
}

/// DescribeIdFormat: every id is long.
///
/// # Errors
/// `InvalidParameterValue` for a kind that is none.
pub async fn id_format(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: IdFormat = ctx.params(action, request)?;
    ctx.read(|_| {
        let wanted = |kind: &&&str| params.resource.as_ref().is_none_or(|text| text == **kind);
        let found = formats(LONG_IDS.iter().filter(wanted));
        match (&params.resource, found.as_array().map(Vec::is_empty)) {
            (Some(text), Some(true)) => Err(ApiError::value(
                text,
                "Resource",
                "There is no such kind of resource.",
            )),
            _ => Ok(json!({"Statuses": found})),
        }
    })
    .await
}

/// DescribeAggregateIdFormat: every id is long.
///
/// # Errors
/// EC2's codes.
pub async fn aggregate_id_format(
    ctx: &Ctx,
    action: &str,
    request: Value,
) -> Result<Value, ApiError> {
    #[derive(Deserialize)]
    struct Nothing {}
    let Nothing {} = ctx.params(action, request)?;
    ctx.read(|_| {
        let statuses = formats(LONG_IDS.iter());
        Ok(json!({"UseLongIdsAggregated": true, "Statuses": statuses}))
    })
    .await
}
