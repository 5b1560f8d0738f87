//! Security groups.

use super::defaults::{anywhere, anywhere_ipv6, everything};
use super::list::{Query, lookup, tag_set};
use super::params::{Filter, TagSpecification};
use super::{Ctx, peer_groups, quotas, tags};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::{Map, json};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Most groups of an interface (EC2's default quota).
const MAX_GROUPS: usize = 5;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    description: String,
    group_name: String,
    vpc_id: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// The account's default VPC.
///
/// # Errors
/// `VPCIdNotSpecified`.
pub fn default_vpc(view: &View, scope: &Scope) -> Result<Arc<Vpc>, ApiError> {
    view.all::<Vpc>(scope)
        .find(|vpc| vpc.default)
        .cloned()
        .ok_or_else(|| ApiError::new("VPCIdNotSpecified", "No default VPC for this user."))
}

fn check_text(text: &str, parameter: &str) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    if text.chars().count() > 255 || !text.chars().all(plain) {
        return Err(ApiError::value(
            text,
            parameter,
            "Character sets beyond a-z, A-Z, 0-9, spaces, and ._-:/()#,@[]+=&;{}!$* are not \
             supported, nor are more than 255 characters.",
        ));
    }
    Ok(())
}

/// CreateSecurityGroup: a new group lets nothing in and everything out.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    check_text(&params.group_name, "GroupName")?;
    check_text(&params.description, "GroupDescription")?;
    if params.group_name == "default" || params.group_name.starts_with("sg-") {
        let code = if params.group_name == "default" {
            "InvalidGroup.Reserved"
        } else {
            "InvalidParameterValue"
        };
        return Err(ApiError::new(
            code,
            format!(
                "The security group name '{}' is reserved",
                params.group_name
            ),
        ));
    }
    let tags = tags::on_create(
        &params.tag_specifications,
        "security-group",
        &["security-group"],
    )?;
    ctx.write(|tx| {
        let vpc = match &params.vpc_id {
            Some(text) => tx
                .get::<Vpc>(&VpcId::parse(text)?)
                .ok_or_else(|| VpcId::not_found(text))?,
            None => default_vpc(tx.view, &tx.scope)?,
        };
        let same = |group: &&Arc<Group>| group.vpc == vpc.id && group.name == params.group_name;
        if tx.view.all::<Group>(&tx.scope).any(|group| same(&group)) {
            return Err(ApiError::new(
                "InvalidGroup.Duplicate",
                format!(
                    "The security group '{}' already exists for VPC '{}'",
                    params.group_name, vpc.id
                ),
            ));
        }
        quotas::room_for_one::<Group>(tx)?;
        let group = Group {
            id: GroupId::random(),
            vpc: vpc.id,
            vni: vpc.vni,
            name: params.group_name.clone(),
            description: params.description.clone(),
            rules: out_to_everywhere(&vpc),
            generation: 1,
            tags: tags.clone(),
        };
        let answer = json!({
            "GroupId": group.id.to_string(),
            "SecurityGroupArn": arn(&tx.scope, "security-group", &group.id.to_string()),
            "Tags": tag_set(&group.tags),
        });
        tx.put(group)?;
        Ok(answer)
    })
    .await
}

/// What a new group of a VPC lets out: everything, by IPv6 where the VPC has a block.
fn out_to_everywhere(vpc: &Vpc) -> Vec<Rule> {
    let ipv6 = (!vpc.ipv6.is_empty()).then(anywhere_ipv6);
    let peers = std::iter::once(anywhere()).chain(ipv6);
    peers.map(|peer| everything(true, peer)).collect()
}

/// A resource's ARN.
pub fn arn(scope: &Scope, kind: &str, id: &str) -> String {
    format!("arn:aws:ec2:{}:{}:{kind}/{id}", scope.region, scope.account)
}

/// A group by id, or by name in the default VPC.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, id: Option<&str>, name: Option<&str>) -> Result<Arc<Group>, ApiError> {
    match (id, name) {
        (Some(text), _) => tx
            .get::<Group>(&GroupId::parse(text)?)
            .ok_or_else(|| GroupId::not_found(text)),
        (None, Some(name)) => {
            let id = by_name(tx.view, &tx.scope, name)?.id;
            tx.get::<Group>(&id).ok_or_else(|| GroupId::not_found(name))
        }
        (None, None) => Err(ApiError::missing("GroupId")),
    }
}

