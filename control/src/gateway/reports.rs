//! What nodes observe, made facts.
//!
//! ```text
//!   pending ──UP──▶ running        stopping ──DOWN──▶ stopped
//!   pending, running ──DOWN, FAILED by itself──▶ stopped, or shutting-down
//!   any but terminated ──GONE──▶ terminated: address, capacity, interface freed
//! ```
//!
//! A report on a generation older than the last change of state is dropped.

use crate::core::{Core, Tx, now_s};
use crate::ec2::{connect_endpoints, lifecycle::desire, nat_gateways, place, public};
use crate::rows::{
    Address, Addresses, ConnectEndpoint, Instance, Interface, NatGateway, NatState, Reason, Scope,
    Snapshot, SnapshotState, State, Volume, VolumeState,
};
use crate::view::Kept;
use crate::wire::ApiError;
use ocs_node_api::{
    ObservedCarried, ObservedInstance, ObservedSnapshot, ObservedVolume, Phase, Report,
    report::Object,
};
use std::sync::Arc;

/// Reports of one transaction: each may touch half a dozen rows, and a
/// transaction is limited.
const GROUP: usize = 12;

const BY_ITSELF: &str = "Client.InstanceInitiatedShutdown";
const OUR_FAULT: &str = "Server.InternalError";

/// Takes in the reports of a node.
///
/// # Errors
/// Only those of the store.
pub async fn take(core: &Core, node: &str, reports: &[Report]) -> Result<(), ApiError> {
    let groups = reports.chunks(GROUP).map(|group| {
        move |tx: &mut Tx<'_>| {
            for report in group {
                match &report.object {
                    Some(Object::Instance(seen)) => {
                        instance(core, tx, node, report.generation, seen)?;
                    }
                    Some(Object::Volume(seen)) => volume(tx, node, report.generation, seen)?,
                    Some(Object::Snapshot(seen)) => snapshot(tx, node, report.generation, seen)?,
                    Some(Object::Carried(seen)) => {
                        nat_gateway(tx, node, report.generation, seen)?;
                        connect_endpoint(tx, node, report.generation, seen)?;
                    }
                    None => {}
                }
            }
            Ok(())
        }
    });
    core.write_all(&Scope::global(), groups).await
}

/// The row that a report names, wherever it is.
fn found<T: Kept>(tx: &Tx<'_>, id: &str) -> Option<(Scope, Arc<T>)> {
    let id = id.parse().ok()?;
    let (scope, row) = tx.view.find::<T>(&id)?;
    let row = tx
        .get_in::<T>(scope, &id)
        .unwrap_or_else(|| Arc::clone(row));
    Some((scope.clone(), row))
}

fn instance(
    core: &Core,
    tx: &mut Tx<'_>,
    node: &str,
    generation: u64,
    seen: &ObservedInstance,
) -> Result<(), ApiError> {
    let found = found::<Instance>(tx, &seen.id);
    let Some((scope, row)) = found.filter(|(_, row)| row.node == node) else {
        return Ok(());
    };
    if generation < row.state_generation || row.state == State::Terminated {
        return Ok(());
    }
    let mut new = row.as_ref().clone();
    match (row.state, seen.phase()) {
        (State::Pending, Phase::Up) => {
            new.state = State::Running;
            new.has_run = true;
            new.reason = None;
        }
        (State::Stopping, Phase::Down) => {
            new.state = State::Stopped;
            rest(core, tx, &scope, &mut new)?;
        }
        (State::Pending | State::Running, Phase::Down) if !seen.reason_code.is_empty() => {
            ended_by_itself(core, tx, &scope, &mut new, seen)?;
        }
        (State::Pending | State::Running, Phase::Failed) => {
            ended_by_itself(core, tx, &scope, &mut new, seen)?
        }
        (_, Phase::Gone) => gone(core, tx, &scope, &mut new, seen)?,
        (state, Phase::Failed) => {
            // Its node tries no further; what is desired stays.
            tracing::warn!(instance = %row.id, state = state.name(), message = seen.message, "instance failed");
        }
        _ => {}
    }
    disks(tx, &scope, &mut new, seen)?;
    cards(tx, &scope, &mut new, seen)?;
    if new == *row {
        return Ok(());
    }
    tracing::info!(instance = %new.id, from = row.state.name(), to = new.state.name(), "transition");
    tx.put_in(&scope, new)
}

