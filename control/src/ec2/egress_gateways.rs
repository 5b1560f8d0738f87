//! Egress-only internet gateways: out of a VPC for IPv6, and only answers back in.
//!
//! One is of its VPC from its making until it is deleted. Routes that led to it stay, and drop.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::{Ctx, tags, vpcs};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

fn present(row: &EgressGateway) -> Value {
    json!({
        "EgressOnlyInternetGatewayId": row.id.to_string(),
        "Attachments": [{"State": "attached", "VpcId": row.vpc.to_string()}],
        "Tags": tag_set(&row.tags),
    })
}

/// DescribeEgressOnlyInternetGateways.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<EgressGateway> {
        member: "EgressOnlyInternetGateways",
        paths: &[],
        parse: EgressGatewayId::parse,
        not_found: |text| EgressGatewayId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, _, row| present(row)).await
}

/// An egress-only internet gateway of the caller's.
///
/// # Errors
/// EC2's codes.
pub fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<EgressGateway>, ApiError> {
    tx.get::<EgressGateway>(&EgressGatewayId::parse(text)?)
        .ok_or_else(|| EgressGatewayId::not_found(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    vpc_id: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateEgressOnlyInternetGateway: one a VPC, whether or not that has IPv6 blocks yet. EC2
/// allows as many as VPCs, whose quota is theirs, too.
///
/// # Errors
/// `InvalidParameterValue`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kind = "egress-only-internet-gateway";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        let vpc = vpcs::one(tx, &params.vpc_id)?.id;
        if tx.rows::<EgressGateway>().iter().any(|row| row.vpc == vpc) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("Network {vpc} already has an egress-only internet gateway attached"),
            ));
        }
        let row = EgressGateway {
            id: EgressGatewayId::random(),
            vpc,
            tags: tags.clone(),
        };
        let answer = json!({"EgressOnlyInternetGateway": present(&row)});
        tx.put(row)?;
        Ok(ctx.with_client_token(answer))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    egress_only_internet_gateway_id: String,
}

/// DeleteEgressOnlyInternetGateway.
///
/// # Errors
/// EC2's codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = one(tx, &params.egress_only_internet_gateway_id)?.id;
        tx.delete::<EgressGateway>(&id);
        Ok(json!({"ReturnCode": true}))
    })
    .await
}
