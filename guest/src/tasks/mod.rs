//! What the probe does: devices up, address, metadata, then the orders.
//!
//! ```text
//!  main ─▶ devices ─▶ dhcp ─▶ imds ─▶ user data ─▶ one task an order (one a disk)
//!                └─ no NIC: orders from the command line
//!  events ─▶ power button; rack: devices that come and go
//! ```

mod addresses;
mod attempts;
mod bench;
mod disk;
mod fetch;
mod imds;
mod listen;
mod probes;
mod rack;
mod resolve;
mod stream;

use crate::console::say;
use crate::machine::Start;
use crate::net::Net;
use crate::net::device::FEATURE_CSUM;
use crate::net::dhcp::Lease;
use crate::net::ipv6;
use crate::virtio::disk::Disk;
use crate::virtio::pci::Root;
use crate::{events, executor, power};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use ocs_probe_logic::acpi::Acpi;
use ocs_probe_logic::order::{Line, Order, parse_all};
use rack::Rack;

/// Running totals come this often, less often with more than eight orders that report.
const REPORT_US: u64 = 1_000_000;
const REPORTERS_PER_SECOND: u64 = 8;

/// What orders work with.
pub struct Board {
    net: RefCell<Option<Rc<Net>>>,
    /// By index; a hot-plugged one takes the first place that is free.
    disks: RefCell<Vec<Option<Rc<Disk>>>>,
    report_us: Cell<u64>,
    net_features: u64,
}

impl Board {
    fn disk(&self, index: u8) -> Option<Rc<Disk>> {
        self.disks.borrow().get(usize::from(index))?.clone()
    }
}

/// Set when an order that ends has ended.
type Done = Rc<Cell<bool>>;

/// The first task.
pub async fn main(start: Start, acpi: Acpi) {
    let board = Rc::new(Board {
        net: RefCell::default(),
        disks: RefCell::default(),
        report_us: Cell::new(REPORT_US),
        net_features: net_features(&start),
    });
    match acpi.ecam.and_then(Root::new) {
        Some(root) => {
            let rack = Rack::fill(root, board.clone());
            executor::spawn(events(acpi, Some(rack)));
        }
        None => {
            say!("pci: error=no-usable-mcfg");
            executor::spawn(events(acpi, None));
        }
    }
    let net = board.net.borrow().clone();
    let mut orders = cmdline_orders(&start);
    if let Some(net) = &net {
        let Some(lease) = Lease::acquire(net) else {
            say!("dhcp: error=no-socket");
            return;
        };
        lease.address().await;
        if orders.is_empty() {
            orders = imds::orders(net).await;
        }
    }
    run(orders, board, acpi);
    say!("ready");
}

/// What the VMM tells of: the power button, and devices that come and go.
async fn events(acpi: Acpi, mut rack: Option<Rack>) {
    if !events::route(&acpi) {
        return;
    }
    loop {
        let told = events::next().await;
        if told & events::PCI != 0
            && let Some(rack) = &mut rack
        {
            rack.attend();
        }
        if told & events::BUTTON != 0 {
            say!("power: button");
            power::off(&acpi);
        }
    }
}

/// What NICs accept beyond what they need: with the word `offloads` on the command line, what a
/// stock kernel would.
fn net_features(start: &Start) -> u64 {
    let mut words = start.cmdline().split(|byte| *byte == b' ');
    let accepts = words.any(|word| word.trim_ascii_end() == b"offloads");
    if accepts { FEATURE_CSUM } else { 0 }
}

/// Orders behind `orders=`, separated by `;`: the way in for bare tests.
fn cmdline_orders(start: &Start) -> Vec<Line> {
    const KEY: &[u8] = b"orders=";
    let line = start.cmdline();
    let at = line.windows(KEY.len()).position(|w| w == KEY);
    let orders = at.map_or(&[][..], |at| &line[at + KEY.len()..]);
    parse_all(orders, b';')
}

