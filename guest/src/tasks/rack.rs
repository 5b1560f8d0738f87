//! The devices: those that are there at the start, and those that come and go (ocs-vmm's
//! hot-plug).
//!
//! The first NIC carries the orders. Every other one gets an address by DHCP, too, and
//! answers at it: ARP and ping.

use super::Board;
use crate::console::say;
use crate::events::{self, Slots};
use crate::net::Net;
use crate::net::device::{self, NetDevice};
use crate::net::dhcp::Lease;
use crate::virtio::disk::{self as blk, Disk};
use crate::virtio::pci::{Function, Root};
use crate::virtio::transport::PciTransport;
use crate::{executor, lapic};
use alloc::collections::BTreeMap;
use alloc::rc::Rc;
use core::fmt::Display;

const NET: u16 = 1;
const MAX_DISKS: usize = 8;
/// Devices beyond share the last vector: an interrupt only says "look".
const VECTORS: u8 = 28;

/// What is in a slot.
enum Device {
    Disk(usize, Rc<Disk>),
    Net(Rc<Net>),
}

/// The bus and what is on it.
pub struct Rack {
    root: Root,
    board: Rc<Board>,
    devices: BTreeMap<u8, Device>,
}

impl Rack {
    /// Starts every device; what cannot be started is reported and left alone.
    pub fn fill(mut root: Root, board: Rc<Board>) -> Self {
        let functions = root.virtio_functions();
        let devices = BTreeMap::new();
        let mut rack = Self {
            root,
            board,
            devices,
        };
        for function in functions {
            rack.start(&function, false);
        }
        rack
    }

    /// Sees to the slots that have news.
    pub fn attend(&mut self) {
        for slot in events::slots(Slots::Arrived) {
            let functions = self.root.functions_of(slot);
            if functions.is_empty() {
                self.let_go(slot, false);
            } else if !self.devices.contains_key(&slot) {
                functions
                    .iter()
                    .for_each(|function| self.start(function, true));
            }
        }
        for slot in events::slots(Slots::Leaving) {
            self.let_go(slot, true);
        }
    }

    fn start(&mut self, function: &Function, later: bool) {
        let started = if function.kind == NET {
            self.start_net(function, later)
        } else {
            self.start_disk(function)
        };
        if let Some(device) = started {
            self.devices.insert(function.slot, device);
        }
    }

    fn start_net(&mut self, function: &Function, later: bool) -> Option<Device> {
        let features = device::FEATURES | self.board.net_features;
        let device = PciTransport::new(function, vector(function), features)
            .map_err(net_error)
            .ok()?;
        let device = NetDevice::new(device).map_err(net_error).ok()?;
        let [a, b, c, d, e, f] = device.mac();
        say!(
            "net: mac={a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x} mtu={}",
            device.mtu()
        );
        let net = Net::new(device);
        let mut first = self.board.net.borrow_mut();
        // The first one of the start is `main`'s to get an address for.
        let mains = first.is_none() && !later;
        first.get_or_insert_with(|| net.clone());
        if !mains && Lease::acquire(&net).is_none() {
            say!("dhcp: error=no-socket");
        }
        Some(Device::Net(net))
    }

    fn start_disk(&mut self, function: &Function) -> Option<Device> {
        let mut disks = self.board.disks.borrow_mut();
        let index = disks
            .iter()
            .position(Option::is_none)
            .unwrap_or(disks.len());
        if index == MAX_DISKS {
            return None;
        }
        let fail = |error: &dyn Display| say!("disk: index={index} error={error}");
        let transport = PciTransport::new(function, vector(function), blk::FEATURES)
            .inspect_err(|error| fail(error))
            .ok()?;
        let disk = Disk::new(transport).inspect_err(|error| fail(error)).ok()?;
        let disk = Rc::new(disk);
        if index == disks.len() {
            disks.push(None);
        }
        disks[index] = Some(disk.clone());
        let driven = Rc::downgrade(&disk);
        executor::add_driver(move || driven.upgrade().is_some_and(|disk| disk.poll()));
        let named = disk.clone();
        executor::spawn(async move {
            let id = named.id().await.unwrap_or_default();
            say!(
                "disk: index={index} id={id} size_bytes={} read_only={}",
                named.size_bytes(),
                u8::from(named.read_only)
            );
        });
        Some(Device::Disk(index, disk))
    }

    /// Stops what is in `slot`, and says so to the VMM if that asked.
    fn let_go(&mut self, slot: u8, asked: bool) {
        match self.devices.remove(&slot) {
            Some(Device::Disk(index, disk)) => {
                self.board.disks.borrow_mut()[index] = None;
                executor::spawn(async move {
                    disk.retire().await;
                    say!("disk: index={index} gone");
                    if asked {
                        events::eject(slot);
                    }
                });
                return;
            }
            Some(Device::Net(net)) => {
                let mut first = self.board.net.borrow_mut();
                first.take_if(|first| Rc::ptr_eq(first, &net));
                say!("net: gone");
            }
            None => {}
        }
        if asked {
            events::eject(slot);
        }
    }
}

fn vector(function: &Function) -> u8 {
    lapic::FIRST_DEVICE_VECTOR + function.slot.min(VECTORS)
}

fn net_error(error: impl Display) {
    say!("net: error={error}");
}
