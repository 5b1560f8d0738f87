//! The routes of a table, made, replaced and deleted.

use super::{Ctx, routes};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
use serde::Deserialize;
use serde_json::json;
use std::str::FromStr;

/// Most routes of a table (EC2's default quota).
const MAX_ROUTES: usize = 50;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct RouteRequest {
    route_table_id: String,
    destination_cidr_block: Option<String>,
    destination_ipv6_cidr_block: Option<String>,
    gateway_id: Option<String>,
    egress_only_internet_gateway_id: Option<String>,
    instance_id: Option<String>,
    network_interface_id: Option<String>,
    vpc_peering_connection_id: Option<String>,
    nat_gateway_id: Option<String>,
}

/// The destination that a request names by either of its parameters.
fn destination(ipv4: Option<&String>, ipv6: Option<&String>) -> Result<IpNet, ApiError> {
    match (ipv4, ipv6) {
        (Some(text), None) => parse::<Ipv4Net>(text, "destinationCidrBlock", "IPv4"),
        (None, Some(text)) => parse::<Ipv6Net>(text, "destinationIpv6CidrBlock", "IPv6"),
        (None, None) => Err(ApiError::missing("destinationCidrBlock")),
        (Some(_), Some(_)) => Err(ApiError::combination(
            "The parameters destinationCidrBlock and destinationIpv6CidrBlock cannot be used \
             together.",
        )),
    }
}

fn parse<Net: FromStr + Into<IpNet>>(
    text: &str,
    parameter: &str,
    family: &str,
) -> Result<IpNet, ApiError> {
    let why = format!("This is not a valid {family} CIDR.");
    let net = text
        .parse::<Net>()
        .map_err(|_| ApiError::value(text, parameter, &why))?;
    Ok(net.into().trunc())
}

/// Whether a VPC's own addresses are all of a block's.
fn is_within(vpc: &Vpc, block: &IpNet) -> bool {
    let ipv6 = vpc.ipv6.iter().map(|(_, own)| IpNet::from(*own));
    let mut blocks = vpc.cidrs().map(IpNet::from).chain(ipv6);
    blocks.any(|own| own.contains(block))
}

impl RouteRequest {
    fn route(&self, tx: &Tx<'_>, vpc: &Vpc) -> Result<Route, ApiError> {
        let destination = destination(
            self.destination_cidr_block.as_ref(),
            self.destination_ipv6_cidr_block.as_ref(),
        )?;
        if is_within(vpc, &destination) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!(
                    "Route destination doesn't match any subnet CIDR blocks: {destination} lies \
                     within the VPC's own."
                ),
            ));
        }
        let given = [
            &self.gateway_id,
            &self.egress_only_internet_gateway_id,
            &self.instance_id,
            &self.network_interface_id,
            &self.vpc_peering_connection_id,
            &self.nat_gateway_id,
        ];
        match given.iter().filter(|target| target.is_some()).count() {
            0 => return Err(ApiError::missing("gatewayId")),
            1 => {}
            _ => {
                return Err(ApiError::combination("The route has more than one target."));
            }
        }
        let target = self.target(tx, vpc)?;
        match (destination, without_ipv6(&target)) {
            (IpNet::V6(_), Some(parameter)) => {
                return Err(ApiError::unsupported_parameter(parameter));
            }
            (IpNet::V4(_), _) if matches!(target, Target::EgressGateway(_)) => {
                return Err(ApiError::combination(
                    "The parameter egressOnlyInternetGatewayId takes a destinationIpv6CidrBlock.",
                ));
            }
            _ => {}
        }
        Ok(Route {
            destination,
            target,
        })
    }

    fn target(&self, tx: &Tx<'_>, vpc: &Vpc) -> Result<Target, ApiError> {
        let elsewhere = |what: &str, vpc: VpcId| {
            ApiError::new(
                "InvalidParameterValue",
                format!("The {what} does not belong to the network {vpc}."),
            )
        };
        if let Some(text) = &self.gateway_id {
            let id = GatewayId::parse(text)?;
            let row = tx
                .get::<Gateway>(&id)
                .ok_or_else(|| GatewayId::not_found(text))?;
            return match row.vpc {
                Some(at) if at == vpc.id => Ok(Target::Gateway(id)),
                _ => Err(elsewhere("gateway", vpc.id)),
            };
        }
        if let Some(text) = &self.egress_only_internet_gateway_id {
            let row = super::egress_gateways::one(tx, text)?;
            return match row.vpc == vpc.id {
                true => Ok(Target::EgressGateway(row.id)),
                false => Err(elsewhere("egress-only internet gateway", vpc.id)),
            };
        }
        if let Some(text) = &self.nat_gateway_id {
            let row = super::nat_gateways::one(tx, text)?;
            return match row.vpc == vpc.id {
                true => Ok(Target::Nat(row.id)),
                false => Err(elsewhere("NAT gateway", vpc.id)),
            };
        }
        if let Some(text) = &self.vpc_peering_connection_id {
            let id = PeeringId::parse(text)?;
            let row = tx
                .get::<Peering>(&id)
                .ok_or_else(|| PeeringId::not_found(text))?;
            let ours = row.requester == vpc.id || row.accepter == vpc.id;
            return match ours {
                true => Ok(Target::Peering(id)),
                false => Err(elsewhere("peering connection", vpc.id)),
            };
        }
        let id = match (&self.network_interface_id, &self.instance_id) {
            (Some(text), _) => InterfaceId::parse(text)?,
            (None, Some(text)) => {
                let id = InstanceId::parse(text)?;
                let row = tx
                    .get::<Instance>(&id)
                    .ok_or_else(|| InstanceId::not_found(text))?;
                *row.interfaces
                    .first()
                    .ok_or_else(|| InstanceId::not_found(text))?
            }
            (None, None) => return Err(ApiError::missing("gatewayId")),
        };
        let row = tx
            .get::<Interface>(&id)
            .ok_or_else(|| InterfaceId::not_found(id))?;
        match row.vpc == vpc.id {
            true => Ok(Target::Interface(id)),
            false => Err(elsewhere("network interface", vpc.id)),
        }
    }
}

