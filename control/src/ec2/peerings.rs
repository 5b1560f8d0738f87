//! VPC peering connections, between VPCs of one account in one region.
//!
//! ```text
//!   pending-acceptance ──accept──▶ active ──delete──▶ deleted
//!           └──reject──▶ rejected        (gone from sight after an hour)
//! ```

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::{Ctx, present, tags, vpcs};
use crate::core::{Tx, now_s};
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// How long a request waits, as in EC2.
const EXPIRES_S: i64 = 7 * 86_400;

fn side(view: &View, scope: &Scope, vpc: VpcId) -> Value {
    let blocks: Vec<String> = view
        .get::<Vpc>(scope, &vpc)
        .map(|row| row.cidrs().map(|cidr| cidr.to_string()).collect())
        .unwrap_or_default();
    let set: Vec<Value> = blocks.iter().map(|b| json!({"CidrBlock": b})).collect();
    json!({
        "CidrBlock": blocks.first(),
        "CidrBlockSet": set,
        "OwnerId": *scope.account,
        "VpcId": vpc.to_string(),
        "Region": *scope.region,
        "PeeringOptions": peering_options(),
    })
}

fn peering_options() -> Value {
    json!({
        "AllowDnsResolutionFromRemoteVpc": false,
        "AllowEgressFromLocalClassicLinkToRemoteVpc": false,
        "AllowEgressFromLocalVpcToRemoteClassicLink": false,
    })
}

fn show(view: &View, scope: &Scope, row: &Peering) -> Value {
    let (code, message) = match row.state {
        PeeringState::Pending => ("pending-acceptance", "Pending Acceptance by the accepter"),
        PeeringState::Active => ("active", "Active"),
        PeeringState::Rejected => ("rejected", "Rejected"),
        PeeringState::Deleted => ("deleted", "Deleted"),
    };
    let mut item = json!({
        "VpcPeeringConnectionId": row.id.to_string(),
        "RequesterVpcInfo": side(view, scope, row.requester),
        "AccepterVpcInfo": side(view, scope, row.accepter),
        "Status": {"Code": code, "Message": message},
        "Tags": tag_set(&row.tags),
    });
    if row.state == PeeringState::Pending {
        item["ExpirationTime"] = present::timestamp(row.changed_at_s + EXPIRES_S);
    }
    item
}

/// DescribeVpcPeeringConnections.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Peering> {
        member: "VpcPeeringConnections",
        paths: &[
            ("accepter-vpc-info.cidr-block", "AccepterVpcInfo.CidrBlock"),
            ("accepter-vpc-info.owner-id", "AccepterVpcInfo.OwnerId"),
            ("accepter-vpc-info.vpc-id", "AccepterVpcInfo.VpcId"),
            (
                "requester-vpc-info.cidr-block",
                "RequesterVpcInfo.CidrBlock",
            ),
            ("requester-vpc-info.owner-id", "RequesterVpcInfo.OwnerId"),
            ("requester-vpc-info.vpc-id", "RequesterVpcInfo.VpcId"),
            ("status-code", "Status.Code"),
            ("status-message", "Status.Message"),
        ],
        parse: PeeringId::parse,
        not_found: |text| PeeringId::not_found(text),
    };
    describe(ctx, action, request, kind, show).await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    vpc_id: String,
    peer_vpc_id: Option<String>,
    peer_owner_id: Option<String>,
    peer_region: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateVpcPeeringConnection.
