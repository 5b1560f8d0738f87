//! The packet path from tap to tap against Linux's own: bridge, nftables, conntrack.
//!
//! Frames are injected by `BPF_PROG_TEST_RUN` with live frames, as if a NIC had
//! received them on the sender's tap: ours run the `port` program there, the peer's
//! pass into the stack and cross a bridge whose forward chain accepts established
//! flows first and has 20 rules, default drop. Both end in a tap that nobody reads,
//! whose ring is full: what is timed is the path up to that ring. The bare redirect
//! goes by interface index, dearer for the kernel than a device map's batches: it is a
//! reference, and ours may pass it.

mod bpf;
mod kernel;
mod ours;

use crate::alternate::alternate;
use crate::report::{Better, Row, median};
use anyhow::Result;

/// Bytes of a test frame, the Ethernet minimum without checksum.
pub const FRAME_BYTES: usize = 60;
const PEER: &str = "bridge + nftables + conntrack, 20 rules, established first";

/// Measures the area.
pub fn measure(quick: bool) -> Result<Vec<Row>> {
    let (runs, frames) = if quick { (5, 400_000) } else { (15, 2_000_000) };
    let ours = ours::Path::new()?;
    let peer = kernel::Path::new()?;
    let redirect = kernel::Redirect::new()?;
    let mut established = || Ok(vec![ours.send_mpps(frames)?]);
    // The peer is several times slower: fewer frames, the same time.
    let mut kernel = || Ok(vec![peer.send_mpps(frames / 8)?]);
    let mut bare = || Ok(vec![redirect.send_mpps(frames)?]);
    let figures = alternate(runs, &mut [&mut established, &mut kernel, &mut bare])?;
    let limit = median(&figures[2][0]);
    Ok(vec![
        Row::new("path_local_mpps", "Mpps", Better::Higher, &figures[0][0]).limited_by(limit),
        Row::new("established_vs_nft", "Mpps", Better::Higher, &figures[0][0])
            .against(PEER, &figures[1][0])
            .limited_by(limit),
    ])
}

/// One UDP datagram between two neighbours, padded to [`FRAME_BYTES`].
pub fn udp_frame(from: (&[u8; 6], [u8; 4], u16), to: (&[u8; 6], [u8; 4], u16)) -> Vec<u8> {
    let mut frame = Vec::with_capacity(FRAME_BYTES);
    frame.extend_from_slice(to.0);
    frame.extend_from_slice(from.0);
    frame.extend_from_slice(&[0x08, 0x00]);
    let total = u16::try_from(FRAME_BYTES - 14).unwrap_or_default();
    let mut ip = vec![0x45, 0];
    ip.extend_from_slice(&total.to_be_bytes());
    ip.extend_from_slice(&[0, 0, 0x40, 0, 64, 17, 0, 0]);
    ip.extend_from_slice(&from.1);
    ip.extend_from_slice(&to.1);
    let sum: u32 = ip
        .chunks(2)
        .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
        .sum();
    let folded = (sum & 0xffff) + (sum >> 16);
    let folded = u16::try_from((folded & 0xffff) + (folded >> 16)).unwrap_or_default();
    ip[10..12].copy_from_slice(&(!folded).to_be_bytes());
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&from.2.to_be_bytes());
    frame.extend_from_slice(&to.2.to_be_bytes());
    frame.extend_from_slice(&(total - 20).to_be_bytes());
    // A UDP checksum of zero: none was computed (RFC 768).
    frame.resize(FRAME_BYTES, 0);
    frame
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_has_a_right_header_checksum() {
        let frame = udp_frame((&[2; 6], [10, 0, 0, 1], 1), (&[4; 6], [10, 0, 0, 2], 2));
        assert_eq!(frame.len(), FRAME_BYTES);
        let sum: u32 = frame[14..34]
            .chunks(2)
            .map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])))
            .sum();
        assert_eq!((sum & 0xffff) + (sum >> 16), 0xffff);
    }
}
