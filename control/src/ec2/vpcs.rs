//! VPCs: made, changed, deleted, described.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::{Is, TagSpecification};
use super::{Ctx, defaults, ipv6_blocks, quotas, tags};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use ipnet::Ipv4Net;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Most blocks of a VPC (EC2's default quota).
const MAX_CIDRS: usize = 5;

/// A block that a VPC or a subnet may have: /16 to /28, without host bits.
///
/// # Errors
/// `InvalidParameterValue`, or `range` where it is too large or too small.
pub fn block(text: &str, range: &'static str) -> Result<Ipv4Net, ApiError> {
    let cidr: Ipv4Net = text
        .parse()
        .map_err(|_| ApiError::value(text, "cidrBlock", "This is not a valid CIDR block."))?;
    if !(16..=28).contains(&cidr.prefix_len()) {
        return Err(ApiError::new(
            range,
            format!("The CIDR '{text}' is invalid: its prefix must be from /16 to /28."),
        ));
    }
    // EC2 takes 10.0.0.7/16 for 10.0.0.0/16.
    Ok(cidr.trunc())
}

/// A VPC of the caller's.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<Vpc>, ApiError> {
    tx.get::<Vpc>(&VpcId::parse(text)?)
        .ok_or_else(|| VpcId::not_found(text))
}

fn present(scope: &Scope, row: &Vpc) -> Value {
    let first = format!("vpc-cidr-assoc-{}", &row.id.to_string()["vpc-".len()..]);
    let more = row
        .more_cidrs
        .iter()
        .map(|(id, cidr)| (id.to_string(), *cidr));
    let blocks = std::iter::once((first, row.cidr)).chain(more);
    let blocks: Vec<Value> = blocks.map(|(id, cidr)| association(&id, cidr)).collect();
    let ipv6 = row.ipv6.iter();
    let ipv6 = ipv6.map(|(id, block)| ipv6_blocks::of_vpc(scope, *id, *block, "associated"));
    let options = row.dhcp_options.map(|id| id.to_string());
    json!({
        "VpcId": row.id.to_string(),
        "OwnerId": *scope.account,
        "State": "available",
        "CidrBlock": row.cidr.to_string(),
        "CidrBlockAssociationSet": blocks,
        "Ipv6CidrBlockAssociationSet": ipv6.collect::<Vec<_>>(),
        "DhcpOptionsId": options.unwrap_or_else(|| "default".to_owned()),
        "InstanceTenancy": "default",
        "IsDefault": row.default,
        "Tags": tag_set(&row.tags),
    })
}

fn association(id: &str, cidr: Ipv4Net) -> Value {
    json!({
        "AssociationId": id,
        "CidrBlock": cidr.to_string(),
        "CidrBlockState": {"State": "associated"},
    })
}

