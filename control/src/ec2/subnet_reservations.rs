//! Ranges of subnets from which no address is given unasked.
//!
//! From an `explicit` one callers take addresses by naming them; one for `prefix`es is for
//! whole prefixes, which this cloud does not delegate, so nothing is taken from it.

use super::list::{Query, tag_set};
use super::params::{Filter, TagSpecification};
use super::{Ctx, snapshots, subnets, tags};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Most reservations of a subnet: what every address that is given is compared with.
const MOST_OF_A_SUBNET: usize = 50;

/// The reservations of a subnet.
pub fn of<'a>(
    view: &'a View,
    scope: &'a Scope,
    subnet: SubnetId,
) -> impl Iterator<Item = &'a Arc<SubnetReservation>> {
    let all = view.all::<SubnetReservation>(scope);
    all.filter(move |row| row.subnet == subnet)
}

/// A subnet's reserved IPv4 ranges, and whether addresses may be taken by naming them.
pub fn ipv4(view: &View, scope: &Scope, subnet: SubnetId) -> Vec<(Ipv4Net, bool)> {
    let rows = of(view, scope, subnet);
    rows.filter_map(|row| match row.cidr {
        IpNet::V4(net) => Some((net, row.explicit)),
        IpNet::V6(_) => None,
    })
    .collect()
}

/// The same of IPv6.
pub fn ipv6(view: &View, scope: &Scope, subnet: SubnetId) -> Vec<(Ipv6Net, bool)> {
    let rows = of(view, scope, subnet);
    rows.filter_map(|row| match row.cidr {
        IpNet::V6(net) => Some((net, row.explicit)),
        IpNet::V4(_) => None,
    })
    .collect()
}

/// The error for an address of a range that is kept for prefixes.
pub fn for_prefixes(address: impl std::fmt::Display) -> ApiError {
    ApiError::new(
        "InvalidIPAddress.InUse",
        format!("Address {address} is reserved for prefixes."),
    )
}

fn present(scope: &Scope, row: &SubnetReservation) -> Value {
    json!({
        "SubnetCidrReservationId": row.id.to_string(),
        "SubnetId": row.subnet.to_string(),
        "Cidr": row.cidr.to_string(),
        "ReservationType": if row.explicit { "explicit" } else { "prefix" },
        "OwnerId": *scope.account,
        "Description": row.description,
        "Tags": tag_set(&row.tags),
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    subnet_id: String,
    cidr: String,
    reservation_type: String,
    description: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// A range that a subnet may reserve.
fn range(tx: &Tx<'_>, subnet: &Subnet, text: &str) -> Result<IpNet, ApiError> {
    let bad = |why: &str| ApiError::value(text, "cidr", why);
    let cidr: IpNet = text
        .parse()
        .map_err(|_| bad("This is not a valid CIDR block."))?;
    let cidr = cidr.trunc();
    let block = match cidr {
        IpNet::V4(_) => Some(IpNet::from(subnet.cidr)),
        IpNet::V6(_) => subnet.ipv6_block().map(IpNet::from),
    };
    if !block.is_some_and(|block| block.contains(&cidr)) {
        return Err(bad("It is not within the subnet's own block."));
    }
    let mut count = 0;
    for other in of(tx.view, &tx.scope, subnet.id) {
        count += 1;
        if other.cidr.contains(&cidr) || cidr.contains(&other.cidr) {
            return Err(bad(&format!("It overlaps the reservation {}.", other.id)));
        }
    }
    if count >= MOST_OF_A_SUBNET {
        return Err(ApiError::new(
            "ResourceLimitExceeded",
            format!(
                "The subnet '{}' has {count} reservations, the most.",
                subnet.id
            ),
        ));
    }
    Ok(cidr)
}

/// CreateSubnetCidrReservation: addresses that are in use stay so.
///
/// # Errors
/// `InvalidParameterValue`, and EC2's other codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kind = "subnet-cidr-reservation";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    let description = snapshots::description(params.description.as_deref())?;
    ctx.write(|tx| {
        let subnet = subnets::one(tx, &params.subnet_id)?;
        let row = SubnetReservation {
            id: SubnetReservationId::random(),
            subnet: subnet.id,
            cidr: range(tx, &subnet, &params.cidr)?,
            explicit: params.reservation_type == "explicit",
            description: description.clone(),
            tags: tags.clone(),
        };
        let answer = json!({"SubnetCidrReservation": present(&tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Get {
    subnet_id: String,
    #[serde(default)]
    filters: Vec<Filter>,
    max_results: Option<i64>,
    next_token: Option<String>,
}

/// GetSubnetCidrReservations.
///
/// # Errors
/// EC2's codes.
pub async fn get(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Get = ctx.params(action, request)?;
    let query = Query {
        action,
        member: "SubnetIpv4CidrReservations",
        by_id: false,
        filters: &params.filters,
        paths: &[("reservationType", "ReservationType")],
        max_results: params.max_results,
        next_token: params.next_token.as_deref(),
    };
    ctx.read(|view| {
        let scope = &ctx.scope;
        let id = SubnetId::parse(&params.subnet_id)?;
        view.get::<Subnet>(scope, &id)
            .ok_or_else(|| SubnetId::not_found(id))?;
        let rows = of(view, scope, id);
        let mut answer = query.answer(rows.map(|row| (row.id.to_string(), present(scope, row))))?;
        let items = answer[query.member].take();
        let items = items.as_array().cloned().unwrap_or_default();
        let is_ipv6 = |item: &Value| item["Cidr"].as_str().is_some_and(|cidr| cidr.contains(':'));
        let (ipv6, ipv4): (Vec<Value>, Vec<Value>) = items.into_iter().partition(is_ipv6);
        answer["SubnetIpv4CidrReservations"] = ipv4.into();
        answer["SubnetIpv6CidrReservations"] = ipv6.into();
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    subnet_cidr_reservation_id: String,
}

/// DeleteSubnetCidrReservation.
///
/// # Errors
/// EC2's codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = SubnetReservationId::parse(&params.subnet_cidr_reservation_id)?;
        let row = tx
            .get::<SubnetReservation>(&id)
            .ok_or_else(|| SubnetReservationId::not_found(id))?;
        tx.delete::<SubnetReservation>(&id);
        Ok(json!({"DeletedSubnetCidrReservation": present(&tx.scope, &row)}))
    })
    .await
}
