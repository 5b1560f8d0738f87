//! DHCP options: sets that VPCs are given, told to guests in their leases.

use super::list::tag_set;
use super::network::{Kind, describe};
use super::params::TagSpecification;
use super::vpcs::{has_dependencies, retell};
use super::{Ctx, tags, vpcs};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::net::Ipv4Addr;

/// Stands for the VPC's own resolver.
pub const OWN_RESOLVER: &str = "AmazonProvidedDNS";
/// Most servers of one option, as EC2 documents.
const MAX_SERVERS: usize = 4;

fn present(scope: &Scope, row: &DhcpOptions) -> Value {
    let options = row.options.iter().map(|(key, values)| {
        let values: Vec<Value> = values.iter().map(|value| json!({"Value": value})).collect();
        json!({"Key": key, "Values": values})
    });
    json!({
        "DhcpOptionsId": row.id.to_string(),
        "OwnerId": *scope.account,
        "DhcpConfigurations": options.collect::<Vec<_>>(),
        "Tags": tag_set(&row.tags),
    })
}

/// DescribeDhcpOptions.
///
/// # Errors
/// EC2's codes.
pub async fn list(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let kind = Kind::<DhcpOptions> {
        member: "DhcpOptions",
        paths: &[
            ("key", "DhcpConfigurations.Key"),
            ("value", "DhcpConfigurations.Values.Value"),
        ],
        parse: DhcpOptionsId::parse,
        not_found: |text| DhcpOptionsId::not_found(text),
    };
    describe(ctx, action, request, kind, |_, scope, row| {
        present(scope, row)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Configuration {
    key: Option<String>,
    #[serde(default)]
    values: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Create {
    dhcp_configurations: Vec<Configuration>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

/// One option, checked; several servers may be told in one value, with commas.
fn option(configuration: &Configuration) -> Result<(String, Vec<String>), ApiError> {
    let key = configuration
        .key
        .clone()
        .ok_or_else(|| ApiError::missing("DhcpConfiguration.1.Key"))?;
    let values: Vec<String> = configuration
        .values
        .iter()
        .flat_map(|value| value.split(','))
        .map(|value| value.trim().to_owned())
        .collect();
    let bad = |value: &str, why: &str| Err(ApiError::value(value, &key, why));
    let (first, single) = match values.as_slice() {
        [] => return Err(ApiError::missing("DhcpConfiguration.1.Value")),
        [first] => (first, true),
        [first, ..] => (first, false),
    };
    let plain = |text: &str| {
        let letter = |b: u8| b.is_ascii_alphanumeric() || b"-._".contains(&b);
        (1..=253).contains(&text.len()) && text.bytes().all(letter)
    };
    match key.as_str() {
        "domain-name" if !single || !plain(first) => bad(first, "It is not one domain name."),
        "netbios-node-type" if !single || !matches!(first.as_str(), "1" | "2" | "4" | "8") => {
            bad(first, "It must be 1, 2, 4 or 8.")
        }
        "domain-name" | "netbios-node-type" => Ok(()),
        "domain-name-servers" if single && first == OWN_RESOLVER => Ok(()),
        "domain-name-servers" | "ntp-servers" | "netbios-name-servers" => {
            if values.len() > MAX_SERVERS {
                return Err(ApiError::value(
                    first,
                    &key,
                    "At most 4 servers may be given.",
                ));
            }
            match values.iter().find(|text| text.parse::<Ipv4Addr>().is_err()) {
                Some(text) => bad(text, "It is not an IPv4 address."),
                None => Ok(()),
            }
        }
        _ => bad(&key, "There is no such option."),
    }?;
    Ok((key, values))
}

/// CreateDhcpOptions.
///
/// # Errors
/// EC2's codes.
pub async fn create(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Create = ctx.params(action, request)?;
    let options = params
        .dhcp_configurations
        .iter()
        .map(option)
        .collect::<Result<Vec<_>, _>>()?;
    let keys: std::collections::BTreeSet<&String> = options.iter().map(|(key, _)| key).collect();
    if keys.len() != options.len() {
        return Err(ApiError::new(
            "InvalidParameterValue",
            "An option is given more than once.",
        ));
    }
    let tags = tags::on_create(
        &params.tag_specifications,
        "dhcp-options",
        &["dhcp-options"],
    )?;
    ctx.write(|tx| {
        let row = DhcpOptions {
            id: DhcpOptionsId::random(),
            options: options.clone(),
            default: false,
            tags: tags.clone(),
        };
        let answer = json!({"DhcpOptions": present(&tx.scope, &row)});
        tx.put(row)?;
        Ok(answer)
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Associate {
    dhcp_options_id: String,
    vpc_id: String,
}

/// AssociateDhcpOptions: guests see it at their next lease.
///
/// # Errors
/// EC2's codes.
pub async fn associate(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Associate = ctx.params(action, request)?;
    ctx.write(|tx| {
        let mut vpc = vpcs::one(tx, &params.vpc_id)?.as_ref().clone();
        vpc.dhcp_options = match params.dhcp_options_id.as_str() {
            "default" => None,
            text => {
                let id = DhcpOptionsId::parse(text)?;
                tx.get::<DhcpOptions>(&id)
                    .ok_or_else(|| DhcpOptionsId::not_found(text))?;
                Some(id)
            }
        };
        let id = vpc.id;
        tx.put(vpc)?;
        retell(tx, id)?;
        Ok(json!({}))
    })
    .await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Delete {
    dhcp_options_id: String,
}

/// DeleteDhcpOptions.
///
/// # Errors
/// `DependencyViolation` while a VPC has them, and EC2's other codes.
pub async fn delete(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Delete = ctx.params(action, request)?;
    ctx.write(|tx| {
        let id = DhcpOptionsId::parse(&params.dhcp_options_id)?;
        tx.get::<DhcpOptions>(&id)
            .ok_or_else(|| DhcpOptionsId::not_found(id))?;
        if tx
            .rows::<Vpc>()
            .iter()
            .any(|vpc| vpc.dhcp_options == Some(id))
        {
            return Err(has_dependencies("dhcpOptions", id));
        }
        tx.delete::<DhcpOptions>(&id);
        Ok(json!({}))
    })
    .await
}
