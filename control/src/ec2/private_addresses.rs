//! An interface's private addresses: the primary one, which it is made with and keeps, and
//! secondary ones, which come and go.

use super::launch;
use super::{Ctx, interfaces, types};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;
use std::net::Ipv4Addr;

/// `PrivateIpAddresses.N`.
#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct PrivateIp {
    primary: Option<bool>,
    private_ip_address: Option<String>,
}

/// Addresses that a new interface is to have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Wanted {
    /// The primary one; nothing: any.
    pub primary: Option<Ipv4Addr>,
    /// Others.
    pub secondary: Vec<Ipv4Addr>,
    /// So many others, whichever they are.
    pub more: u32,
}

fn parse(text: &str) -> Result<Ipv4Addr, ApiError> {
    text.parse()
        .map_err(|_| ApiError::value(text, "PrivateIpAddress", "Invalid IPv4 address."))
}

fn count(asked: Option<i64>) -> Result<u32, ApiError> {
    let asked = asked.unwrap_or(0);
    u32::try_from(asked).map_err(|_| {
        ApiError::value(
            asked,
            "SecondaryPrivateIpAddressCount",
            "It must not be negative.",
        )
    })
}

impl Wanted {
    /// One address, or any.
    pub fn one(primary: Option<Ipv4Addr>) -> Self {
        Self {
            primary,
            ..Self::default()
        }
    }

    /// What a request asks for, in each of EC2's ways.
    ///
    /// # Errors
    /// EC2's codes.
    pub fn asked(
        single: Option<&String>,
        several: &[PrivateIp],
        more: Option<i64>,
    ) -> Result<Self, ApiError> {
        let mut wanted = Self {
            primary: single.map(|text| parse(text)).transpose()?,
            secondary: Vec::new(),
            more: count(more)?,
        };
        if wanted.more > 0 && several.iter().any(|one| one.primary != Some(true)) {
            return Err(ApiError::combination(
                "The parameters privateIpAddresses and secondaryPrivateIpAddressCount cannot be \
                 used together.",
            ));
        }
        for one in several {
            let text = one
                .private_ip_address
                .as_deref()
                .ok_or_else(|| ApiError::missing("PrivateIpAddresses.PrivateIpAddress"))?;
            let address = parse(text)?;
            match one.primary {
                Some(true) if wanted.primary.is_some() => {
                    return Err(ApiError::combination(
                        "An interface has one primary private address, which is named once.",
                    ));
                }
                Some(true) => wanted.primary = Some(address),
                _ => wanted.secondary.push(address),
            }
        }
        // One address that is not called secondary is the primary one.
        if let (None, [only]) = (wanted.primary, several)
            && only.primary.is_none()
        {
            wanted.primary = wanted.secondary.pop();
        }
        if wanted.primary.is_none() && !wanted.secondary.is_empty() {
            return Err(ApiError::new(
                "InvalidParameterValue",
                "There is no primary address.",
            ));
        }
        Ok(wanted)
    }

    /// How many there will be.
    pub fn total(&self) -> usize {
        (1 + self.secondary.len()).saturating_add(usize::try_from(self.more).unwrap_or(usize::MAX))
    }
}

/// The type's bound on addresses of an interface.
///
/// # Errors
/// `PrivateIpAddressLimitExceeded`.
pub fn room(kind: types::InstanceType, total: usize) -> Result<(), ApiError> {
    if total > usize::try_from(kind.network.1).unwrap_or(usize::MAX) {
        return Err(ApiError::new(
            "PrivateIpAddressLimitExceeded",
            format!(
                "Number of private addresses will exceed limit: an interface of {} has at most {}.",
                kind.name, kind.network.1
            ),
        ));
    }
    Ok(())
}

/// Some type allows an interface so many addresses.
///
/// # Errors
/// `PrivateIpAddressLimitExceeded`.
pub fn room_anywhere(total: usize) -> Result<(), ApiError> {
    let most = types::TYPES.iter().max_by_key(|kind| kind.network.1);
    most.map_or(Ok(()), |kind| room(*kind, total))
}

