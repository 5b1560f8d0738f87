//! Prefix lists: blocks of addresses under one name, for rules of groups. A change
//! is a new version, and every group with a rule on the list follows it.

mod reads;

pub use reads::{associations, entries, services};

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::{Ctx, groups, quotas, tags};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Most entries of a list, as EC2 documents.
const MAX_ENTRIES: i64 = 1_000;
/// Most entries of one change, as EC2 documents.
const MAX_CHANGES: usize = 100;

fn show(scope: &Scope, row: &PrefixList, state: &str) -> Value {
    json!({
        "PrefixListId": row.id.to_string(),
        "PrefixListName": row.name,
        "PrefixListArn": groups::arn(scope, "prefix-list", &row.id.to_string()),
        "AddressFamily": if row.v6 { "IPv6" } else { "IPv4" },
        "State": state,
        "MaxEntries": row.max_entries,
        "Version": row.version,
        "OwnerId": *scope.account,
        "Tags": tag_set(&row.tags),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Entry {
    cidr: String,
    description: Option<String>,
}

fn cidr(text: &str, v6: bool) -> Result<IpNet, ApiError> {
    text.parse::<IpNet>()
        .ok()
        .filter(|net| matches!(net, IpNet::V6(_)) == v6)
        .map(|net| net.trunc())
        .ok_or_else(|| {
            ApiError::value(
                text,
                "Cidr",
                "It is not a CIDR block of the list's address family.",
            )
        })
}

/// Adds entries; each block once, none over the list's size.
fn add(entries: &mut Vec<PrefixEntry>, new: &[Entry], row: &PrefixList) -> Result<(), ApiError> {
    for entry in new {
        let cidr = cidr(&entry.cidr, row.v6)?;
        let description = entry.description.clone();
        match entries.iter_mut().find(|known| known.cidr == cidr) {
            // A block that is there takes the new description.
            Some(known) if known.description != description => known.description = description,
            Some(_) => {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("The CIDR {cidr} is in the prefix list already."),
                ));
            }
            None => entries.push(PrefixEntry { cidr, description }),
        }
    }
    if entries.len() > usize::try_from(row.max_entries).unwrap_or(usize::MAX) {
        return Err(ApiError::new(
            "PrefixListMaxEntriesExceeded",
            format!(
                "You've reached the maximum number of entries for the prefix list: {}.",
                row.max_entries
            ),
        ));
    }
    entries.sort_by_key(|entry| entry.cidr);
    Ok(())
}

fn max_entries(count: i64) -> Result<u32, ApiError> {
    u32::try_from(count)
        .ok()
        .filter(|_| (1..=MAX_ENTRIES).contains(&count))
        .ok_or_else(|| ApiError::value(count, "MaxEntries", "It must be from 1 to 1000."))
}

fn check_name(name: &str) -> Result<(), ApiError> {
    if name.is_empty() || name.chars().count() > 255 || name.starts_with("com.amazonaws") {
        return Err(ApiError::value(
            name,
            "PrefixListName",
            "It must have up to 255 characters and may not start with com.amazonaws.",
        ));
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    prefix_list_name: String,
    #[serde(default)]
    entries: Vec<Entry>,
    max_entries: i64,
    address_family: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateManagedPrefixList.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    check_name(&params.prefix_list_name)?;
    let v6 = match params.address_family.as_str() {
        "IPv4" => false,
        "IPv6" => true,
        other => {
            return Err(ApiError::value(
                other,
                "AddressFamily",
                "Expected IPv4 or IPv6.",
            ));
        }
    };
    let mut row = PrefixList {
        id: PrefixListId::random(),
        name: params.prefix_list_name.clone(),
        v6,
        max_entries: max_entries(params.max_entries)?,
        version: 1,
        versions: Vec::new(),
        tags: tags::on_create(&params.tag_specifications, "prefix-list", &["prefix-list"])?,
    };
    let mut entries = Vec::new();
    add(&mut entries, &params.entries, &row)?;
    row.versions.push(entries);
    ctx.write(|tx| {
        quotas::room_for_one::<PrefixList>(tx)?;
        let answer = json!({"PrefixList": show(&tx.scope, &row, "create-in-progress")});
        tx.put(row.clone())?;
        Ok(answer)
    })
    .await
}

fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<PrefixList>, ApiError> {
    tx.get::<PrefixList>(&PrefixListId::parse(text)?)
        .ok_or_else(|| PrefixListId::not_found(text))
}

/// A list for a rule.
///
/// # Errors
/// EC2's codes.
pub fn for_rule(tx: &Tx<'_>, text: &str) -> Result<PrefixListId, ApiError> {
    one(tx, text).map(|row| row.id)
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Gone {
    cidr: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    prefix_list_id: String,
    current_version: Option<u64>,
    prefix_list_name: Option<String>,
    #[serde(default)]
    add_entries: Vec<Entry>,
    #[serde(default)]
    remove_entries: Vec<Gone>,
    max_entries: Option<i64>,
}

/// ModifyManagedPrefixList: a change of entries makes a new version.
///
/// # Errors
/// `PrefixListVersionMismatch`, `PrefixListMaxEntriesExceeded`, ….
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let changes = params.add_entries.len() + params.remove_entries.len();
    if changes > MAX_CHANGES {
        return Err(ApiError::value(
            changes,
            "AddEntry",
            "At most 100 entries may be changed at once.",
        ));
    }
    if changes > 0 && params.max_entries.is_some() {
        return Err(ApiError::combination(
            "You cannot modify the entries of a prefix list and modify the size of a prefix list in the same request.",
        ));
    }
    ctx.write(|tx| {
        let mut row = one(tx, &params.prefix_list_id)?.as_ref().clone();
        if let Some(name) = &params.prefix_list_name {
            check_name(name)?;
            row.name.clone_from(name);
        }
        let mut entries = row.versions.last().cloned().unwrap_or_default();
        if let Some(count) = params.max_entries {
            row.max_entries = max_entries(count)?;
            check_room(tx, &row)?;
        }
        if changes > 0 {
            let said = params.current_version;
            check_version(
                &row,
                said.ok_or_else(|| ApiError::missing("CurrentVersion"))?,
            )?;
            for gone in &params.remove_entries {
                let cidr = cidr(&gone.cidr, row.v6)?;
                let before = entries.len();
                entries.retain(|entry| entry.cidr != cidr);
                if entries.len() == before {
                    return Err(ApiError::new(
                        "InvalidParameterValue",
                        format!("The CIDR {cidr} is not in the prefix list."),
                    ));
                }
            }
            add(&mut entries, &params.add_entries, &row)?;
            row.push(entries);
        } else {
            add(&mut entries, &[], &row)?;
        }
        let answer = json!({"PrefixList": show(&tx.scope, &row, "modify-in-progress")});
        let id = row.id;
        tx.put(row)?;
        retell(tx, id)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Restore {
    prefix_list_id: String,
    previous_version: u64,
    current_version: u64,
}

fn check_version(row: &PrefixList, said: u64) -> Result<(), ApiError> {
    if said == row.version {
        return Ok(());
    }
    Err(ApiError::new(
        "PrefixListVersionMismatch",
        format!(
            "The prefix list has the incorrect version number: it is {}.",
            row.version
        ),
    ))
}

/// RestoreManagedPrefixListVersion: the entries of an older version become a new one.
///
/// # Errors
/// `PrefixListVersionMismatch`, `InvalidParameterValue` for a version that is no longer kept.
pub async fn restore(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Restore = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.prefix_list_id)?.as_ref().clone();
        check_version(&row, params.current_version)?;
        let entries = row.entries(params.previous_version).ok_or_else(|| {
            ApiError::value(
                params.previous_version,
                "PreviousVersion",
                "There is no such version, or no longer.",
            )
        })?;
        let mut entries = entries.to_vec();
        add(&mut entries, &[], &row)?;
        row.push(entries);
        let answer = json!({"PrefixList": show(&tx.scope, &row, "restore-in-progress")});
        let id = row.id;
        tx.put(row)?;
        retell(tx, id)?;
        Ok(answer)
    })
    .await
}

/// Has the group a rule on this list?
fn uses(group: &Group, id: PrefixListId) -> bool {
    let mut rules = group.rules.iter();
    rules.any(|rule| rule.peer == Peer::PrefixList(id))
}

fn users(tx: &Tx<'_>, id: PrefixListId) -> Vec<Arc<Group>> {
    let mut groups = tx.rows::<Group>();
    groups.retain(|group| uses(group, id));
    groups
}

/// A list that grows still has to fit into the rules of its groups.
fn check_room(tx: &Tx<'_>, row: &PrefixList) -> Result<(), ApiError> {
    for group in users(tx, row.id) {
        for egress in [false, true] {
            let own = |rule: &&Rule| rule.egress == egress && rule.peer == Peer::PrefixList(row.id);
            let own = group.rules.iter().filter(own).count();
            let others = super::rules::weight(tx, &group.rules, egress, Some(row.id));
            let all = others + own * usize::try_from(row.max_entries).unwrap_or(usize::MAX);
            if own > 0 && all > super::rules::MAX_RULES {
                return Err(super::rules::too_many());
            }
        }
    }
    Ok(())
}

/// Has the nodes told anew of every group with a rule on a list that changed.
fn retell(tx: &mut Tx<'_>, id: PrefixListId) -> Result<(), ApiError> {
    for group in users(tx, id) {
        let mut group = group.as_ref().clone();
        group.generation += 1;
        tx.put(group)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    prefix_list_id: String,
}

/// DeleteManagedPrefixList.
///
/// # Errors
/// `DependencyViolation` while a rule names it, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = one(tx, &params.prefix_list_id)?;
        if !users(tx, row.id).is_empty() {
            return Err(ApiError::new(
                "DependencyViolation",
                format!(
                    "The prefix list '{}' is referenced by a security group and cannot be deleted.",
                    row.id
                ),
            ));
        }
        tx.delete::<PrefixList>(&row.id);
        Ok(json!({"PrefixList": show(&tx.scope, &row, "delete-in-progress")}))
    })
    .await
}

/// DescribeManagedPrefixLists.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<PrefixList> {
        member: "PrefixLists",
        paths: &[],
        parse: PrefixListId::parse,
        not_found: |text| PrefixListId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        let state = if row.version > 1 {
            "modify-complete"
        } else {
            "create-complete"
        };
        show(scope, row, state)
    })
    .await
}
