//! The socket device between a guest's driver and programs of the host, both hostile.
//!
//! What the guest gets is packets that are whole and meant for it; what a program gets is an
//! answer in the protocol's words.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_fuzz::guest::{Guest, Turn};
use ocs_vmm::virtio::vsock::VsockModel;
use ocs_vmm::virtio::vsock::packet::{HEADER_BYTES, HOST_CID, Header, STREAM};
use rustix::event::epoll::EventFlags;
use std::io::{ErrorKind, Read, Write};
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::sync::LazyLock;

const CID: u32 = 42;
const RX: usize = 0;
const TX: u8 = 1;
const EVERYTHING: u32 = u32::MAX;

/// What happens next.
#[derive(Debug)]
enum Step {
    /// A packet of the guest: ports, operation, flags, credit, payload.
    Packet((u8, u8), u16, u8, (u32, u32), Vec<u8>),
    /// Room for a packet to the guest.
    Room(u16),
    /// Anything else that a driver can do.
    Turn(Turn),
    /// A program connects and says this.
    Program(u8, Vec<u8>),
    /// A program says more, or leaves.
    More(u8, Option<Vec<u8>>),
}

type Raw = (u8, u8, u8, (u16, u32, u32), Vec<u8>, Turn);

static ADDRESS: LazyLock<SocketAddr> = LazyLock::new(|| {
    let name = format!("ocs-fuzz-vsock-{}", std::process::id());
    SocketAddr::from_abstract_name(name).expect("a short name")
});
static LISTENER: LazyLock<UnixListener> = LazyLock::new(|| {
    let listener = UnixListener::bind_addr(&ADDRESS).expect("a name of this process");
    listener.set_nonblocking(true).expect("a socket");
    listener
});

fuzz_target!(|data: (bool, Vec<Raw>)| {
    let (event_idx, steps) = data;
    // Programs of an earlier run that were never heard.
    while LISTENER.accept().is_ok() {}
    let mut guest = Guest::new(model(), event_idx);
    let mut programs: Vec<UnixStream> = Vec::new();
    for raw in steps.into_iter().take(32) {
        match step(raw) {
            Step::Packet(ports, operation, flags, credit, payload) => {
                let mut bytes = header(ports, flags, credit, payload.len())
                    .to_bytes()
                    .to_vec();
                bytes[30..32].copy_from_slice(&operation.to_le_bytes());
                bytes.extend_from_slice(&payload);
                let len = bytes.len() as u16;
                guest.turn(&(TX, vec![(0, len, 0)], bytes, Vec::new()));
            }
            Step::Room(len) => {
                guest.turn(&(RX as u8, vec![(0x2000, len, 2)], Vec::new(), Vec::new()));
            }
            Step::Turn(turn) => guest.turn(&turn),
            Step::Program(kind, bytes) => {
                let mut program = UnixStream::connect_addr(&ADDRESS).expect("the listener");
                program.set_nonblocking(true).expect("a socket");
                let line = match kind % 4 {
                    0 => format!("CONNECT {}\n", kind / 4).into_bytes(),
                    1 => format!("ACCEPT {}\n", kind / 4).into_bytes(),
                    _ => Vec::new(),
                };
                let _ = program.write_all(&[line, bytes].concat());
                programs.push(program);
                guest.ready(EVERYTHING, EventFlags::IN);
            }
            Step::More(which, bytes) if !programs.is_empty() => {
                let which = usize::from(which) % programs.len();
                match bytes {
                    Some(bytes) => drop(programs[which].write_all(&bytes)),
                    None => drop(programs.swap_remove(which)),
                }
                guest.ready(EVERYTHING, EventFlags::IN);
            }
            Step::More(..) => {}
        }
        received(&mut guest);
        programs.iter_mut().for_each(drain);
    }
    guest.end(model());
});

fn model() -> VsockModel {
    let listener = LISTENER.try_clone().expect("a descriptor");
    VsockModel::new(CID, listener, rustix::process::getuid().as_raw())
}

fn step((kind, a, b, (number, x, y), bytes, turn): Raw) -> Step {
    match kind % 8 {
        0..3 => Step::Packet((a % 8, b % 8), number % 9, a >> 4, (x, y), bytes),
        3 => Step::Room(number),
        4 => Step::Turn(turn),
        5 => Step::Program(a, bytes),
        6 => Step::More(a, Some(bytes)),
        _ => Step::More(a, None),
    }
}

fn header(ports: (u8, u8), flags: u8, credit: (u32, u32), len: usize) -> Header {
    Header {
        source_cid: CID.into(),
        destination_cid: HOST_CID,
        source_port: ports.0.into(),
        destination_port: ports.1.into(),
        len: len as u32,
        kind: STREAM,
        operation: None,
        flags: flags.into(),
        buffer_bytes: credit.0,
        forwarded: credit.1,
    }
}

/// Packets in buffers that the driver gave for them are whole.
fn received(guest: &mut Guest<VsockModel>) {
    // A ring that was written over says what it likes.
    for _ in 0..16 {
        let Some((head, written)) = guest.take(RX) else {
            return;
        };
        let Ok(written) = usize::try_from(written) else {
            return;
        };
        if written < HEADER_BYTES || written > 1 << 14 {
            return;
        }
        let Some(bytes) = guest.bytes(RX, head, HEADER_BYTES) else {
            return;
        };
        let header = Header::parse(bytes[..].try_into().expect("its length"));
        if header.destination_cid == u64::from(CID) && header.source_cid == HOST_CID {
            assert!(header.operation.is_some(), "{header:?}");
        }
    }
}

/// Nothing that a program is told blocks the device.
fn drain(program: &mut UnixStream) {
    let mut bytes = [0; 4096];
    match program.read(&mut bytes) {
        Ok(_) => {}
        Err(error) => assert!(
            matches!(
                error.kind(),
                ErrorKind::WouldBlock | ErrorKind::ConnectionReset
            ),
            "{error}"
        ),
    }
}
