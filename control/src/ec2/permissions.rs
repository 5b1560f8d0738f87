//! Permissions as callers write them, checked and made rules.

use super::{groups, peer_groups, prefix_lists};
use crate::core::Tx;
use crate::rows::*;
use crate::wire::ApiError;
use ipnet::IpNet;
use serde::Deserialize;

/// `IpPermission`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Permission {
    /// As in EC2.
    pub ip_protocol: Option<String>,
    /// As in EC2.
    pub from_port: Option<i32>,
    /// As in EC2.
    pub to_port: Option<i32>,
    /// As in EC2.
    #[serde(default)]
    pub ip_ranges: Vec<Range>,
    /// As in EC2.
    #[serde(default)]
    pub ipv6_ranges: Vec<Range>,
    /// As in EC2.
    #[serde(default)]
    pub user_id_group_pairs: Vec<Pair>,
    /// As in EC2.
    #[serde(default)]
    pub prefix_list_ids: Vec<List>,
}

/// `PrefixListId`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct List {
    /// As in EC2.
    pub prefix_list_id: Option<String>,
    /// As in EC2.
    pub description: Option<String>,
}

/// `IpRange` or `Ipv6Range`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Range {
    /// As in EC2.
    #[serde(alias = "CidrIpv6")]
    pub cidr_ip: Option<String>,
    /// As in EC2.
    pub description: Option<String>,
}

/// `UserIdGroupPair`.
#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase")]
pub struct Pair {
    /// As in EC2.
    pub group_id: Option<String>,
    /// As in EC2.
    pub group_name: Option<String>,
    /// As in EC2.
    pub user_id: Option<String>,
    /// As in EC2: given, it must be so.
    pub vpc_id: Option<String>,
    /// As in EC2: given, it must be so.
    pub vpc_peering_connection_id: Option<String>,
    /// As in EC2: given, it must be so.
    pub peering_status: Option<String>,
    /// As in EC2.
    pub description: Option<String>,
}

/// The name that EC2 shows for a protocol.
pub fn protocol_name(protocol: i32) -> String {
    match protocol {
        1 => "icmp".to_owned(),
        6 => "tcp".to_owned(),
        17 => "udp".to_owned(),
        58 => "icmpv6".to_owned(),
        number => number.to_string(),
    }
}

/// Protocol and ports of a permission, checked.
fn ports(permission: &Permission) -> Result<(i32, i32, i32), ApiError> {
    let name = permission
        .ip_protocol
        .as_deref()
        .ok_or_else(|| ApiError::missing("IpProtocol"))?;
    let protocol = match name.to_ascii_lowercase().as_str() {
        "tcp" => 6,
        "udp" => 17,
        "icmp" => 1,
        "icmpv6" => 58,
        "all" | "-1" => -1,
        number => number
            .parse::<u8>()
            .map(i32::from)
            .map_err(|_| ApiError::value(name, "IpProtocol", "Unknown protocol."))?,
    };
    let (from, to) = (permission.from_port, permission.to_port);
    match protocol {
        6 | 17 => {
            let from = from.ok_or_else(|| ApiError::missing("FromPort"))?;
            let to = to.ok_or_else(|| ApiError::missing("ToPort"))?;
            // EC2 takes -1 to -1 as all ports.
            let (from, to) = if (from, to) == (-1, -1) {
                (0, 65_535)
            } else {
                (from, to)
            };
            if !(0..=65_535).contains(&from) || !(0..=65_535).contains(&to) || from > to {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("Invalid TCP/UDP port range {from}-{to}."),
                ));
            }
            Ok((protocol, from, to))
        }
        1 | 58 => {
            let (from, to) = (from.unwrap_or(-1), to.unwrap_or(-1));
            let valid = |n: i32| (-1..=255).contains(&n);
            if !valid(from) || !valid(to) || (from == -1 && to != -1) {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    format!("Invalid ICMP type {from} and code {to}."),
                ));
            }
            Ok((protocol, from, to))
        }
        _ => Ok((protocol, -1, -1)),
    }
}

fn cidr(text: Option<&str>, v6: bool) -> Result<IpNet, ApiError> {
    let text = text.ok_or_else(|| ApiError::missing("CidrIp"))?;
    text.parse::<IpNet>()
        .ok()
        .filter(|net| matches!(net, IpNet::V6(_)) == v6)
        .map(|net| net.trunc())
        .ok_or_else(|| {
            ApiError::new(
                "InvalidParameterValue",
                format!("CIDR block {text} is malformed"),
            )
        })
}