/// DescribeVpcs.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Vpc> {
        member: "Vpcs",
        paths: &[
            ("cidr", "CidrBlock"),
            // Not documented, and taken by EC2: Ansible's modules use it.
            ("cidr-block", "CidrBlock"),
            (
                "cidr-block-association.cidr-block",
                "CidrBlockAssociationSet.CidrBlock",
            ),
            (
                "cidr-block-association.association-id",
                "CidrBlockAssociationSet.AssociationId",
            ),
            (
                "cidr-block-association.state",
                "CidrBlockAssociationSet.CidrBlockState.State",
            ),
            (
                "ipv6-cidr-block-association.ipv6-cidr-block",
                "Ipv6CidrBlockAssociationSet.Ipv6CidrBlock",
            ),
            (
                "ipv6-cidr-block-association.ipv6-pool",
                "Ipv6CidrBlockAssociationSet.Ipv6Pool",
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
        parse: VpcId::parse,
        not_found: |text| VpcId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        present(scope, row)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    cidr_block: Option<String>,
    #[serde(default)]
    amazon_provided_ipv6_cidr_block: bool,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateVpc: with its main route table, default ACL and default group.
///
/// # Errors
/// `InvalidVpc.Range`, `VpcLimitExceeded`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let text = params
        .cidr_block
        .as_deref()
        .ok_or_else(|| ApiError::missing("cidrBlock"))?;
    let cidr = block(text, "InvalidVpc.Range")?;
    let tags = tags::on_create(&params.tag_specifications, "vpc", &["vpc"])?;
    ctx.write(|tx| {
        quotas::room_for_one::<Vpc>(tx)?;
        let mut vpc = defaults::empty_vpc(tx, cidr)?;
        vpc.tags.clone_from(&tags);
        defaults::furnish(tx, &vpc, None)?;
        if params.amazon_provided_ipv6_cidr_block {
            ipv6_blocks::give(ctx, tx, &mut vpc)?;
        }
        let answer = json!({"Vpc": present(&tx.scope, &vpc)});
        tx.put(vpc)?;
        Ok(answer)
    })
    .await
}

/// CreateDefaultVpc.
///
/// # Errors
/// `DefaultVpcAlreadyExists`.
pub async fn create_default(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    #[derive(Deserialize)]
    struct Nothing {}
    let Nothing {} = ctx.params(action, request)?;
    let zones = ctx.core.config.zones_of(ctx.region());
    ctx.write(|tx| {
        if let Some(vpc) = tx.rows::<Vpc>().into_iter().find(|vpc| vpc.default) {
            return Err(ApiError::new(
                "DefaultVpcAlreadyExists",
                format!(
                    "A Default VPC already exists for this account in this region: '{}'.",
                    vpc.id
                ),
            ));
        }
        let vpc = defaults::make(tx, &zones)?;
        Ok(json!({"Vpc": present(&tx.scope, &vpc)}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    vpc_id: String,
}

/// The error for what others still need.
pub fn has_dependencies(kind: &str, id: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        "DependencyViolation",
        format!("The {kind} '{id}' has dependencies and cannot be deleted."),
    )
}

/// DeleteVpc: with the objects that it was made with, and no other.
///
/// # Errors
/// `DependencyViolation`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let vpc = one(tx, &params.vpc_id)?;
        let id = vpc.id;
        let tables = tx.rows::<RouteTable>();
        let acls = tx.rows::<Acl>();
        let groups = tx.rows::<Group>();
        let used = tx.rows::<Subnet>().iter().any(|row| row.vpc == id)
            || tx.rows::<Interface>().iter().any(|row| row.vpc == id)
            || tx.rows::<Gateway>().iter().any(|row| row.vpc == Some(id))
            || tx.rows::<EgressGateway>().iter().any(|row| row.vpc == id)
            || tx
                .rows::<Peering>()
                .iter()
                .any(|row| row.is_alive() && (row.requester == id || row.accepter == id))
            || tables.iter().any(|row| row.vpc == id && row.main.is_none())
            || acls.iter().any(|row| row.vpc == id && !row.default)
            || groups
                .iter()
                .any(|row| row.vpc == id && row.name != "default");
        if used {
            return Err(has_dependencies("vpc", id));
        }
        for row in tables.iter().filter(|row| row.vpc == id) {
            tx.delete::<RouteTable>(&row.id);
        }
        for row in acls.iter().filter(|row| row.vpc == id) {
            tx.delete::<Acl>(&row.id);
        }
        for row in groups.iter().filter(|row| row.vpc == id) {
            tx.delete::<Group>(&row.id);
        }
        tx.delete::<Vpc>(&id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Modify {
    vpc_id: String,
    enable_dns_support: Option<Is<bool>>,
    enable_dns_hostnames: Option<Is<bool>>,
    enable_network_address_usage_metrics: Option<Is<bool>>,
}

/// ModifyVpcAttribute: one attribute a call, as in EC2.
///
/// # Errors
/// EC2's codes.
pub async fn modify(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Modify = ctx.params(action, request)?;
    let given = [
        &params.enable_dns_support,
        &params.enable_dns_hostnames,
        &params.enable_network_address_usage_metrics,
    ];
    match given.iter().filter(|is| is.is_some()).count() {
        0 => return Err(ApiError::missing("attribute")),
        1 => {}
        _ => {
            return Err(ApiError::combination(
                "Fields for multiple attribute types specified.",
            ));
        }
    }
    ctx.write(|tx| {
        let mut vpc = one(tx, &params.vpc_id)?.as_ref().clone();
        let set = |slot: &mut bool, is: &Option<Is<bool>>| {
            *slot = is.as_ref().map_or(*slot, |is| is.value);
        };
        set(&mut vpc.dns_support, &params.enable_dns_support);
        set(&mut vpc.dns_hostnames, &params.enable_dns_hostnames);
        set(
            &mut vpc.usage_metrics,
            &params.enable_network_address_usage_metrics,
        );
        let id = vpc.id;
        tx.put(vpc)?;
        retell(tx, id)?;
        Ok(json!({}))
    })
    .await
}

/// Has the nodes told anew of every instance in a VPC that changed.
///
/// # Errors
/// Only those of writing rows.
pub fn retell(tx: &mut Tx<'_>, vpc: VpcId) -> Result<(), ApiError> {
    let rows = tx.rows::<Instance>();
    let rows = rows
        .iter()
        .filter(|row| row.vpc == vpc && row.state != State::Terminated);
    for row in rows {
        let mut row = row.as_ref().clone();
        row.generation += 1;
        tx.put(row)?;
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Attribute {
    vpc_id: String,
    attribute: String,
}

/// DescribeVpcAttribute.
///
/// # Errors
/// EC2's codes.
pub async fn attribute(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Attribute = ctx.params(action, request)?;
    ctx.read(|view| {
        let id = VpcId::parse(&params.vpc_id)?;
        let vpc = view
            .get::<Vpc>(&ctx.scope, &id)
            .ok_or_else(|| VpcId::not_found(id))?;
        let (member, value) = match params.attribute.as_str() {
            "enableDnsSupport" => ("EnableDnsSupport", vpc.dns_support),
            "enableDnsHostnames" => ("EnableDnsHostnames", vpc.dns_hostnames),
            _ => ("EnableNetworkAddressUsageMetrics", vpc.usage_metrics),
        };
        Ok(json!({"VpcId": id.to_string(), member: {"Value": value}}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associate {
    vpc_id: String,
    cidr_block: Option<String>,
    #[serde(default)]
    amazon_provided_ipv6_cidr_block: bool,
}

/// AssociateVpcCidrBlock: a further IPv4 block, or an IPv6 block.
///
/// # Errors
/// `InvalidVpc.Range`, `CidrLimitExceeded`, and EC2's other codes.
pub async fn associate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Associate = ctx.params(action, request)?;
    let text = match (
        params.cidr_block.as_deref(),
        params.amazon_provided_ipv6_cidr_block,
    ) {
        (Some(_), true) => {
            return Err(ApiError::combination(
                "The parameter cidrBlock may not be used with amazonProvidedIpv6CidrBlock.",
            ));
        }
        (None, true) => return associate_ipv6(ctx, &params.vpc_id).await,
        (text, false) => text.ok_or_else(|| ApiError::missing("cidrBlock"))?,
    };
    let cidr = block(text, "InvalidVpc.Range")?;
    ctx.write(|tx| {
        let mut vpc = one(tx, &params.vpc_id)?.as_ref().clone();
        if let Some(other) = vpc.cidrs().find(|other| overlap(*other, cidr)) {
            return Err(ApiError::new(
                "InvalidVpc.Range",
                format!("The CIDR '{cidr}' conflicts with '{other}' of the vpc '{}'.", vpc.id),
            ));
        }
        if vpc.cidrs().count() >= MAX_CIDRS {
            return Err(ApiError::new(
                "CidrLimitExceeded",
                format!("This network '{}' has met its maximum number of allowed CIDRs: {MAX_CIDRS}", vpc.id),
            ));
        }
        let id = CidrAssociationId::random();
        vpc.more_cidrs.push((id, cidr));
        let vpc_id = vpc.id;
        tx.put(vpc)?;
        retell(tx, vpc_id)?;
        Ok(json!({"VpcId": vpc_id.to_string(), "CidrBlockAssociation": association(&id.to_string(), cidr)}))
    })
    .await
}

async fn associate_ipv6(ctx: &Ctx, vpc: &str) -> Result<Value, ApiError> {
    ctx.write(|tx| {
        let mut vpc = one(tx, vpc)?.as_ref().clone();
        let id = ipv6_blocks::give(ctx, tx, &mut vpc)?;
        let given = vpc.ipv6.last().map(|(_, block)| *block);
        let shown = given.map(|block| ipv6_blocks::of_vpc(&tx.scope, id, block, "associating"));
        let vpc_id = vpc.id;
        tx.put(vpc)?;
        retell(tx, vpc_id)?;
        Ok(json!({"VpcId": vpc_id.to_string(), "Ipv6CidrBlockAssociation": shown}))
    })
    .await
}

/// Whether two blocks have an address in common.
pub fn overlap(a: Ipv4Net, b: Ipv4Net) -> bool {
    a.contains(&b.network()) || b.contains(&a.network())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Disassociate {
    association_id: String,
}

/// DisassociateVpcCidrBlock: not the primary block, and none with a subnet in it.
///
/// # Errors
/// `OperationNotPermitted`, `InvalidCidrBlock.InUse`, and EC2's other codes.
pub async fn disassociate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Disassociate = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = CidrAssociationId::parse(&params.association_id)?;
        let primary = VpcId::parse(&format!("vpc-{}", &params.association_id["vpc-cidr-assoc-".len()..]))?;
        let vpcs = tx.rows::<Vpc>();
        if vpcs.iter().any(|vpc| vpc.id == primary) {
            return Err(ApiError::new(
                "OperationNotPermitted",
                format!("The vpc CIDR block with association ID {id} may not be disassociated. It is the primary IPv4 CIDR block of the VPC"),
            ));
        }
        let ipv6_place = |vpc: &Vpc| vpc.ipv6.iter().position(|(known, _)| *known == id);
        let by_ipv6 = vpcs.iter().find_map(|vpc| Some((vpc, ipv6_place(vpc)?)));
        if let Some((vpc, place)) = by_ipv6 {
            let mut vpc = vpc.as_ref().clone();
            let gone = ipv6_blocks::take_back(tx, &mut vpc, place)?;
            let vpc_id = vpc.id;
            tx.put(vpc)?;
            retell(tx, vpc_id)?;
            return Ok(json!({"VpcId": vpc_id.to_string(), "Ipv6CidrBlockAssociation": gone}));
        }
        let has = |vpc: &Arc<Vpc>| vpc.more_cidrs.iter().any(|(known, _)| *known == id);
        let vpc = vpcs.iter().find(|vpc| has(vpc)).ok_or_else(|| CidrAssociationId::not_found(id))?;
        let mut vpc = vpc.as_ref().clone();
        let place = vpc.more_cidrs.iter().position(|(known, _)| *known == id);
        let (_, cidr) = vpc.more_cidrs.remove(place.unwrap_or_default());
        if tx.rows::<Subnet>().iter().any(|row| row.vpc == vpc.id && cidr.contains(&row.cidr)) {
            return Err(ApiError::new(
                "InvalidCidrBlock.InUse",
                format!("The vpc {} currently has a subnet within CIDR block {cidr}", vpc.id),
            ));
        }
        let mut gone = association(&id.to_string(), cidr);
        gone["CidrBlockState"]["State"] = "disassociating".into();
        let vpc_id = vpc.id;
        tx.put(vpc)?;
        retell(tx, vpc_id)?;
        Ok(json!({"VpcId": vpc_id.to_string(), "CidrBlockAssociation": gone}))
    })
    .await
}
