//! Taps of guests, and the programs on them.

use std::os::fd::AsFd;
use std::path::PathBuf;

use super::error::FabricError;
use super::programs::{self, Stage};
use super::tap::{self, Tap};
use super::{Fabric, netns, rtnl, set_buffer_stage};

impl Fabric {
    /// Makes a tap whose frames the programs see before anyone else could. It passes
    /// nothing until a policy names its interface, and is gone when the last copy of its
    /// descriptor is closed.
    pub fn create_tap(&self, name: &str) -> Result<Tap, FabricError> {
        let mut state = self.state();
        let programs = &mut state.programs;
        netns::within(self.taps_netns.as_fd(), || {
            let tap = tap::create(name)?;
            programs.attach_port(&self.pins, tap.ifindex)?;
            rtnl::set_up(tap.ifindex)?;
            Ok(tap)
        })
    }

    /// [`Self::create_tap`] for a guest that may leave checksums and segmentation to others,
    /// and have them left to itself: its frames go by the programs' twin, which keeps what
    /// is to be done. They cost more each, and may be forty times as long.
    ///
    /// Whoever writes frames to the tap says of each where its checksum is to be: at the place
    /// of TCP's or UDP's behind an IPv4 header without options or an IPv6 header without
    /// extensions, as the EtherType says, or within what is tunnelled, and nowhere else.
    pub fn create_offload_tap(&self, name: &str) -> Result<Tap, FabricError> {
        let mut state = self.state();
        let state = &mut *state;
        for stage in Stage::needed(&state.contents.entries) {
            set_buffer_stage(&mut state.programs, &mut state.maps, stage)?;
        }
        let programs = &mut state.programs;
        netns::within(self.taps_netns.as_fd(), || {
            let tap = tap::create(name)?;
            programs.attach_buffer(&self.pins, name, tap.ifindex)?;
            rtnl::set_up(tap.ifindex)?;
            Ok(tap)
        })
    }

    /// Says that the guest of a tap made by [`Self::create_offload_tap`] neither leaves work to
    /// others nor takes any, now and for as long as the tap lives: its frames go by the XDP
    /// program instead of its twin. There is no frame that meets neither or both. Said again,
    /// it changes nothing.
    ///
    /// Where [`Self::finishes_taps`] is false the twin stays.
    ///
    /// Fails while a predecessor of another layout is in force: programs of ours would know
    /// nobody.
    pub fn finish_tap(&self, ifindex: u32) -> Result<(), FabricError> {
        let mut state = self.state();
        if state.succeeds {
            return Err(FabricError::Succeeds);
        }
        let buffer = self.pins.buffer_link(ifindex);
        if !buffer.exists() || !self.finishes_taps() {
            return Ok(());
        }
        let programs = &mut state.programs;
        netns::within(self.taps_netns.as_fd(), || {
            programs.attach_port(&self.pins, ifindex)
        })?;
        programs::detach(&buffer)
    }

    /// Whether taps can go by XDP. On a host with an uplink they cannot: not every device sends
    /// what XDP redirects to it, and what one does not is lost unsaid.
    pub fn finishes_taps(&self) -> bool {
        !self.pins.link(programs::UPLINK).exists()
    }

    /// Puts the program on a tap again after [`Fabric::detach`].
    pub fn attach(&self, ifindex: u32) -> Result<(), FabricError> {
        let mut state = self.state();
        let programs = &mut state.programs;
        netns::within(self.taps_netns.as_fd(), || {
            programs.attach_port(&self.pins, ifindex)
        })
    }

    /// Takes the program off a tap, which then passes nothing.
    pub fn detach(&self, ifindex: u32) -> Result<(), FabricError> {
        let _state = self.state();
        let (port, buffer) = (self.pins.port_link(ifindex), self.pins.buffer_link(ifindex));
        if buffer.exists() {
            programs::detach(&buffer)?;
            // Both are there if we died in `finish_tap`.
            if !port.exists() {
                return Ok(());
            }
        }
        programs::detach(&port)
    }

    /// Removes the pins of taps that are gone; how many there were.
    pub fn collect_garbage(&self) -> Result<usize, FabricError> {
        let _state = self.state();
        let taps = netns::within(self.taps_netns.as_fd(), rtnl::taps)?;
        let mut removed = 0;
        for (ifindex, pin) in self.links()? {
            if !taps.contains_key(&ifindex) {
                programs::detach(&pin)?;
                removed += 1;
            }
        }
        Ok(removed)
    }

    /// The pinned links of taps by interface.
    pub(super) fn links(&self) -> Result<Vec<(u32, PathBuf)>, FabricError> {
        let pins = &self.pins;
        let ports = pins.port_links()?.into_iter();
        let buffers = pins.buffer_links()?.into_iter();
        Ok(ports
            .map(|ifindex| (ifindex, pins.port_link(ifindex)))
            .chain(buffers.map(|ifindex| (ifindex, pins.buffer_link(ifindex))))
            .collect())
    }
}
