//! CopySnapshot: a snapshot with a life of its own, of another one or of an image's.

use super::description;
use crate::core::{Tx, now_s};
use crate::ec2::params::TagSpecification;
use crate::ec2::volumes::{Source, source_in};
use crate::ec2::{Ctx, ebs_defaults, place, quotas, tags};
use crate::rows::*;
use crate::wire::{ApiError, Value};
use serde::Deserialize;
use serde_json::json;
use std::collections::BTreeSet;

/// Copies of an account and region that may be under way (AWS quota L-B3A130E6).
const MOST_AT_ONCE: usize = 20;
/// What EC2 shows as the volume of a copy is no volume.
const NO_VOLUME: &str = "vol-fffffffffffffffff";

/// A copy to be made of `source`.
///
/// # Errors
/// `ResourceLimitExceeded`, `InsufficientInstanceCapacity` where there is no host.
pub fn row_of(
    ctx: &Ctx,
    tx: &Tx<'_>,
    source: &Source,
    description: &str,
    encrypted: bool,
    tags: &Tags,
) -> Result<Snapshot, ApiError> {
    let pending =
        |row: &&std::sync::Arc<Snapshot>| row.copy.is_some() && row.state == SnapshotState::Pending;
    if quotas::limits(tx) == Limits::Ec2
        && tx.view.all::<Snapshot>(&tx.scope).filter(pending).count() >= MOST_AT_ONCE
    {
        return Err(ApiError::new(
            "ResourceLimitExceeded",
            format!(
                "Cannot have more than {MOST_AT_ONCE} snapshot copies in progress at one time."
            ),
        ));
    }
    let node = match &source.node {
        Some(node) => node.clone(),
        None => place::any(&ctx.core, tx).ok_or_else(|| place::insufficient(ctx.region()))?,
    };
    let of_row = source.node.is_some();
    Ok(Snapshot {
        id: SnapshotId::random(),
        volume: VolumeId::parse(NO_VOLUME)?,
        node,
        size_gib: source.size_gib,
        description: description.to_owned(),
        state: SnapshotState::Pending,
        message: String::new(),
        generation: 1,
        started_at_s: now_s(),
        completed_at_s: None,
        encrypted: source.encrypted || encrypted || ebs_defaults::encrypt(tx),
        full_bytes: 0,
        changed_bytes: 0,
        while_down: None,
        with: Vec::new(),
        copy: Some(SnapshotCopy {
            snapshot: source.snapshot.filter(|_| of_row),
            image: source.image.clone(),
        }),
        boot: source.boot.clone(),
        shared_with: BTreeSet::new(),
        tags: tags.clone(),
    })
}

/// A region by the name that a copy gives it.
///
/// # Errors
/// `InvalidRegion`.
pub fn source_region<'a>(ctx: &Ctx, name: &'a str) -> Result<&'a str, ApiError> {
    let known = ctx.core.config.regions.iter().any(|region| region == name);
    known.then_some(name).ok_or_else(|| {
        ApiError::new(
            "InvalidRegion",
            format!("The specified region {name} is not valid."),
        )
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Copy {
    source_region: String,
    source_snapshot_id: String,
    description: Option<String>,
    encrypted: Option<bool>,
    destination_region: Option<String>,
    presigned_url: Option<String>,
    #[serde(default)]
    tag_specifications: Vec<TagSpecification>,
}

impl Copy {
    /// Clients say the same once more in a URL that they sign for the source's region.
    fn check_twin(&self, ctx: &Ctx) -> Result<(), ApiError> {
        if let Some(region) = self.destination_region.as_deref()
            && region != ctx.region()
        {
            return Err(ApiError::value(
                region,
                "DestinationRegion",
                "It is the region that is called.",
            ));
        }
        let Some(url) = &self.presigned_url else {
            return Ok(());
        };
        let says = |name: &str, value: &str| {
            let pair = format!("{name}={value}");
            url.split(['?', '&']).any(|part| part == pair)
        };
        if says("Action", "CopySnapshot")
            && says("SourceSnapshotId", &self.source_snapshot_id)
            && says("DestinationRegion", ctx.region())
        {
            return Ok(());
        }
        Err(ApiError::value(
            url.chars().take(80).collect::<String>(),
            "PresignedUrl",
            "It is not for this copy.",
        ))
    }
}

/// CopySnapshot.
///
/// # Errors
/// `InvalidRegion`, `InvalidSnapshot.NotFound`, and EC2's other codes.
pub async fn copy(ctx: &Ctx, action: &str, request: Value) -> Result<Value, ApiError> {
    let params: Copy = ctx.params(action, request)?;
    let region = source_region(ctx, &params.source_region)?;
    params.check_twin(ctx)?;
    let tags = tags::on_create(&params.tag_specifications, "snapshot", &["snapshot"])?;
    let text = match params.description.as_deref() {
        Some(text) => description(Some(text))?,
        None => format!("[Copied {} from {region}]", params.source_snapshot_id),
    };
    ctx.write(|tx| {
        let source = source_in(ctx, tx, region, &params.source_snapshot_id)?;
        let encrypted = params.encrypted == Some(true);
        let row = row_of(ctx, tx, &source, &text, encrypted, &tags)?;
        let answer = json!({
            "SnapshotId": row.id.to_string(),
            "Tags": crate::ec2::list::tag_set(&tags),
        });
        tx.put(row)?;
        Ok(answer)
    })
    .await
}