/// The parameter of a target to which IPv6 does not go.
fn without_ipv6(target: &Target) -> Option<&'static str> {
    match target {
        Target::Gateway(_) | Target::EgressGateway(_) => None,
        Target::Interface(_) => Some("NetworkInterfaceId"),
        Target::Peering(_) => Some("VpcPeeringConnectionId"),
        Target::Nat(_) => Some("NatGatewayId"),
    }
}

/// CreateRoute and ReplaceRoute.
///
/// # Errors
/// `RouteAlreadyExists`, `InvalidRoute.NotFound`, `RouteLimitExceeded`, ….
pub async fn put(
    ctx: &Ctx,
    action: &str,
    request: Value,
    replace: bool,
) -> Result<Value, ApiError> {
    let params: RouteRequest = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut row = routes::one(tx, &params.route_table_id)?.as_ref().clone();
        let vpc = tx
            .get::<Vpc>(&row.vpc)
            .ok_or_else(|| VpcId::not_found(row.vpc))?;
        let route = params.route(tx, &vpc)?;
        let same = |known: &Route| known.destination == route.destination;
        let place = row.routes.iter().position(same);
        match (place, replace) {
            (Some(place), true) => row.routes[place] = route,
            (None, false) if row.routes.len() < MAX_ROUTES => row.routes.push(route),
            (None, false) => {
                return Err(ApiError::new(
                    "RouteLimitExceeded",
                    format!(
                        "The maximum number of routes of {} has been reached.",
                        row.id
                    ),
                ));
            }
            (Some(place), false) if row.routes[place].target == route.target => {}
            (Some(_), false) => {
                return Err(ApiError::new(
                    "RouteAlreadyExists",
                    format!(
                        "The route identified by {} already exists.",
                        route.destination
                    ),
                ));
            }
            (None, true) => return Err(no_route(row.id, route.destination)),
        }
        tx.put(row)?;
        Ok(json!({"Return": true}))
    })
    .await
    .map(|answer| if replace { json!({}) } else { answer })
}

fn no_route(table: RouteTableId, destination: IpNet) -> ApiError {
    let parameter = match destination {
        IpNet::V4(_) => "destination-cidr-block",
        IpNet::V6(_) => "destination-ipv6-cidr-block",
    };
    ApiError::new(
        "InvalidRoute.NotFound",
        format!("no route with {parameter} {destination} in route table {table}"),
    )
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteRoute {
    route_table_id: String,
    destination_cidr_block: Option<String>,
    destination_ipv6_cidr_block: Option<String>,
}

/// DeleteRoute.
///
/// # Errors
/// `InvalidRoute.NotFound`, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: DeleteRoute = ctx.params(action, request)?;
    let destination = destination(
        params.destination_cidr_block.as_ref(),
        params.destination_ipv6_cidr_block.as_ref(),
    )?;
    ctx.write(|tx| {
        let mut row = routes::one(tx, &params.route_table_id)?.as_ref().clone();
        let before = row.routes.len();
        row.routes.retain(|route| route.destination != destination);
        if row.routes.len() == before {
            return Err(no_route(row.id, destination));
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}
