//! What every account has in every region: the default VPC, as EC2 makes it.
//! Source: VPC user guide, "Default VPC components".
//!
//! ```text
//!   vpc 172.31.0.0/16 ─┬─ subnet /20 per zone (MapPublicIpOnLaunch)
//!                      ├─ internet gateway ◀── 0.0.0.0/0 ── main route table
//!                      ├─ default network ACL, DHCP options
//!                      └─ group "default": in from itself, out to everywhere
//! ```
//!
//! Made on the account's first call in the region: 40 regions cost nothing.

use super::Ctx;
use crate::core::Tx;
use crate::rows::*;
use crate::wire::ApiError;
use ipnet::{IpNet, Ipv4Net};
use std::net::Ipv4Addr;

/// The lowest VNI given out; lower ones are the operator's.
const FIRST_VNI: u32 = 0x1000;
/// The last VNI (RFC 7348: 24 bits).
const LAST_VNI: u32 = 0xff_ffff;

/// Makes what is missing.
///
/// # Errors
/// Only those of the store.
pub async fn ensure(ctx: &Ctx) -> Result<(), ApiError> {
    let name = Settings::NAME.to_owned();
    if ctx
        .core
        .peek(|view| view.get::<Settings>(&ctx.scope, &name).is_some())
    {
        return Ok(());
    }
    let zones = ctx.core.config.zones_of(ctx.region());
    ctx.core
        .write(&ctx.scope, |tx| {
            if tx.get::<Settings>(&name).is_some() {
                return Ok(());
            }
            tx.put(Settings {
                name: name.clone(),
                ..Settings::default()
            })?;
            make(tx, &zones)
        })
        .await
}

/// The next virtual network.
fn next_vni(tx: &mut Tx<'_>) -> Result<u32, ApiError> {
    let (scope, name) = (Scope::global(), "vni".to_owned());
    let last = tx
        .get_in::<Counter>(&scope, &name)
        .map_or(FIRST_VNI, |counter| counter.last);
    if last >= LAST_VNI {
        return Err(ApiError::new(
            "VpcLimitExceeded",
            "There are no virtual networks left.",
        ));
    }
    tx.put_in(
        &scope,
        Counter {
            name,
            last: last + 1,
        },
    )?;
    Ok(last + 1)
}

fn make(tx: &mut Tx<'_>, zones: &[String]) -> Result<(), ApiError> {
    let region = tx.scope.region.to_string();
    let vni = next_vni(tx)?;
    let id = VpcId::random();
    let cidr = net(Ipv4Addr::new(172, 31, 0, 0), 16)?;
    let tags = Tags::new();
    let options = DhcpOptions {
        id: DhcpOptionsId::random(),
        options: vec![
            ("domain-name".to_owned(), vec![domain_name(&region)]),
            (
                "domain-name-servers".to_owned(),
                vec!["AmazonProvidedDNS".to_owned()],
            ),
        ],
        tags: tags.clone(),
    };
    let vpc = Vpc {
        id,
        cidr,
        default: true,
        vni,
        dhcp_options: options.id,
        tags: tags.clone(),
    };
    let gateway = Gateway {
        id: GatewayId::random(),
        vpc: Some(id),
        tags: tags.clone(),
    };
    tx.put(RouteTable {
        id: RouteTableId::random(),
        vpc: id,
        local: cidr,
        default_gateway: Some(gateway.id),
        main: Some(RouteAssociationId::random()),
        tags: tags.clone(),
    })?;
    let mut associations = Vec::new();
    for (number, zone) in (0_u8..).zip(zones) {
        let subnet = Subnet {
            id: SubnetId::random(),
            vpc: id,
            cidr: net(Ipv4Addr::new(172, 31, number << 4, 0), 20)?,
            zone: zone.clone(),
            default: true,
            map_public: true,
            tags: tags.clone(),
        };
        associations.push((AclAssociationId::random(), subnet.id));
        tx.put(Addresses {
            subnet: subnet.id,
            cidr: subnet.cidr,
            taken: Vec::new(),
        })?;
        tx.put(subnet)?;
    }
    tx.put(Acl {
        id: AclId::random(),
        vpc: id,
        default: true,
        associations,
        tags: tags.clone(),
    })?;
    let group = GroupId::random();
    tx.put(Group {
        id: group,
        vpc: id,
        vni,
        name: "default".to_owned(),
        description: "default VPC security group".to_owned(),
        rules: vec![
            everything(false, Peer::Group(group)),
            everything(true, anywhere()),
        ],
        generation: 1,
        tags,
    })?;
    tx.put(options)?;
    tx.put(gateway)?;
    tx.put(vpc)
}

fn net(address: Ipv4Addr, prefix: u8) -> Result<Ipv4Net, ApiError> {
    Ipv4Net::new(address, prefix).map_err(|error| ApiError::internal(&error))
}

/// 0.0.0.0/0.
pub fn anywhere() -> Peer {
    Peer::Cidr(IpNet::V4(Ipv4Net::default()))
}

/// A rule for all protocols.
pub fn everything(egress: bool, peer: Peer) -> Rule {
    Rule {
        id: RuleId::random(),
        egress,
        protocol: -1,
        from_port: -1,
        to_port: -1,
        peer,
        description: None,
        tags: Tags::new(),
    }
}

/// The domain of private names, as EC2 forms it.
pub fn domain_name(region: &str) -> String {
    if region == "us-east-1" {
        "ec2.internal".to_owned()
    } else {
        format!("{region}.compute.internal")
    }
}

/// An instance's private name.
pub fn private_dns(address: Ipv4Addr, region: &str) -> String {
    format!(
        "ip-{}.{}",
        address.to_string().replace('.', "-"),
        domain_name(region)
    )
}
