//! A node that comes no more.
//!
//! ```text
//!   ocs host remove ─▶ its Node row goes, a RemovedNode row says since when ─▶ its session
//!        ends and no certificate of before begins another ─▶ what it held is lost, piece by
//!        piece ─▶ done: a new certificate of its name may come
//! ```
//! The first step is one transaction, from which on nothing is placed there. The second goes
//! on after a crash, and is a report of the node's that nothing of it remains.

use super::reports;
use crate::core::{Core, Tx};
use crate::ec2::{connect_endpoints, nat_gateways};
use crate::rows::{
    ConnectEndpoint, Instance, NatGateway, Node, RemovedNode, Scope, Snapshot, SnapshotState,
    State, Volume, VolumeState,
};
use crate::view::View;
use crate::wire::ApiError;
use ocs_node_api::{ObservedInstance, Phase};
use std::collections::HashMap;
use std::sync::Arc;

/// Rows of one transaction: each instance may touch a dozen more.
const GROUP: usize = 12;

/// Why instances are terminated and snapshots in error.
const LOST: &str = "Server.InternalError: The host was removed and what it held is lost";

/// What a node holds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Held {
    /// Instances that are not terminated.
    pub instances: usize,
    /// Volumes.
    pub volumes: usize,
    /// Snapshots.
    pub snapshots: usize,
    /// NAT gateways.
    pub nat_gateways: usize,
}

impl Held {
    /// What each node holds that holds something.
    pub fn by_node(view: &View) -> HashMap<&str, Self> {
        let mut held: HashMap<&str, Self> = HashMap::new();
        for (scope, _) in view.shards() {
            for row in view.all::<Instance>(scope).filter(|row| lives(row)) {
                held.entry(&row.node).or_default().instances += 1;
            }
            for row in view.all::<Volume>(scope) {
                held.entry(&row.node).or_default().volumes += 1;
            }
            for row in view.all::<Snapshot>(scope) {
                held.entry(&row.node).or_default().snapshots += 1;
            }
            for row in view
                .all::<NatGateway>(scope)
                .filter(|row| row.state.is_carried())
            {
                held.entry(&row.node).or_default().nat_gateways += 1;
            }
        }
        held
    }

    /// Whether removing the node loses something: a NAT gateway moves to another.
    fn is_lost(self) -> bool {
        self.instances + self.volumes + self.snapshots > 0
    }
}

fn lives(row: &Instance) -> bool {
    row.state != State::Terminated
}

/// Why a node is not removed.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// It holds what would be lost.
    #[error(
        "{name} holds {} instances, {} volumes and {} snapshots: terminate and delete them, or \
         lose them by --force",
        .held.instances, .held.volumes, .held.snapshots
    )]
    Holds {
        /// The node.
        name: String,
        /// What.
        held: Held,
    },
    /// The store.
    #[error(transparent)]
    Store(#[from] ApiError),
}

/// Removes a node. Its certificates that begin no later than `void_until_s` (Unix seconds) are
/// void from then on. Gives what it held: without `force`, nothing that is lost; `None`: no node
/// of that name has come, so that a certificate of it is all that there may have been.
///
/// # Errors
/// Where it would lose something and is not forced to.
pub async fn remove(
    core: &Core,
    name: &str,
    force: bool,
    void_until_s: i64,
) -> Result<Option<Held>, RemovalError> {
    let global = Scope::global();
    let id = name.to_owned();
    let begun = core
        .write(&global, |tx| {
            let held = Held::by_node(tx.view).remove(name).unwrap_or_default();
            if tx.get::<Node>(&id).is_none() {
                let before = tx.get::<RemovedNode>(&id);
                let before = before.as_deref();
                tx.put(RemovedNode {
                    name: id.clone(),
                    void_until_s: before
                        .map_or(void_until_s, |row| void_until_s.max(row.void_until_s)),
                    done: before.is_none_or(|row| row.done),
                })?;
                return Ok(Ok(None));
            }
            if held.is_lost() && !force {
                let name = id.clone();
                return Ok(Err(RemovalError::Holds { name, held }));
            }
            tx.delete::<Node>(&id);
            tx.put(RemovedNode {
                name: id.clone(),
                void_until_s,
                done: false,
            })?;
            Ok(Ok(Some(held)))
        })
        .await?;
    let held = begun?;
    tracing::info!(node = name, ?held, "node removed");
    finish(core).await?;
    Ok(held)
}

/// Loses what nodes held that are removed and not done yet.
///
/// # Errors
/// Only those of the store.
pub async fn finish(core: &Core) -> Result<(), ApiError> {
    let global = Scope::global();
    let removed = |view: &View| {
        let rows = view.all::<RemovedNode>(&global);
        let open = rows.filter(|row| !row.done);
        open.map(|row| row.name.clone()).collect::<Vec<_>>()
    };
    for name in core.peek(removed) {
        while !core.write(&global, |tx| some(core, tx, &name)).await? {}
    }
    Ok(())
}

/// Whether a certificate of a node's that begins then has been void since the node was removed.
pub fn is_void(row: Option<&RemovedNode>, begins_s: i64) -> bool {
    row.is_some_and(|row| !row.done || begins_s <= row.void_until_s)
}