/// It went down although it should be up: what becomes of it is EC2's rule.
fn ended_by_itself(
    core: &Core,
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &mut Instance,
    seen: &ObservedInstance,
) -> Result<(), ApiError> {
    let failed = seen.phase() == Phase::Failed;
    let code = match seen.reason_code.as_str() {
        "" if failed => OUR_FAULT,
        "" => BY_ITSELF,
        code => code,
    };
    let message = match (code, seen.message.as_str()) {
        (BY_ITSELF, _) => "Instance initiated shutdown",
        (OUR_FAULT, "") => "Internal error on launch",
        ("Server.ScheduledStop", "") => "Stopped due to a scheduled retirement",
        (_, message) => message,
    };
    let ends = (failed && !row.has_run)
        || row.boot.instance_store
        || (row.terminate_on_shutdown && code == BY_ITSELF);
    if ends {
        desire(row, State::ShuttingDown, code, message);
    } else {
        desire(row, State::Stopped, code, message);
        rest(core, tx, scope, row)?;
    }
    Ok(())
}

/// It is down: capacity and public address are free.
fn rest(core: &Core, tx: &mut Tx<'_>, scope: &Scope, row: &mut Instance) -> Result<(), ApiError> {
    for id in &row.interfaces {
        if let Some(interface) = tx.get_in::<Interface>(scope, id)
            && interface.public_ip.is_some()
        {
            let mut interface = interface.as_ref().clone();
            public::release(core, tx, &mut interface)?;
            tx.put_in(scope, interface)?;
        }
    }
    place::give_back(tx, row)
}

/// Nothing of it remains at its node: what it held is free.
///
/// # Errors
/// Only those of writing a row.
pub(super) fn gone(
    core: &Core,
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &mut Instance,
    seen: &ObservedInstance,
) -> Result<(), ApiError> {
    if row.state != State::ShuttingDown {
        if row.state.is_up() && row.terminate_on_shutdown {
            ended_by_itself(core, tx, scope, row, seen)?;
        } else {
            // Lost by its node; its volumes are its root's state, and kept.
            let code = if seen.reason_code.is_empty() {
                OUR_FAULT
            } else {
                seen.reason_code.as_str()
            };
            let message = match seen.message.as_str() {
                "" => "Instance lost by its host",
                message => message,
            };
            desire(row, State::Terminated, code, message);
        }
    }
    row.state = State::Terminated;
    row.terminated_at_s = Some(now_s());
    if row.reason.is_none() {
        row.reason = Some(Reason {
            code: OUR_FAULT.to_owned(),
            message: OUR_FAULT.to_owned(),
        });
    }
    place::give_back(tx, row)?;
    let left = std::mem::take(&mut row.leaving);
    for id in std::mem::take(&mut row.interfaces).into_iter().chain(left) {
        let Some(interface) = tx.get_in::<Interface>(scope, &id) else {
            continue;
        };
        let kept = interface
            .attachment
            .as_ref()
            .is_some_and(|attachment| !attachment.delete_on_termination);
        if kept {
            let mut interface = interface.as_ref().clone();
            interface.attachment = None;
            public::release(core, tx, &mut interface)?;
            tx.put_in(scope, interface)?;
            continue;
        }
        if let Some(address) = interface.public_ip {
            public::give_back(core, tx, address)?;
        }
        if let Some(addresses) = tx.get_in::<Addresses>(scope, &interface.subnet) {
            let mut addresses = addresses.as_ref().clone();
            interface
                .private_ips()
                .for_each(|ip| addresses.give_back(ip));
            tx.put_in(scope, addresses)?;
        }
        let held = tx.view.all::<Address>(scope).filter(|address| {
            let held = address.association.as_ref();
            held.is_some_and(|association| association.interface == id)
        });
        for address in held {
            let address = Address {
                association: None,
                ..address.as_ref().clone()
            };
            tx.put_in(scope, address)?;
        }
        tx.delete_in::<Interface>(scope, &id);
    }
    for mapping in std::mem::take(&mut row.mappings) {
        let Some(volume) = tx.get_in::<Volume>(scope, &mapping.volume) else {
            continue;
        };
        let mut volume = volume.as_ref().clone();
        let attachment = volume.attachment.take();
        if attachment.is_some_and(|attachment| attachment.delete_on_termination) {
            volume.state = VolumeState::Deleting;
            volume.generation += 1;
        } else if volume.state == VolumeState::InUse {
            volume.state = VolumeState::Available;
        }
        tx.put_in(scope, volume)?;
    }
    Ok(())
}

