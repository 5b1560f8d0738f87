//! The packet path from tap to tap against Linux's own: bridge, nftables, conntrack.
//!
//! Frames are injected by `BPF_PROG_TEST_RUN` with live frames, as if a NIC had
//! received them on the sender's tap: ours run the `port` program there, the peer's
//! pass into the stack and cross a bridge whose forward chain accepts established
//! flows first and has 20 rules, default drop. Both end in a tap that nobody reads,
//! whose ring is full: what is timed is the path up to that ring. The bare redirect
//! goes by interface index, dearer for the kernel than a device map's batches: it is a
//! reference, and ours may pass it. Rates are of one core: frames by CPU time used.

mod bpf;
mod kernel;
mod ours;
#[path = "../../dataplane/tests/support/stack.rs"]
#[allow(dead_code, reason = "the packet path's tests use more of it")]
mod stack;
mod stream;
mod uniform;
mod victim;

use crate::alternate::alternate;
use crate::report::{Better, Row, median};
use anyhow::Result;
use kernel::Chain;

/// Bytes of a test frame, the Ethernet minimum without checksum.
pub const FRAME_BYTES: usize = 60;
const PEER_20: &str = "bridge + nftables + conntrack, 20 rules, established first";
const PEER_1000: &str = "bridge + nftables + conntrack, 1,000 rules, established first";
const PEER_MAP: &str = "bridge + nftables + conntrack, a verdict map of 1,000, established first";
const ONE_RULE: &str = "ours with 1 rule";
const ONE_FLOW: &str = "ours with 1 flow, same sender";
/// Flows whose frames come in no order.
const HOT_FLOWS: u16 = 1_024;
/// What a change of an ENI's groups may take until it holds.
const GROUP_CHANGE_MS: f64 = 100.0;
/// What a frame of 64 bytes has of a core at 10 Gbit/s.
const LINE_RATE_NS: f64 = 67.0;

/// Seconds of CPU that this process has used. Frames are carried through to the last ring
/// by the thread that injects them, so this is what they cost of one core, whatever else
/// the machine does.
pub fn cpu_s() -> f64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
    now.tv_sec as f64 + now.tv_nsec as f64 / 1e9
}

/// Measures the area; cases: established, new, stream, groups, uniform, victim.
pub fn measure(common: &crate::Common) -> Result<Vec<Row>> {
    let quick = common.quick;
    let (runs, frames) = if quick { (5, 400_000) } else { (15, 2_000_000) };
    let mut rows = Vec::new();
    if common.takes("established") {
        rows.extend(established(runs, frames)?);
    }
    if common.takes("new") {
        rows.extend(new_flows(runs, frames / 4)?);
    }
    if common.takes("stream") {
        rows.extend(stream::measure(quick)?);
    }
    if common.takes("groups") {
        rows.push(group_changes(runs)?);
    }
    if common.takes("uniform") {
        rows.extend(uniform::measure(runs, frames)?);
    }
    if common.takes("victim") {
        rows.extend(victim::measure(quick)?);
    }
    Ok(rows)
}

/// An ENI on another host changes to groups that are known, among many mappings.
fn group_changes(runs: usize) -> Result<Row> {
    let mut fabric = ours::Regroup::new()?;
    let figures = alternate(runs, &mut [&mut || Ok(vec![fabric.change_ms(4)?])])?;
    let row = Row::new(
        "group_change_10000_mappings_ms",
        "ms",
        Better::Lower,
        &figures[0][0],
    );
    Ok(row.limited_by(GROUP_CHANGE_MS))
}

