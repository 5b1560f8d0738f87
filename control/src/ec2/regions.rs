//! Regions and zones: configuration, as EC2 shows it.

use super::Ctx;
use super::filters::Filters;
use super::params::Filter;
use crate::config::zone_id;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Regions {
    #[serde(default)]
    region_names: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

/// DescribeRegions: every region answers at the endpoint that was asked, since
/// a request's region is told by its signature.
///
/// # Errors
/// EC2's codes.
pub async fn regions(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Regions = ctx.params(action, request)?;
    let known = &ctx.core.config.regions;
    if let Some(name) = params
        .region_names
        .iter()
        .find(|name| !known.contains(name))
    {
        return Err(ApiError::value(
            name,
            "RegionName",
            "There is no such region.",
        ));
    }
    let filters = Filters::compile(action, &params.filters, &[])?;
    let items: Vec<Value> = known
        .iter()
        .filter(|name| params.region_names.is_empty() || params.region_names.contains(name))
        .map(|name| {
            json!({"RegionName": name, "Endpoint": ctx.host, "OptInStatus": "opt-in-not-required"})
        })
        .filter(|item| filters.pass(item))
        .collect();
    ctx.read(|_| Ok(json!({"Regions": items}))).await
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Zones {
    #[serde(default)]
    zone_names: Vec<String>,
    #[serde(default)]
    zone_ids: Vec<String>,
    #[serde(default)]
    filters: Vec<Filter>,
}

/// DescribeAvailabilityZones.
///
/// # Errors
/// EC2's codes.
pub async fn zones(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Zones = ctx.params(action, request)?;
    let region = ctx.region();
    let known = ctx.core.config.zones_of(region);
    let ids: Vec<String> = known.iter().map(|zone| zone_id(zone)).collect();
    let unknown = params.zone_names.iter().find(|name| !known.contains(name));
    if let Some(name) = unknown.or_else(|| params.zone_ids.iter().find(|id| !ids.contains(id))) {
        return Err(ApiError::new(
            "InvalidParameterValue",
            format!("Invalid availability zone: [{name}]"),
        ));
    }
    let filters = Filters::compile(action, &params.filters, &[])?;
    let all = params.zone_names.is_empty() && params.zone_ids.is_empty();
    let items: Vec<Value> = known
        .iter()
        .zip(&ids)
        .filter(|(name, id)| {
            all || params.zone_names.contains(name) || params.zone_ids.contains(id)
        })
        .map(|(name, id)| {
            json!({
                "ZoneName": name, "ZoneId": id, "ZoneType": "availability-zone",
                "State": "available", "RegionName": region, "Messages": [],
                "OptInStatus": "opt-in-not-required",
                "GroupName": region, "NetworkBorderGroup": region,
            })
        })
        .filter(|item| filters.pass(item))
        .collect();
    ctx.read(|_| Ok(json!({"AvailabilityZones": items}))).await
}