///
/// # Errors
/// `OverlappingIpv4…`, `VpcPeeringConnectionAlreadyExists`, ….
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let peer = params
        .peer_vpc_id
        .as_deref()
        .ok_or_else(|| ApiError::missing("peerVpcId"))?;
    if params
        .peer_owner_id
        .as_deref()
        .is_some_and(|owner| owner != ctx.account())
    {
        return Err(ApiError::unsupported_parameter("PeerOwnerId"));
    }
    if params
        .peer_region
        .as_deref()
        .is_some_and(|region| region != ctx.region())
    {
        return Err(ApiError::unsupported_parameter("PeerRegion"));
    }
    let kind = "vpc-peering-connection";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        let (ours, theirs) = (vpcs::one(tx, &params.vpc_id)?, vpcs::one(tx, peer)?);
        if ours.id == theirs.id {
            return Err(ApiError::value(
                peer,
                "peerVpcId",
                "A VPC cannot be peered with itself.",
            ));
        }
        let meets = |a| theirs.cidrs().any(|b| vpcs::overlap(a, b));
        if ours.cidrs().any(meets) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!(
                    "The VPCs {} and {} have overlapping CIDR blocks.",
                    ours.id, theirs.id
                ),
            ));
        }
        let pair = |row: &&Arc<Peering>| {
            row.is_alive()
                && [(ours.id, theirs.id), (theirs.id, ours.id)]
                    .contains(&(row.requester, row.accepter))
        };
        if let Some(known) = tx.rows::<Peering>().iter().find(pair) {
            return Err(ApiError::new(
                "VpcPeeringConnectionAlreadyExists",
                format!("A VPC peering connection already exists: {}", known.id),
            ));
        }
        let row = Peering {
            id: PeeringId::random(),
            requester: ours.id,
            accepter: theirs.id,
            state: PeeringState::Pending,
            changed_at_s: now_s(),
            tags: tags.clone(),
        };
        let answer = json!({"VpcPeeringConnection": show(tx.view, &tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    vpc_peering_connection_id: String,
}

fn one(tx: &Tx<'_>, text: &str) -> Result<Peering, ApiError> {
    tx.get::<Peering>(&PeeringId::parse(text)?)
        .map(|row| row.as_ref().clone())
        .ok_or_else(|| PeeringId::not_found(text))
}

/// Accept, reject or delete: from which states, to which, and the answer.
async fn change(
    ctx: &Ctx,
    action: &str,
    request: Value,
    (from, to): (&[PeeringState], PeeringState),
    answer: impl FnOnce(&View, Peering) -> Value,
) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    let act = |tx: &mut Tx<'_>| {
        let mut row = one(tx, &params.vpc_peering_connection_id)?;
        if row.state != to {
            if !from.contains(&row.state) {
                return Err(ApiError::new(
                    "InvalidStateTransition",
                    format!("Invalid state transition for {}.", row.id),
                ));
            }
            row.state = to;
            row.changed_at_s = now_s();
            tx.put(row.clone())?;
        }
        Ok(row)
    };
    ctx.write_and_show(act, answer).await
}

/// AcceptVpcPeeringConnection.
///
/// # Errors
/// `InvalidStateTransition`, and EC2's other codes.
pub async fn accept(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let step: (&[_], _) = (&[PeeringState::Pending], PeeringState::Active);
    let answer = |view: &View, row| json!({"VpcPeeringConnection": show(view, &ctx.scope, &row)});
    change(ctx, action, request, step, answer).await
}

/// RejectVpcPeeringConnection.
///
/// # Errors
/// `InvalidStateTransition`, and EC2's other codes.
pub async fn reject(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let step: (&[_], _) = (&[PeeringState::Pending], PeeringState::Rejected);
    change(ctx, action, request, step, |_, _| json!({"Return": true})).await
}

/// DeleteVpcPeeringConnection: routes to it become blackholes.
///
/// # Errors
/// `InvalidStateTransition`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let from = &[PeeringState::Pending, PeeringState::Active];
    let step: (&[_], _) = (from, PeeringState::Deleted);
    change(ctx, action, request, step, |_, _| json!({"Return": true})).await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Options {
    vpc_peering_connection_id: String,
    requester_peering_connection_options: Option<Offered>,
    accepter_peering_connection_options: Option<Offered>,
}

/// EC2's defaults pass (`params::DEFAULTS`); all else is refused by name.
#[derive(Deserialize)]
struct Offered {}

/// ModifyVpcPeeringConnectionOptions: to what they are.
///
/// # Errors
/// `OperationNotPermitted` unless the connection is active, `UnsupportedOperation` for what
/// is not offered.
pub async fn options(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Options = ctx.params(action, request)?;
    ctx.read(|view| {
        let id = PeeringId::parse(&params.vpc_peering_connection_id)?;
        let row = view
            .get::<Peering>(&ctx.scope, &id)
            .ok_or_else(|| PeeringId::not_found(id))?;
        if row.state != PeeringState::Active {
            return Err(ApiError::new(
                "OperationNotPermitted",
                format!("The VPC peering connection {id} is not active."),
            ));
        }
        let sides = [
            (
                "RequesterPeeringConnectionOptions",
                &params.requester_peering_connection_options,
            ),
            (
                "AccepterPeeringConnectionOptions",
                &params.accepter_peering_connection_options,
            ),
        ];
        let mut answer = json!({});
        for (name, _) in sides.iter().filter(|(_, side)| side.is_some()) {
            answer[*name] = peering_options();
        }
        Ok(answer)
    })
    .await
}
