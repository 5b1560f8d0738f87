//! Placement: a node with room, chosen and charged in the caller's own
//! transaction, so that InsufficientInstanceCapacity is the call's own answer.

use super::Ctx;
use super::types::InstanceType;
use crate::core::{Core, Tx};
use crate::rows::{Instance, Node, PlacementGroup, Scope, State, Strategy};
use crate::view::Kept;
use crate::wire::ApiError;
use std::sync::Arc;

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

/// A node that can be reached, for what needs no capacity: the one with most memory.
pub fn any(core: &Core, tx: &Tx<'_>) -> Option<String> {
    let free = |node: &Node| node.memory_mib.saturating_sub(node.used_memory_mib);
    tx.view
        .all::<Node>(&Scope::global())
        .filter(|node| core.fleet.reachable(&node.name))
        .max_by_key(|node| free(node))
        .map(|node| node.name.clone())
}

/// Of the nodes that can be reached and fit, the one that carries fewest rows of a kind.
pub fn lightest<T: Kept>(
    core: &Core,
    tx: &Tx<'_>,
    fits: impl Fn(&Node) -> bool,
    carries: impl Fn(&T, &Node) -> bool,
) -> Option<String> {
    let carried = |node: &Node| {
        let rows = tx.view.shards().flat_map(|(scope, _)| {
            let rows = tx.view.all::<T>(scope);
            // As this transaction has them: it may move several.
            rows.filter_map(|row| tx.get_in::<T>(scope, &row.id()))
        });
        rows.filter(|row| carries(row, node)).count()
    };
    tx.view
        .all::<Node>(&Scope::global())
        .filter(|node| fits(node) && core.fleet.reachable(&node.name))
        .min_by_key(|node| (carried(node), node.name.clone()))
        .map(|node| node.name.clone())
}

/// A placement group, and the partition asked for.
pub type Wish = (Arc<PlacementGroup>, Option<u32>);

/// Where an instance goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The node.
    pub node: String,
    /// Its partition, in a group of partitions.
    pub partition: Option<u32>,
}

/// Charges up to `count` instances of a type to nodes that can be reached, the
/// emptiest first, as their placement group has it; to `only` one, where there is one.
///
/// # Errors
/// Only those of writing a row.
pub fn take(
    ctx: &Ctx,
    tx: &mut Tx<'_>,
    kind: InstanceType,
    count: u32,
    group: Option<&Wish>,
    only: Option<&str>,
) -> Result<Vec<Place>, ApiError> {
    let global = Scope::global();
    let (vcpus, memory_mib) = (kind.vcpus, kind.memory_mib);
    let mut nodes: Vec<Node> = tx
        .view
        .all::<Node>(&global)
        .filter(|node| ctx.core.fleet.reachable(&node.name))
        .filter(|node| only.is_none_or(|only| only == node.name))
        .map(|node| {
            tx.get_in::<Node>(&global, &node.name)
                .unwrap_or_else(|| node.clone())
        })
        .map(|node| node.as_ref().clone())
        .collect();
    nodes.sort_by_key(|node| std::cmp::Reverse(node.fits(vcpus, memory_mib)));
    let mut members = group.map(|(group, partition)| Members::of(tx, group, *partition));
    let mut placed = Vec::new();
    let wanted = usize::try_from(count).unwrap_or(usize::MAX);
    for mut node in nodes {
        let before = placed.len();
        while placed.len() < wanted && node.fits(vcpus, memory_mib) > 0 {
            let partition = match members.as_mut().map(|members| members.admit(&node.name)) {
                None => None,
                Some(Some(partition)) => partition,
                Some(None) => break,
            };
            node.take(vcpus, memory_mib);
            placed.push(Place {
                node: node.name.clone(),
                partition,
            });
        }
        if placed.len() > before {
            tx.put_in(&global, node)?;
        }
    }
    Ok(placed)
}

/// Which nodes a placement group's instances are on.
struct Members {
    group: Arc<PlacementGroup>,
    wanted: Option<u32>,
    /// Node and partition (0 in groups without) of each instance.
    at: Vec<(String, u32)>,
}

impl Members {
    fn of(tx: &Tx<'_>, group: &Arc<PlacementGroup>, wanted: Option<u32>) -> Self {
        let rows = tx.view.all::<Instance>(&tx.scope);
        let rows = rows
            .filter(|row| row.placement_group == Some(group.id) && row.state != State::Terminated);
        Self {
            group: Arc::clone(group),
            wanted,
            at: rows
                .map(|row| (row.node.clone(), row.partition.unwrap_or(0)))
                .collect(),
        }
    }

    /// Lets one more instance onto a node, in the partition that is given; or not.
    fn admit(&mut self, node: &str) -> Option<Option<u32>> {
        let here = |(at, _): &&(String, u32)| at == node;
        let partition = match self.group.strategy {
            Strategy::Cluster => self.at.iter().all(|member| here(&member)).then_some(None),
            Strategy::Spread => (!self.at.iter().any(|member| here(&member))).then_some(None),
            Strategy::Partition => {
                // A host serves one partition alone; else the emptiest one grows.
                let held = self.at.iter().find(here).map(|(_, partition)| *partition);
                let size = |p: u32| {
                    self.at
                        .iter()
                        .filter(|(_, partition)| *partition == p)
                        .count()
                };
                let choice = self
                    .wanted
                    .or(held)
                    .or_else(|| (1..=self.group.partitions).min_by_key(|p| (size(*p), *p)))?;
                held.is_none_or(|held| held == choice)
                    .then_some(Some(choice))
            }
        }?;
        self.at.push((node.to_owned(), partition.unwrap_or(0)));
        Some(partition)
    }
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