/// Frames of a flow that is tracked.
fn established(runs: usize, frames: u32) -> Result<Vec<Row>> {
    let ours = ours::Path::new(20)?;
    let (one, many) = (ours::Path::new(1)?, ours::Path::new(10_000)?);
    let (hot, single) = (ours.sender_of(HOT_FLOWS)?, ours.sender_of(1)?);
    let peer = kernel::Path::new(Chain::Linear(20), false)?;
    let redirect = kernel::Redirect::new(false)?;
    let encap = ours::Encap::new()?;
    // The peer is several times slower: fewer frames, the same time.
    let figures = alternate(
        runs,
        &mut [
            &mut || Ok(vec![ours.send_mpps(frames)?]),
            &mut || Ok(vec![peer.send_mpps(frames / 8)?]),
            &mut || Ok(vec![redirect.send_mpps(frames)?]),
            &mut || Ok(vec![one.send_mpps(frames)?]),
            &mut || Ok(vec![many.send_mpps(frames)?]),
            &mut || Ok(vec![encap.send_mpps(frames)?]),
            &mut || Ok(vec![ours.send_by_mpps(&hot, frames)?]),
            &mut || Ok(vec![ours.send_by_mpps(&single, frames)?]),
        ],
    )?;
    let [ours, peer, bare, one, many, encap, hot, single] =
        [0, 1, 2, 3, 4, 5, 6, 7].map(|side: usize| &figures[side][0]);
    let limit = median(bare);
    let over: Vec<f64> = ours
        .iter()
        .zip(bare)
        .map(|(a, b)| 1e3 / a - 1e3 / b)
        .collect();
    Ok(vec![
        Row::new("path_local_mpps", "Mpps", Better::Higher, ours).limited_by(limit),
        Row::new("path_encap_mpps", "Mpps", Better::Higher, encap).limited_by(limit),
        Row::new("path_local_ns_over_redirect", "ns", Better::Lower, &over)
            .limited_by(LINE_RATE_NS),
        Row::new("established_vs_nft", "Mpps", Better::Higher, ours)
            .against(PEER_20, peer)
            .limited_by(limit),
        Row::new("established_10000_rules_mpps", "Mpps", Better::Higher, many)
            .against(ONE_RULE, one)
            .limited_by(limit),
        Row::new("established_1024_flows_mpps", "Mpps", Better::Higher, hot)
            .against(ONE_FLOW, single)
            .limited_by(limit),
    ])
}

/// Frames of which each is another flow's: the rules are asked each time.
fn new_flows(runs: usize, frames: u32) -> Result<Vec<Row>> {
    let ours = ours::Path::new(20)?;
    let (one, many) = (ours::Path::new(1)?, ours::Path::new(10_000)?);
    let linear = kernel::Path::new(Chain::Linear(1_000), true)?;
    let map = kernel::Path::new(Chain::Map(1_000), true)?;
    let redirect = kernel::Redirect::new(true)?;
    // So few that almost none meets a flow that conntrack remembers.
    let peers = (frames / 8).min(20_000);
    let figures = alternate(
        runs,
        &mut [
            &mut || Ok(vec![ours.send_new_mpps(frames)?]),
            &mut || {
                std::thread::sleep(kernel::FORGETS);
                Ok(vec![linear.send_mpps(peers)?])
            },
            &mut || Ok(vec![map.send_mpps(peers)?]),
            &mut || Ok(vec![redirect.send_mpps(frames)?]),
            &mut || Ok(vec![one.send_new_mpps(frames)?]),
            &mut || Ok(vec![many.send_new_mpps(frames)?]),
        ],
    )?;
    let [ours, linear, map, bare, one, many] =
        [0, 1, 2, 3, 4, 5].map(|side: usize| &figures[side][0]);
    let limit = median(bare);
    Ok(vec![
        Row::new("new_flow_mpps", "Mpps", Better::Higher, ours).limited_by(limit),
        Row::new("new_flow_vs_nft_1000", "Mpps", Better::Higher, ours)
            .against(PEER_1000, linear)
            .limited_by(limit),
        Row::new("new_flow_vs_nft_map", "Mpps", Better::Higher, ours)
            .against(PEER_MAP, map)
            .limited_by(limit),
        Row::new("new_flow_10000_rules_mpps", "Mpps", Better::Higher, many)
            .against(ONE_RULE, one)
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
