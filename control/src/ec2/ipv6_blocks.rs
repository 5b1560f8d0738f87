//! IPv6 blocks of VPCs and subnets.
//!
//! ```text
//!   operator's pool ── /56 ──▶ VPC ── /64 ──▶ subnet ──▶ addresses (`ipv6_addresses`)
//! ```

use super::defaults::{anywhere_ipv6, everything, everything_by_ipv6};
use super::{Ctx, subnet_reservations, subnets, vpcs};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use ipnet::Ipv6Net;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::Ipv6Addr;

/// What a VPC is given.
const VPC_PREFIX: u8 = 56;
/// What a subnet has.
const SUBNET_PREFIX: u8 = 64;
/// Most IPv6 blocks of a VPC (EC2's default quota).
const MAX_BLOCKS: usize = 5;

/// A VPC's association with a block, as EC2 shows it.
pub fn of_vpc(scope: &Scope, id: CidrAssociationId, block: Ipv6Net, state: &str) -> Value {
    json!({
        "AssociationId": id.to_string(),
        "Ipv6CidrBlock": block.to_string(),
        "Ipv6CidrBlockState": {"State": state},
        "Ipv6Pool": "Amazon",
        "NetworkBorderGroup": *scope.region,
    })
}

/// A subnet's association with a block, as EC2 shows it.
pub fn of_subnet(id: SubnetCidrAssociationId, block: Ipv6Net, state: &str) -> Value {
    json!({
        "AssociationId": id.to_string(),
        "Ipv6CidrBlock": block.to_string(),
        "Ipv6CidrBlockState": {"State": state},
    })
}

/// Gives a VPC a block of the operator's pool. Its groups and its default ACL that are as they
/// were made let all of IPv6 pass where they let all of IPv4 (VPC User Guide, "Default security
/// groups", "Default network ACL").
///
/// # Errors
/// `CidrLimitExceeded`, `InsufficientCidrBlocks`.
pub fn give(ctx: &Ctx, tx: &mut Tx<'_>, vpc: &mut Vpc) -> Result<CidrAssociationId, ApiError> {
    if vpc.ipv6.len() >= MAX_BLOCKS {
        return Err(ApiError::new(
            "CidrLimitExceeded",
            format!(
                "This network '{}' has met its maximum number of allowed CIDRs: {MAX_BLOCKS}",
                vpc.id
            ),
        ));
    }
    let block = free_block(tx, ctx.core.config.ipv6_pool)?;
    let id = CidrAssociationId::random();
    if vpc.ipv6.is_empty() {
        let as_made = [everything(true, super::defaults::anywhere())];
        for group in tx.rows::<Group>().iter().filter(|row| row.vpc == vpc.id) {
            let out = group.rules.iter().filter(|rule| rule.egress);
            if out.clone().count() == 1 && out.zip(&as_made).all(|(is, was)| is.same_as(was)) {
                let mut group = group.as_ref().clone();
                group.rules.push(everything(true, anywhere_ipv6()));
                group.generation += 1;
                tx.put(group)?;
            }
        }
        for acl in tx.rows::<Acl>() {
            if acl.vpc == vpc.id && acl.default && acl.entries == everything_passes() {
                let mut acl = acl.as_ref().clone();
                acl.entries.extend(everything_by_ipv6());
                acl.entries
                    .sort_by_key(|entry| (entry.egress, entry.number));
                tx.put(acl)?;
            }
        }
    }
    vpc.ipv6.push((id, block));
    Ok(id)
}

/// The next block of a pool that no VPC of the installation has.
fn free_block(tx: &mut Tx<'_>, pool: Ipv6Net) -> Result<Ipv6Net, ApiError> {
    let none = || {
        ApiError::new(
            "InsufficientCidrBlocks",
            "There is no IPv6 CIDR block left that could be provided.",
        )
    };
    let bits = VPC_PREFIX.checked_sub(pool.prefix_len()).ok_or_else(none)?;
    let blocks = 1_u32 << bits.min(24);
    let mut taken: BTreeSet<Ipv6Net> = BTreeSet::new();
    for (scope, _) in tx.view.shards() {
        let rows = tx.view.all::<Vpc>(scope);
        taken.extend(rows.flat_map(|vpc| vpc.ipv6.iter().map(|(_, block)| *block)));
    }
    // Every call writes this row: of two at once one is done again, and sees the other's block.
    let (scope, name) = (Scope::global(), "ipv6".to_owned());
    let counter = tx.get_in::<Counter>(&scope, &name);
    let last = counter.map_or(0, |counter| counter.last);
    let base = u128::from(pool.network());
    for step in 1..=blocks {
        let number = last.wrapping_add(step) % blocks;
        let address = base | u128::from(number) << (128 - VPC_PREFIX);
        let block = Ipv6Net::new(Ipv6Addr::from(address), VPC_PREFIX).map_err(|_| none())?;
        if !taken.contains(&block) {
            tx.put_in(&scope, Counter { name, last: number })?;
            return Ok(block);
        }
    }
    Err(none())
}

