//! A disk in a snapshot: what its backend offered. Where its ring stands is the transport's
//! to keep, and the requests that were in flight have ended.

use super::{CONFIG_BYTES, Offer};
use vhost::vhost_user::message::VhostUserInflight;

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

/// The in-flight region's dimensions as bytes: size, offset, queues, queue size.
pub(super) fn encode_region(info: &VhostUserInflight) -> Vec<u8> {
    let mut bytes = info.mmap_size.to_le_bytes().to_vec();
    bytes.extend_from_slice(&{ info.mmap_offset }.to_le_bytes());
    bytes.extend_from_slice(&{ info.num_queues }.to_le_bytes());
    bytes.extend_from_slice(&{ info.queue_size }.to_le_bytes());
    bytes
}

/// And back.
pub(super) fn decode_region(bytes: &[u8]) -> Result<VhostUserInflight, String> {
    let bad = || {
        format!(
            "has an in-flight region's dimensions in {} bytes",
            bytes.len()
        )
    };
    let (size, rest) = bytes.split_first_chunk::<8>().ok_or_else(bad)?;
    let (offset, rest) = rest.split_first_chunk::<8>().ok_or_else(bad)?;
    let (queues, rest) = rest.split_first_chunk::<2>().ok_or_else(bad)?;
    let queue_size = <[u8; 2]>::try_from(rest).map_err(|_| bad())?;
    Ok(VhostUserInflight::new(
        u64::from_le_bytes(*size),
        u64::from_le_bytes(*offset),
        u16::from_le_bytes(*queues),
        u16::from_le_bytes(queue_size),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn offers_and_regions_survive_as_bytes() {
        let mut offer = Offer::default();
        (offer.features, offer.config[3]) = (0x1234_5678_9abc, 7);
        assert!(decode(&encode(&offer)).unwrap() == offer);
        assert!(decode(&encode(&offer)[1..]).is_err());
        let info = VhostUserInflight::new(8192, 4096, 2, 256);
        let bytes = encode_region(&info);
        let again = decode_region(&bytes).unwrap();
        assert_eq!({ again.mmap_size }, 8192);
        assert_eq!({ again.mmap_offset }, 4096);
        assert_eq!(({ again.num_queues }, { again.queue_size }), (2, 256));
        assert!(decode_region(&bytes[1..]).is_err());
    }
}
