//! Security group rules, changed in place: their ids, and flows that are
//! established, stay.

use super::permissions::{List, Pair, Permission, Range, check_description, rules_of};
use super::rules::{MAX_RULES, too_many, weight};
use super::{Ctx, groups, peer_groups};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    group_id: String,
    security_group_rules: Vec<Update>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Update {
    security_group_rule_id: String,
    security_group_rule: Option<Request>,
}

/// `SecurityGroupRuleRequest`: a whole rule with one peer.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Request {
    ip_protocol: Option<String>,
    from_port: Option<i32>,
    to_port: Option<i32>,
    cidr_ipv4: Option<String>,
    cidr_ipv6: Option<String>,
    prefix_list_id: Option<String>,
    referenced_group_id: Option<String>,
    description: Option<String>,
}

impl Request {
    /// As the permission that AuthorizeSecurityGroup… would take.
    fn permission(&self) -> Result<Permission, ApiError> {
        let peers = [
            &self.cidr_ipv4,
            &self.cidr_ipv6,
            &self.prefix_list_id,
            &self.referenced_group_id,
        ];
        if peers.iter().filter(|peer| peer.is_some()).count() != 1 {
            return Err(ApiError::combination(
                "A rule has exactly one of cidrIpv4, cidrIpv6, prefixListId and referencedGroupId.",
            ));
        }
        let range = |text: &Option<String>| {
            let range = text.clone().map(|text| Range {
                cidr_ip: Some(text),
                description: self.description.clone(),
            });
            range.into_iter().collect()
        };
        let pair = self.referenced_group_id.clone().map(|id| Pair {
            group_id: Some(id),
            description: self.description.clone(),
            ..Pair::default()
        });
        let list = self.prefix_list_id.clone().map(|id| List {
            prefix_list_id: Some(id),
            description: self.description.clone(),
        });
        Ok(Permission {
            ip_protocol: self.ip_protocol.clone(),
            from_port: self.from_port,
            to_port: self.to_port,
            ip_ranges: range(&self.cidr_ipv4),
            ipv6_ranges: range(&self.cidr_ipv6),
            user_id_group_pairs: pair.into_iter().collect(),
            prefix_list_ids: list.into_iter().collect(),
        })
    }
}

/// ModifySecurityGroupRules.
///
/// # Errors
/// `InvalidSecurityGroupRuleId.NotFound`, `InvalidPermission.Duplicate`, ….
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    if params.security_group_rules.is_empty() {
        return Err(ApiError::missing("SecurityGroupRule"));
    }
    ctx.write(|tx| {
        let mut group = groups::one(tx, Some(&params.group_id), None)?
            .as_ref()
            .clone();
        for update in &params.security_group_rules {
            change(tx, &mut group, update)?;
        }
        for egress in [false, true] {
            if weight(tx, &group.rules, egress, None) > MAX_RULES {
                return Err(too_many());
            }
        }
        group.generation += 1;
        tx.put(group)?;
        Ok(json!({"Return": true}))
    })
    .await
}

fn change(tx: &Tx<'_>, group: &mut Group, update: &Update) -> Result<(), ApiError> {
    let id = RuleId::parse(&update.security_group_rule_id)?;
    let place = group.rules.iter().position(|rule| rule.id == id);
    let place = place.ok_or_else(|| RuleId::not_found(id))?;
    let wanted = update
        .security_group_rule
        .as_ref()
        .ok_or_else(|| ApiError::missing("SecurityGroupRule.1.SecurityGroupRule"))?;
    let old = group.rules[place].clone();
    let new = rules_of(tx, group, &[wanted.permission()?], old.egress)?;
    peer_groups::not_stale(tx, group, &new)?;
    let new = new
        .into_iter()
        .next()
        .ok_or_else(|| ApiError::missing("CidrIpv4"))?;
    let twin = |other: &Rule| other.id != id && other.same_as(&new);
    if group.rules.iter().any(twin) {
        return Err(ApiError::new(
            "InvalidPermission.Duplicate",
            format!("The rule '{id}' would be the same as another one."),
        ));
    }
    group.rules[place] = Rule {
        id,
        tags: old.tags,
        ..new
    };
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    group_id: Option<String>,
    group_name: Option<String>,
    #[serde(default)]
    ip_permissions: Vec<Permission>,
    #[serde(default)]
    security_group_rule_descriptions: Vec<Described>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Described {
    security_group_rule_id: Option<String>,
    description: Option<String>,
}

/// UpdateSecurityGroupRuleDescriptionsIngress and …Egress: by rule ids or by
/// permissions; one without a description takes it away.
///
/// # Errors
/// `InvalidPermission.NotFound`, `InvalidSecurityGroupRuleId.NotFound`, ….
pub async fn describe(
    ctx: &Ctx,
    action: &str,
    request: Value,
    egress: bool,
) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    if params.ip_permissions.is_empty() == params.security_group_rule_descriptions.is_empty() {
        return Err(match params.ip_permissions.is_empty() {
            true => ApiError::missing("ipPermissions"),
            false => ApiError::combination(
                "Either ipPermissions or securityGroupRuleDescriptions should be specified, not both.",
            ),
        });
    }
    ctx.write(|tx| {
        let group = groups::one(tx, params.group_id.as_deref(), params.group_name.as_deref())?;
        let mut group = group.as_ref().clone();
        for described in &params.security_group_rule_descriptions {
            let text = described.security_group_rule_id.as_deref();
            let text = text.ok_or_else(|| ApiError::missing("SecurityGroupRuleId"))?;
            let id = RuleId::parse(text)?;
            check_description(described.description.as_ref())?;
            let mut rules = group.rules.iter_mut();
            let rule = rules.find(|rule| rule.id == id && rule.egress == egress);
            let rule = rule.ok_or_else(|| RuleId::not_found(text))?;
            rule.description.clone_from(&described.description);
        }
        for wanted in rules_of(tx, &group, &params.ip_permissions, egress)? {
            let rule = group.rules.iter_mut().find(|rule| rule.same_as(&wanted));
            let rule = rule.ok_or_else(|| {
                ApiError::new(
                    "InvalidPermission.NotFound",
                    "The specified rule does not exist in this security group.",
                )
            })?;
            rule.description = wanted.description;
        }
        tx.put(group)?;
        Ok(json!({"Return": true}))
    })
    .await
}
