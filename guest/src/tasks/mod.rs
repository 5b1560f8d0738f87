//! What the probe does: devices up, address, metadata, then the orders.
//!
//! ```text
//!  main ─▶ devices ─▶ dhcp ─▶ imds ─▶ user data ─▶ one task an order (one a disk)
//!                └─ no NIC: orders from the command line
//! ```

mod attempts;
mod disk;
mod fetch;
mod imds;
mod listen;
mod probes;
mod stream;

use crate::console::say;
use crate::machine::Start;
use crate::net::Net;
use crate::net::device::{self, NetDevice};
use crate::net::dhcp::Lease;
use crate::virtio::disk::{self as blk, Disk};
use crate::virtio::pci::{Function, Root};
use crate::virtio::transport::PciTransport;
use crate::{executor, lapic, power};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::Cell;
use ocs_probe_logic::acpi::Acpi;
use ocs_probe_logic::order::{Line, Order, parse_all};

const NET: u16 = 1;
const MAX_DISKS: usize = 8;
/// Running totals come this often, less often with more than eight orders that report.
const REPORT_US: u64 = 1_000_000;
const REPORTERS_PER_SECOND: u64 = 8;

/// What orders work with.
pub struct Board {
    net: Option<Rc<Net>>,
    disks: Vec<Rc<Disk>>,
    report_us: u64,
}

/// Set when an order that ends has ended.
type Done = Rc<Cell<bool>>;

/// The first task.
pub async fn main(start: Start, acpi: Acpi) {
    executor::spawn(async move {
        power::button(&acpi).await;
        say!("power: button");
        power::off(&acpi);
    });
    let (net, disks) = devices(&acpi);
    let orders = match &net {
        None => cmdline_orders(&start),
        Some(net) => {
            let Some(lease) = Lease::acquire(net) else {
                say!("dhcp: error=no-socket");
                return;
            };
            lease.address().await;
            imds::orders(net).await
        }
    };
    run(orders, net, disks, acpi);
    say!("ready");
}

/// Finds and starts the devices; what cannot be started is reported and left alone.
fn devices(acpi: &Acpi) -> (Option<Rc<Net>>, Vec<Rc<Disk>>) {
    let mut net = None;
    let mut disks = Vec::new();
    let Some(mut root) = acpi.ecam.and_then(Root::new) else {
        say!("pci: error=no-usable-mcfg");
        return (net, disks);
    };
    let functions = root.virtio_functions();
    for (function, vector) in functions.iter().zip(lapic::FIRST_DEVICE_VECTOR..) {
        if function.kind == NET && net.is_none() {
            net = start_net(function, vector);
        } else if function.kind != NET && disks.len() < MAX_DISKS {
            disks.extend(start_disk(function, vector, disks.len()));
        }
    }
    (net, disks)
}

fn start_net(function: &Function, vector: u8) -> Option<Rc<Net>> {
    let device = PciTransport::new(function, vector, device::FEATURES)
        .inspect_err(|error| say!("net: error={error}"))
        .ok()?;
    let device = NetDevice::new(device)
        .inspect_err(|error| say!("net: error={error}"))
        .ok()?;
    let [a, b, c, d, e, f] = device.mac();
    say!(
        "net: mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu={}",
        device.mtu()
    );
    Some(Net::new(device))
}

fn start_disk(function: &Function, vector: u8, index: usize) -> Option<Rc<Disk>> {
    let transport = PciTransport::new(function, vector, blk::FEATURES)
        .inspect_err(|error| say!("disk: index={index} error={error}"))
        .ok()?;
    let disk = Disk::new(transport)
        .inspect_err(|error| say!("disk: index={index} error={error}"))
        .ok()?;
    let disk = Rc::new(disk);
    let driven = disk.clone();
    executor::add_driver(move || driven.poll());
    let named = disk.clone();
    executor::spawn(async move {
        let id = named.id().await.unwrap_or_default();
        say!(
            "disk: index={index} id={id} size_bytes={} read_only={}",
            named.size_bytes,
            u8::from(named.read_only)
        );
    });
    Some(disk)
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
fn run(lines: Vec<Line>, net: Option<Rc<Net>>, disks: Vec<Rc<Disk>>, acpi: Acpi) {
    for (number, line) in (1..).zip(&lines) {
        match &line.order {
            Ok(_) => say!("order: {number} {}", line.text),
            Err(error) => say!("order: {number} error={error} {}", line.text),
        }
    }
    let orders: Vec<Order> = lines.into_iter().filter_map(|l| l.order.ok()).collect();
    let board = Rc::new(Board {
        net,
        disks,
        report_us: REPORT_US * (orders.len() as u64).div_ceil(REPORTERS_PER_SECOND).max(1),
    });
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
    let report_us = board.report_us;
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
        Order::Udp { to, every_ms } => executor::spawn(probes::udp(net, to, every_ms, report_us)),
        Order::Stream(to) => executor::spawn(stream::run(net, to, report_us)),
        Order::Idle | Order::HttpGet(_) | Order::Disk { .. } | Order::Exit | Order::Reset => {}
    });
}

fn with_net(board: &Rc<Board>, f: impl FnOnce(Rc<Net>)) {
    match &board.net {
        Some(net) => f(net.clone()),
        None => say!("order: error=no-nic"),
    }
}