/// Reports every line and starts what it orders.
fn run(lines: Vec<Line>, board: Rc<Board>, acpi: Acpi) {
    for (number, line) in (1..).zip(&lines) {
        match &line.order {
            Ok(_) => say!("order: {number} {}", line.text),
            Err(error) => say!("order: {number} error={error} {}", line.text),
        }
    }
    let orders: Vec<Order> = lines.into_iter().filter_map(|l| l.order.ok()).collect();
    let slower = (orders.len() as u64).div_ceil(REPORTERS_PER_SECOND).max(1);
    board.report_us.set(REPORT_US * slower);
    let mut finite: Vec<Done> = Vec::new();
    let mut disk_work: BTreeMap<u8, Vec<(_, Done)>> = BTreeMap::new();
    let listeners = orders.iter().filter(|o| matches!(o, Order::ListenTcp(_)));
    let slots = listen::slots(listeners.count());
    for order in orders {
        match order {
            Order::Disk { index, work } => {
                let done = Done::default();
                finite.push(done.clone());
                disk_work.entry(index).or_default().push((work, done));
            }
            Order::HttpGet(url) => {
                let done = Done::default();
                finite.push(done.clone());
                with_net(&board, |net| executor::spawn(fetch::get(net, url, done)));
            }
            Order::BenchTcp { to, for_ms } => {
                let done = Done::default();
                finite.push(done.clone());
                with_net(&board, |net| {
                    executor::spawn(bench::tcp(net, to, for_ms, done));
                });
            }
            Order::BenchUdp {
                to,
                datagram_bytes,
                for_ms,
            } => {
                let done = Done::default();
                finite.push(done.clone());
                with_net(&board, |net| {
                    executor::spawn(bench::udp(net, to, datagram_bytes, for_ms, done));
                });
            }
            Order::Exit | Order::Reset => {
                let earlier = finite.clone();
                executor::spawn(async move {
                    executor::wait(|| earlier.iter().all(|d| d.get()).then_some(())).await;
                    if order == Order::Exit {
                        say!("power: off");
                        power::off(&acpi);
                    }
                    say!("power: reset");
                    power::reset(&acpi);
                });
            }
            Order::Idle => {}
            other => start_network_order(&board, other, slots),
        }
    }
    for (index, work) in disk_work {
        executor::spawn(disk::run(board.clone(), index, work));
    }
}

/// Starts an order that never ends.
fn start_network_order(board: &Rc<Board>, order: Order, slots: usize) {
    let report_us = board.report_us.get();
    with_net(board, |net| match order {
        Order::ListenTcp(port) => listen::tcp(&net, port, slots, report_us),
        Order::ListenUdp(port) => executor::spawn(listen::udp(net, port)),
        Order::ListenHttp { port, body_bytes } => {
            executor::spawn(listen::http(net, port, body_bytes));
        }
        Order::Connect { to, every_ms } => {
            executor::spawn(probes::connect(net, to, every_ms, report_us));
        }
        Order::Ping { to, every_ms } => {
            executor::spawn(probes::ping(net, to, every_ms, report_us));
        }
        Order::Resolve {
            question,
            every_ms,
            at,
        } => executor::spawn(resolve::run(net, question, every_ms, at)),
        Order::Addresses => executor::spawn(addresses::follow(net)),
        Order::Ipv6 => executor::spawn(ipv6::keep(net)),
        Order::Udp { to, every_ms } => executor::spawn(probes::udp(net, to, every_ms, report_us)),
        Order::Stream(to) => executor::spawn(stream::run(net, to, report_us)),
        Order::BenchTcp { .. }
        | Order::BenchUdp { .. }
        | Order::Idle
        | Order::HttpGet(_)
        | Order::Disk { .. }
        | Order::Exit
        | Order::Reset => {}
    });
}

fn with_net(board: &Rc<Board>, f: impl FnOnce(Rc<Net>)) {
    match board.net.borrow().clone() {
        Some(net) => f(net),
        None => say!("order: error=no-nic"),
    }
}
