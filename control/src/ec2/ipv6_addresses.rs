//! An interface's IPv6 addresses, of its subnet's block.

use super::{Ctx, interfaces, launch, private_addresses, subnet_reservations, types};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use ipnet::Ipv6Net;
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::Ipv6Addr;

/// Draws that may meet reserved or held addresses before a subnet counts as full.
const MAX_TRIES: usize = 1_000;

/// `Ipv6Addresses.N`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Asked {
    ipv6_address: Option<String>,
}

/// Addresses that a new interface is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// These.
    pub named: Vec<Ipv6Addr>,
    /// So many, whichever they are; nothing: as its subnet has it.
    pub count: Option<u32>,
}

fn parse(text: &str) -> Result<Ipv6Addr, ApiError> {
    text.parse()
        .map_err(|_| ApiError::value(text, "Ipv6Addresses", "Invalid IPv6 address."))
}

fn count(asked: Option<i64>) -> Result<Option<u32>, ApiError> {
    let parse = |asked: i64| {
        u32::try_from(asked)
            .map_err(|_| ApiError::value(asked, "Ipv6AddressCount", "It must not be negative."))
    };
    asked.map(parse).transpose()
}

/// Addresses or their number, but not both.
fn either(named: Vec<Ipv6Addr>, count: Option<u32>) -> Result<Wanted, ApiError> {
    if !named.is_empty() && count.is_some_and(|count| count > 0) {
        return Err(ApiError::combination(
            "You may specify IPv6 addresses or their number, but not both.",
        ));
    }
    let distinct: BTreeSet<&Ipv6Addr> = named.iter().collect();
    if distinct.len() < named.len() {
        return Err(ApiError::new(
            "InvalidParameterValue",
            "An IPv6 address is named twice.",
        ));
    }
    Ok(Wanted { named, count })
}

impl Wanted {
    /// What a request asks for.
    ///
    /// # Errors
    /// EC2's codes.
    pub fn asked(several: &[Asked], number: Option<i64>) -> Result<Self, ApiError> {
        let address = |one: &Asked| {
            let text = one.ipv6_address.as_deref();
            parse(text.ok_or_else(|| ApiError::missing("Ipv6Addresses.Ipv6Address"))?)
        };
        let named = several.iter().map(address).collect::<Result<Vec<_>, _>>()?;
        either(named, count(number)?)
    }

    /// How many there will be in a subnet.
    pub fn total(&self, subnet: &Subnet) -> usize {
        let by_subnet = u32::from(subnet.assign_ipv6);
        let count = match self.named.is_empty() {
            true => self.count.unwrap_or(by_subnet),
            false => 0,
        };
        self.named.len() + usize::try_from(count).unwrap_or(usize::MAX)
    }

    /// Whether a subnet can give them, and an interface of a type have them.
    ///
    /// # Errors
    /// `InvalidParameterValue`, and those of [`private_addresses::room`].
    pub fn check(&self, subnet: &Subnet, kind: types::InstanceType) -> Result<(), ApiError> {
        let total = self.total(subnet);
        if total > 0 {
            block(subnet)?;
        }
        private_addresses::room(kind, total)
    }
}

fn block(subnet: &Subnet) -> Result<Ipv6Net, ApiError> {
    subnet.ipv6_block().ok_or_else(|| {
        ApiError::new(
            "InvalidParameterValue",
            format!("The subnet '{}' has no IPv6 CIDR block.", subnet.id),
        )
    })
}

/// Which addresses of a subnet interfaces have, but for those that `tx` gave.
fn held(tx: &Tx<'_>, subnet: SubnetId) -> BTreeSet<Ipv6Addr> {
    let rows = tx.view.all::<Interface>(&tx.scope);
    let here = rows.filter(|row| row.subnet == subnet);
    here.flat_map(|row| row.ipv6.iter().copied()).collect()
}

/// Addresses of a subnet that no interface has yet. `held` are those that interfaces have, and
/// these are among them then; who takes from a subnet again passes it again.
///
/// # Errors
/// `InvalidParameterValue`, `InvalidIPAddress.InUse`.
pub fn take(
    tx: &Tx<'_>,
    held: &mut Option<BTreeSet<Ipv6Addr>>,
    subnet: &Subnet,
    wanted: &Wanted,
) -> Result<Vec<Ipv6Addr>, ApiError> {
    let total = wanted.total(subnet);
    if total == 0 {
        return Ok(Vec::new());
    }
    let block = block(subnet)?;
    let held = held.get_or_insert_with(|| self::held(tx, subnet.id));
    let kept = subnet_reservations::ipv6(tx.view, &tx.scope, subnet.id);
    for address in &wanted.named {
        if !block.contains(address) || is_reserved(block, *address) {
            return Err(ApiError::value(
                address,
                "Ipv6Addresses",
                "The address is not one of the subnet's that interfaces may have.",
            ));
        }
        if kept
            .iter()
            .any(|(block, named)| !named && block.contains(address))
        {
            return Err(subnet_reservations::for_prefixes(address));
        }
        if !held.insert(*address) {
            return Err(ApiError::new(
                "InvalidIPAddress.InUse",
                format!("Address {address} is in use."),
            ));
        }
    }
    let mut given = wanted.named.clone();
    let mut tries = 0;
    while given.len() < total {
        let address = random(block)?;
        let kept = kept.iter().any(|(block, _)| block.contains(&address));
        if !kept && !is_reserved(block, address) && held.insert(address) {
            given.push(address);
            continue;
        }
        // Reservations may leave next to nothing of the block.
        tries += 1;
        if tries > MAX_TRIES {
            return Err(launch::no_address(subnet.id));
        }
    }
    Ok(given)
}