/// A subnet's block: a /64 of one of its VPC's that no other subnet has.
///
/// # Errors
/// `InvalidParameterValue`, `InvalidSubnet.Range`, `InvalidSubnet.Conflict`.
pub fn subnet_block(tx: &Tx<'_>, vpc: &Vpc, text: &str) -> Result<Ipv6Net, ApiError> {
    let block: Ipv6Net = text
        .parse()
        .map_err(|_| ApiError::value(text, "ipv6CidrBlock", "This is not a valid CIDR block."))?;
    let block = block.trunc();
    let within = vpc.ipv6.iter().any(|(_, own)| own.contains(&block));
    if block.prefix_len() != SUBNET_PREFIX || !within {
        return Err(ApiError::new(
            "InvalidSubnet.Range",
            format!("The CIDR '{text}' is invalid."),
        ));
    }
    let rows = tx.rows::<Subnet>();
    let taken = |row: &Subnet| row.vpc == vpc.id && row.ipv6_block() == Some(block);
    if rows.iter().any(|row| taken(row)) {
        return Err(ApiError::new(
            "InvalidSubnet.Conflict",
            format!("The CIDR '{block}' conflicts with another subnet"),
        ));
    }
    Ok(block)
}

/// Takes a block from a VPC.
///
/// # Errors
/// `InvalidCidrBlock.InUse` while a subnet has some of it.
pub fn take_back(tx: &Tx<'_>, vpc: &mut Vpc, place: usize) -> Result<Value, ApiError> {
    let (id, block) = vpc.ipv6.remove(place);
    let rows = tx.rows::<Subnet>();
    let within = |row: &Subnet| row.ipv6_block().is_some_and(|held| block.contains(&held));
    if rows.iter().any(|row| row.vpc == vpc.id && within(row)) {
        return Err(ApiError::new(
            "InvalidCidrBlock.InUse",
            format!(
                "The vpc {} currently has a subnet within CIDR block {block}",
                vpc.id
            ),
        ));
    }
    Ok(of_vpc(&tx.scope, id, block, "disassociating"))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associate {
    subnet_id: String,
    ipv6_cidr_block: Option<String>,
}

/// AssociateSubnetCidrBlock.
///
/// # Errors
/// `CidrLimitExceeded`, and those of [`subnet_block`].
pub async fn associate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Associate = ctx.params(action, request)?;
    let text = params
        .ipv6_cidr_block
        .as_deref()
        .ok_or_else(|| ApiError::missing("ipv6CidrBlock"))?;
    ctx.write(|tx| {
        let mut row = subnets::one(tx, &params.subnet_id)?.as_ref().clone();
        let vpc = tx
            .get::<Vpc>(&row.vpc)
            .ok_or_else(|| VpcId::not_found(row.vpc))?;
        if row.ipv6.is_some() {
            return Err(ApiError::new(
                "CidrLimitExceeded",
                format!("The subnet '{}' has an IPv6 CIDR block already.", row.id),
            ));
        }
        let block = subnet_block(tx, &vpc, text)?;
        let id = SubnetCidrAssociationId::random();
        row.ipv6 = Some((id, block));
        let answer = json!({
            "SubnetId": row.id.to_string(),
            "Ipv6CidrBlockAssociation": of_subnet(id, block, "associating"),
        });
        vpcs::retell(tx, row.vpc)?;
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Disassociate {
    association_id: String,
}

/// DisassociateSubnetCidrBlock.
///
/// # Errors
/// `InvalidCidrBlock.InUse` while an interface has an address of it, ….
pub async fn disassociate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Disassociate = ctx.params(action, request)?;
    let id = SubnetCidrAssociationId::parse(&params.association_id)?;
    ctx.write(|tx| {
        let rows = tx.rows::<Subnet>();
        let found = rows.iter().find_map(|row| match row.ipv6 {
            Some((held, block)) if held == id => Some((row, block)),
            _ => None,
        });
        let (row, block) = found.ok_or_else(|| SubnetCidrAssociationId::not_found(id))?;
        let interfaces = tx.rows::<Interface>();
        let uses = |it: &Interface| it.subnet == row.id && !it.ipv6.is_empty();
        let reserved = subnet_reservations::ipv6(tx.view, &tx.scope, row.id);
        if interfaces.iter().any(|it| uses(it)) || !reserved.is_empty() {
            return Err(ApiError::new(
                "InvalidCidrBlock.InUse",
                format!(
                    "The CIDR block {block} of the subnet {} has addresses in use.",
                    row.id
                ),
            ));
        }
        let mut row = row.as_ref().clone();
        (row.ipv6, row.assign_ipv6) = (None, false);
        let answer = json!({
            "SubnetId": row.id.to_string(),
            "Ipv6CidrBlockAssociation": of_subnet(id, block, "disassociating"),
        });
        let vpc = row.vpc;
        tx.put(row)?;
        vpcs::retell(tx, vpc)?;
        Ok(answer)
    })
    .await
}
