//! Tags: on creation, later, and listed.

use super::Ctx;
use super::list::Query;
use super::params::{Filter, Tag, TagSpecification};
use crate::core::Tx;
use crate::rows::*;
use crate::view::{Kept, View};
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

/// Most tags of a resource.
pub const MAX_TAGS: usize = 50;
const MAX_RESOURCES: usize = 1_000;

/// Checks tags and makes them a map.
///
/// # Errors
/// `InvalidParameterValue`, `TagLimitExceeded`.
pub fn checked(tags: &[Tag]) -> Result<Tags, ApiError> {
    let mut checked = Tags::new();
    for tag in tags {
        let key = tag
            .key
            .as_deref()
            .ok_or_else(|| ApiError::missing("Tag.Key"))?;
        let value = tag.value.as_deref().unwrap_or_default();
        if key.to_ascii_lowercase().starts_with("aws:") {
            return Err(ApiError::value(
                key,
                "Tag.Key",
                "Tag keys starting with 'aws:' are reserved for internal use.",
            ));
        }
        if key.chars().count() > 128 {
            return Err(ApiError::value(
                key,
                "Tag.Key",
                "It exceeds 128 characters.",
            ));
        }
        if value.chars().count() > 256 {
            return Err(ApiError::value(
                value,
                "Tag.Value",
                "It exceeds 256 characters.",
            ));
        }
        if key.chars().chain(value.chars()).any(char::is_control) {
            return Err(ApiError::value(
                key.escape_default(),
                "Tag.Key",
                "It has control characters.",
            ));
        }
        if checked.insert(key.to_owned(), value.to_owned()).is_some() {
            return Err(ApiError::value(
                key,
                "Tag.Key",
                "Duplicate tag keys are not allowed.",
            ));
        }
    }
    limit(&checked)?;
    Ok(checked)
}

/// Tags of two sources together.
///
/// # Errors
/// `TagLimitExceeded`.
pub fn limited(tags: Tags) -> Result<Tags, ApiError> {
    limit(&tags)?;
    Ok(tags)
}

fn limit(tags: &Tags) -> Result<(), ApiError> {
    if tags.len() > MAX_TAGS {
        return Err(ApiError::new(
            "TagLimitExceeded",
            format!("The maximum number of {MAX_TAGS} tags for a resource has been reached."),
        ));
    }
    Ok(())
}

/// The tags that a creating call gives to one kind of resource.
///
/// # Errors
/// As [`checked`]; `InvalidParameterValue` for a kind that the call does not make.
pub fn on_create(
    specifications: &[TagSpecification],
    kind: &str,
    kinds: &[&str],
) -> Result<Tags, ApiError> {
    let mut all = Vec::new();
    for specification in specifications {
        let named = specification
            .resource_type
            .as_deref()
            .ok_or_else(|| ApiError::missing("TagSpecification.1.ResourceType"))?;
        if !kinds.contains(&named) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("'{named}' is not a valid taggable resource type for this operation."),
            ));
        }
        let checked = checked(&specification.tags)?;
        if named == kind {
            all.extend(checked);
        }
    }
    let all: Vec<Tag> = all
        .into_iter()
        .map(|(key, value)| Tag {
            key: Some(key),
            value: Some(value),
        })
        .collect();
    checked(&all)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    resources: Vec<String>,
    #[serde(default)]
    tags: Vec<Tag>,
}

/// CreateTags.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Change = ctx.params(action, request)?;
    if params.tags.is_empty() {
        return Err(ApiError::missing("Tag"));
    }
    let new = checked(&params.tags)?;
    ctx.write(|tx| {
        change_all(tx, &params.resources, &|tags| {
            tags.extend(new.clone());
            limit(tags)
        })
    })
    .await?;
    Ok(json!({}))
}

/// DeleteTags: with a value, only where it is that value; without tags, all.
///
/// # Errors
/// EC2's codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Change = ctx.params(action, request)?;
    ctx.write(|tx| {
        change_all(tx, &params.resources, &|tags| {
            if params.tags.is_empty() {
                tags.clear();
            }
            for tag in &params.tags {
                let key = tag
                    .key
                    .as_deref()
                    .ok_or_else(|| ApiError::missing("Tag.Key"))?;
                if tag.value.is_none() || tags.get(key) == tag.value.as_ref() {
                    tags.remove(key);
                }
            }
            Ok(())
        })
    })
    .await?;
    Ok(json!({}))
}

type Edit<'a> = &'a dyn Fn(&mut Tags) -> Result<(), ApiError>;

fn change_all(tx: &mut Tx<'_>, resources: &[String], edit: Edit<'_>) -> Result<(), ApiError> {
    if resources.len() > MAX_RESOURCES {
        return Err(ApiError::value(
            resources.len(),
            "ResourceId",
            &format!("At most {MAX_RESOURCES} resources may be tagged at once."),
        ));
    }
    resources
        .iter()
        .try_for_each(|resource| change_one(tx, resource, edit))
}

