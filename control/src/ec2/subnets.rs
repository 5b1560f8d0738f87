//! Subnets: made, changed, deleted, described.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::{Is, TagSpecification};
use super::vpcs::{self, block, has_dependencies, overlap};
use super::{Ctx, defaults, groups, ipv6_blocks, subnet_reservations, tags};
use crate::config::zone_id;
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::json;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Most subnets of a VPC (EC2's default quota), which bounds what is compared.
const MAX_SUBNETS: usize = 200;

fn present(scope: &Scope, row: &Subnet, free: u32) -> Value {
    let ipv6 = row.ipv6.iter();
    let ipv6 = ipv6.map(|(id, block)| ipv6_blocks::of_subnet(*id, *block, "associated"));
    json!({
        "SubnetId": row.id.to_string(),
        "SubnetArn": groups::arn(scope, "subnet", &row.id.to_string()),
        "OwnerId": *scope.account,
        "VpcId": row.vpc.to_string(),
        "State": "available",
        "CidrBlock": row.cidr.to_string(),
        "AvailabilityZone": row.zone,
        "AvailabilityZoneId": zone_id(&row.zone),
        "AvailableIpAddressCount": free,
        "DefaultForAz": row.default,
        "MapPublicIpOnLaunch": row.map_public,
        "MapCustomerOwnedIpOnLaunch": false,
        "AssignIpv6AddressOnCreation": row.assign_ipv6,
        "Ipv6CidrBlockAssociationSet": ipv6.collect::<Vec<_>>(),
        "EnableDns64": false,
        "Ipv6Native": false,
        "PrivateDnsNameOptionsOnLaunch": {
            "HostnameType": "ip-name",
            "EnableResourceNameDnsARecord": false,
            "EnableResourceNameDnsAAAARecord": false,
        },
        "Tags": tag_set(&row.tags),
    })
}

/// DescribeSubnets.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Subnet> {
        member: "Subnets",
        paths: &[
            ("availabilityZone", "AvailabilityZone"),
            ("availabilityZoneId", "AvailabilityZoneId"),
            ("cidr", "CidrBlock"),
            ("cidrBlock", "CidrBlock"),
            ("defaultForAz", "DefaultForAz"),
            ("default-for-az", "DefaultForAz"),
            (
                "ipv6-cidr-block-association.ipv6-cidr-block",
                "Ipv6CidrBlockAssociationSet.Ipv6CidrBlock",
            ),
            (
                "ipv6-cidr-block-association.association-id",
                "Ipv6CidrBlockAssociationSet.AssociationId",
            ),
            (
                "ipv6-cidr-block-association.state",
                "Ipv6CidrBlockAssociationSet.Ipv6CidrBlockState.State",
            ),
        ],
        parse: SubnetId::parse,
        not_found: |text| SubnetId::not_found(text),
    };
    describe(ctx, action, request, kind, |view, scope, row| {
        let free = view
            .get::<Addresses>(scope, &row.id)
            .map_or(0, |a| a.free());
        present(scope, row, free)
    })
    .await
}

/// A subnet of the caller's.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<Subnet>, ApiError> {
    tx.get::<Subnet>(&SubnetId::parse(text)?)
        .ok_or_else(|| SubnetId::not_found(text))
}

