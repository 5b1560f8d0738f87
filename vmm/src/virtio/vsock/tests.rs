//! A guest's socket driver, honest and hostile, and host programs on real streams.

use super::connection::BUFFER_BYTES;
use super::device::{EVENT, MAX_CONNECTIONS, MAX_WAITING, RX, TX};
use super::packet::{HEADER_BYTES, Header, NO_MORE_RECEIVED, NO_MORE_SENT, Operation, STREAM};
use super::*;
use crate::virtio::VirtioDevice;
use crate::virtio::hosted::Hosted;
use crate::virtio::hosted::tests::{Guest, keeps_the_contract, kick, settle};
use proptest::prelude::*;
use std::collections::VecDeque;
use std::io::{ErrorKind, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

const CID: u32 = 42;

struct Rig {
    _dir: tempfile::TempDir,
    path: PathBuf,
    hosted: Hosted<VsockModel>,
    metrics: Arc<VsockMetrics>,
    guest: Guest,
    /// Where the guest's receive buffers lie, in order.
    rooms: VecDeque<u64>,
}

fn model() -> (tempfile::TempDir, PathBuf, VsockModel) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("vsock");
    let listener = UnixListener::bind(&path).unwrap();
    listener.set_nonblocking(true).unwrap();
    let uid = rustix::process::getuid().as_raw();
    (dir, path, VsockModel::new(CID, listener, uid))
}

impl Rig {
    fn new() -> Self {
        let (dir, path, model) = model();
        let metrics = model.metrics();
        let mut hosted = Hosted::new(model).unwrap();
        let guest = Guest::attach(&mut hosted, 0);
        Self {
            _dir: dir,
            path,
            hosted,
            metrics,
            guest,
            rooms: VecDeque::new(),
        }
    }

    /// A program that says `line`.
    fn program(&mut self, line: &str) -> UnixStream {
        let mut stream = UnixStream::connect(&self.path).unwrap();
        stream.write_all(line.as_bytes()).unwrap();
        stream.set_nonblocking(true).unwrap();
        settle(&mut self.hosted);
        stream
    }

    fn send_header(&mut self, header: &Header, payload: &[u8]) {
        self.guest.offer(TX, &[&header.to_bytes(), payload], &[]);
        kick(&mut self.hosted, TX);
        settle(&mut self.hosted);
    }

    fn send(&mut self, ports: (u32, u32), operation: Operation, flags: u32, payload: &[u8]) {
        let header = Header {
            flags,
            len: u32::try_from(payload.len()).unwrap(),
            ..header(ports, operation)
        };
        let parts: Vec<&[u8]> = match payload {
            [] => vec![],
            some => vec![some],
        };
        let bytes = header.to_bytes();
        let all: Vec<&[u8]> = [&bytes[..]].into_iter().chain(parts).collect();
        self.guest.offer(TX, &all, &[]);
        kick(&mut self.hosted, TX);
        settle(&mut self.hosted);
    }

    /// The next packet to the guest, with its payload.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        if self.rooms.is_empty() {
            let room = self.guest.offer(RX, &[], &[4096]);
            self.rooms.push_back(room);
        }
        kick(&mut self.hosted, RX);
        settle(&mut self.hosted);
        let written = self.guest.take(RX)? as usize;
        let at = self.rooms.pop_front().unwrap();
        let bytes = self.guest.bytes(at, written);
        let header = Header::parse(bytes[..HEADER_BYTES].try_into().unwrap());
        assert_eq!(header.len as usize, written - HEADER_BYTES);
        assert_eq!(header.destination_cid, u64::from(CID));
        Some((header, bytes[HEADER_BYTES..].to_vec()))
    }

    fn expect(&mut self, operation: Operation) -> Header {
        let (header, _) = self.receive().unwrap_or_else(|| panic!("no {operation:?}"));
        assert_eq!(header.operation, Some(operation), "{header:?}");
        header
    }

    /// A connection that the guest made to port 7, and its program.
    fn connected(&mut self) -> UnixStream {
        let mut program = self.program("ACCEPT 7\n");
        self.send((1000, 7), Operation::Request, 0, &[]);
        self.expect(Operation::Response);
        assert_eq!(read(&mut program), b"OK 1000\n");
        program
    }

    fn count(&self, counter: fn(&VsockMetrics) -> &std::sync::atomic::AtomicU64) -> u64 {
        counter(&self.metrics).load(Ordering::Relaxed)
    }
}

