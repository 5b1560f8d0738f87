//! virtio-net as smoltcp's device: fixed buffers, handed to the device and back.

use crate::hal::Hal;
use crate::virtio::transport::PciTransport;
use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec;
use core::cell::RefCell;
use smoltcp::phy::{self, DeviceCapabilities, Medium};
use smoltcp::time::Instant;
use virtio_drivers::Error;
use virtio_drivers::device::net::VirtIONetRaw;
use virtio_drivers::transport::Transport;

const QUEUE_SIZE: usize = 32;
const ETHERNET_HEADER_BYTES: usize = 14;
/// `struct virtio_net_hdr` with `num_buffers` (virtio 1.3 §5.1.6).
const HEADER_BYTES: usize = 12;
/// The driver refuses smaller receive buffers.
const MIN_BUFFER_BYTES: usize = 1526;

/// Feature bit and configuration field (§5.1.3, §5.1.4).
const FEATURE_MTU: u64 = 1 << 3;
const CONFIG_MTU: usize = 10;
const USUAL_MTU: u16 = 1500;
/// It may leave checksums to the device (§5.1.3); it never does.
pub const FEATURE_CSUM: u64 = 1;
/// What [`PciTransport::new`] should accept.
pub const FEATURES: u64 = FEATURE_MTU;

type Raw = VirtIONetRaw<Hal, PciTransport, QUEUE_SIZE>;

struct Inner {
    raw: Raw,
    /// By token: the buffer that the device holds.
    receiving: [Option<Box<[u8]>>; QUEUE_SIZE],
    sending: [Option<(Box<[u8]>, usize)>; QUEUE_SIZE],
    /// Buffers to send from; as many as may be in flight.
    free: alloc::vec::Vec<Box<[u8]>>,
}

/// The interface's hardware.
pub struct NetDevice {
    inner: Rc<RefCell<Inner>>,
    mtu: u16,
    mac: [u8; 6],
}

impl NetDevice {
    /// Brings the device up and gives it all receive buffers.
    pub fn new(transport: PciTransport) -> Result<Self, Error> {
        let mtu = if transport.has(FEATURE_MTU) {
            transport.read_config_space::<u16>(CONFIG_MTU)?
        } else {
            USUAL_MTU
        };
        let mtu = mtu.clamp(576, 9216);
        let raw = Raw::new(transport)?;
        let len = (HEADER_BYTES + ETHERNET_HEADER_BYTES + usize::from(mtu)).max(MIN_BUFFER_BYTES);
        let mut inner = Inner {
            raw,
            receiving: [const { None }; QUEUE_SIZE],
            sending: [const { None }; QUEUE_SIZE],
            free: (0..QUEUE_SIZE)
                .map(|_| vec![0; len].into_boxed_slice())
                .collect(),
        };
        for _ in 0..QUEUE_SIZE {
            inner.receive_into(vec![0; len].into_boxed_slice())?;
        }
        let mac = inner.raw.mac_address();
        Ok(Self {
            inner: Rc::new(RefCell::new(inner)),
            mtu,
            mac,
        })
    }

    /// Ethernet address.
    pub fn mac(&self) -> [u8; 6] {
        self.mac
    }

    /// Largest IP packet.
    pub fn mtu(&self) -> u16 {
        self.mtu
    }

    /// Whether every send buffer is with the device. It gives no interrupt for them,
    /// so who waits for one has to look again.
    pub fn is_full(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.reclaim();
        inner.free.is_empty()
    }

    /// Whether the device has taken every frame. Likewise, who waits for that has to look again.
    pub fn is_idle(&self) -> bool {
        let mut inner = self.inner.borrow_mut();
        inner.reclaim();
        inner.free.len() == QUEUE_SIZE
    }
}

impl Inner {
    fn receive_into(&mut self, mut buffer: Box<[u8]>) -> Result<(), Error> {
        // SAFETY: the buffer moves into `receiving` and stays there until the device
        // has given the token back.
        let token = unsafe { self.raw.receive_begin(&mut buffer)? };
        self.receiving[usize::from(token)] = Some(buffer);
        Ok(())
    }

    /// The next received buffer, and where in it the frame lies.
    fn received(&mut self) -> Option<(Box<[u8]>, core::ops::Range<usize>)> {
        let token = self.raw.poll_receive()?;
        let mut buffer = self.receiving.get_mut(usize::from(token))?.take()?;
        // SAFETY: this is the buffer that was given for this token.
        let frame = match unsafe { self.raw.receive_complete(token, &mut buffer) } {
            Ok((header, len)) if header + len <= buffer.len() => header..header + len,
            _ => 0..0,
        };
        Some((buffer, frame))
    }

    /// Takes sent buffers back.
    fn reclaim(&mut self) {
        while let Some(token) = self.raw.poll_transmit() {
            let slot = self.sending.get_mut(usize::from(token));
            let Some((buffer, len)) = slot.and_then(Option::take) else {
                return;
            };
            // SAFETY: these are the bytes that were given for this token.
            let completed = unsafe { self.raw.transmit_complete(token, &buffer[..len]) };
            self.free.push(buffer);
            if completed.is_err() {
                return;
            }
        }
    }

    fn send(&mut self, buffer: Box<[u8]>, frame_len: usize) {
        let len = HEADER_BYTES + frame_len;
        // SAFETY: the buffer moves into `sending` and stays there until the device has
        // given the token back.
        match unsafe { self.raw.transmit_begin(&buffer[..len]) } {
            Ok(token) => self.sending[usize::from(token)] = Some((buffer, len)),
            Err(_) => self.free.push(buffer),
        }
    }
}

impl phy::Device for NetDevice {
    type RxToken<'a> = RxToken;
    type TxToken<'a> = TxToken;

    fn receive(&mut self, _: Instant) -> Option<(RxToken, TxToken)> {
        let mut inner = self.inner.borrow_mut();
        inner.reclaim();
        if inner.free.is_empty() {
            return None;
        }
        let (buffer, frame) = inner.received()?;
        let rx = RxToken {
            inner: self.inner.clone(),
            buffer,
            frame,
        };
        Some((rx, TxToken(self.inner.clone())))
    }

    fn transmit(&mut self, _: Instant) -> Option<TxToken> {
        (!self.is_full()).then(|| TxToken(self.inner.clone()))
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ethernet;
        capabilities.max_transmission_unit = usize::from(self.mtu) + ETHERNET_HEADER_BYTES;
        capabilities.max_burst_size = Some(QUEUE_SIZE);
        capabilities
    }
}

/// A received frame.
pub struct RxToken {
    inner: Rc<RefCell<Inner>>,
    buffer: Box<[u8]>,
    frame: core::ops::Range<usize>,
}

impl phy::RxToken for RxToken {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        let result = f(&self.buffer[self.frame]);
        // A queue that has just given a buffer back has room for it.
        let _ = self.inner.borrow_mut().receive_into(self.buffer);
        result
    }
}

/// The right to send one frame.
pub struct TxToken(Rc<RefCell<Inner>>);

impl phy::TxToken for TxToken {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, len: usize, f: F) -> R {
        let buffer = self.0.borrow_mut().free.pop();
        let Some(mut buffer) = buffer else {
            // Tokens are given out while a buffer is free and used one at a time.
            panic!("net: a frame of {len} bytes has no buffer");
        };
        let result = f(&mut buffer[HEADER_BYTES..HEADER_BYTES + len]);
        self.0.borrow_mut().send(buffer, len);
        result
    }
}