/// Groups by id for an interface of a subnet, each once.
///
/// # Errors
/// `InvalidParameter` for a group of another VPC, and EC2's other codes.
pub fn named(
    tx: &Tx<'_>,
    texts: &[String],
    vpc: VpcId,
    subnet: SubnetId,
) -> Result<Vec<GroupId>, ApiError> {
    let mut ids = Vec::new();
    for text in texts {
        let group = one(tx, Some(text), None)?;
        if group.vpc != vpc {
            return Err(ApiError::new(
                "InvalidParameter",
                format!(
                    "Security group {} and subnet {subnet} belong to different networks.",
                    group.id
                ),
            ));
        }
        if !ids.contains(&group.id) {
            ids.push(group.id);
        }
    }
    if ids.len() > MAX_GROUPS {
        return Err(ApiError::new(
            "SecurityGroupsPerInterfaceLimitExceeded",
            "The maximum number of security groups per interface has been reached.",
        ));
    }
    Ok(ids)
}

/// The groups that a call names, or its VPC's default one.
///
/// # Errors
/// As [`named`].
pub fn or_default(
    tx: &Tx<'_>,
    texts: &[String],
    vpc: VpcId,
    subnet: SubnetId,
) -> Result<Vec<GroupId>, ApiError> {
    if !texts.is_empty() {
        return named(tx, texts, vpc, subnet);
    }
    let mut groups = tx.view.all::<Group>(&tx.scope);
    let default = groups.find(|group| group.vpc == vpc && group.name == "default");
    Ok(default.map(|group| group.id).into_iter().collect())
}

/// A group of the default VPC by name.
///
/// # Errors
/// `InvalidGroup.NotFound`.
pub fn by_name(view: &View, scope: &Scope, name: &str) -> Result<Arc<Group>, ApiError> {
    let vpc = default_vpc(view, scope)?;
    view.all::<Group>(scope)
        .find(|group| group.vpc == vpc.id && group.name == name)
        .cloned()
        .ok_or_else(|| {
            ApiError::new(
                "InvalidGroup.NotFound",
                format!(
                    "The security group '{name}' does not exist in default VPC '{}'",
                    vpc.id
                ),
            )
        })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    group_id: Option<String>,
    group_name: Option<String>,
}

