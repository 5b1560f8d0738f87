//! Network ACLs: stateless rules at a subnet's border.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::vpcs::{has_dependencies, retell};
use super::{Ctx, tags, vpcs};
use crate::core::Tx;
use crate::rows::*;
use crate::view::View;
use crate::wire::{ApiError, Value};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::json;
use std::sync::Arc;

/// Rule numbers that callers may give; the last one is EC2's own.
const NUMBERS: std::ops::RangeInclusive<i64> = 1..=32_766;
/// Most entries of each direction (EC2's default quota).
const MAX_ENTRIES: usize = 20;

fn show_entry(entry: &AclEntry) -> Value {
    let mut item = json!({
        "Egress": entry.egress,
        "Protocol": entry.protocol.to_string(),
        "RuleAction": if entry.allow { "allow" } else { "deny" },
        "RuleNumber": entry.number,
    });
    match entry.cidr {
        IpNet::V4(cidr) => item["CidrBlock"] = cidr.to_string().into(),
        IpNet::V6(cidr) => item["Ipv6CidrBlock"] = cidr.to_string().into(),
    }
    match entry.protocol {
        6 | 17 => item["PortRange"] = json!({"From": entry.from_port, "To": entry.to_port}),
        1 | 58 => item["IcmpTypeCode"] = json!({"Type": entry.from_port, "Code": entry.to_port}),
        _ => {}
    }
    item
}

/// What ends every ACL: what no entry matches is denied, by IPv6 too where its VPC has that.
fn last(egress: bool, ipv6: bool) -> Vec<Value> {
    let ends = |member: &str, cidr: &str, number: u16| {
        json!({
            member: cidr, "Egress": egress, "Protocol": "-1",
            "RuleAction": "deny", "RuleNumber": number,
        })
    };
    let mut entries = vec![ends("CidrBlock", "0.0.0.0/0", 32_767)];
    if ipv6 {
        entries.push(ends("Ipv6CidrBlock", "::/0", 32_768));
    }
    entries
}

fn present(view: &View, scope: &Scope, row: &Acl) -> Value {
    let vpc = view.get::<Vpc>(scope, &row.vpc);
    let ipv6 = vpc.is_some_and(|vpc| !vpc.ipv6.is_empty());
    let associations = row.associations.iter().map(|(id, subnet)| {
        json!({
            "NetworkAclAssociationId": id.to_string(),
            "NetworkAclId": row.id.to_string(),
            "SubnetId": subnet.to_string(),
        })
    });
    let mut entries = Vec::new();
    for egress in [true, false] {
        let own = row.entries.iter().filter(|entry| entry.egress == egress);
        entries.extend(own.map(show_entry));
        entries.extend(last(egress, ipv6));
    }
    json!({
        "NetworkAclId": row.id.to_string(),
        "OwnerId": *scope.account,
        "VpcId": row.vpc.to_string(),
        "IsDefault": row.default,
        "Associations": associations.collect::<Vec<_>>(),
        "Entries": entries,
        "Tags": tag_set(&row.tags),
    })
}

/// DescribeNetworkAcls.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<Acl> {
        member: "NetworkAcls",
        paths: &[
            (
                "association.association-id",
                "Associations.NetworkAclAssociationId",
            ),
            ("association.network-acl-id", "Associations.NetworkAclId"),
            ("association.subnet-id", "Associations.SubnetId"),
            ("default", "IsDefault"),
            ("entry.cidr", "Entries.CidrBlock"),
            ("entry.egress", "Entries.Egress"),
            ("entry.icmp.code", "Entries.IcmpTypeCode.Code"),
            ("entry.icmp.type", "Entries.IcmpTypeCode.Type"),
            ("entry.ipv6-cidr", "Entries.Ipv6CidrBlock"),
            ("entry.port-range.from", "Entries.PortRange.From"),
            ("entry.port-range.to", "Entries.PortRange.To"),
            ("entry.protocol", "Entries.Protocol"),
            ("entry.rule-action", "Entries.RuleAction"),
            ("entry.rule-number", "Entries.RuleNumber"),
        ],
        parse: AclId::parse,
        not_found: |text| AclId::not_found(text),
    };
    describe(ctx, action, request, kind, |view, scope, row| {
        present(view, scope, row)
    })
    .await
}

