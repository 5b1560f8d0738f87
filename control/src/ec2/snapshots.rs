//! Snapshots: taken, shared, deleted, shown.

use super::list::{Query, lookup, tag_set};
use super::params::{Filter, TagSpecification};
use super::present::timestamp;
use super::{Ctx, tags};
use crate::catalogue::{Image, RootType, SYSTEM_ACCOUNT};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Longest description.
const MAX_DESCRIPTION: usize = 255;
/// Everybody, among accounts.
pub const ALL: &str = "all";

/// Checks a description.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn description(text: Option<&str>) -> Result<String, ApiError> {
    let text = text.unwrap_or_default();
    if text.chars().count() > MAX_DESCRIPTION {
        return Err(ApiError::value(
            text,
            "Description",
            "It exceeds 255 characters.",
        ));
    }
    Ok(text.to_owned())
}

/// May `account` use what is shared with these?
pub fn is_shared(with: &BTreeSet<String>, account: &str) -> bool {
    with.contains(ALL) || with.contains(account)
}

/// A snapshot that the caller may use.
pub fn visible(tx: &Tx<'_>, id: SnapshotId) -> Option<Arc<Snapshot>> {
    let row = match tx.get::<Snapshot>(&id) {
        Some(row) => row,
        None => {
            let (scope, row) = tx.view.find::<Snapshot>(&id)?;
            let here = scope.region == tx.scope.region;
            (here && is_shared(&row.shared_with, &tx.scope.account)).then(|| Arc::clone(row))?
        }
    };
    (row.state != SnapshotState::Deleting).then_some(row)
}

