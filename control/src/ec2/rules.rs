//! Security group rules: authorize, revoke, describe.

use super::list::{Query, tag_set};
use super::params::{Filter, TagSpecification};
use super::permissions::{Pair, Permission, Range, protocol_name, rules_of};
use super::{Ctx, groups, peer_groups, tags};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;

/// Most rules of a group in each direction (EC2's default quota).
pub const MAX_RULES: usize = 60;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Change {
    group_id: Option<String>,
    group_name: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<Permission>,
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ip: Option<String>,
    source_security_group_name: Option<String>,
    source_security_group_owner_id: Option<String>,
    #[serde(default)]
    security_group_rule_ids: Vec<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

impl Change {
    /// The permissions, those of the short form among them.
    fn permissions(&mut self) -> Result<Vec<Permission>, ApiError> {
        let short = self.ip_protocol.is_some()
            || self.cidr_ip.is_some()
            || self.source_security_group_name.is_some();
        let mut all = std::mem::take(&mut self.ip_permissions);
        if short {
            if !all.is_empty() {
                return Err(ApiError::combination(
                    "The parameter ipPermissions may not be used with cidrIp or ipProtocol.",
                ));
            }
            let range = |cidr: String| Range {
                cidr_ip: Some(cidr),
                description: None,
            };
            let pair = |name: String| Pair {
                group_name: Some(name),
                user_id: self.source_security_group_owner_id.clone(),
                ..Pair::default()
            };
            let (named, any) = (
                self.source_security_group_name.clone(),
                self.ip_protocol.clone(),
            );
            all.push(Permission {
                ip_protocol: any.or_else(|| named.as_ref().map(|_| "-1".to_owned())),
                from_port: self.from_port,
                to_port: self.to_port,
                ip_ranges: self.cidr_ip.clone().map(range).into_iter().collect(),
                ipv6_ranges: Vec::new(),
                user_id_group_pairs: named.map(pair).into_iter().collect(),
                prefix_list_ids: Vec::new(),
            });
        }
        Ok(all)
    }
}

fn show(rule: &Rule) -> String {
    let peer = match &rule.peer {
        Peer::Cidr(cidr) => cidr.to_string(),
        Peer::Group(id) => id.to_string(),
        Peer::PrefixList(id) => id.to_string(),
    };
    let protocol = if rule.protocol == -1 {
        "ALL".to_owned()
    } else {
        protocol_name(rule.protocol).to_uppercase()
    };
    format!(
        "peer: {peer}, {protocol}, from port: {}, to port: {}, ALLOW",
        rule.from_port, rule.to_port
    )
}

/// How many rules of one direction there are as the quota counts them: one on a
/// prefix list counts as many as the list may have entries. Those on `but` count
/// nothing.
pub fn weight(tx: &Tx<'_>, rules: &[Rule], egress: bool, but: Option<PrefixListId>) -> usize {
    let one = |rule: &Rule| match &rule.peer {
        Peer::PrefixList(id) if Some(*id) == but => 0,
        Peer::PrefixList(id) => tx.get::<PrefixList>(id).map_or(1, |list| {
            usize::try_from(list.max_entries).unwrap_or(usize::MAX)
        }),
        _ => 1,
    };
    let rules = rules.iter().filter(|rule| rule.egress == egress);
    rules.map(one).fold(0, usize::saturating_add)
}

/// The error for more rules than a group may have.
pub fn too_many() -> ApiError {
    ApiError::new(
        "RulesPerSecurityGroupLimitExceeded",
        "The maximum number of rules per security group has been reached.",
    )
}

/// AuthorizeSecurityGroupIngress and …Egress.
///
/// # Errors
/// `InvalidPermission.Duplicate`, `RulesPerSecurityGroupLimitExceeded`, ….
pub async fn authorize(
    ctx: &Ctx,
    action: &str,
    request: Value,
    egress: bool,
) -> Result<Value, ApiError> {
    let mut params: Change = ctx.params(action, request)?;
    if !params.security_group_rule_ids.is_empty() {
        return Err(ApiError::unsupported_parameter("SecurityGroupRuleId"));
    }
    let permissions = params.permissions()?;
    if permissions.is_empty() {
        return Err(ApiError::missing("ipPermissions"));
    }
    let kind = "security-group-rule";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        let group = groups::one(tx, params.group_id.as_deref(), params.group_name.as_deref())?;
        let mut group = group.as_ref().clone();
        let mut new = rules_of(tx, &group, &permissions, egress)?;
        peer_groups::not_stale(tx, &group, &new)?;
        if let Some(rule) = new
            .iter()
            .find(|new| group.rules.iter().any(|old| new.same_as(old)))
        {
            return Err(ApiError::new(
                "InvalidPermission.Duplicate",
                format!("the specified rule \"{}\" already exists", show(rule)),
            ));
        }
        for rule in &mut new {
            rule.tags.clone_from(&tags);
        }
        let kept = weight(tx, &group.rules, egress, None);
        if kept + weight(tx, &new, egress, None) > MAX_RULES {
            return Err(too_many());
        }
        let shown: Vec<Value> = new
            .iter()
            .map(|rule| present(tx.view, &tx.scope, &group, rule))
            .collect();
        group.rules.extend(new);
        group.generation += 1;
        tx.put(group)?;
        Ok(json!({"Return": true, "SecurityGroupRules": shown}))
    })
    .await
}