/// Loses some of what a removed node held; whether that was all.
fn some(core: &Core, tx: &mut Tx<'_>, name: &str) -> Result<bool, ApiError> {
    let view = tx.view;
    let mut left = GROUP;
    for (scope, _) in view.shards() {
        // Instances first: what becomes of a volume is its instance's to say.
        let rows = view.all::<Instance>(scope);
        for row in rows.filter(|row| row.node == name && lives(row)).take(left) {
            lose_instance(core, tx, scope, row)?;
            left -= 1;
        }
    }
    if left < GROUP {
        return Ok(false);
    }
    for (scope, _) in view.shards() {
        let rows = view.all::<Volume>(scope);
        for row in rows.filter(|row| row.node == name).take(left) {
            lose_volume(tx, scope, row)?;
            left -= 1;
        }
        let rows = view.all::<Snapshot>(scope);
        for row in rows.filter(|row| row.node == name).take(left) {
            lose_snapshot(tx, scope, row)?;
            left -= 1;
        }
        let rows = view.all::<NatGateway>(scope);
        let carried = |row: &&Arc<NatGateway>| row.node == name && row.state.is_carried();
        for row in rows.filter(carried).take(left) {
            nat_gateways::move_on(core, tx, scope, row)?;
            left -= 1;
        }
        let rows = view.all::<ConnectEndpoint>(scope);
        let carried = |row: &&Arc<ConnectEndpoint>| row.node == name && row.state.is_carried();
        for row in rows.filter(carried).take(left) {
            connect_endpoints::move_on(core, tx, scope, row)?;
            left -= 1;
        }
    }
    if left < GROUP {
        return Ok(false);
    }
    let removed = tx.get::<RemovedNode>(&name.to_owned());
    if let Some(row) = removed {
        let row = row.as_ref().clone();
        tx.put(RemovedNode { done: true, ..row })?;
    }
    Ok(true)
}

fn lose_instance(
    core: &Core,
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &Instance,
) -> Result<(), ApiError> {
    let (code, message) = LOST.split_once(": ").unwrap_or((LOST, LOST));
    let seen = ObservedInstance {
        id: row.id.to_string(),
        phase: Phase::Gone.into(),
        reason_code: code.to_owned(),
        message: message.to_owned(),
        ..ObservedInstance::default()
    };
    let mut row = row.clone();
    reports::gone(core, tx, scope, &mut row, &seen)?;
    tx.put_in(scope, row)
}

/// A volume whose bytes are nowhere is in error (EC2 User Guide, "Volume states": its data
/// is unrecoverable), and nobody's.
fn lose_volume(tx: &mut Tx<'_>, scope: &Scope, row: &Volume) -> Result<(), ApiError> {
    if row.state == VolumeState::Deleting {
        tx.delete_in::<Volume>(scope, &row.id);
        return Ok(());
    }
    let lost = Volume {
        node: String::new(),
        state: VolumeState::Error,
        attachment: None,
        generation: row.generation + 1,
        ..row.clone()
    };
    tx.put_in(scope, lost)
}

fn lose_snapshot(tx: &mut Tx<'_>, scope: &Scope, row: &Snapshot) -> Result<(), ApiError> {
    if row.state == SnapshotState::Deleting {
        tx.delete_in::<Snapshot>(scope, &row.id);
        return Ok(());
    }
    let lost = Snapshot {
        node: String::new(),
        state: SnapshotState::Error,
        message: LOST.to_owned(),
        generation: row.generation + 1,
        ..row.clone()
    };
    tx.put_in(scope, lost)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::tests::open;
    use crate::rows::VolumeId;

    fn volume(state: VolumeState) -> Volume {
        Volume {
            id: VolumeId::random(),
            zone: "us-east-1a".to_owned(),
            node: "dead".to_owned(),
            size_gib: 1,
            volume_type: "gp3".to_owned(),
            iops: None,
            throughput_mib_s: None,
            image: String::new(),
            snapshot: None,
            of_snapshot: false,
            encrypted: false,
            boot: None,
            modification: None,
            auto_enable_io: false,
            state,
            generation: 1,
            created_at_s: 0,
            attachment: None,
            tags: Default::default(),
        }
    }

    /// More than a transaction takes, of two tenants; then a control that died before it began.
    #[tokio::test]
    async fn a_removal_that_was_cut_off_is_finished() {
        let dir = tempfile::tempdir().unwrap();
        let core = open(dir.path()).await;
        let tenants = ["111111111111", "222222222222"].map(|id| Scope::new("us-east-1", id));
        let global = Scope::global();
        for scope in &tenants {
            core.write(scope, |tx| {
                tx.put(volume(VolumeState::Deleting))?;
                (0..2 * GROUP).try_for_each(|_| tx.put(volume(VolumeState::Available)))
            })
            .await
            .unwrap();
        }
        core.write(&global, |tx| {
            tx.put(RemovedNode {
                name: "dead".to_owned(),
                void_until_s: 5,
                done: false,
            })
        })
        .await
        .unwrap();
        let row = |core: &Core| {
            core.peek(|view| view.get(&global, &"dead".to_owned()).cloned())
                .unwrap()
        };
        assert!(is_void(Some(&row(&core)), 6), "not before it is done");
        drop(core);

        let core = open(dir.path()).await;
        finish(&core).await.unwrap();
        assert!(is_void(Some(&row(&core)), 5));
        assert!(!is_void(Some(&row(&core)), 6));
        assert!(!is_void(None, 0));
        for scope in &tenants {
            let lost = core.peek(|view| view.all::<Volume>(scope).cloned().collect::<Vec<_>>());
            assert_eq!(lost.len(), 2 * GROUP);
            let is_lost =
                |row: &Arc<Volume>| row.state == VolumeState::Error && row.node.is_empty();
            assert!(lost.iter().all(is_lost));
        }
    }
}
