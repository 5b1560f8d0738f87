//! Internet gateways.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::vpcs::has_dependencies;
use super::{Ctx, quotas, tags, vpcs};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

fn present(scope: &Scope, row: &Gateway) -> Value {
    let attachment = row
        .vpc
        .map(|vpc| json!({"State": "available", "VpcId": vpc.to_string()}));
    json!({
        "InternetGatewayId": row.id.to_string(),
        "OwnerId": *scope.account,
        "Attachments": attachment.into_iter().collect::<Vec<_>>(),
        "Tags": tag_set(&row.tags),
    })
}

/// DescribeInternetGateways.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Gateway> {
        member: "InternetGateways",
        paths: &[
            ("attachment.state", "Attachments.State"),
            ("attachment.vpc-id", "Attachments.VpcId"),
        ],
        parse: GatewayId::parse,
        not_found: |text| GatewayId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        present(scope, row)
    })
    .await
}

fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<Gateway>, ApiError> {
    tx.get::<Gateway>(&GatewayId::parse(text)?)
        .ok_or_else(|| GatewayId::not_found(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateInternetGateway.
///
/// # Errors
/// `InternetGatewayLimitExceeded`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kind = "internet-gateway";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        quotas::room_for_one::<Gateway>(tx)?;
        let row = Gateway {
            id: GatewayId::random(),
            vpc: None,
            tags: tags.clone(),
        };
        let answer = json!({"InternetGateway": present(&tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    internet_gateway_id: String,
}

/// DeleteInternetGateway.
///
/// # Errors
/// `DependencyViolation` while it is attached, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = one(tx, &params.internet_gateway_id)?;
        if row.vpc.is_some() {
            return Err(has_dependencies("internetGateway", row.id));
        }
        tx.delete::<Gateway>(&row.id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Pair {
    internet_gateway_id: String,
    vpc_id: String,
}

/// AttachInternetGateway: one gateway a VPC, one VPC a gateway.
///
/// # Errors
/// `Resource.AlreadyAssociated`, `InvalidParameterValue`, ….
pub async fn attach(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Pair = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.internet_gateway_id)?.as_ref().clone();
        let vpc = vpcs::one(tx, &params.vpc_id)?;
        if let Some(other) = row.vpc {
            return Err(ApiError::new(
                "Resource.AlreadyAssociated",
                format!("resource {} is already attached to network {other}", row.id),
            ));
        }
        let rows = tx.rows::<Gateway>();
        if rows.iter().any(|other| other.vpc == Some(vpc.id)) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!(
                    "Network {} already has an internet gateway attached",
                    vpc.id
                ),
            ));
        }
        row.vpc = Some(vpc.id);
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

/// DetachInternetGateway: not while an interface of the VPC has a public address.
///
/// # Errors
/// `Gateway.NotAttached`, `DependencyViolation`, ….
pub async fn detach(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Pair = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.internet_gateway_id)?.as_ref().clone();
        let vpc = vpcs::one(tx, &params.vpc_id)?;
        if row.vpc != Some(vpc.id) {
            return Err(ApiError::new(
                "Gateway.NotAttached",
                format!("resource {} is not attached to network {}", row.id, vpc.id),
            ));
        }
        let mapped = tx.rows::<Address>().iter().any(|address| {
            let interface = address.association.as_ref().map(|a| a.interface);
            let interface = interface.and_then(|id| tx.get::<Interface>(&id));
            interface.is_some_and(|interface| interface.vpc == vpc.id)
        });
        if mapped {
            return Err(ApiError::new(
                "DependencyViolation",
                format!(
                    "Network {} has some mapped public address(es). Please unmap those public \
                     address(es) before detaching the gateway.",
                    vpc.id
                ),
            ));
        }
        row.vpc = None;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}
