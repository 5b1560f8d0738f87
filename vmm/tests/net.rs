//! virtio-net between the probe guest and a tap: frames both ways, by DHCP.

mod common;

use common::{Bench, tap};
use ocs_vmm_spec::control::Request;
use serde_json::json;
use std::os::fd::AsRawFd;
use std::os::unix::process::CommandExt;

const MAC: [u8; 6] = [2, 0, 0, 0, 0, 1];
const SERVER_MAC: [u8; 6] = [2, 0, 0, 0, 0, 0xfe];
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

#[test]
fn a_guest_gets_its_address_over_an_inherited_tap() {
    let (tap, host) = tap::make();
    let mut bench = Bench::probe("");
    bench.spec["net"] = json!([{
        "id": "eni-1", "tap": {"fd": tap.as_raw_fd()}, "mac": "02:00:00:00:00:01", "mtu": 1500,
    }]);
    let fd = tap.as_raw_fd();
    let mut command = bench.command();
    // SAFETY: only clears a flag of a descriptor that stays open in this process.
    unsafe {
        command.pre_exec(move || {
            libc::fcntl(fd, libc::F_SETFD, 0);
            Ok(())
        });
    }
    let mut vmm = bench.adopt(command.spawn().unwrap());
    for (asked, answer) in [(DISCOVER, OFFER), (REQUEST, ACK)] {
        let id = host.receive("DHCP message", |frame| {
            dhcp_from_guest(frame).and_then(|(kind, id)| (kind == asked).then_some(id))
        });
        host.send(&dhcp_to_guest(answer, id));
    }
    let console = vmm.wait_console("dhcp: address=172.31.0.5/20");
    assert!(
        console.contains("mac=02:00:00:00:00:01 mtu=1500"),
        "{console}"
    );

    // Frames larger than the MTU, broadcast storms and runts arrive, or are counted.
    let mut control = vmm.control();
    let before = control.counter("net.eni-1.rx_frames");
    let mut broadcast = vec![0xff; 6];
    broadcast.extend_from_slice(&SERVER_MAC);
    broadcast.resize(60, 0);
    for _ in 0..1000 {
        host.send(&broadcast);
    }
    common::wait_for("frames", || {
        (control.counter("net.eni-1.rx_frames") > before + 100).then_some(())
    });
    assert_eq!(control.counter("net.eni-1.faults"), 0);
    assert_eq!(control.counter("net.eni-1.tx_errors"), 0);
    assert!(control.counter("net.eni-1.interrupts") > 0);
    control.ask(&Request::Stop);
    assert!(vmm.finish().0.success());
}