fn header(ports: (u32, u32), operation: Operation) -> Header {
    Header {
        source_cid: CID.into(),
        destination_cid: 2,
        source_port: ports.0,
        destination_port: ports.1,
        len: 0,
        kind: STREAM,
        operation: Some(operation),
        flags: 0,
        buffer_bytes: 1 << 16,
        forwarded: 0,
    }
}

/// What is there to read.
fn read(stream: &mut UnixStream) -> Vec<u8> {
    let mut all = Vec::new();
    match stream.read_to_end(&mut all) {
        Ok(_) => {}
        Err(error) => assert_eq!(error.kind(), ErrorKind::WouldBlock),
    }
    all
}

fn is_closed(stream: &mut UnixStream) -> bool {
    matches!(stream.read(&mut [0]), Ok(0))
}

#[test]
fn it_keeps_the_contract() {
    let mut dirs = Vec::new();
    keeps_the_contract(|| {
        let (dir, _, model) = model();
        dirs.push(dir);
        model
    });
}

#[test]
fn a_guest_connects_talks_and_both_sides_close() {
    let mut rig = Rig::new();
    let mut program = rig.connected();
    rig.send((1000, 7), Operation::Data, 0, b"ping");
    assert_eq!(read(&mut program), b"ping");
    program.write_all(b"pong").unwrap();
    let (header, payload) = rig.receive().unwrap();
    assert_eq!(
        (header.operation, payload),
        (Some(Operation::Data), b"pong".to_vec())
    );
    assert_eq!(
        (
            header.source_port,
            header.destination_port,
            header.forwarded
        ),
        (7, 1000, 4)
    );
    // The program stops sending and still reads.
    program.shutdown(std::net::Shutdown::Write).unwrap();
    assert_eq!(rig.expect(Operation::Shutdown).flags, NO_MORE_SENT);
    rig.send((1000, 7), Operation::Data, 0, b"last");
    rig.send(
        (1000, 7),
        Operation::Shutdown,
        NO_MORE_SENT | NO_MORE_RECEIVED,
        &[],
    );
    rig.expect(Operation::Reset);
    assert_eq!(read(&mut program), b"last");
    assert!(is_closed(&mut program));
    assert_eq!(rig.count(|m| &m.connections), 0);
    assert_eq!(rig.count(|m| &m.bad_packets), 0);
}

#[test]
fn a_program_connects_to_a_port_of_the_guest() {
    let mut rig = Rig::new();
    let mut program = rig.program("CONN");
    program.write_all(b"ECT 22\nearly").unwrap();
    settle(&mut rig.hosted);
    let request = rig.expect(Operation::Request);
    assert_eq!(request.destination_port, 22);
    let ports = (22, request.source_port);
    assert_eq!(read(&mut program), b"", "not before the guest accepts");
    rig.send(ports, Operation::Response, 0, &[]);
    assert_eq!(read(&mut program), format!("OK {}\n", ports.1).as_bytes());
    assert_eq!(rig.receive().unwrap().1, b"early");
    drop(program);
    settle(&mut rig.hosted);
    rig.expect(Operation::Shutdown);
    // Refused by the guest.
    let mut program = rig.program("CONNECT 23\n");
    let request = rig.expect(Operation::Request);
    rig.send((23, request.source_port), Operation::Reset, 0, &[]);
    assert!(is_closed(&mut program));
}

#[test]
fn ports_without_a_taker_are_reset() {
    let mut rig = Rig::new();
    rig.send((1000, 9), Operation::Request, 0, &[]);
    let reset = rig.expect(Operation::Reset);
    assert_eq!((reset.source_port, reset.destination_port), (9, 1000));
    // One that waited and left takes none.
    let program = rig.program("ACCEPT 9\n");
    drop(program);
    rig.send((1000, 9), Operation::Request, 0, &[]);
    rig.expect(Operation::Reset);
    rig.send((1, 2), Operation::Data, 0, b"x");
    rig.expect(Operation::Reset);
    rig.send((1, 2), Operation::Reset, 0, &[]);
    assert!(rig.receive().is_none(), "a reset is not answered");
    assert_eq!(rig.count(|m| &m.refused), 2);
}

