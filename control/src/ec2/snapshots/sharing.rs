//! With whom snapshots and images are shared.

use crate::ec2::public_blocks::hides_snapshots;
use crate::rows::Scope;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

/// Everybody, among accounts.
pub const ALL: &str = "all";

/// May `account` use a snapshot that `owner` shares with these?
pub fn is_usable(view: &View, owner: &Scope, with: &BTreeSet<String>, account: &str) -> bool {
    let hidden = with.contains(ALL) && hides_snapshots(view, owner);
    with.contains(account) || (with.contains(ALL) && !hidden)
}

/// May `account` use what is shared with these?
pub fn is_shared(with: &BTreeSet<String>, account: &str) -> bool {
    with.contains(ALL) || with.contains(account)
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