/// The zone that a call names, by name or id; nothing where it names none.
fn zone(ctx: &Ctx, name: Option<&String>, id: Option<&String>) -> Result<Option<String>, ApiError> {
    let known = ctx.core.config.zones_of(ctx.region());
    let found = match (name, id) {
        (Some(_), Some(_)) => {
            return Err(ApiError::combination(
                "Only one of availabilityZone and availabilityZoneId may be given.",
            ));
        }
        (None, None) => return Ok(None),
        (Some(name), None) => known.into_iter().find(|zone| zone == name),
        (None, Some(id)) => known.into_iter().find(|zone| zone_id(zone) == *id),
    };
    let text = name.or(id).map_or("", String::as_str);
    found.map(Some).ok_or_else(|| {
        ApiError::value(
            text,
            "availabilityZone",
            "Subnets can only be created in the region's zones.",
        )
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    vpc_id: String,
    cidr_block: Option<String>,
    ipv6_cidr_block: Option<String>,
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateSubnet.
///
/// # Errors
/// `InvalidSubnet.Range`, `InvalidSubnet.Conflict`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let text = params
        .cidr_block
        .as_deref()
        .ok_or_else(|| ApiError::missing("cidrBlock"))?;
    let cidr = block(text, "InvalidSubnet.Range")?;
    let named = zone(
        ctx,
        params.availability_zone.as_ref(),
        params.availability_zone_id.as_ref(),
    )?;
    let first = ctx.core.config.zones_of(ctx.region()).swap_remove(0);
    let zone = named.unwrap_or(first);
    let tags = tags::on_create(&params.tag_specifications, "subnet", &["subnet"])?;
    ctx.write(|tx| {
        let vpc = vpcs::one(tx, &params.vpc_id)?;
        if !vpc.cidrs().any(|block| block.contains(&cidr)) {
            return Err(ApiError::new(
                "InvalidSubnet.Range",
                format!("The CIDR '{cidr}' is invalid."),
            ));
        }
        free_in(tx, vpc.id, cidr)?;
        let mut row = defaults::subnet(vpc.id, cidr, &zone);
        row.tags.clone_from(&tags);
        if let Some(text) = &params.ipv6_cidr_block {
            let block = ipv6_blocks::subnet_block(tx, &vpc, text)?;
            row.ipv6 = Some((SubnetCidrAssociationId::random(), block));
        }
        finish(tx, row)
    })
    .await
}

fn finish(tx: &mut Tx<'_>, row: Subnet) -> Result<Value, ApiError> {
    let free = Addresses {
        subnet: row.id,
        cidr: row.cidr,
        taken: Vec::new(),
        next: None,
        reserved: Vec::new(),
    }
    .free();
    let answer = json!({"Subnet": present(&tx.scope, &row, free)});
    defaults::add_subnet(tx, row)?;
    Ok(answer)
}

/// No other subnet of the VPC has an address of the block.
fn free_in(tx: &Tx<'_>, vpc: VpcId, cidr: Ipv4Net) -> Result<(), ApiError> {
    let rows = tx.rows::<Subnet>();
    let mut siblings = rows.iter().filter(|row| row.vpc == vpc);
    if siblings.clone().count() >= MAX_SUBNETS {
        return Err(ApiError::new(
            "SubnetLimitExceeded",
            "The maximum number of subnets has been reached.",
        ));
    }
    match siblings.find(|row| overlap(row.cidr, cidr)) {
        Some(_) => Err(ApiError::new(
            "InvalidSubnet.Conflict",
            format!("The CIDR '{cidr}' conflicts with another subnet"),
        )),
        None => Ok(()),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct CreateDefault {
    availability_zone: Option<String>,
    availability_zone_id: Option<String>,
}

/// CreateDefaultSubnet: a /20 of the default VPC.
///
/// # Errors
/// `DefaultVpcDoesNotExist`, `DefaultSubnetAlreadyExistsInAvailabilityZone`, ….
pub async fn create_default(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: CreateDefault = ctx.params(action, request)?;
    let zone = zone(
        ctx,
        params.availability_zone.as_ref(),
        params.availability_zone_id.as_ref(),
    )?
    .ok_or_else(|| ApiError::missing("availabilityZone"))?;
    ctx.write(|tx| {
        let vpcs = tx.rows::<Vpc>();
        let vpc = vpcs.iter().find(|vpc| vpc.default).ok_or_else(|| {
            ApiError::new(
                "DefaultVpcDoesNotExist",
                "There is no default VPC for this account in this region.",
            )
        })?;
        if let Some(row) = tx
            .rows::<Subnet>()
            .iter()
            .find(|row| row.default && row.zone == zone)
        {
            return Err(ApiError::new(
                "DefaultSubnetAlreadyExistsInAvailabilityZone",
                format!("'{}' is already the default subnet in {zone}.", row.id),
            ));
        }
        let [a, b, ..] = vpc.cidr.network().octets();
        let blocks =
            (0..16_u8).filter_map(|n| Ipv4Net::new(Ipv4Addr::new(a, b, n << 4, 0), 20).ok());
        let free = blocks
            .into_iter()
            .find(|block| free_in(tx, vpc.id, *block).is_ok());
        let cidr = free.ok_or_else(|| {
            ApiError::new(
                "InsufficientFreeAddressesInVpc",
                "The default VPC has no free /20 block.",
            )
        })?;
        let mut row = defaults::subnet(vpc.id, cidr, &zone);
        (row.default, row.map_public) = (true, true);
        finish(tx, row)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    subnet_id: String,
}

/// DeleteSubnet.
///
/// # Errors
/// `DependencyViolation` while an interface or a reservation is in it, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = one(tx, &params.subnet_id)?;
        if tx
            .rows::<Interface>()
            .iter()
            .any(|interface| interface.subnet == row.id)
            || subnet_reservations::of(tx.view, &tx.scope, row.id)
                .next()
                .is_some()
        {
            return Err(has_dependencies("subnet", row.id));
        }
        for acl in tx.rows::<Acl>().iter().filter(|acl| acl.vpc == row.vpc) {
            let mut acl = acl.as_ref().clone();
            let before = acl.associations.len();
            acl.associations.retain(|(_, subnet)| *subnet != row.id);
            if acl.associations.len() != before {
                tx.put(acl)?;
            }
        }
        for table in tx.rows::<RouteTable>() {
            if table
                .associations
                .iter()
                .any(|(_, subnet)| *subnet == row.id)
            {
                let mut table = table.as_ref().clone();
                table.associations.retain(|(_, subnet)| *subnet != row.id);
                tx.put(table)?;
            }
        }
        tx.delete::<Addresses>(&row.id);
        tx.delete::<Subnet>(&row.id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    subnet_id: String,
    map_public_ip_on_launch: Option<Is<bool>>,
    assign_ipv6_address_on_creation: Option<Is<bool>>,
}

/// ModifySubnetAttribute: one attribute a call.
///
/// # Errors
/// EC2's codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let (public, ipv6) = match (
        &params.map_public_ip_on_launch,
        &params.assign_ipv6_address_on_creation,
    ) {
        (None, None) => return Err(ApiError::missing("attribute")),
        (Some(_), Some(_)) => {
            return Err(ApiError::combination(
                "Fields for multiple attribute types specified.",
            ));
        }
        both => both,
    };
    ctx.write(|tx| {
        let mut row = one(tx, &params.subnet_id)?.as_ref().clone();
        if let Some(is) = public {
            row.map_public = is.value;
        }
        if let Some(is) = ipv6 {
            if is.value && row.ipv6.is_none() {
                return Err(ApiError::value(
                    is.value,
                    "assignIpv6AddressOnCreation",
                    "The subnet has no IPv6 CIDR block.",
                ));
            }
            row.assign_ipv6 = is.value;
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}
