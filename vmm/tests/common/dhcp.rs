//! A DHCP server that gives 172.31.0.5/20 to the guest of MAC 02:00:00:00:00:01.

use super::tap::HostSide;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
pub const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
const GUEST_IP: [u8; 4] = [172, 31, 0, 5];
const SERVER_IP: [u8; 4] = [172, 31, 0, 1];
const DISCOVER: u8 = 1;
const OFFER: u8 = 2;
const REQUEST: u8 = 3;
const ACK: u8 = 5;

/// Offsets in an Ethernet frame with an IPv4 header without options.
const UDP: usize = 14 + 20;
const BOOTP: usize = UDP + 8;
const OPTIONS: usize = BOOTP + 240;

/// The type of a DHCP message from the guest, and its transaction id.
fn dhcp_from_guest(frame: &[u8]) -> Option<(u8, [u8; 4])> {
    let from_guest = frame.get(6..12)? == MAC;
    let udp_67 = frame.get(23)? == &17 && frame.get(UDP + 2..UDP + 4)? == [0, 67];
    if !from_guest || !udp_67 {
        return None;
    }
    let mut rest = frame.get(OPTIONS..)?;
    while let [code, len, tail @ ..] = rest {
        if *code == 53 {
            let id = frame.get(BOOTP + 4..BOOTP + 8)?.try_into().ok()?;
            return Some((*tail.first()?, id));
        }
        rest = tail.get(usize::from(*len)..)?;
    }
    None
}

fn dhcp_to_guest(kind: u8, id: [u8; 4]) -> Vec<u8> {
    let mut bootp = vec![0u8; 240];
    bootp[..4].copy_from_slice(&[2, 1, 6, 0]);
    bootp[4..8].copy_from_slice(&id);
    bootp[16..20].copy_from_slice(&GUEST_IP);
    bootp[28..34].copy_from_slice(&MAC);
    bootp[236..].copy_from_slice(&[99, 130, 83, 99]);
    bootp.extend_from_slice(&[53, 1, kind, 51, 4, 0, 0, 14, 16, 54, 4]);
    bootp.extend_from_slice(&SERVER_IP);
    bootp.extend_from_slice(&[1, 4, 255, 255, 240, 0, 3, 4]);
    bootp.extend_from_slice(&SERVER_IP);
    bootp.push(255);
    bootp.resize(300, 0);

    let udp_len = u16::try_from(8 + bootp.len()).unwrap();
    let ip_len = udp_len + 20;
    let mut ip = vec![0x45, 0, 0, 0, 0, 0, 0, 0, 64, 17, 0, 0];
    ip[2..4].copy_from_slice(&ip_len.to_be_bytes());
    ip.extend_from_slice(&SERVER_IP);
    ip.extend_from_slice(&GUEST_IP);
    let mut sum: u32 = ip
        .chunks(2)
        .map(|w| u32::from(u16::from_be_bytes([w[0], w[1]])))
        .sum();
    sum = (sum & 0xffff) + (sum >> 16);
    sum = (sum & 0xffff) + (sum >> 16);
    ip[10..12].copy_from_slice(&(!u16::try_from(sum).unwrap()).to_be_bytes());

    let mut frame = [MAC, SERVER_MAC].concat();
    frame.extend_from_slice(&[8, 0]);
    frame.extend_from_slice(&ip);
    frame.extend_from_slice(&[0, 67, 0, 68]);
    frame.extend_from_slice(&udp_len.to_be_bytes());
    frame.extend_from_slice(&[0, 0]);
    frame.extend_from_slice(&bootp);
    frame
}

/// Serves the guest's first lease.
pub fn serve(host: &HostSide) {
    for (asked, answer) in [(DISCOVER, OFFER), (REQUEST, ACK)] {
        let id = host.receive("DHCP message", |frame| {
            dhcp_from_guest(frame).and_then(|(kind, id)| (kind == asked).then_some(id))
        });
        host.send(&dhcp_to_guest(answer, id));
    }
}