#[test]
fn a_program_that_does_not_read_costs_the_guest_its_credit_and_no_more() {
    let mut rig = Rig::new();
    let mut program = rig.connected();
    let chunk = [5u8; 4096];
    let mut sent = 0u32;
    // As an honest driver does: never more than the credit.
    loop {
        let mut forwarded = 0;
        while let Some((header, _)) = rig.receive() {
            forwarded = header.forwarded;
        }
        if sent - forwarded + 4096 > BUFFER_BYTES {
            rig.send((1000, 7), Operation::CreditRequest, 0, &[]);
            let told = rig.expect(Operation::CreditUpdate);
            if sent - told.forwarded + 4096 > BUFFER_BYTES {
                break;
            }
        }
        rig.send((1000, 7), Operation::Data, 0, &chunk);
        sent += 4096;
        assert!(sent < 64 << 20, "the credit never ends");
    }
    assert_eq!(rig.count(|m| &m.bad_packets), 0);
    // What is held reaches a program that reads again, whole.
    let mut got = 0;
    for _ in 0..1000 {
        got += read(&mut program).len();
        settle(&mut rig.hosted);
    }
    assert_eq!(got, sent as usize);
    let mut update = None;
    while let Some((header, _)) = rig.receive() {
        update = Some(header);
    }
    assert_eq!(update.unwrap().forwarded, sent);
}

#[test]
fn more_than_the_credit_ends_the_connection() {
    let mut rig = Rig::new();
    let mut program = rig.connected();
    for _ in 0..64 {
        rig.send((1000, 7), Operation::Data, 0, &[1; 32 << 10]);
    }
    let mut reset = false;
    while let Some((header, _)) = rig.receive() {
        reset |= header.operation == Some(Operation::Reset);
    }
    assert!(reset);
    assert!(rig.count(|m| &m.bad_packets) >= 1);
    read(&mut program);
    assert!(is_closed(&mut program));
}

#[test]
fn nothing_is_sent_to_a_guest_without_room() {
    let mut rig = Rig::new();
    let mut program = rig.connected();
    let mut update = header((1000, 7), Operation::CreditUpdate);
    update.buffer_bytes = 3;
    rig.send_header(&update, b"x");
    program.write_all(b"abcdef").unwrap();
    assert_eq!(rig.receive().unwrap().1, b"abc");
    assert!(rig.receive().is_none());
    update.forwarded = 3;
    rig.send_header(&update, b"x");
    assert_eq!(rig.receive().unwrap().1, b"def");
    // One that took more than it was given is not believed.
    update.forwarded = 1000;
    rig.send_header(&update, b"x");
    program.write_all(b"ghi").unwrap();
    assert!(rig.receive().is_none());
}

#[test]
fn everything_is_bounded() {
    let mut rig = Rig::new();
    let silent: Vec<UnixStream> = (0..MAX_WAITING + 8).map(|_| rig.program("")).collect();
    assert_eq!(silent.len(), MAX_WAITING + 8);
    let mut acceptors = Vec::new();
    let mut refused = 0;
    for n in 0..u32::try_from(MAX_CONNECTIONS + 8).unwrap() {
        acceptors.push(rig.program("ACCEPT 7\n"));
        rig.send((n, 7), Operation::Request, 0, &[]);
        let answer = rig.receive().unwrap().0;
        refused += u32::from(answer.operation == Some(Operation::Reset));
    }
    assert_eq!(rig.count(|m| &m.connections), MAX_CONNECTIONS as u64);
    assert_eq!(refused, 8);
    // Resets that the guest does not take make its packets wait, and are not lost.
    for n in 0..200 {
        rig.guest.offer(
            TX,
            &[&header((5000 + n, 1), Operation::Data).to_bytes()],
            &[],
        );
        kick(&mut rig.hosted, TX);
        if n % 32 == 31 {
            while rig.receive().is_some() {}
        }
    }
    assert!(!rig.guest.needs_reset());
    rig.hosted.reset();
    assert_eq!(rig.count(|m| &m.connections), 0);
}

