//! Frames as a pcapng file (draft-ietf-opsawg-pcapng): one section, one interface, an
//! enhanced packet block a frame.

use ocs_dataplane::fabric::Frame;
use ocs_dataplane::shared::layout::Direction;

const SECTION: u32 = 0x0a0d_0d0a;
const INTERFACE: u32 = 1;
const ENHANCED_PACKET: u32 = 6;
const BYTE_ORDER: u32 = 0x1a2b_3c4d;
const LINK_ETHERNET: u16 = 1;
const OPTION_END: u16 = 0;
const OPTION_NAME: u16 = 2;
const OPTION_RESOLUTION: u16 = 9;
const OPTION_FLAGS: u16 = 2;
/// Times are in 10^-9 s.
const NANOSECONDS: u8 = 9;
/// In a packet's flags.
const INBOUND: u32 = 1;
const OUTBOUND: u32 = 2;

/// The beginning of a file of one interface's frames.
pub fn header(interface: &str, snap_bytes: usize) -> Vec<u8> {
    let mut section = BYTE_ORDER.to_ne_bytes().to_vec();
    section.extend(1u16.to_ne_bytes());
    section.extend(0u16.to_ne_bytes());
    // How long the section is, is not known.
    section.extend((-1i64).to_ne_bytes());
    let mut description = LINK_ETHERNET.to_ne_bytes().to_vec();
    description.extend(0u16.to_ne_bytes());
    description.extend(u32::try_from(snap_bytes).unwrap_or(0).to_ne_bytes());
    option(&mut description, OPTION_NAME, interface.as_bytes());
    option(&mut description, OPTION_RESOLUTION, &[NANOSECONDS]);
    option(&mut description, OPTION_END, &[]);
    let mut file = Vec::new();
    block(&mut file, SECTION, &section);
    block(&mut file, INTERFACE, &description);
    file
}

/// Adds a frame; `offset_ns` leads from its clock to Unix time.
pub fn frame(file: &mut Vec<u8>, frame: &Frame, offset_ns: i128, snap_bytes: usize) {
    let time = u64::try_from(i128::from(frame.time_ns) + offset_ns).unwrap_or(0);
    let bytes = &frame.bytes[..frame.bytes.len().min(snap_bytes)];
    let (high, low) = ((time >> 32) as u32, time as u32);
    let mut packet = Vec::with_capacity(bytes.len() + 40);
    for word in [
        0,
        high,
        low,
        u32::try_from(bytes.len()).unwrap_or(0),
        frame.length,
    ] {
        packet.extend(word.to_ne_bytes());
    }
    padded(&mut packet, bytes);
    let flags = match frame.direction {
        Direction::Ingress => INBOUND,
        Direction::Egress => OUTBOUND,
    };
    option(&mut packet, OPTION_FLAGS, &flags.to_ne_bytes());
    option(&mut packet, OPTION_END, &[]);
    block(file, ENHANCED_PACKET, &packet);
}

fn block(file: &mut Vec<u8>, kind: u32, body: &[u8]) {
    let length = u32::try_from(body.len() + 12)
        .unwrap_or(u32::MAX)
        .to_ne_bytes();
    file.extend(kind.to_ne_bytes());
    file.extend(length);
    file.extend_from_slice(body);
    file.extend(length);
}

fn option(body: &mut Vec<u8>, code: u16, value: &[u8]) {
    body.extend(code.to_ne_bytes());
    body.extend(u16::try_from(value.len()).unwrap_or(0).to_ne_bytes());
    padded(body, value);
}

/// Bytes, and zeros up to a multiple of four.
fn padded(body: &mut Vec<u8>, bytes: &[u8]) {
    body.extend_from_slice(bytes);
    body.resize(body.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_whole_words_and_say_their_length_twice() {
        let mut file = header("eni-0123456789abcdef0", 96);
        let sent = Frame {
            time_ns: 5,
            direction: Direction::Egress,
            length: 1_514,
            bytes: vec![7; 101],
        };
        frame(&mut file, &sent, 1_700_000_000_000_000_000, 96);
        let mut rest = file.as_slice();
        let mut kinds = Vec::new();
        while !rest.is_empty() {
            let word = |at: usize| u32::from_ne_bytes(rest[at..at + 4].try_into().unwrap());
            let length = word(4) as usize;
            assert_eq!(length % 4, 0);
            assert_eq!(word(length - 4) as usize, length);
            kinds.push(word(0));
            if word(0) == ENHANCED_PACKET {
                let time = u64::from(word(12)) << 32 | u64::from(word(16));
                assert_eq!(time, 1_700_000_000_000_000_005);
                assert_eq!((word(20), word(24)), (96, 1_514));
                assert_eq!(rest[28..28 + 96], [7; 96]);
            }
            rest = &rest[length..];
        }
        assert_eq!(kinds, [SECTION, INTERFACE, ENHANCED_PACKET]);
    }
}