macro_rules! tagged {
    ($($prefix:literal => $type:ty, $id:ty, $kind:literal;)*) => {
        fn change_one(tx: &mut Tx<'_>, resource: &str, edit: Edit<'_>) -> Result<(), ApiError> {
            $(if resource.starts_with($prefix) {
                let id = <$id>::parse(resource)?;
                let row = tx.get::<$type>(&id).ok_or_else(|| <$id>::not_found(resource))?;
                let mut row = row.as_ref().clone();
                edit(&mut row.tags)?;
                touch(&mut row);
                return tx.put(row);
            })*
            if resource.starts_with("sgr-") {
                return change_rule(tx, resource, edit);
            }
            Err(ApiError::new("InvalidID", format!("The ID '{resource}' is not valid")))
        }

        /// Every tag of a scope: resource, kind, tags.
        fn all_tags(view: &View, scope: &Scope) -> Vec<(String, &'static str, Tags)> {
            let mut all = Vec::new();
            $(all.extend(view.all::<$type>(scope).filter(|row| !row.tags.is_empty()).map(|row| {
                (row.id.to_string(), $kind, row.tags.clone())
            }));)*
            for group in view.all::<Group>(scope) {
                all.extend(group.rules.iter().filter(|rule| !rule.tags.is_empty()).map(|rule| {
                    (rule.id.to_string(), "security-group-rule", rule.tags.clone())
                }));
            }
            all
        }
    };
}

tagged! {
    "i-" => Instance, InstanceId, "instance";
    "vol-" => Volume, VolumeId, "volume";
    "snap-" => Snapshot, SnapshotId, "snapshot";
    "ami-" => OwnImage, ImageId, "image";
    "eni-" => Interface, InterfaceId, "network-interface";
    "sg-" => Group, GroupId, "security-group";
    "vpc-" => Vpc, VpcId, "vpc";
    "subnet-" => Subnet, SubnetId, "subnet";
    "scr-" => SubnetReservation, SubnetReservationId, "subnet-cidr-reservation";
    "igw-" => Gateway, GatewayId, "internet-gateway";
    "eigw-" => EgressGateway, EgressGatewayId, "egress-only-internet-gateway";
    "nat-" => NatGateway, NatGatewayId, "natgateway";
    "eice-" => ConnectEndpoint, ConnectEndpointId, "instance-connect-endpoint";
    "rtb-" => RouteTable, RouteTableId, "route-table";
    "acl-" => Acl, AclId, "network-acl";
    "dopt-" => DhcpOptions, DhcpOptionsId, "dhcp-options";
    "eipalloc-" => Address, AllocationId, "elastic-ip";
    "pcx-" => Peering, PeeringId, "vpc-peering-connection";
    "key-" => KeyPair, KeyPairId, "key-pair";
    "lt-" => LaunchTemplate, LaunchTemplateId, "launch-template";
    "pl-" => PrefixList, PrefixListId, "prefix-list";
    "pg-" => PlacementGroup, PlacementGroupId, "placement-group";
}

/// An instance whose tags its metadata shows changes with them.
fn touch<T: Kept>(row: &mut T) {
    let row: &mut dyn std::any::Any = row;
    if let Some(instance) = row.downcast_mut::<Instance>()
        && instance.metadata.tags
    {
        instance.generation += 1;
    }
}

fn change_rule(tx: &mut Tx<'_>, resource: &str, edit: Edit<'_>) -> Result<(), ApiError> {
    let id = RuleId::parse(resource)?;
    let owner = tx
        .view
        .all::<Group>(&tx.scope)
        .find(|group| group.rules.iter().any(|rule| rule.id == id))
        .map(|group| group.id)
        .ok_or_else(|| RuleId::not_found(resource))?;
    let group = tx
        .get::<Group>(&owner)
        .ok_or_else(|| RuleId::not_found(resource))?;
    let mut group = group.as_ref().clone();
    for rule in group.rules.iter_mut().filter(|rule| rule.id == id) {
        edit(&mut rule.tags)?;
    }
    tx.put(group)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeTags.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    // `tag:KEY` asks for the tag with that key.
    let mut filters = params.filters;
    let mut extra = Vec::new();
    for filter in &mut filters {
        if let Some(key) = filter
            .name
            .as_deref()
            .and_then(|name| name.strip_prefix("tag:"))
        {
            extra.push(Filter {
                name: Some("key".to_owned()),
                values: vec![key.to_owned()],
            });
            filter.name = Some("value".to_owned());
        }
    }
    filters.extend(extra);
    let query = Query {
        action,
        member: "Tags",
        by_id: false,
        filters: &filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let mut items: Vec<(String, Value)> = Vec::new();
        for (resource, kind, tags) in all_tags(view, &ctx.scope) {
            items.extend(tags.iter().map(|(key, value)| {
                let item = json!({
                    "ResourceId": resource, "ResourceType": kind, "Key": key, "Value": value,
                });
                (format!("{resource}/{key}"), item)
            }));
        }
        items.sort_by(|a, b| a.0.cmp(&b.0));
        query.answer(items)
    })
    .await
}