/// The type of the instance that an interface is attached to allows so many addresses; without
/// one any type does.
///
/// # Errors
/// Those of [`room`].
pub fn room_at(tx: &Tx<'_>, row: &Interface, total: usize) -> Result<(), ApiError> {
    let attachment = row.attachment.as_ref();
    let instance = attachment.and_then(|held| tx.get::<Instance>(&held.instance));
    match instance {
        Some(instance) => room(types::find(&instance.instance_type)?, total),
        None => room_anywhere(total),
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Assign {
    network_interface_id: String,
    #[serde(default)]
    private_ip_addresses: Vec<String>,
    secondary_private_ip_address_count: Option<i64>,
    #[serde(default)]
    allow_reassignment: bool,
}

/// AssignPrivateIpAddresses.
///
/// # Errors
/// `PrivateIpAddressLimitExceeded`, and EC2's other codes.
pub async fn assign(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Assign = ctx.params(action, request)?;
    let more = count(params.secondary_private_ip_address_count)?;
    let named = params.private_ip_addresses.iter();
    let named = named
        .map(|text| parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    match (named.is_empty(), more) {
        (true, 0) => return Err(ApiError::missing("secondaryPrivateIpAddressCount")),
        (false, 1..) => {
            return Err(ApiError::combination(
                "You may specify private addresses or their number, but not both.",
            ));
        }
        _ => {}
    }
    ctx.write(|tx| {
        let mut row = changeable(tx, &params.network_interface_id)?;
        let new: BTreeSet<Ipv4Addr> = named.iter().copied().collect();
        let new = new.into_iter().filter(|ip| !row.secondary.contains(ip));
        let new: Vec<Ipv4Addr> = new.collect();
        let more_too = usize::try_from(more).unwrap_or(usize::MAX);
        let total = (1 + row.secondary.len() + new.len()).saturating_add(more_too);
        room_at(tx, &row, total)?;
        let mut addresses = launch::addresses_of(tx, row.subnet)?;
        let mut given = Vec::new();
        for wanted in new {
            match launch::take_this(&mut addresses, wanted) {
                Err(error) if error.code == "InvalidIPAddress.InUse" => {
                    move_from(tx, &row, wanted, params.allow_reassignment)?;
                }
                taken => drop(taken?),
            }
            given.push(wanted);
        }
        for _ in 0..more {
            given.push(
                addresses
                    .take()
                    .ok_or_else(|| launch::no_address(row.subnet))?,
            );
        }
        row.secondary.extend(&given);
        tx.put(addresses)?;
        interfaces::regroup(tx, &row)?;
        let set: Vec<Value> = given
            .iter()
            .map(|ip| json!({"PrivateIpAddress": ip.to_string()}))
            .collect();
        let answer = json!({
            "NetworkInterfaceId": row.id.to_string(),
            "AssignedPrivateIpAddresses": set,
        });
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

/// An interface that the caller may change.
///
/// # Errors
/// EC2's codes.
pub fn changeable(tx: &Tx<'_>, text: &str) -> Result<Interface, ApiError> {
    let row = interfaces::one(tx, text)?;
    match row.is_managed() {
        true => Err(super::nat_gateways::not_yours()),
        false => Ok(row.as_ref().clone()),
    }
}

/// Takes a secondary address from the interface that has it.
fn move_from(tx: &mut Tx<'_>, to: &Interface, wanted: Ipv4Addr, may: bool) -> Result<(), ApiError> {
    let rows = tx.rows::<Interface>();
    let holder = rows
        .iter()
        .find(|row| row.subnet == to.subnet && row.secondary.contains(&wanted));
    let Some(holder) = holder.filter(|_| may) else {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("[{wanted}] assigned, but move is not allowed."),
        ));
    };
    let mut holder = holder.as_ref().clone();
    holder.secondary.retain(|held| *held != wanted);
    part(tx, &holder, wanted)?;
    interfaces::regroup(tx, &holder)?;
    tx.put(holder)
}

/// The Elastic IP of a private address that leaves its interface is free.
fn part(tx: &mut Tx<'_>, row: &Interface, private_ip: Ipv4Addr) -> Result<(), ApiError> {
    for address in tx.rows::<Address>() {
        let held = address.association.as_ref();
        if held.is_some_and(|a| a.interface == row.id && a.private_ip == Some(private_ip)) {
            tx.put(Address {
                association: None,
                ..address.as_ref().clone()
            })?;
        }
    }
    Ok(())
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Unassign {
    network_interface_id: String,
    #[serde(default)]
    private_ip_addresses: Vec<String>,
}

/// UnassignPrivateIpAddresses.
///
/// # Errors
/// `InvalidParameterValue` for the primary one and for those that it has not, ….
pub async fn unassign(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Unassign = ctx.params(action, request)?;
    if params.private_ip_addresses.is_empty() {
        return Err(ApiError::missing("privateIpAddress"));
    }
    let gone = params.private_ip_addresses.iter();
    let gone = gone
        .map(|text| parse(text))
        .collect::<Result<Vec<_>, _>>()?;
    ctx.write(|tx| {
        let mut row = changeable(tx, &params.network_interface_id)?;
        let mut addresses = launch::addresses_of(tx, row.subnet)?;
        for ip in &gone {
            if *ip == row.private_ip {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("The primary private IP address {ip} cannot be unassigned."),
                ));
            }
            let Some(place) = row.secondary.iter().position(|held| held == ip) else {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("Some of [{ip}] are not assigned to interface {}", row.id),
                ));
            };
            row.secondary.remove(place);
            addresses.give_back(*ip);
            part(tx, &row, *ip)?;
        }
        interfaces::regroup(tx, &row)?;
        tx.put(addresses)?;
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, last)
    }

    fn asked(
        single: Option<u8>,
        several: &[(Option<bool>, u8)],
        more: i64,
    ) -> Result<Wanted, String> {
        let several: Vec<PrivateIp> = several
            .iter()
            .map(|(primary, last)| PrivateIp {
                primary: *primary,
                private_ip_address: Some(ip(*last).to_string()),
            })
            .collect();
        let single = single.map(|last| ip(last).to_string());
        Wanted::asked(single.as_ref(), &several, Some(more))
            .map_err(|error| error.code.into_owned())
    }

    #[test]
    fn each_of_ec2s_ways_is_understood() {
        let wanted = |primary: Option<u8>, secondary: &[u8], more| {
            Ok(Wanted {
                primary: primary.map(ip),
                secondary: secondary.iter().map(|last| ip(*last)).collect(),
                more,
            })
        };
        assert_eq!(asked(None, &[], 0), wanted(None, &[], 0));
        assert_eq!(asked(Some(5), &[], 2), wanted(Some(5), &[], 2));
        assert_eq!(asked(None, &[(None, 5)], 0), wanted(Some(5), &[], 0));
        let both = [(Some(false), 6), (Some(true), 5)];
        assert_eq!(asked(None, &both, 0), wanted(Some(5), &[6], 0));
        assert_eq!(
            asked(Some(5), &[(Some(false), 6)], 0),
            wanted(Some(5), &[6], 0)
        );
        let code = |code: &str| Err(code.to_owned());
        assert_eq!(
            asked(None, &[(Some(false), 6)], 0),
            code("InvalidParameterValue")
        );
        assert_eq!(asked(None, &both, 1), code("InvalidParameterCombination"));
        assert_eq!(
            asked(Some(7), &both, 0),
            code("InvalidParameterCombination")
        );
        assert_eq!(asked(None, &[], -1), code("InvalidParameterValue"));
    }
}