#[test]
fn a_restored_machine_is_told_that_its_connections_are_gone() {
    let mut rig = Rig::new();
    let _program = rig.connected();
    rig.hosted.pause().unwrap();
    let saved = rig.hosted.save().unwrap();
    let (_dir, _, model) = model();
    let mut restored = Hosted::new(model).unwrap();
    restored.pause().unwrap();
    restored.load(&saved.own).unwrap();
    let mut guest = Guest::attach(&mut restored, 0);
    let at = guest.offer(EVENT, &[], &[4]);
    guest
        .ram
        .write_obj(0xffu32, vm_memory::GuestAddress(at))
        .unwrap();
    restored.resume();
    settle(&mut restored);
    assert_eq!(
        (guest.take(EVENT), guest.bytes(at, 4)),
        (Some(4), vec![0; 4])
    );
}

use vm_memory::Bytes;

#[derive(Clone, Debug)]
enum Act {
    Packet(Vec<u8>, Vec<u8>),
    Op(u32, u32, u16, u32, usize),
    Room(u32),
    Program(String),
    Say(usize, Vec<u8>),
    Leave(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let bytes = |max| proptest::collection::vec(any::<u8>(), 0..max);
    prop_oneof![
        1 => (bytes(60), bytes(64)).prop_map(|(a, b)| Act::Packet(a, b)),
        8 => (0..4u32, 5..9u32, 0..9u16, prop_oneof![Just(0u32), 0..4u32, any::<u32>()],
              prop_oneof![Just(0usize), 0..200usize, Just(66_000)])
            .prop_map(|(a, b, op, word, len)| Act::Op(a, b, op, word, len)),
        4 => prop_oneof![Just(4096u32), 44..100u32].prop_map(Act::Room),
        3 => prop_oneof![
            (4..9u32).prop_map(|p| format!("ACCEPT {p}\n")),
            (0..4u32).prop_map(|p| format!("CONNECT {p}\n")),
            "[A-Z0-9 \n]{0,40}".prop_map(String::from),
        ].prop_map(Act::Program),
        3 => (0..8usize, bytes(200)).prop_map(|(n, b)| Act::Say(n, b)),
        1 => (0..8usize).prop_map(Act::Leave),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, cases: 64, ..ProptestConfig::default() })]

    /// Whatever a guest sends and programs do, bounds hold, and after a reset an honest driver
    /// gets its connection.
    #[test]
    fn fuzz_hostile_packets_and_programs(acts in proptest::collection::vec(act(), 1..60)) {
        let mut rig = Rig::new();
        let mut programs: Vec<UnixStream> = Vec::new();
        for act in acts {
            match act {
                Act::Packet(header, payload) => {
                    let parts: Vec<&[u8]> = [&header[..], &payload[..]]
                        .into_iter()
                        .filter(|part| !part.is_empty())
                        .collect();
                    if !parts.is_empty() {
                        rig.guest.offer(TX, &parts, &[]);
                        kick(&mut rig.hosted, TX);
                    }
                }
                Act::Op(from, to, op, word, len) => {
                    let mut bytes = header((from, to), Operation::Data).to_bytes();
                    bytes[24..28].copy_from_slice(&u32::try_from(len).unwrap().to_le_bytes());
                    bytes[30..32].copy_from_slice(&op.to_le_bytes());
                    bytes[32..36].copy_from_slice(&word.to_le_bytes());
                    bytes[40..44].copy_from_slice(&word.to_le_bytes());
                    rig.guest.offer(TX, &[&bytes, &vec![1; len.max(1)]], &[]);
                    kick(&mut rig.hosted, TX);
                }
                Act::Room(bytes) => {
                    rig.guest.offer(RX, &[], &[bytes]);
                    kick(&mut rig.hosted, RX);
                }
                Act::Program(line) => programs.push(rig.program(&line)),
                Act::Say(n, bytes) => {
                    if let Some(program) = programs.get_mut(n) {
                        let _ = program.write(&bytes);
                    }
                }
                Act::Leave(n) if n < programs.len() => drop(programs.remove(n)),
                Act::Leave(_) => {}
            }
            settle(&mut rig.hosted);
            prop_assert!(rig.count(|m| &m.connections) <= MAX_CONNECTIONS as u64);
        }
        rig.hosted.reset();
        drop(programs);
        let mut fresh = Rig { guest: Guest::attach(&mut rig.hosted, 0), rooms: VecDeque::new(), ..rig };
        settle(&mut fresh.hosted);
        fresh.connected();
        prop_assert!(!fresh.guest.needs_reset());
    }
}
