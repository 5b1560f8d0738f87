//! Placement: a node with room, chosen and charged in the caller's own
//! transaction, so that InsufficientInstanceCapacity is the call's own answer.

use super::Ctx;
use crate::core::Tx;
use crate::rows::{Instance, Node, Scope};
use crate::wire::ApiError;

/// The error for no room.
pub fn insufficient(zone: &str) -> ApiError {
    ApiError::new(
        "InsufficientInstanceCapacity",
        format!(
            "We currently do not have sufficient capacity in the Availability Zone you requested \
             ({zone}). Please try again later."
        ),
    )
}

/// Charges up to `count` instances of a size to nodes that can be reached, the
/// emptiest first; gives the node of each.
///
/// # Errors
/// Only those of writing a row.
pub fn take(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    vcpus: u32,
    memory_mib: u64,
    count: u32,
) -> Result<Vec<String>, ApiError> {
    let global = Scope::global();
    let mut nodes: Vec<Node> = tx
        .view
        .all::<Node>(&global)
        .filter(|node| ctx.core.fleet.reachable(&node.name))
        .map(|node| {
            tx.get_in::<Node>(&global, &node.name)
                .unwrap_or_else(|| node.clone())
        })
        .map(|node| node.as_ref().clone())
        .collect();
    nodes.sort_by_key(|node| std::cmp::Reverse(node.fits(vcpus, memory_mib)));
    let mut placed = Vec::new();
    for mut node in nodes {
        let room = node.fits(vcpus, memory_mib);
        let before = placed.len();
        let wanted = usize::try_from(count).unwrap_or(usize::MAX);
        while placed.len() < wanted && u64::try_from(placed.len() - before).is_ok_and(|n| n < room)
        {
            node.take(vcpus, memory_mib);
            placed.push(node.name.clone());
        }
        if placed.len() > before {
            tx.put_in(&global, node)?;
        }
    }
    Ok(placed)
}

/// Charges one instance to the node that it belongs to.
///
/// # Errors
/// `InsufficientInstanceCapacity`.
pub fn take_again(ctx: &Ctx, tx: &mut Tx<'_>, row: &mut Instance) -> Result<(), ApiError> {
    let global = Scope::global();
    let node = tx
        .get_in::<Node>(&global, &row.node)
        .ok_or_else(|| insufficient(&row.zone))?;
    if !ctx.core.fleet.reachable(&row.node) || node.fits(row.vcpus, row.memory_mib) == 0 {
        return Err(insufficient(&row.zone));
    }
    let mut node = node.as_ref().clone();
    node.take(row.vcpus, row.memory_mib);
    row.reserved = true;
    tx.put_in(&global, node)
}

/// Gives an instance's capacity back, once.
///
/// # Errors
/// Only those of writing a row.
pub fn give_back(tx: &mut Tx<'_>, row: &mut Instance) -> Result<(), ApiError> {
    if !std::mem::take(&mut row.reserved) {
        return Ok(());
    }
    let global = Scope::global();
    if let Some(node) = tx.get_in::<Node>(&global, &row.node) {
        let mut node = node.as_ref().clone();
        node.give_back(row.vcpus, row.memory_mib);
        tx.put_in(&global, node)?;
    }
    Ok(())
}