/// RevokeSecurityGroupIngress and …Egress: by rule ids or by permissions. Flows
/// that are established live on.
///
/// # Errors
/// `InvalidPermission.NotFound`, `InvalidSecurityGroupRuleId.NotFound`, ….
pub async fn revoke(
    ctx: &Ctx,
    action: &str,
    request: Value,
    egress: bool,
) -> Result<Value, ApiError> {
    let mut params: Change = ctx.params(action, request)?;
    if !params.tag_specifications.is_empty() {
        return Err(ApiError::unsupported_parameter("TagSpecification"));
    }
    let permissions = params.permissions()?;
    if permissions.is_empty() == params.security_group_rule_ids.is_empty() {
        return Err(match permissions.is_empty() {
            true => ApiError::missing("ipPermissions"),
            false => ApiError::combination(
                "Either ipPermissions or securityGroupRuleIds should be specified, not both.",
            ),
        });
    }
    ctx.write(|tx| {
        let group = groups::one(tx, params.group_id.as_deref(), params.group_name.as_deref())?;
        let mut group = group.as_ref().clone();
        let mut gone: Vec<Rule> = Vec::new();
        for text in &params.security_group_rule_ids {
            let id = RuleId::parse(text)?;
            let rule = group
                .rules
                .iter()
                .find(|rule| rule.id == id && rule.egress == egress);
            gone.push(rule.cloned().ok_or_else(|| RuleId::not_found(text))?);
        }
        for wanted in rules_of(tx, &group, &permissions, egress)? {
            let rule = group.rules.iter().find(|rule| rule.same_as(&wanted));
            gone.push(rule.cloned().ok_or_else(|| {
                ApiError::new(
                    "InvalidPermission.NotFound",
                    "The specified rule does not exist in this security group.",
                )
            })?);
        }
        let shown: Vec<Value> = gone.iter().map(|rule| revoked(&group, rule)).collect();
        group
            .rules
            .retain(|rule| !gone.iter().any(|gone| gone.id == rule.id));
        group.generation += 1;
        tx.put(group)?;
        Ok(json!({"Return": true, "UnknownIpPermissions": [], "RevokedSecurityGroupRules": shown}))
    })
    .await
}

fn revoked(group: &Group, rule: &Rule) -> Value {
    let mut item = json!({
        "SecurityGroupRuleId": rule.id.to_string(),
        "GroupId": group.id.to_string(),
        "IsEgress": rule.egress,
        "IpProtocol": protocol_name(rule.protocol),
        "FromPort": rule.from_port,
        "ToPort": rule.to_port,
    });
    match &rule.peer {
        Peer::Cidr(cidr @ IpNet::V4(_)) => item["CidrIpv4"] = cidr.to_string().into(),
        Peer::Cidr(cidr) => item["CidrIpv6"] = cidr.to_string().into(),
        Peer::Group(id) => item["ReferencedGroupId"] = id.to_string().into(),
        Peer::PrefixList(id) => item["PrefixListId"] = id.to_string().into(),
    }
    if let Some(description) = &rule.description {
        item["Description"] = description.clone().into();
    }
    item
}

fn present(view: &View, scope: &Scope, group: &Group, rule: &Rule) -> Value {
    let mut item = revoked(group, rule);
    item["GroupOwnerId"] = (*scope.account).into();
    item["SecurityGroupRuleArn"] =
        groups::arn(scope, "security-group-rule", &rule.id.to_string()).into();
    item["Tags"] = tag_set(&rule.tags).into();
    if let Peer::Group(id) = &rule.peer {
        if let Some(object) = item.as_object_mut() {
            object.remove("ReferencedGroupId");
        }
        item["ReferencedGroupInfo"] = peer_groups::pair(view, scope, group, rule.beyond, *id);
        item["ReferencedGroupInfo"]["VpcId"] = rule
            .beyond
            .map_or(group.vpc, |(vpc, _)| vpc)
            .to_string()
            .into();
    }
    item
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    security_group_rule_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeSecurityGroupRules.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let ids = params
        .security_group_rule_ids
        .iter()
        .map(|text| RuleId::parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    let query = Query {
        action,
        member: "SecurityGroupRules",
        by_id: !ids.is_empty(),
        filters: &params.filters,
        paths: &[("group-id", "GroupId")],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let mut items = Vec::new();
        for group in view.all::<Group>(&ctx.scope) {
            for rule in &group.rules {
                if ids.is_empty() || ids.contains(&rule.id) {
                    items.push((rule.id, present(view, &ctx.scope, group, rule)));
                }
            }
        }
        items.sort_by_key(|(id, _)| *id);
        if let Some(id) = ids
            .iter()
            .find(|id| !items.iter().any(|(found, _)| found == *id))
        {
            return Err(RuleId::not_found(id));
        }
        query.answer(items.into_iter().map(|(id, item)| (id.to_string(), item)))
    })
    .await
}