/// DeleteSecurityGroup.
///
/// # Errors
/// `CannotDelete`, `DependencyViolation`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let group = one(tx, params.group_id.as_deref(), params.group_name.as_deref())?;
        if group.name == "default" {
            return Err(ApiError::new(
                "CannotDelete",
                format!(
                    "the specified group: \"{}\" name: \"default\" cannot be deleted by a user",
                    group.id
                ),
            ));
        }
        let used = tx
            .view
            .all::<Interface>(&tx.scope)
            .any(|row| row.groups.contains(&group.id));
        let named = tx.view.all::<Group>(&tx.scope).any(|other| {
            // Rules beyond a peering are stale from now on.
            other.id != group.id
                && other.vpc == group.vpc
                && other
                    .rules
                    .iter()
                    .any(|rule| rule.peer == Peer::Group(group.id))
        });
        if used || named {
            return Err(ApiError::new(
                "DependencyViolation",
                format!("resource {} has a dependent object", group.id),
            ));
        }
        tx.delete::<Group>(&group.id);
        Ok(json!({"Return": true, "GroupId": group.id.to_string()}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    group_ids: Vec<String>,
    #[serde(default)]
    group_names: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

const PATHS: super::filters::Paths = &[
    (
        "egress.ip-permission.cidr",
        "IpPermissionsEgress.IpRanges.CidrIp",
    ),
    (
        "egress.ip-permission.from-port",
        "IpPermissionsEgress.FromPort",
    ),
    (
        "egress.ip-permission.group-id",
        "IpPermissionsEgress.UserIdGroupPairs.GroupId",
    ),
    (
        "egress.ip-permission.group-name",
        "IpPermissionsEgress.UserIdGroupPairs.GroupName",
    ),
    (
        "egress.ip-permission.ipv6-cidr",
        "IpPermissionsEgress.Ipv6Ranges.CidrIpv6",
    ),
    (
        "egress.ip-permission.protocol",
        "IpPermissionsEgress.IpProtocol",
    ),
    ("egress.ip-permission.to-port", "IpPermissionsEgress.ToPort"),
    (
        "egress.ip-permission.user-id",
        "IpPermissionsEgress.UserIdGroupPairs.UserId",
    ),
    ("ip-permission.cidr", "IpPermissions.IpRanges.CidrIp"),
    ("ip-permission.from-port", "IpPermissions.FromPort"),
    (
        "ip-permission.group-id",
        "IpPermissions.UserIdGroupPairs.GroupId",
    ),
    (
        "ip-permission.group-name",
        "IpPermissions.UserIdGroupPairs.GroupName",
    ),
    (
        "ip-permission.ipv6-cidr",
        "IpPermissions.Ipv6Ranges.CidrIpv6",
    ),
    ("ip-permission.protocol", "IpPermissions.IpProtocol"),
    ("ip-permission.to-port", "IpPermissions.ToPort"),
    (
        "ip-permission.user-id",
        "IpPermissions.UserIdGroupPairs.UserId",
    ),
];

/// DescribeSecurityGroups.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let by_id = !params.group_ids.is_empty() || !params.group_names.is_empty();
    let query = Query {
        action,
        member: "SecurityGroups",
        by_id,
        filters: &params.filters,
        paths: PATHS,
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let mut rows: Vec<Arc<Group>> = lookup(
            &params.group_ids,
            GroupId::parse,
            |id| view.get::<Group>(scope, &id).cloned(),
            |text| GroupId::not_found(text),
        )?;
        for name in &params.group_names {
            rows.push(by_name(view, scope, name)?);
        }
        if !by_id {
            rows = view.all::<Group>(scope).cloned().collect();
        }
        rows.sort_by_key(|row| row.id);
        rows.dedup_by_key(|row| row.id);
        query.answer(
            rows.iter()
                .map(|row| (row.id.to_string(), present(view, scope, row))),
        )
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct OfVpc {
    vpc_id: String,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// GetSecurityGroupsForVpc: a VPC has its own groups and no other's.
///
/// # Errors
/// EC2's codes.
pub async fn of_vpc(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: OfVpc = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "SecurityGroupForVpcs",
        by_id: false,
        filters: &params.filters,
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let id = VpcId::parse(&params.vpc_id)?;
        view.get::<Vpc>(&ctx.scope, &id)
            .ok_or_else(|| VpcId::not_found(id))?;
        let rows = view.all::<Group>(&ctx.scope);
        let mut rows: Vec<_> = rows.filter(|row| row.vpc == id).collect();
        rows.sort_by_key(|row| row.id);
        query.answer(rows.into_iter().map(|row| {
            let item = json!({
                "GroupId": row.id.to_string(),
                "GroupName": row.name,
                "Description": row.description,
                "OwnerId": ctx.account(),
                "PrimaryVpcId": row.vpc.to_string(),
                "Tags": tag_set(&row.tags),
            });
            (row.id.to_string(), item)
        }))
    })
    .await
}

fn present(view: &View, scope: &Scope, row: &Group) -> Value {
    let permissions = |egress: bool| {
        let rules = row.rules.iter().filter(move |rule| rule.egress == egress);
        permissions(view, scope, row, rules)
    };
    json!({
        "GroupId": row.id.to_string(),
        "GroupName": row.name,
        "Description": row.description,
        "OwnerId": *scope.account,
        "VpcId": row.vpc.to_string(),
        "SecurityGroupArn": arn(scope, "security-group", &row.id.to_string()),
        "Tags": tag_set(&row.tags),
        "IpPermissions": permissions(false),
        "IpPermissionsEgress": permissions(true),
    })
}

/// Rules as permissions: those of one protocol and port range together.
pub fn permissions<'a>(
    view: &View,
    scope: &Scope,
    group: &Group,
    rules: impl Iterator<Item = &'a Rule>,
) -> Value {
    let mut by_ports: BTreeMap<(i32, i32, i32), [Vec<Value>; 4]> = BTreeMap::new();
    for rule in rules {
        let lists = by_ports
            .entry((rule.protocol, rule.from_port, rule.to_port))
            .or_default();
        let (list, mut item) = match &rule.peer {
            Peer::Cidr(cidr @ ipnet::IpNet::V4(_)) => (0, json!({"CidrIp": cidr.to_string()})),
            Peer::Cidr(cidr) => (1, json!({"CidrIpv6": cidr.to_string()})),
            Peer::Group(id) => (2, peer_groups::pair(view, scope, group, rule.beyond, *id)),
            Peer::PrefixList(id) => (3, json!({"PrefixListId": id.to_string()})),
        };
        if let Some(description) = &rule.description {
            item["Description"] = description.clone().into();
        }
        lists[list].push(item);
    }
    by_ports
        .into_iter()
        .map(|((protocol, from, to), [v4, v6, groups, lists])| {
            let mut item = Map::new();
            item.insert(
                "IpProtocol".to_owned(),
                super::permissions::protocol_name(protocol).into(),
            );
            if protocol != -1 {
                item.insert("FromPort".to_owned(), from.into());
                item.insert("ToPort".to_owned(), to.into());
            }
            item.insert("IpRanges".to_owned(), v4.into());
            item.insert("Ipv6Ranges".to_owned(), v6.into());
            item.insert("PrefixListIds".to_owned(), lists.into());
            item.insert("UserIdGroupPairs".to_owned(), groups.into());
            Value::Object(item)
        })
        .collect()
}