/// Whether what an instance's generation asked for of its devices has been made; nothing
/// where its node does not say.
fn made(row: &Instance, seen: &ObservedInstance) -> Option<impl Fn(u64) -> bool + use<>> {
    let down = matches!(row.state, State::Stopped | State::Terminated);
    let told = seen.disks_generation;
    (down || told != 0).then_some(move |generation| down || generation <= told)
}

/// Which volumes have come to it and left it, by its node's word.
fn disks(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &mut Instance,
    seen: &ObservedInstance,
) -> Result<(), ApiError> {
    let Some(is_so) = made(row, seen) else {
        return Ok(());
    };
    for id in std::mem::take(&mut row.detaching) {
        let Some(volume) = tx.get_in::<Volume>(scope, &id) else {
            continue;
        };
        let detaching = volume.attachment.as_ref().map_or(0, |a| a.detaching);
        if !is_so(detaching) {
            row.detaching.push(id);
            continue;
        }
        row.force_detach.retain(|forced| *forced != id);
        let mut volume = volume.as_ref().clone();
        volume.attachment = None;
        if volume.state == VolumeState::InUse {
            volume.state = VolumeState::Available;
        }
        tx.put_in(scope, volume)?;
    }
    for mapping in &row.mappings {
        let Some(volume) = tx.get_in::<Volume>(scope, &mapping.volume) else {
            continue;
        };
        let mut volume = volume.as_ref().clone();
        if let Some(attachment) = &mut volume.attachment
            && attachment.attaching != 0
            && is_so(attachment.attaching)
        {
            attachment.attaching = 0;
            tx.put_in(scope, volume)?;
        }
    }
    Ok(())
}

/// Which interfaces have come to it and left it, by its node's word.
fn cards(
    tx: &mut Tx<'_>,
    scope: &Scope,
    row: &mut Instance,
    seen: &ObservedInstance,
) -> Result<(), ApiError> {
    let Some(is_so) = made(row, seen) else {
        return Ok(());
    };
    let leaving = std::mem::take(&mut row.leaving);
    for id in row.interfaces.iter().copied().chain(leaving) {
        let Some(interface) = tx.get_in::<Interface>(scope, &id) else {
            continue;
        };
        let mut interface = interface.as_ref().clone();
        match &mut interface.attachment {
            Some(held) if held.detaching != 0 && is_so(held.detaching) => interface.part(now_s()),
            Some(held) if held.detaching != 0 => {
                row.leaving.push(id);
                continue;
            }
            Some(held) if held.attaching != 0 && is_so(held.attaching) => held.attaching = 0,
            _ => continue,
        }
        tx.put_in(scope, interface)?;
    }
    Ok(())
}

