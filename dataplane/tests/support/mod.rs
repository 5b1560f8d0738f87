//! A fabric of the test's own, guests at its taps, and frames.

#![allow(dead_code, reason = "each test binary uses a part")]

pub mod arbitrary;
pub mod counted;
pub mod frames;
pub mod ipv6;
pub mod memory;
pub mod policy;
pub mod responder;
pub mod stack;
pub mod underlay;
pub mod unshared;

use std::fs::File;
use std::io::{ErrorKind, Read, Write};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use ocs_dataplane::fabric::{Fabric, FabricConfig, Tap};
use ocs_dataplane::shared::layout::{FLOW_BUCKETS, LAYOUT_VERSION, NAT_BUCKETS};

/// A fabric in a folder of its own; gone with this, panic or not.
pub struct Lab {
    fabric: Option<Fabric>,
    config: FabricConfig,
    _folder: tempfile::TempDir,
}

impl Lab {
    pub fn new() -> Self {
        let folder = tempfile::Builder::new()
            .prefix(&format!("ocs-dataplane-{}-", std::process::id()))
            .tempdir()
            .expect("a temporary folder");
        let config = FabricConfig::under(folder.path());
        let mut lab = Self {
            fabric: None,
            config,
            _folder: folder,
        };
        lab.restart();
        lab
    }

    pub fn config(&self) -> &FabricConfig {
        &self.config
    }

    /// Ends the loader's process, as far as the kernel can tell, and starts another.
    pub fn restart(&mut self) {
        self.fabric = None;
        self.fabric = Some(
            Fabric::open(self.config.clone())
                .unwrap_or_else(|error| panic!("cannot open the fabric: {}", chain(&error))),
        );
    }

    /// The same, as if the loader that ended had been one of the layout before.
    pub fn succeed(&mut self) {
        self.leave(LAYOUT_VERSION - 1);
        self.restart();
    }

    /// The same, as if it had been of a layout whose flow tables were memory of the kernel's
    /// own, as all were before layout 7.
    pub fn succeed_unshared(&mut self) {
        self.leave(6);
        unshared::replace(&self.pins_of(6).join("maps/FLOWS"), FLOW_BUCKETS);
        unshared::replace(&self.pins_of(6).join("maps/NATS"), NAT_BUCKETS);
        self.restart();
    }

    /// Ends the loader's process and makes what it leaves another layout's.
    pub fn leave(&mut self, version: u32) {
        self.fabric = None;
        let of = |version| self.pins_of(version);
        std::fs::rename(of(LAYOUT_VERSION), of(version)).expect("pins that move");
    }

    /// Where a layout's pins are.
    pub fn pins_of(&self, version: u32) -> PathBuf {
        self.config.bpffs.join(format!("v{version}"))
    }
}

impl std::ops::Deref for Lab {
    type Target = Fabric;

    fn deref(&self) -> &Fabric {
        self.fabric.as_ref().expect("a fabric between restarts")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        self.fabric = None;
        if let Err(error) = Fabric::destroy(&self.config) {
            eprintln!("cannot remove the fabric: {}", chain(&error));
        }
    }
}

/// An error and its causes.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(&format!(": {error}"));
        cause = error.source();
    }
    text
}

/// The guest's end of a tap.
pub struct Guest {
    file: File,
    pub ifindex: u32,
}

/// Length of `virtio_net_hdr_v1`.
pub const HEADER: usize = 12;
const PATIENCE: Duration = Duration::from_secs(5);

impl Guest {
    pub fn new(fabric: &Fabric, name: &str) -> Self {
        let Tap { fd, ifindex } = fabric
            .create_tap(name)
            .unwrap_or_else(|error| panic!("cannot make a tap: {}", chain(&error)));
        Self {
            file: fd.into(),
            ifindex,
        }
    }

    /// One that may leave work to others, and has it left to itself as `flags` say (`TUN_F_*`).
    pub fn with_offloads(fabric: &Fabric, name: &str, flags: u32) -> Self {
        let Tap { fd, ifindex } = fabric
            .create_offload_tap(name)
            .unwrap_or_else(|error| panic!("cannot make a tap: {}", chain(&error)));
        let file = fd.into();
        stack::set_offloads(&file, flags);
        Self { file, ifindex }
    }

    /// The guest's end itself.
    pub fn into_file(self) -> File {
        self.file
    }

    /// Sends a frame.
    pub fn send(&mut self, frame: &[u8]) {
        self.try_send(frame).expect("the tap takes a frame");
    }

    pub fn try_send(&mut self, frame: &[u8]) -> std::io::Result<usize> {
        self.try_send_as([0; HEADER], frame)
    }

    /// Sends a frame of which a header says what is to be done.
    pub fn try_send_as(&mut self, header: [u8; HEADER], frame: &[u8]) -> std::io::Result<usize> {
        let mut bytes = header.to_vec();
        bytes.extend_from_slice(frame);
        self.file.write(&bytes)
    }

    /// The next frame that arrives.
    pub fn receive(&mut self) -> Vec<u8> {
        let began = Instant::now();
        loop {
            if let Some(frame) = self.poll() {
                return frame;
            }
            assert!(began.elapsed() < PATIENCE, "no frame arrived");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// A frame, if one is there. XDP on a tap runs within the sender's write, so what was
    /// redirected to another tap is there when the write returns.
    pub fn poll(&mut self) -> Option<Vec<u8>> {
        self.poll_whole().map(|(_, frame)| frame)
    }

    /// The same with its header.
    pub fn poll_whole(&mut self) -> Option<([u8; HEADER], Vec<u8>)> {
        let mut bytes = vec![0; HEADER + 65_550];
        match self.file.read(&mut bytes) {
            Ok(length) => {
                let (header, frame) = bytes[..length].split_first_chunk().expect("a header");
                Some((*header, frame.to_vec()))
            }
            Err(error) if error.kind() == ErrorKind::WouldBlock => None,
            Err(error) => panic!("reading from a tap: {error}"),
        }
    }

    /// Takes all frames that have arrived, and says how many.
    pub fn drain(&mut self) -> u64 {
        let mut bytes = [0; HEADER + 2_048];
        let mut frames = 0;
        while self.file.read(&mut bytes).is_ok() {
            frames += 1;
        }
        frames
    }

    /// Asserts that nothing has arrived.
    pub fn hears_nothing(&mut self) {
        let heard = self.poll();
        assert_eq!(heard, None, "a frame arrived that should not");
    }
}
