//! Programs are swapped under load, also for those of another layout, and nobody notices.

mod support;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use aya::maps::MapInfo;
use ocs_dataplane::model::{Policy, PortId};
use ocs_dataplane::shared::layout::{LAYOUT_VERSION, Reason};
use rustix::net::{AddressFamily, SocketType, bind, connect, socket};
use support::policy::{all_out, group, policy, port, tcp_in};
use support::stack::Stack;
use support::{Guest, HEADER, Lab};

const THREADS: u16 = 8;
const CONNECTIONS_EACH: u16 = 125;
const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 10);
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 11);
const FIRST_PORT: u16 = 7_000;
const MESSAGE: usize = 64;
const PATIENCE: Duration = Duration::from_secs(30);

/// Clients and servers on two stacks, and a thousand connections between them.
struct Load {
    lab: Lab,
    wanted: Policy,
    client: Stack,
    server: Stack,
    stops: Arc<AtomicBool>,
    messages: Arc<AtomicU64>,
    workers: Vec<std::thread::JoinHandle<()>>,
}

impl Load {
    fn new(guest: impl Fn(&Lab, &str) -> Guest) -> Self {
        let lab = Lab::new();
        let (a, b) = (guest(&lab, "tap-a"), guest(&lab, "tap-b"));
        let port_a = port(a.ifindex, 7, CLIENT.octets(), &["client"], [169, 254, 1, 1]);
        let port_b = port(b.ifindex, 7, SERVER.octets(), &["server"], [169, 254, 1, 2]);
        let (mac_a, mac_b) = (port_a.1.mac.0, port_b.1.mac.0);
        // Nobody may speak to the client first: answers pass because flows are tracked.
        let last = FIRST_PORT + THREADS;
        let into_server = vec![tcp_in(FIRST_PORT, last, group("client"))];
        let wanted = policy(
            [port_a, port_b],
            [("client", vec![all_out()]), ("server", into_server)],
        );
        lab.apply(&wanted).expect("a policy");
        let client = Stack::new(a.into_file(), HEADER, mac_a, CLIENT);
        let server = Stack::new(b.into_file(), HEADER, mac_b, SERVER);
        let mut load = Self {
            lab,
            wanted,
            client,
            server,
            stops: Arc::default(),
            messages: Arc::default(),
            workers: Vec::new(),
        };
        load.start();
        load
    }

    fn start(&mut self) {
        let ready = Arc::new(AtomicU64::new(0));
        for thread in 0..THREADS {
            let at = FIRST_PORT + thread;
            let (listening, heard) = std::sync::mpsc::channel();
            self.workers.push(self.server.spawn(move || {
                let listener = TcpListener::bind((SERVER, at)).expect("a port");
                listening.send(()).expect("a client waits");
                let mut connections: Vec<TcpStream> = (0..CONNECTIONS_EACH)
                    .map(|_| listener.accept().expect("a connection").0)
                    .collect();
                while echo(&mut connections) {}
            }));
            heard.recv_timeout(PATIENCE).expect("a server");
            let (stops, messages) = (Arc::clone(&self.stops), Arc::clone(&self.messages));
            let ready = Arc::clone(&ready);
            self.workers.push(self.client.spawn(move || {
                let mut connections: Vec<TcpStream> = (0..CONNECTIONS_EACH)
                    .map(|n| dial(20_000 + thread * CONNECTIONS_EACH + n, at))
                    .collect();
                ready.fetch_add(u64::from(CONNECTIONS_EACH), Ordering::SeqCst);
                let mut number = 0_u64;
                while !stops.load(Ordering::SeqCst) {
                    for connection in &mut connections {
                        number += 1;
                        ask(connection, number);
                        messages.fetch_add(1, Ordering::SeqCst);
                    }
                }
            }));
        }
        wait_until("all connections", || {
            ready.load(Ordering::SeqCst) == u64::from(THREADS * CONNECTIONS_EACH)
        });
    }

    fn messages(&self) -> u64 {
        self.messages.load(Ordering::SeqCst)
    }

    /// Lets every connection speak at least once.
    fn go_round(&self) {
        let before = self.messages();
        let each = u64::from(THREADS * CONNECTIONS_EACH);
        wait_until("a round", || self.messages() >= before + 2 * each);
    }

    /// Ends all connections; asserts that nothing was lost or reset.
    fn end(mut self) {
        self.stops.store(true, Ordering::SeqCst);
        for worker in self.workers.drain(..) {
            worker.join().expect("no connection fails");
        }
        let crossed = || {
            let (by_client, to_client) = self.client.counts();
            let (by_server, to_server) = self.server.counts();
            (by_client == to_server && by_server == to_client).then_some(by_client + by_server)
        };
        wait_until("every frame that was sent to arrive", || {
            crossed().is_some()
        });
        println!(
            "{} messages, {} TCP frames, {} sent again",
            self.messages(),
            crossed().unwrap_or(0),
            self.client.tcp("RetransSegs") + self.server.tcp("RetransSegs"),
        );
        for stack in [&self.client, &self.server] {
            assert_eq!(stack.tcp("EstabResets"), 0);
            assert_eq!(stack.tcp("OutRsts"), 0);
        }
        for id in self.wanted.ports.keys() {
            assert_eq!(self.drops(id), [], "{}", id.0);
        }
    }