/// A description holds what EC2 lets it.
///
/// # Errors
/// `InvalidParameterValue`.
pub fn check_description(text: Option<&String>) -> Result<(), ApiError> {
    let plain = |c: char| c.is_ascii_alphanumeric() || " ._-:/()#,@[]+=&;{}!$*".contains(c);
    match text {
        Some(text) if text.len() > 255 || !text.chars().all(plain) => Err(ApiError::value(
            text,
            "Description",
            "At most 255 of a-z, A-Z, 0-9, spaces, and ._-:/()#,@[]+=&;{}!$* are allowed.",
        )),
        _ => Ok(()),
    }
}

/// The rules that permissions stand for.
///
/// # Errors
/// EC2's codes.
pub fn rules_of(
    tx: &Tx<'_>,
    group: &Group,
    permissions: &[Permission],
    egress: bool,
) -> Result<Vec<Rule>, ApiError> {
    let mut rules = Vec::new();
    for permission in permissions {
        let (protocol, from_port, to_port) = ports(permission)?;
        let mut peers = Vec::new();
        for (v6, ranges) in [
            (false, &permission.ip_ranges),
            (true, &permission.ipv6_ranges),
        ] {
            for range in ranges {
                peers.push((
                    (Peer::Cidr(cidr(range.cidr_ip.as_deref(), v6)?), None),
                    range.description.clone(),
                ));
            }
        }
        for pair in &permission.user_id_group_pairs {
            peers.push((peer_group(tx, group, pair)?, pair.description.clone()));
        }
        for list in &permission.prefix_list_ids {
            let id = list.prefix_list_id.as_deref();
            let id = id.ok_or_else(|| ApiError::missing("PrefixListId"))?;
            peers.push((
                (Peer::PrefixList(prefix_lists::for_rule(tx, id)?), None),
                list.description.clone(),
            ));
        }
        if peers.is_empty() {
            return Err(ApiError::missing(
                "source or destination of the rule: CidrIp or GroupId",
            ));
        }
        for ((peer, beyond), description) in peers {
            check_description(description.as_ref())?;
            let rule = Rule {
                id: RuleId::random(),
                egress,
                protocol,
                from_port,
                to_port,
                peer,
                beyond,
                description,
                tags: Tags::new(),
            };
            if rules.iter().any(|other| rule.same_as(other)) {
                return Err(ApiError::new(
                    "InvalidParameterValue",
                    "The same permission must not appear multiple times",
                ));
            }
            rules.push(rule);
        }
    }
    Ok(rules)
}

/// A group that a rule names: of the same VPC, or of one that it is peered with. One that a
/// rule names already may be gone, or beyond a peering that is.
fn peer_group(
    tx: &Tx<'_>,
    group: &Group,
    pair: &Pair,
) -> Result<(Peer, Option<(VpcId, PeeringId)>), ApiError> {
    let (view, scope) = (tx.view, &tx.scope);
    let id = pair.group_id.as_deref().map(GroupId::parse).transpose()?;
    let names = |rule: &&Rule| id.is_some_and(|id| rule.peer == Peer::Group(id));
    let (id, beyond) = match (id, group.rules.iter().find(names)) {
        (Some(id), Some(rule)) => (id, rule.beyond),
        _ => {
            let peer = groups::one(tx, pair.group_id.as_deref(), pair.group_name.as_deref())?;
            let peering = peer_groups::active(view, scope, group.vpc, peer.vpc);
            match peering {
                _ if peer.vpc == group.vpc => (peer.id, None),
                Some(peering) if id.is_some() => (peer.id, Some((peer.vpc, peering))),
                _ => return Err(GroupId::not_found(peer.id)),
            }
        }
    };
    let shown = peer_groups::pair(view, scope, group, beyond, id);
    let vpc = beyond.map_or(group.vpc, |(vpc, _)| vpc).to_string();
    let is = |given: &Option<String>, member: &str| {
        let given = given.as_deref();
        given.is_none_or(|given| shown[member] == given || member == "VpcId" && vpc == given)
    };
    let right = is(&pair.user_id, "UserId")
        && is(&pair.vpc_id, "VpcId")
        && is(&pair.vpc_peering_connection_id, "VpcPeeringConnectionId")
        && is(&pair.peering_status, "PeeringStatus");
    match right {
        true => Ok((Peer::Group(id), beyond)),
        false => Err(GroupId::not_found(id)),
    }
}