fn volume(
    tx: &mut Tx<'_>,
    node: &str,
    generation: u64,
    seen: &ObservedVolume,
) -> Result<(), ApiError> {
    let found = found::<Volume>(tx, &seen.id);
    let Some((scope, row)) = found.filter(|(_, row)| row.node == node) else {
        return Ok(());
    };
    if generation < row.generation {
        return Ok(());
    }
    match (row.state, seen.phase()) {
        (VolumeState::Creating, Phase::Up) => {
            let mut new = row.as_ref().clone();
            new.state = if new.attachment.is_some() {
                VolumeState::InUse
            } else {
                VolumeState::Available
            };
            tx.put_in(&scope, new)
        }
        (VolumeState::Available | VolumeState::InUse, Phase::Up)
            if row.modification.as_ref().is_some_and(|m| !m.done) =>
        {
            let mut new = row.as_ref().clone();
            if let Some(modification) = &mut new.modification {
                modification.done = true;
                modification.ended_at_s = Some(now_s());
            }
            tx.put_in(&scope, new)
        }
        (VolumeState::Deleting, Phase::Gone) => {
            tx.delete_in::<Volume>(&scope, &row.id);
            Ok(())
        }
        (state, Phase::Failed) => {
            tracing::warn!(volume = %row.id, state = state.name(), message = seen.message, "volume failed");
            Ok(())
        }
        _ => Ok(()),
    }
}

fn nat_gateway(
    tx: &mut Tx<'_>,
    node: &str,
    generation: u64,
    seen: &ObservedCarried,
) -> Result<(), ApiError> {
    let found = found::<NatGateway>(tx, &seen.id);
    let Some((scope, row)) = found.filter(|(_, row)| row.node == node) else {
        return Ok(());
    };
    if generation < row.generation {
        return Ok(());
    }
    let mut new = row.as_ref().clone();
    match (row.state, seen.phase()) {
        (NatState::Pending, Phase::Up) => new.state = NatState::Available,
        (NatState::Deleting, Phase::Gone) => {
            new.state = NatState::Deleted;
            nat_gateways::unplug(tx, &scope, &row)?;
        }
        _ => return Ok(()),
    }
    tx.put_in(&scope, new)
}

fn connect_endpoint(
    tx: &mut Tx<'_>,
    node: &str,
    generation: u64,
    seen: &ObservedCarried,
) -> Result<(), ApiError> {
    let found = found::<ConnectEndpoint>(tx, &seen.id);
    let Some((scope, row)) = found.filter(|(_, row)| row.node == node) else {
        return Ok(());
    };
    match seen.phase() {
        _ if generation < row.generation => Ok(()),
        Phase::Up => connect_endpoints::seen(tx, &scope, &row, true),
        Phase::Gone => connect_endpoints::seen(tx, &scope, &row, false),
        _ => Ok(()),
    }
}

fn snapshot(
    tx: &mut Tx<'_>,
    node: &str,
    generation: u64,
    seen: &ObservedSnapshot,
) -> Result<(), ApiError> {
    let found = found::<Snapshot>(tx, &seen.id);
    let Some((scope, row)) = found.filter(|(_, row)| row.node == node) else {
        return Ok(());
    };
    if generation < row.generation {
        return Ok(());
    }
    let mut new = row.as_ref().clone();
    match (row.state, seen.phase()) {
        (SnapshotState::Pending, Phase::Up) => {
            new.state = SnapshotState::Completed;
            new.completed_at_s = Some(now_s());
            (new.full_bytes, new.changed_bytes) = (seen.full_bytes, seen.changed_bytes);
        }
        (SnapshotState::Pending, Phase::Failed) => {
            new.state = SnapshotState::Error;
            new.message.clone_from(&seen.message);
        }
        (SnapshotState::Deleting, Phase::Gone) => {
            tx.delete_in::<Snapshot>(&scope, &row.id);
            return Ok(());
        }
        _ => return Ok(()),
    }
    tx.put_in(&scope, new)
}