fn one(tx: &Tx<'_>, text: &str) -> Result<Arc<Acl>, ApiError> {
    tx.get::<Acl>(&AclId::parse(text)?)
        .ok_or_else(|| AclId::not_found(text))
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    vpc_id: String,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// CreateNetworkAcl: a new one denies everything.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let kind = "network-acl";
    let tags = tags::on_create(&params.tag_specifications, kind, &[kind])?;
    ctx.write(|tx| {
        let vpc = vpcs::one(tx, &params.vpc_id)?;
        let row = Acl {
            id: AclId::random(),
            vpc: vpc.id,
            default: false,
            associations: Vec::new(),
            entries: Vec::new(),
            tags: tags.clone(),
        };
        let answer = json!({"NetworkAcl": present(tx.view, &tx.scope, &row)});
        tx.put(row)?;
        Ok(ctx.with_client_token(answer))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Named {
    network_acl_id: String,
}

/// DeleteNetworkAcl: not the default one, nor one that guards a subnet.
///
/// # Errors
/// `DependencyViolation`, `InvalidParameterValue`, ….
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Named = ctx.params(action, request)?;
    ctx.write(|tx| {
        let row = one(tx, &params.network_acl_id)?;
        if row.default {
            return Err(ApiError::new(
                "InvalidParameterValue",
                format!("cannot delete default network ACL {}", row.id),
            ));
        }
        if !row.associations.is_empty() {
            return Err(has_dependencies("networkAcl", row.id));
        }
        tx.delete::<Acl>(&row.id);
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Ports {
    from: Option<i32>,
    to: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Icmp {
    code: Option<i32>,
    #[serde(rename = "Type")]
    kind: Option<i32>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct EntryRequest {
    network_acl_id: String,
    rule_number: i64,
    protocol: String,
    rule_action: String,
    egress: bool,
    cidr_block: Option<String>,
    ipv6_cidr_block: Option<String>,
    port_range: Option<Ports>,
    icmp_type_code: Option<Icmp>,
}

fn number(number: i64) -> Result<u16, ApiError> {
    u16::try_from(number)
        .ok()
        .filter(|_| NUMBERS.contains(&number))
        .ok_or_else(|| ApiError::value(number, "ruleNumber", "It must be from 1 to 32766."))
}

impl EntryRequest {
    fn entry(&self) -> Result<AclEntry, ApiError> {
        let protocol = match self.protocol.to_ascii_lowercase().as_str() {
            "tcp" => 6,
            "udp" => 17,
            "icmp" => 1,
            "icmpv6" => 58,
            "all" | "-1" => -1,
            text => text
                .parse::<u8>()
                .map(i32::from)
                .map_err(|_| ApiError::value(text, "protocol", "Unknown protocol."))?,
        };
        let (text, member, v6) = match (&self.cidr_block, &self.ipv6_cidr_block) {
            (Some(_), Some(_)) => {
                return Err(ApiError::combination(
                    "The parameter cidrBlock may not be used with ipv6CidrBlock.",
                ));
            }
            (Some(text), None) => (text, "cidrBlock", false),
            (None, Some(text)) => (text, "ipv6CidrBlock", true),
            (None, None) => return Err(ApiError::missing("cidrBlock")),
        };
        let cidr = text
            .parse::<IpNet>()
            .ok()
            .filter(|net| matches!(net, IpNet::V6(_)) == v6);
        let cidr =
            cidr.ok_or_else(|| ApiError::value(text, member, "This is not a valid CIDR."))?;
        let (from_port, to_port) = match protocol {
            6 | 17 => {
                let range = self
                    .port_range
                    .as_ref()
                    .ok_or_else(|| ApiError::missing("portRange"))?;
                let (from, to) = (range.from.unwrap_or(-1), range.to.unwrap_or(-1));
                if !(0..=65_535).contains(&from) || !(from..=65_535).contains(&to) {
                    return Err(ApiError::new(
                        "InvalidParameterValue",
                        format!("Invalid TCP/UDP port range ({from}:{to})"),
                    ));
                }
                (from, to)
            }
            1 | 58 => {
                let icmp = self
                    .icmp_type_code
                    .as_ref()
                    .ok_or_else(|| ApiError::missing("icmpTypeCode"))?;
                (icmp.kind.unwrap_or(-1), icmp.code.unwrap_or(-1))
            }
            _ => (-1, -1),
        };
        Ok(AclEntry {
            egress: self.egress,
            number: number(self.rule_number)?,
            protocol,
            from_port,
            to_port,
            cidr: cidr.trunc(),
            allow: self.rule_action == "allow",
        })
    }
}

fn no_entry(acl: AclId, number: u16, egress: bool) -> ApiError {
    let way = if egress { "egress" } else { "ingress" };
    ApiError::new(
        "InvalidNetworkAclEntry.NotFound",
        format!("The {way} entry {number} of the networkAcl '{acl}' does not exist"),
    )
}

/// CreateNetworkAclEntry and ReplaceNetworkAclEntry.
///
/// # Errors
/// `NetworkAclEntryAlreadyExists`, `InvalidNetworkAclEntry.NotFound`, ….
pub async fn put_entry(
    ctx: &Ctx,
    action: &str,
    request: Value,
    replace: bool,
) -> Result<Value, ApiError> {
    let params: EntryRequest = ctx.params(action, request)?;
    let entry = params.entry()?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.network_acl_id)?.as_ref().clone();
        let key = |known: &AclEntry| (known.egress, known.number);
        let place = row
            .entries
            .iter()
            .position(|known| key(known) == key(&entry));
        match (place, replace) {
            (Some(place), true) => row.entries[place] = entry.clone(),
            (None, true) => return Err(no_entry(row.id, entry.number, entry.egress)),
            (Some(_), false) => {
                return Err(ApiError::new(
                    "NetworkAclEntryAlreadyExists",
                    format!(
                        "The network acl entry identified by {} already exists.",
                        entry.number
                    ),
                ));
            }
            (None, false) => {
                let held = row
                    .entries
                    .iter()
                    .filter(|known| known.egress == entry.egress);
                if held.count() >= MAX_ENTRIES {
                    return Err(ApiError::new(
                        "NetworkAclEntryLimitExceeded",
                        "The maximum number of network ACL entries has been reached.",
                    ));
                }
                row.entries.push(entry.clone());
                row.entries.sort_by_key(key);
            }
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DeleteEntry {
    network_acl_id: String,
    rule_number: i64,
    egress: bool,
}

/// DeleteNetworkAclEntry.
///
/// # Errors
/// `InvalidNetworkAclEntry.NotFound`, and EC2's other codes.
pub async fn delete_entry(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: DeleteEntry = ctx.params(action, request)?;
    let number = number(params.rule_number)?;
    ctx.write(|tx| {
        let mut row = one(tx, &params.network_acl_id)?.as_ref().clone();
        let before = row.entries.len();
        row.entries
            .retain(|entry| (entry.egress, entry.number) != (params.egress, number));
        if row.entries.len() == before {
            return Err(no_entry(row.id, number, params.egress));
        }
        tx.put(row)?;
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Replace {
    association_id: String,
    network_acl_id: String,
}

/// ReplaceNetworkAclAssociation: a subnet always has exactly one ACL.
///
/// # Errors
/// EC2's codes.
pub async fn replace_association(
    ctx: &Ctx,
    action: &str,
    request: Value,
) -> Result<Value, ApiError> {
    let params: Replace = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = AclAssociationId::parse(&params.association_id)?;
        let rows = tx.rows::<Acl>();
        let found = rows.iter().find_map(|row| {
            let (_, subnet) = row.associations.iter().find(|(known, _)| *known == id)?;
            Some((row, *subnet))
        });
        let (old, subnet) = found.ok_or_else(|| AclAssociationId::not_found(id))?;
        let new = one(tx, &params.network_acl_id)?;
        if new.vpc != old.vpc {
            return Err(ApiError::value(
                &params.network_acl_id,
                "networkAclId",
                "The network ACL and the subnet belong to different networks.",
            ));
        }
        if new.id == old.id {
            return Ok(json!({"NewAssociationId": id.to_string()}));
        }
        let (mut old, mut new) = (old.as_ref().clone(), new.as_ref().clone());
        let fresh = AclAssociationId::random();
        old.associations.retain(|(known, _)| *known != id);
        new.associations.push((fresh, subnet));
        let vpc = old.vpc;
        tx.put(old)?;
        tx.put(new)?;
        retell(tx, vpc)?;
        Ok(json!({"NewAssociationId": fresh.to_string()}))
    })
    .await
}
