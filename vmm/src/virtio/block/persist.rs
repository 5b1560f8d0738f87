//! A disk in a snapshot: what its backend offered. Where its ring stands is the transport's
//! to keep, and the requests that were in flight have ended.

use super::{CONFIG_BYTES, Offer};

/// An offer as bytes: features, then configuration.
pub(super) fn encode(offer: &Offer) -> Vec<u8> {
    let mut bytes = offer.features.to_le_bytes().to_vec();
    bytes.extend_from_slice(&offer.config);
    bytes
}

/// And back.
pub(super) fn decode(bytes: &[u8]) -> Result<Offer, String> {
    let bad = || format!("has a block device's offer of {} bytes", bytes.len());
    let (features, config) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
    Ok(Offer {
        features: u64::from_le_bytes(*features),
        config: <[u8; CONFIG_BYTES]>::try_from(config).map_err(|_| bad())?,
    })
}
