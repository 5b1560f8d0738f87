//! Security groups that rules name across a peering.
//!
//! A rule may name a group of the VPC at the other end of an active peering. It outlives
//! both the peering and that group, lets nobody pass then, and is called stale.

use super::list::{Query, lookup};
use super::{Ctx, groups};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

/// The peering by which two VPCs see each other.
pub fn active(view: &View, scope: &Scope, one: VpcId, other: VpcId) -> Option<PeeringId> {
    let mut peerings = view.all::<Peering>(scope);
    let joins = |row: &&std::sync::Arc<Peering>| {
        let ends = (row.requester, row.accepter);
        row.state == PeeringState::Active && (ends == (one, other) || ends == (other, one))
    };
    peerings.find(joins).map(|row| row.id)
}

/// `UserIdGroupPair` of a group's rule that names another: of one beyond a peering also where
/// it is.
pub fn pair(
    view: &View,
    scope: &Scope,
    group: &Group,
    beyond: Option<(VpcId, PeeringId)>,
    id: GroupId,
) -> Value {
    let mut item = json!({"GroupId": id.to_string(), "UserId": *scope.account});
    if let Some((vpc, peering)) = beyond {
        let now = active(view, scope, group.vpc, vpc);
        item["VpcId"] = vpc.to_string().into();
        item["VpcPeeringConnectionId"] = now.unwrap_or(peering).to_string().into();
        item["PeeringStatus"] = now.map_or("deleted", |_| "active").into();
    }
    item
}

/// Whether a group's rule names one beyond a peering, and that or the peering is gone.
pub fn is_stale(view: &View, scope: &Scope, group: &Group, rule: &Rule) -> bool {
    let (Some((vpc, _)), Peer::Group(id)) = (&rule.beyond, &rule.peer) else {
        return false;
    };
    view.get::<Group>(scope, id).is_none() || active(view, scope, group.vpc, *vpc).is_none()
}

/// A new rule names no group that is out of reach.
///
/// # Errors
/// `InvalidGroup.NotFound`.
pub fn not_stale(tx: &Tx<'_>, group: &Group, rules: &[Rule]) -> Result<(), ApiError> {
    let mut rules = rules.iter();
    match rules.find(|rule| is_stale(tx.view, &tx.scope, group, rule)) {
        Some(Rule {
            peer: Peer::Group(id),
            ..
        }) => Err(GroupId::not_found(id)),
        _ => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Stale {
    vpc_id: String,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// DescribeStaleSecurityGroups.
///
/// # Errors
/// EC2's codes.
pub async fn stale(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Stale = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "StaleSecurityGroupSet",
        by_id: false,
        filters: &[],
        paths: &[],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let id = VpcId::parse(&params.vpc_id)?;
        view.get::<Vpc>(scope, &id)
            .ok_or_else(|| VpcId::not_found(id))?;
        let groups = view.all::<Group>(scope).filter(|group| group.vpc == id);
        query.answer(groups.filter_map(|group| {
            let of = |egress: bool| {
                let rules = group.rules.iter();
                let stale = rules.filter(move |rule| {
                    rule.egress == egress && is_stale(view, scope, group, rule)
                });
                let mut shown = groups::permissions(view, scope, group, stale);
                for item in shown.as_array_mut().into_iter().flatten() {
                    // A `StaleIpPermission` has no such member, and it would be empty.
                    if let Some(item) = item.as_object_mut() {
                        item.remove("Ipv6Ranges");
                    }
                }
                shown
            };
            let item = json!({
                "GroupId": group.id.to_string(),
                "GroupName": group.name,
                "Description": group.description,
                "VpcId": id.to_string(),
                "StaleIpPermissions": of(false),
                "StaleIpPermissionsEgress": of(true),
            });
            let mut rules = group.rules.iter();
            let any = rules.any(|rule| is_stale(view, scope, group, rule));
            any.then(|| (group.id.to_string(), item))
        }))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct References {
    group_id: Vec<String>,
}

/// DescribeSecurityGroupReferences: the VPCs beyond a peering whose rules name these groups.
///
/// # Errors
/// EC2's codes.
pub async fn references(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: References = ctx.params(action, request)?;
    if params.group_id.is_empty() {
        return Err(ApiError::missing("GroupId"));
    }
    ctx.read(|view| {
        let scope = &ctx.scope;
        let asked = lookup(
            &params.group_id,
            GroupId::parse,
            |id| view.get::<Group>(scope, &id).cloned(),
            |text| GroupId::not_found(text),
        )?;
        let mut found = BTreeSet::new();
        for group in view.all::<Group>(scope) {
            let foreign = |rule: &&Rule| rule.beyond.is_some();
            for rule in group.rules.iter().filter(foreign) {
                let named = asked
                    .iter()
                    .find(|asked| rule.peer == Peer::Group(asked.id));
                let joined = named.and_then(|named| active(view, scope, group.vpc, named.vpc));
                found.extend(
                    named
                        .zip(joined)
                        .map(|(named, by)| (named.id, group.vpc, by)),
                );
            }
        }
        let set = found.iter().map(|(id, vpc, peering)| {
            json!({
                "GroupId": id.to_string(),
                "ReferencingVpcId": vpc.to_string(),
                "VpcPeeringConnectionId": peering.to_string(),
            })
        });
        Ok(json!({"SecurityGroupReferenceSet": set.collect::<Vec<_>>()}))
    })
    .await
}
