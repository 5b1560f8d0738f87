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
use ipnet::{IpNet, Ipv4Net, Ipv6Net};
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
            make(tx, &zones).map(|_| ())
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

/// The account's default VPC, with all that EC2 puts into it.
///
/// # Errors
/// Only those of writing rows.
pub fn make(tx: &mut Tx<'_>, zones: &[String]) -> Result<Vpc, ApiError> {
    let cidr = net(Ipv4Addr::new(172, 31, 0, 0), 16)?;
    let gateway = Gateway {
        id: GatewayId::random(),
        vpc: None,
        tags: Tags::new(),
    };
    let mut vpc = empty_vpc(tx, cidr)?;
    (vpc.default, vpc.dns_hostnames) = (true, true);
    furnish(tx, &vpc, Some(gateway.id))?;
    for (number, zone) in (0_u8..).zip(zones) {
        let cidr = net(Ipv4Addr::new(172, 31, number << 4, 0), 20)?;
        let mut subnet = subnet(vpc.id, cidr, zone);
        (subnet.default, subnet.map_public) = (true, true);
        add_subnet(tx, subnet)?;
    }
    tx.put(Gateway {
        vpc: Some(vpc.id),
        ..gateway
    })?;
    tx.put(vpc.clone())?;
    Ok(vpc)
}

/// A VPC without anything in it, not yet written.
///
/// # Errors
/// `VpcLimitExceeded` where no virtual network is left.
pub fn empty_vpc(tx: &mut Tx<'_>, cidr: Ipv4Net) -> Result<Vpc, ApiError> {
    Ok(Vpc {
        id: VpcId::random(),
        cidr,
        default: false,
        vni: next_vni(tx)?,
        dhcp_options: Some(default_options(tx)?),
        more_cidrs: Vec::new(),
        ipv6: Vec::new(),
        dns_support: true,
        dns_hostnames: false,
        usage_metrics: false,
        tags: Tags::new(),
    })
}

/// What every VPC is made with: main route table, default ACL, default group.
///
/// # Errors
/// Only those of writing rows.
pub fn furnish(tx: &mut Tx<'_>, vpc: &Vpc, gateway: Option<GatewayId>) -> Result<(), ApiError> {
    tx.put(RouteTable {
        id: RouteTableId::random(),
        vpc: vpc.id,
        local: vpc.cidr,
        main: Some(RouteAssociationId::random()),
        associations: Vec::new(),
        routes: gateway.map(to_internet).into_iter().collect(),
        tags: Tags::new(),
    })?;
    tx.put(Acl {
        id: AclId::random(),
        vpc: vpc.id,
        default: true,
        associations: Vec::new(),
        entries: everything_passes(),
        tags: Tags::new(),
    })?;
    let group = GroupId::random();
    tx.put(Group {
        id: group,
        vpc: vpc.id,
        vni: vpc.vni,
        name: "default".to_owned(),
        description: "default VPC security group".to_owned(),
        rules: vec![
            everything(false, Peer::Group(group)),
            everything(true, anywhere()),
        ],
        generation: 1,
        tags: Tags::new(),
    })
}

fn to_internet(gateway: GatewayId) -> Route {
    Route {
        destination: Ipv4Net::default().into(),
        target: Target::Gateway(gateway),
    }
}

/// A subnet as CreateSubnet makes it, not yet written.
pub fn subnet(vpc: VpcId, cidr: Ipv4Net, zone: &str) -> Subnet {
    Subnet {
        id: SubnetId::random(),
        vpc,
        cidr,
        zone: zone.to_owned(),
        default: false,
        map_public: false,
        ipv6: None,
        assign_ipv6: false,
        tags: Tags::new(),
    }
}

/// Writes a new subnet, its address map, and its place under the default ACL.
///
/// # Errors
/// Only those of writing rows.
pub fn add_subnet(tx: &mut Tx<'_>, subnet: Subnet) -> Result<(), ApiError> {
    let acl = tx
        .rows::<Acl>()
        .into_iter()
        .find(|acl| acl.vpc == subnet.vpc && acl.default);
    if let Some(acl) = acl {
        let mut acl = acl.as_ref().clone();
        acl.associations
            .push((AclAssociationId::random(), subnet.id));
        tx.put(acl)?;
    }
    tx.put(Addresses {
        subnet: subnet.id,
        cidr: subnet.cidr,
        taken: Vec::new(),
        next: None,
        reserved: Vec::new(),
    })?;
    tx.put(subnet)
}

/// The options that new VPCs get, one set a region.
fn default_options(tx: &mut Tx<'_>) -> Result<DhcpOptionsId, ApiError> {
    if let Some(row) = tx.rows::<DhcpOptions>().into_iter().find(|row| row.default) {
        return Ok(row.id);
    }
    let row = DhcpOptions {
        id: DhcpOptionsId::random(),
        options: vec![
            (
                "domain-name".to_owned(),
                vec![domain_name(&tx.scope.region)],
            ),
            (
                "domain-name-servers".to_owned(),
                vec!["AmazonProvidedDNS".to_owned()],
            ),
        ],
        default: true,
        tags: Tags::new(),
    };
    let id = row.id;
    tx.put(row)?;
    Ok(id)
}

fn net(address: Ipv4Addr, prefix: u8) -> Result<Ipv4Net, ApiError> {
    Ipv4Net::new(address, prefix).map_err(|error| ApiError::internal(&error))
}

/// 0.0.0.0/0.
pub fn anywhere() -> Peer {
    Peer::Cidr(IpNet::V4(Ipv4Net::default()))
}

/// ::/0.
pub fn anywhere_ipv6() -> Peer {
    Peer::Cidr(IpNet::V6(Ipv6Net::default()))
}

/// What a default ACL has besides where its VPC has an IPv6 block.
pub fn everything_by_ipv6() -> Vec<AclEntry> {
    let entries = everything_passes().into_iter();
    let by_ipv6 = entries.map(|entry| AclEntry {
        number: entry.number + 1,
        cidr: IpNet::V6(Ipv6Net::default()),
        ..entry
    });
    by_ipv6.collect()
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
        beyond: None,
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
