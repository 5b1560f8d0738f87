//! Where a tunnel may lead.

use super::unready;
use crate::rows::*;
use crate::view::View;
use crate::wire::ApiError;
use std::net::Ipv4Addr;
use std::sync::Arc;

/// Where a tunnel goes: its endpoint, that endpoint's node, and the address.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Way {
    /// The endpoint.
    pub endpoint: ConnectEndpointId,
    /// Its node.
    pub node: String,
    /// The address, of an interface of its VPC.
    pub ip: Ipv4Addr,
}

/// The way from an endpoint to an address of its VPC; or to an instance, from the endpoint
/// named or its VPC's.
///
/// # Errors
/// EC2's codes, and `InvalidParameter`.
pub fn way(
    view: &View,
    scope: &Scope,
    endpoint: Option<&str>,
    to: &Destination,
) -> Result<Way, ApiError> {
    let named = endpoint.map(|text| {
        view.get::<ConnectEndpoint>(scope, &ConnectEndpointId::parse(text)?)
            .filter(|row| row.state != ConnectState::DeleteComplete)
            .ok_or_else(|| ConnectEndpointId::not_found(text))
    });
    let named = named.transpose()?;
    let (ip, vpc) = match to {
        Destination::Address(ip) => {
            let row = named.ok_or_else(|| ApiError::missing("instanceConnectEndpointId"))?;
            (*ip, row.vpc)
        }
        Destination::Instance(text) => {
            let id = InstanceId::parse(text)?;
            let row = view.get::<Instance>(scope, &id);
            let row = row.filter(|row| row.state != State::Terminated);
            let row = row.ok_or_else(|| InstanceId::not_found(text))?;
            (row.private_ip, row.vpc)
        }
    };
    let mut all = view.all::<ConnectEndpoint>(scope);
    let row = named.or_else(|| all.find(|row| row.vpc == vpc && row.state.connects()));
    let row = row.ok_or_else(|| {
        ApiError::new(
            "InvalidInstanceConnectEndpointId.NotFound",
            format!("The VPC '{vpc}' has no instance connect endpoint"),
        )
    })?;
    if !row.state.connects() {
        return Err(unready(row));
    }
    let mut interfaces = view.all::<Interface>(scope);
    let holds = |other: &Arc<Interface>| {
        other.vpc == row.vpc
            && other.id != row.interface
            && other.private_ips().any(|own| own == ip)
    };
    if !interfaces.any(holds) {
        return Err(ApiError::new(
            "InvalidParameter",
            format!(
                "No network interface of the VPC '{}' has the address {ip}.",
                row.vpc
            ),
        ));
    }
    Ok(Way {
        endpoint: row.id,
        node: row.node.clone(),
        ip,
    })
}

/// Whom a tunnel is to reach.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Destination {
    /// Who has this private address.
    Address(Ipv4Addr),
    /// The primary address of an instance, by its id.
    Instance(String),
}