/// The first four and the last are EC2's own.
fn is_reserved(block: Ipv6Net, address: Ipv6Addr) -> bool {
    let offset = u128::from(address) - u128::from(block.network());
    offset < 4 || address == block.broadcast()
}

fn random(block: Ipv6Net) -> Result<Ipv6Addr, ApiError> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(|error| ApiError::internal(&error))?;
    let host = u128::from_ne_bytes(bytes) & u128::from(block.hostmask());
    Ok(Ipv6Addr::from(u128::from(block.network()) | host))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assign {
    network_interface_id: String,
    #[serde(default)]
    ipv6_addresses: Vec<String>,
    ipv6_address_count: Option<i64>,
}

/// AssignIpv6Addresses.
///
/// # Errors
/// `PrivateIpAddressLimitExceeded`, `InvalidIPAddress.InUse`, ….
pub async fn assign(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Assign = ctx.params(action, request)?;
    let named = params.ipv6_addresses.iter().map(|text| parse(text));
    let named = named.collect::<Result<Vec<_>, _>>()?;
    let wanted = either(named, count(params.ipv6_address_count)?)?;
    if wanted.named.is_empty() && wanted.count.unwrap_or(0) == 0 {
        return Err(ApiError::missing("ipv6AddressCount"));
    }
    ctx.write(|tx| {
        let mut row = private_addresses::changeable(tx, &params.network_interface_id)?;
        let subnet = tx
            .get::<Subnet>(&row.subnet)
            .ok_or_else(|| SubnetId::not_found(row.subnet))?;
        // What it has is its own already.
        let mut wanted = wanted.clone();
        wanted.named.retain(|address| !row.ipv6.contains(address));
        // Whatever the subnet gives new interfaces.
        wanted.count.get_or_insert(0);
        let total = row.ipv6.len().saturating_add(wanted.total(&subnet));
        private_addresses::room_at(tx, &row, total)?;
        let given = take(tx, &mut None, &subnet, &wanted)?;
        row.ipv6.extend(&given);
        interfaces::regroup(tx, &row)?;
        let answer = json!({
            "NetworkInterfaceId": row.id.to_string(),
            "AssignedIpv6Addresses": given.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Unassign {
    network_interface_id: String,
    #[serde(default)]
    ipv6_addresses: Vec<String>,
}

/// UnassignIpv6Addresses.
///
/// # Errors
/// `InvalidParameterValue` for those that it has not, ….
pub async fn unassign(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Unassign = ctx.params(action, request)?;
    if params.ipv6_addresses.is_empty() {
        return Err(ApiError::missing("ipv6Addresses"));
    }
    let gone = params.ipv6_addresses.iter().map(|text| parse(text));
    let gone = gone.collect::<Result<BTreeSet<_>, _>>()?;
    ctx.write(|tx| {
        let mut row = private_addresses::changeable(tx, &params.network_interface_id)?;
        if let Some(stranger) = gone.iter().find(|address| !row.ipv6.contains(address)) {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!(
                    "Some of [{stranger}] are not assigned to interface {}",
                    row.id
                ),
            ));
        }
        row.ipv6.retain(|address| !gone.contains(address));
        interfaces::regroup(tx, &row)?;
        let answer = json!({
            "NetworkInterfaceId": row.id.to_string(),
            "UnassignedIpv6Addresses": gone.iter().map(ToString::to_string).collect::<Vec<_>>(),
        });
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subnet(assign_ipv6: bool) -> Subnet {
        let cidr = ipnet::Ipv4Net::default();
        let block = "fd00:1:2:3::/64".parse().expect("a block");
        Subnet {
            ipv6: Some((SubnetCidrAssociationId::random(), block)),
            assign_ipv6,
            ..super::super::defaults::subnet(VpcId::random(), cidr, "us-east-1a")
        }
    }

    #[test]
    fn a_subnet_gives_one_unless_the_caller_says_otherwise() {
        let wanted = |count| Wanted {
            named: Vec::new(),
            count,
        };
        for (assigns, asked, total) in [
            (false, None, 0),
            (true, None, 1),
            (true, Some(0), 0),
            (false, Some(3), 3),
        ] {
            assert_eq!(wanted(asked).total(&subnet(assigns)), total);
        }
        let named = Wanted::asked(
            &[Asked {
                ipv6_address: Some("fd00:1:2:3::9".to_owned()),
            }],
            None,
        );
        assert_eq!(named.expect("a request").total(&subnet(true)), 1);
    }

    #[test]
    fn five_addresses_of_a_subnet_are_nobodys() {
        let block: Ipv6Net = "fd00:1:2:3::/64".parse().expect("a block");
        for (text, reserved) in [
            ("fd00:1:2:3::", true),
            ("fd00:1:2:3::3", true),
            ("fd00:1:2:3::4", false),
            ("fd00:1:2:3:ffff:ffff:ffff:fffe", false),
            ("fd00:1:2:3:ffff:ffff:ffff:ffff", true),
        ] {
            let address = text.parse().expect("an address");
            assert_eq!(is_reserved(block, address), reserved, "{text}");
        }
        for _ in 0..100 {
            assert!(block.contains(&random(block).expect("random numbers")));
        }
    }
}
