//! Public addresses: the operator's blocks, which Elastic IPs and the addresses that
//! instances get at their start are taken from.
//!
//! An instance's own public address lasts until it stops or ends, or an Elastic IP takes
//! its place (EC2 User Guide, "Amazon EC2 instance IP addressing"). Without a block there
//! are none; where blocks are used up, only who asked for an address is refused.

use crate::core::{Core, Tx};
use crate::rows::{Addresses, Interface, Scope, SubnetId};
use crate::wire::ApiError;
use ipnet::Ipv4Net;
use std::net::Ipv4Addr;

/// The address map of a public block, for all accounts.
fn pool(tx: &Tx<'_>, cidr: Ipv4Net) -> Addresses {
    let subnet = SubnetId::derived(&format!("public/{cidr}"));
    let held = tx.get_in::<Addresses>(&Scope::global(), &subnet);
    Addresses {
        subnet,
        cidr,
        taken: held
            .as_ref()
            .map(|held| held.taken.clone())
            .unwrap_or_default(),
        next: Some(held.and_then(|held| held.next).unwrap_or_default()),
        reserved: Vec::new(),
    }
}

/// Takes an address, a certain one or any; nothing where it, or all, are taken.
///
/// # Errors
/// Only those of writing a row.
pub fn take(
    core: &Core,
    tx: &mut Tx<'_>,
    wanted: Option<Ipv4Addr>,
) -> Result<Option<Ipv4Addr>, ApiError> {
    for cidr in &core.config.public_addresses {
        let mut pool = pool(tx, *cidr);
        let taken = match wanted {
            Some(wanted) => pool.take_this(wanted).then_some(wanted),
            None => pool.take(),
        };
        if taken.is_some() {
            tx.put_in(&Scope::global(), pool)?;
            return Ok(taken);
        }
    }
    Ok(None)
}

/// Gives an address back to its block, unless the operator took that away.
///
/// # Errors
/// Only those of writing a row.
pub fn give_back(core: &Core, tx: &mut Tx<'_>, address: Ipv4Addr) -> Result<(), ApiError> {
    let mut blocks = core.config.public_addresses.iter();
    let Some(cidr) = blocks.find(|cidr| cidr.contains(&address)) else {
        return Ok(());
    };
    let mut pool = pool(tx, *cidr);
    pool.give_back(address);
    tx.put_in(&Scope::global(), pool)
}

/// Gives an interface that wants one a public address of its own.
///
/// # Errors
/// Only those of writing a row.
pub fn assign(core: &Core, tx: &mut Tx<'_>, row: &mut Interface) -> Result<(), ApiError> {
    if row.wants_public && row.public_ip.is_none() {
        row.public_ip = take(core, tx, None)?;
    }
    Ok(())
}

/// Takes an interface's own public address from it.
///
/// # Errors
/// Only those of writing a row.
pub fn release(core: &Core, tx: &mut Tx<'_>, row: &mut Interface) -> Result<(), ApiError> {
    match row.public_ip.take() {
        Some(address) => give_back(core, tx, address),
        None => Ok(()),
    }
}

/// The error for blocks that are used up.
pub fn insufficient() -> ApiError {
    ApiError::new(
        "InsufficientAddressCapacity",
        "Insufficient capacity to satisfy your request from the address pool.",
    )
}