/// A snapshot of a volume, to be taken now; or before `while_down` runs again.
pub fn row_of(volume: &Volume, description: &str, tags: &Tags) -> Snapshot {
    Snapshot {
        id: SnapshotId::random(),
        volume: volume.id,
        node: volume.node.clone(),
        size_gib: volume.size_gib,
        description: description.to_owned(),
        state: SnapshotState::Pending,
        message: String::new(),
        generation: 1,
        started_at_s: now_s(),
        completed_at_s: None,
        encrypted: volume.encrypted,
        full_bytes: 0,
        changed_bytes: 0,
        while_down: None,
        boot: volume.boot.clone(),
        shared_with: BTreeSet::new(),
        tags: tags.clone(),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    volume_id: String,
    description: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateSnapshot.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let tags = tags::on_create(&params.tag_specifications, "snapshot", &["snapshot"])?;
    let description = description(params.description.as_deref())?;
    ctx.write(|tx| {
        let id = VolumeId::parse(&params.volume_id)?;
        let volume = tx
            .get::<Volume>(&id)
            .ok_or_else(|| VolumeId::not_found(id))?;
        if !matches!(volume.state, VolumeState::Available | VolumeState::InUse) {
            return Err(ApiError::new(
                "IncorrectState",
                format!("Volume '{id}' is '{}'.", volume.state.name()),
            ));
        }
        let row = row_of(&volume, &description, &tags);
        let shown = present(&row, ctx.account());
        tx.put(row)?;
        Ok(shown)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    snapshot_id: String,
}

/// DeleteSnapshot.
///
/// # Errors
/// `InvalidSnapshot.InUse`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = own(tx, &params.snapshot_id)?;
        let id = row.id;
        let user = tx.view.all::<OwnImage>(&tx.scope).find(|image| {
            image
                .devices
                .iter()
                .any(|device| device.snapshot == Some(id))
        });
        if let Some(image) = user {
            return Err(ApiError::new(
                "InvalidSnapshot.InUse",
                format!("The snapshot {id} is currently in use by {}", image.id),
            ));
        }
        row.state = SnapshotState::Deleting;
        row.generation += 1;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

fn own(tx: &Tx<'_>, text: &str) -> Result<Snapshot, ApiError> {
    let id = SnapshotId::parse(text)?;
    tx.get::<Snapshot>(&id)
        .filter(|row| row.state != SnapshotState::Deleting)
        .map(|row| row.as_ref().clone())
        .ok_or_else(|| SnapshotId::not_found(id))
}

/// A snapshot as EC2 shows it.
pub fn present(row: &Snapshot, owner: &str) -> Value {
    let done = row.state == SnapshotState::Completed;
    let mut item = json!({
        "SnapshotId": row.id.to_string(),
        "VolumeId": row.volume.to_string(),
        "VolumeSize": row.size_gib,
        "State": row.state.name(),
        "Progress": if done { "100%" } else { "0%" },
        "StartTime": timestamp(row.started_at_s),
        "OwnerId": owner,
        "Description": row.description,
        "Encrypted": row.encrypted,
        "StorageTier": "standard",
        "Tags": tag_set(&row.tags),
    });
    if !row.message.is_empty() {
        item["StateMessage"] = row.message.clone().into();
    }
    if let Some(at_s) = row.completed_at_s {
        item["CompletionTime"] = timestamp(at_s);
        item["FullSnapshotSizeInBytes"] = row.full_bytes.into();
    }
    item
}

/// The snapshot that a public image begins as.
fn of_image(image: &Image, region: &str) -> Value {
    json!({
        "SnapshotId": image.snapshot(region).to_string(),
        "VolumeId": "vol-ffffffffffffffff0",
        "VolumeSize": image.root_size_gib,
        "State": "completed",
        "Progress": "100%",
        "StartTime": image.created_at,
        "OwnerId": SYSTEM_ACCOUNT,
        "OwnerAlias": "amazon",
        "Description": image.description,
        "Encrypted": false,
        "StorageTier": "standard",
        "Tags": [],
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Describe {
    #[serde(default)]
    snapshot_ids: Vec<String>,
    #[serde(default)]
    owner_ids: Vec<String>,
    #[serde(default)]
    restorable_by_user_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// One snapshot that a caller may see: id, owner, with whom it is shared, itself.
type Seen = (SnapshotId, String, BTreeSet<String>, Value);

fn seen(ctx: &Ctx, view: &View) -> Vec<Seen> {
    let mut all: Vec<Seen> = Vec::new();
    let images = ctx.core.images();
    for image in images
        .images
        .iter()
        .filter(|i| i.root_type == RootType::Ebs)
    {
        all.push((
            image.snapshot(ctx.region()),
            SYSTEM_ACCOUNT.to_owned(),
            BTreeSet::from([ALL.to_owned()]),
            of_image(image, ctx.region()),
        ));
    }
    for (scope, _) in view
        .shards()
        .filter(|(scope, _)| scope.region == ctx.scope.region)
    {
        let mine = scope.account == ctx.scope.account;
        for row in view.all::<Snapshot>(scope) {
            let usable = mine || is_shared(&row.shared_with, ctx.account());
            if usable && row.state != SnapshotState::Deleting {
                let shown = present(row, &scope.account);
                all.push((
                    row.id,
                    scope.account.to_string(),
                    row.shared_with.clone(),
                    shown,
                ));
            }
        }
    }
    all.sort_by_key(|seen| seen.0);
    all
}

/// DescribeSnapshots.
///
/// # Errors
/// EC2's codes.
pub async fn describe(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Describe = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "Snapshots",
        by_id: !params.snapshot_ids.is_empty(),
        filters: &params.filters,
        paths: &[("status", "State"), ("owner-alias", "OwnerAlias")],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    let named = |names: &[String], account: &str| {
        names.iter().any(|name| {
            name == account
                || (name == "self" && account == ctx.account())
                || (name == "amazon" && account == SYSTEM_ACCOUNT)
        })
    };
    ctx.read(|view| {
        let mut all = seen(ctx, view);
        if !params.snapshot_ids.is_empty() {
            let ids = lookup(
                &params.snapshot_ids,
                SnapshotId::parse,
                |id| all.iter().find(|seen| seen.0 == id).map(|seen| seen.0),
                |text| SnapshotId::not_found(text),
            )?;
            all.retain(|seen| ids.contains(&seen.0));
        }
        let restorable = |seen: &Seen| {
            params.restorable_by_user_ids.iter().any(|name| {
                let account = if name == "self" { ctx.account() } else { name };
                seen.1 == account || seen.2.contains(name) || is_shared(&seen.2, account)
            })
        };
        all.retain(|seen| {
            (params.owner_ids.is_empty() || named(&params.owner_ids, &seen.1))
                && (params.restorable_by_user_ids.is_empty() || restorable(seen))
        });
        query.answer(all.into_iter().map(|seen| (seen.0.to_string(), seen.3)))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    snapshot_id: String,
    attribute: String,
}

fn unknown_attribute(attribute: &str) -> ApiError {
    ApiError::value(attribute, "attribute", "Unknown attribute.")
}

/// DescribeSnapshotAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = own(tx, &params.snapshot_id)?;
        let id = row.id.to_string();
        match params.attribute.as_str() {
            "createVolumePermission" => Ok(json!({
                "SnapshotId": id,
                "CreateVolumePermissions": permissions(&row.shared_with),
            })),
            "productCodes" => Ok(json!({"SnapshotId": id, "ProductCodes": []})),
            other => Err(unknown_attribute(other)),
        }
    })
    .await
}

/// Accounts as EC2 lists permissions.
pub fn permissions(with: &BTreeSet<String>) -> Value {
    let one = |name: &String| match name.as_str() {
        ALL => json!({"Group": ALL}),
        account => json!({"UserId": account}),
    };
    with.iter().map(one).collect()
}

/// One permission, or a list of them in a modification.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Permission {
    /// `all`.
    pub group: Option<String>,
    /// An account.
    pub user_id: Option<String>,
}

/// What is added and removed.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Permissions {
    /// Added.
    #[serde(default)]
    pub add: Vec<Permission>,
    /// Removed.
    #[serde(default)]
    pub remove: Vec<Permission>,
}

impl Permissions {
    /// Changes who is in `with`.
    ///
    /// # Errors
    /// `InvalidParameterValue`.
    pub fn apply(&self, with: &mut BTreeSet<String>) -> Result<(), ApiError> {
        for permission in &self.add {
            with.insert(permission.name()?);
        }
        for permission in &self.remove {
            with.remove(&permission.name()?);
        }
        Ok(())
    }
}

impl Permission {
    fn name(&self) -> Result<String, ApiError> {
        match (&self.group, &self.user_id) {
            (Some(group), None) if group == ALL => Ok(group.clone()),
            (None, Some(user)) => account(user),
            (group, _) => Err(ApiError::value(
                group.as_deref().unwrap_or_default(),
                "group",
                "Either the group 'all' or one account is expected.",
            )),
        }
    }
}

fn account(text: &str) -> Result<String, ApiError> {
    let number = text.len() == 12 && text.bytes().all(|b| b.is_ascii_digit());
    number.then(|| text.to_owned()).ok_or_else(|| {
        ApiError::new(
            "InvalidUserID.Malformed",
            format!("Invalid user id: \"{text}\""),
        )
    })
}

/// Permissions in the old form of parameters: operation, accounts, groups.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn flat(
    operation: Option<&str>,
    users: &[String],
    groups: &[String],
) -> Result<Permissions, ApiError> {
    let mut list: Vec<Permission> = Vec::new();
    list.extend(users.iter().map(|user| Permission {
        user_id: Some(user.clone()),
        group: None,
    }));
    list.extend(groups.iter().map(|group| Permission {
        group: Some(group.clone()),
        user_id: None,
    }));
    match operation {
        Some("add") => Ok(Permissions {
            add: list,
            remove: Vec::new(),
        }),
        Some("remove") => Ok(Permissions {
            add: Vec::new(),
            remove: list,
        }),
        None if list.is_empty() => Ok(Permissions::default()),
        None => Err(ApiError::missing("OperationType")),
        Some(other) => Err(ApiError::value(
            other,
            "operationType",
            "It is add or remove.",
        )),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ModifyAttribute {
    snapshot_id: String,
    attribute: Option<String>,
    create_volume_permission: Option<Permissions>,
    operation_type: Option<String>,
    #[serde(default)]
    user_ids: Vec<String>,
    #[serde(default)]
    group_names: Vec<String>,
}

/// ModifySnapshotAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn modify_attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: ModifyAttribute = ctx.params(action, request)?;
    if let Some(other) = params
        .attribute
        .as_deref()
        .filter(|a| *a != "createVolumePermission")
    {
        return Err(unknown_attribute(other));
    }
    let flat = flat(
        params.operation_type.as_deref(),
        &params.user_ids,
        &params.group_names,
    )?;
    ctx.write(|tx| {
        let mut row = own(tx, &params.snapshot_id)?;
        flat.apply(&mut row.shared_with)?;
        if let Some(permissions) = &params.create_volume_permission {
            permissions.apply(&mut row.shared_with)?;
        }
        if row.encrypted && row.shared_with.contains(ALL) {
            return Err(ApiError::new(
                "OperationNotPermitted",
                format!("Encrypted snapshot '{}' cannot be public.", row.id),
            ));
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// ResetSnapshotAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn reset_attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    if params.attribute != "createVolumePermission" {
        return Err(unknown_attribute(&params.attribute));
    }
    ctx.write(|tx| {
        let mut row = own(tx, &params.snapshot_id)?;
        row.shared_with.clear();
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}