    fn drops(&self, id: &PortId) -> Vec<(Reason, u64)> {
        let counters = self.lab.counters(id).expect("counters");
        let counted = counters.packets.into_iter();
        counted
            .map(|((_, reason), packets)| (reason, packets))
            .filter(|(reason, _)| !matches!(reason, Reason::Forwarded | Reason::Answered))
            .collect()
    }
}

fn wait_until(what: &str, done: impl Fn() -> bool) {
    let began = std::time::Instant::now();
    while !done() {
        assert!(began.elapsed() < PATIENCE, "waited in vain for {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Connects from a port of the test's choice, so that each run has the same flows.
fn dial(from: u16, to: u16) -> TcpStream {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).expect("a socket");
    bind(&socket, &SocketAddrV4::new(CLIENT, from)).expect("a free port");
    connect(&socket, &SocketAddrV4::new(SERVER, to)).expect("a connection");
    let stream = TcpStream::from(socket);
    stream.set_read_timeout(Some(PATIENCE)).expect("a time-out");
    stream
}

fn ask(connection: &mut TcpStream, number: u64) {
    let mut message = [0; MESSAGE];
    message[..8].copy_from_slice(&number.to_ne_bytes());
    connection.write_all(&message).expect("the server listens");
    let mut answer = [0; MESSAGE];
    connection
        .read_exact(&mut answer)
        .expect("the server answers");
    assert_eq!(answer, message);
}

/// Answers each connection once; `false` once a client has ended.
fn echo(connections: &mut [TcpStream]) -> bool {
    for connection in connections {
        let mut message = [0; MESSAGE];
        match connection.read_exact(&mut message) {
            Ok(()) => connection.write_all(&message).expect("the client listens"),
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return false,
            Err(error) => panic!("the client's connection: {error}"),
        }
    }
    true
}

#[test]
fn programs_are_swapped_under_a_thousand_connections() {
    are_swapped(Load::new(|lab, name| Guest::new(lab, name)));
}

/// The twin of guests that may leave work to others, too.
#[test]
fn twins_are_swapped_under_a_thousand_connections() {
    are_swapped(Load::new(|lab, name| Guest::with_offloads(lab, name, 0)));
}

fn are_swapped(mut load: Load) {
    load.go_round();
    let mut programs = load.lab.inventory().expect("an inventory").links;
    assert_eq!(programs.len(), 2);
    for _ in 0..3 {
        let before = load.messages();
        load.lab.restart();
        assert!(
            load.messages() > before,
            "no message while programs were swapped"
        );
        let now = load.lab.inventory().expect("an inventory").links;
        let generations: std::collections::BTreeSet<&u32> = now.values().collect();
        assert_eq!(generations.len(), 1, "all of one generation: {now:?}");
        assert!(now.keys().eq(programs.keys()));
        assert!(
            now.values()
                .all(|program| !programs.values().any(|old| old == program))
        );
        programs = now;
        load.go_round();
        load.lab.apply(&load.wanted).expect("the same policy");
        load.go_round();
    }
    load.end();
}

#[test]
fn a_layout_is_succeeded_under_a_thousand_connections() {
    is_succeeded(Load::new(|lab, name| Guest::new(lab, name)));
}

/// The twin's, too.
#[test]
fn a_layout_of_twins_is_succeeded_under_a_thousand_connections() {
    is_succeeded(Load::new(|lab, name| Guest::with_offloads(lab, name, 0)));
}

fn is_succeeded(mut load: Load) {
    load.go_round();
    let old = load.lab.inventory().expect("an inventory").links;
    let flows = load.lab.pins_of(LAYOUT_VERSION).join("maps/FLOWS");
    let flows = MapInfo::from_pin(flows).expect("a map").id();
    load.lab.succeed();
    // What was in force stays in force, until the successor knows what shall be.
    load.go_round();
    assert!(load.lab.inventory().expect("an inventory").links.is_empty());
    let before = load.messages();
    load.lab.apply(&load.wanted).expect("the same policy");
    assert!(load.messages() > before, "no message meanwhile");
    load.go_round();
    let now = load.lab.inventory().expect("an inventory").links;
    assert!(now.keys().eq(old.keys()));
    assert!(
        now.values()
            .all(|program| !old.values().any(|old| old == program))
    );
    let generations: std::collections::BTreeSet<&u32> = now.values().collect();
    assert_eq!(generations.len(), 1, "all of one generation: {now:?}");
    assert!(!load.lab.pins_of(LAYOUT_VERSION - 1).exists());
    wait_until("the old flow tables to be freed", || {
        MapInfo::from_id(flows).is_err()
    });
    load.end();
}
