//! The programs: loaded, attached, and swapped under what runs.
//!
//! A link's pin keeps its program on the interface whatever becomes of us. To open the
//! fabric again is to update each link to the programs just loaded; no frame passes
//! between them unseen.

mod attach;
mod run;

use std::os::fd::{AsFd, OwnedFd};

use aya::programs::{ProgramError, ProgramFd, SchedClassifier, Xdp, XdpMode};
use aya::{Ebpf, EbpfLoader};

use ocs_dataplane_shared::layout;

use super::Run;
use super::bpffs::{self, BUFFER_LINK, Pins};
use super::error::{FabricError, system};
use super::{links, maps};
use crate::compiler::Entries;
use crate::object;

use attach::{attach, attach_buffer, update, update_buffer};
use run::{SK_BUFF_BYTES, SK_BUFF_IFINDEX, XdpMd, run};

pub(super) use attach::{detach, generation};

/// Loads the object with the pinned maps, or pins new ones.
pub(super) fn load(pins: &Pins) -> Result<Ebpf, FabricError> {
    let object = object::bytes().ok_or(FabricError::NoPrograms)?;
    let mut loader = EbpfLoader::new();
    for name in maps::NAMES {
        loader.map_pin_path(name, pins.map(name));
    }
    loader
        .load(object)
        .map_err(|error| FabricError::Load(Box::new(error)))
}

/// The loaded programs.
#[derive(Debug)]
pub(super) struct Programs {
    object: Ebpf,
}

const PORT: &str = "port";
const SVC: &str = "svc";
pub(super) const UPLINK: &str = "uplink";
const OUTSIDE: &str = "outside";
const TRANSLATE: &str = "translate";
const ONWARD: &str = "onward";
const PORT_BUFFER: &str = "port_buffer";
const TRANSLATE_BUFFER: &str = "translate_buffer";
const PORT_IPV6: &str = "port_ipv6";
const UPLINK_IPV6: &str = "uplink_ipv6";
const OUTSIDE_IPV6: &str = "outside_ipv6";
const PORT_IPV6_OUT: &str = "port_ipv6_out";
const PORT_IPV6_OUT_BUFFER: &str = "port_ipv6_out_buffer";
const PORT_IPV6_BUFFER: &str = "port_ipv6_buffer";
const PASS: &str = "pass";
/// The link to the host's end of the pair to its network.
const OUTER: &str = "outer";
const CLOCK: &str = "clock";

/// A program that others go on to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Stage {
    /// It translates for NAT gateways.
    Translate = layout::TRANSLATE,
    /// It passes on a port's IPv6.
    PortIpv6 = layout::PORT_IPV6,
    /// It passes on other hosts' IPv6.
    UplinkIpv6 = layout::UPLINK_IPV6,
    /// It passes on IPv6 from the outside.
    OutsideIpv6 = layout::OUTSIDE_IPV6,
    /// It passes on what a port's IPv6 sends outside.
    PortIpv6Out = layout::PORT_IPV6_OUT,
}

impl Stage {
    /// Those that a host with these entries needs.
    pub(super) fn needed(entries: &Entries) -> impl Iterator<Item = Self> {
        let translates = !entries.nats.is_empty();
        let speaks_ipv6 = !entries.ports_ipv6.is_empty();
        let leads_out = !entries.publics_ipv6.is_empty();
        [
            (Self::Translate, translates),
            (Self::PortIpv6, speaks_ipv6),
            (Self::UplinkIpv6, speaks_ipv6),
            (Self::OutsideIpv6, leads_out),
            (Self::PortIpv6Out, leads_out),
        ]
        .into_iter()
        .filter_map(|(stage, needed)| needed.then_some(stage))
    }
}

impl Programs {
    /// Gives an object's programs to the kernel; those that only some hosts need, when
    /// they are needed.
    pub(super) fn new(object: Ebpf) -> Result<Self, FabricError> {
        let mut programs = Self { object };
        for name in [PORT, SVC, PASS, CLOCK] {
            programs.load(name)?;
        }
        Ok(programs)
    }

    /// Loads a program that is not loaded.
    fn load(&mut self, name: &'static str) -> Result<&mut Xdp, FabricError> {
        let program = self.get_mut(name)?;
        if program.fd().is_err() {
            program.load().map_err(failed(name))?;
        }
        Ok(program)
    }

    fn get(&self, name: &'static str) -> Result<&Xdp, FabricError> {
        let program = self.object.program(name).ok_or(FabricError::Object {
            kind: "program",
            name,
        })?;
        program.try_into().map_err(failed(name))
    }

    fn get_mut(&mut self, name: &'static str) -> Result<&mut Xdp, FabricError> {
        let program = self.object.program_mut(name).ok_or(FabricError::Object {
            kind: "program",
            name,
        })?;
        program.try_into().map_err(failed(name))
    }

    /// Swaps the programs of taps that a predecessor attached.
    pub(super) fn adopt(&mut self, pins: &Pins) -> Result<(), FabricError> {
        let program = self.get_mut(PORT)?;
        for ifindex in pins.port_links()? {
            update(program, PORT, &pins.port_link(ifindex))?;
        }
        Ok(())
    }

    /// Attaches to a tap of the thread's namespace.
    pub(super) fn attach_port(&mut self, pins: &Pins, ifindex: u32) -> Result<(), FabricError> {
        let link = bpffs::port_name(ifindex);
        let program = self.get_mut(PORT)?;
        attach(program, PORT, pins, &link, ifindex, XdpMode::Driver)
    }

    /// Swaps the twin's programs of taps that a predecessor attached.
    pub(super) fn adopt_buffers(&mut self, pins: &Pins) -> Result<(), FabricError> {
        for ifindex in pins.buffer_links()? {
            let program = self.load_classifier(PORT_BUFFER)?;
            update_buffer(program, PORT_BUFFER, &pins.buffer_link(ifindex))?;
        }
        Ok(())
    }

    /// Attaches the twin to a tap of the thread's namespace, by its name.
    pub(super) fn attach_buffer(
        &mut self,
        pins: &Pins,
        name: &str,
        ifindex: u32,
    ) -> Result<(), FabricError> {
        let link = bpffs::buffer_name(ifindex);
        let program = self.load_classifier(PORT_BUFFER)?;
        attach_buffer(program, PORT_BUFFER, pins, &link, name)
    }

    /// Attaches to the uplink's end of the pair by which socket buffers reach it, by its name.
    pub(super) fn attach_onward(&mut self, pins: &Pins, name: &str) -> Result<(), FabricError> {
        attach_buffer(self.load_classifier(ONWARD)?, ONWARD, pins, ONWARD, name)
    }

    /// Loads a program of socket buffers that is not loaded: few hosts need none, and none
    /// needs it at once.
    fn load_classifier(&mut self, name: &'static str) -> Result<&mut SchedClassifier, FabricError> {
        let program = self.object.program_mut(name).ok_or(FabricError::Object {
            kind: "program",
            name,
        })?;
        let program: &mut SchedClassifier = program.try_into().map_err(failed(name))?;
        if program.fd().is_err() {
            program.load().map_err(failed(name))?;
        }
        Ok(program)
    }

    /// Whether any tap may need the twin.
    pub(super) fn has_buffers(&self, pins: &Pins) -> Result<bool, FabricError> {
        let mut links = Vec::new();
        for before in pins.before()? {
            links.extend(before.links()?);
        }
        let held = links.iter().any(|(link, _)| link.starts_with(BUFFER_LINK));
        Ok(held || !pins.buffer_links()?.is_empty())
    }

    /// The program that does for socket buffers what that of a stage does for frames; `None`:
    /// none come there.
    pub(super) fn buffer_stage(&mut self, stage: Stage) -> Result<Option<&ProgramFd>, FabricError> {
        let name = match stage {
            Stage::Translate => TRANSLATE_BUFFER,
            Stage::PortIpv6 => PORT_IPV6_BUFFER,
            Stage::PortIpv6Out => PORT_IPV6_OUT_BUFFER,
            Stage::UplinkIpv6 | Stage::OutsideIpv6 => return Ok(None),
        };
        let program = self.load_classifier(name)?;
        program.fd().map(Some).map_err(failed(name))
    }

    /// Attaches to `svc0`.
    pub(super) fn attach_svc(&mut self, pins: &Pins, ifindex: u32) -> Result<(), FabricError> {
        let program = self.get_mut(SVC)?;
        attach(program, SVC, pins, links::SVC0, ifindex, XdpMode::Driver)
    }

    /// Attaches to `svc1`.
    pub(super) fn attach_pass(&mut self, pins: &Pins, ifindex: u32) -> Result<(), FabricError> {
        let program = self.get_mut(PASS)?;
        attach(program, PASS, pins, links::SVC1, ifindex, XdpMode::Driver)
    }

    /// Attaches to the uplink, an interface of the thread's namespace. A driver without
    /// XDP is served by the kernel's own, slower.
    pub(super) fn attach_uplink(&mut self, pins: &Pins, ifindex: u32) -> Result<(), FabricError> {
        let program = self.load(UPLINK)?;
        if let Err(error) = attach(program, UPLINK, pins, UPLINK, ifindex, XdpMode::Driver) {
            tracing::warn!(%error, ifindex, "no XDP in the uplink's driver; generic XDP");
            attach(program, UPLINK, pins, UPLINK, ifindex, XdpMode::Skb)?;
        }
        Ok(())
    }

    /// Attaches to the taps' end of the pair to the host's network.
    pub(super) fn attach_outside(&mut self, pins: &Pins, ifindex: u32) -> Result<(), FabricError> {
        let program = self.load(OUTSIDE)?;
        attach(program, OUTSIDE, pins, OUTSIDE, ifindex, XdpMode::Driver)
    }

    /// Attaches to the host's end of it.
    pub(super) fn attach_outer(&mut self, pins: &Pins, ifindex: u32) -> Result<(), FabricError> {
        let program = self.get_mut(PASS)?;
        attach(program, PASS, pins, OUTER, ifindex, XdpMode::Driver)
    }

    /// The program that others go on to at a stage.
    pub(super) fn stage(&mut self, stage: Stage) -> Result<&ProgramFd, FabricError> {
        let name = match stage {
            Stage::Translate => TRANSLATE,
            Stage::PortIpv6 => PORT_IPV6,
            Stage::UplinkIpv6 => UPLINK_IPV6,
            Stage::OutsideIpv6 => OUTSIDE_IPV6,
            Stage::PortIpv6Out => PORT_IPV6_OUT,
        };
        self.load(name)?.fd().map_err(failed(name))
    }

    /// Jiffies since boot.
    pub(super) fn jiffies(&self) -> Result<u64, FabricError> {
        let run = run(self.get(CLOCK)?, CLOCK, &[0; 64], None, 1, None)?;
        let bytes = run.frame.first_chunk::<8>().copied().unwrap_or_default();
        Ok(u64::from_ne_bytes(bytes))
    }

    /// See [`super::Fabric::run_port`].
    pub(super) fn run_port(
        &self,
        ifindex: u32,
        frame: &[u8],
        repeat: u32,
        live_batch: Option<u32>,
    ) -> Result<Run, FabricError> {
        let port = self.get(PORT)?;
        let context = XdpMd::of(frame, ifindex);
        run(
            port,
            PORT,
            frame,
            Some(&context.bytes()),
            repeat,
            live_batch,
        )
    }

    /// See [`super::Fabric::run_port_buffer`].
    pub(super) fn run_port_buffer(&self, ifindex: u32, frame: &[u8]) -> Result<Run, FabricError> {
        let program = self
            .object
            .program(PORT_BUFFER)
            .ok_or(FabricError::Object {
                kind: "program",
                name: PORT_BUFFER,
            })?;
        let program: &SchedClassifier = program.try_into().map_err(failed(PORT_BUFFER))?;
        // Nothing but the interface is said.
        let mut context = [0; SK_BUFF_BYTES];
        context[SK_BUFF_IFINDEX..SK_BUFF_IFINDEX + 4].copy_from_slice(&ifindex.to_ne_bytes());
        run(program, PORT_BUFFER, frame, Some(&context), 1, None)
    }

    /// See [`super::Fabric::port_program`].
    pub(super) fn port_program(&self) -> Result<OwnedFd, FabricError> {
        self.copy_of(PORT)
    }

    /// See [`super::Fabric::uplink_program`].
    pub(super) fn uplink_program(&self) -> Result<OwnedFd, FabricError> {
        self.copy_of(UPLINK)
    }

    fn copy_of(&self, name: &'static str) -> Result<OwnedFd, FabricError> {
        let program = self.get(name)?.fd().map_err(failed(name))?;
        let copy = program.as_fd().try_clone_to_owned();
        copy.map_err(system("copy a program's descriptor"))
    }

    /// See [`super::Fabric::run_svc`].
    pub(super) fn run_svc(&self, frame: &[u8]) -> Result<Run, FabricError> {
        run(self.get(SVC)?, SVC, frame, None, 1, None)
    }
}

fn failed(name: &'static str) -> impl FnOnce(ProgramError) -> FabricError {
    move |source| FabricError::Program {
        name,
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the verifier does for a program, and what the program then is, grow by leaps
    /// when a search is unrolled or a state forks. (Its limit is a million.) The limits are an
    /// eighth above what Linux 6.18 says: whoever passes one has made every packet dearer.
    #[test]
    fn programs_stay_small_and_quick_to_verify() {
        let bytes = object::bytes().expect("an object; make it with `cargo xtask build`");
        let object = Ebpf::load(bytes).expect("the kernel takes the maps");
        let mut programs = Programs::new(object).expect("the kernel takes the programs");
        let mut over = Vec::new();
        for (name, verified_limit, bytes_limit) in [
            (PORT, 366_000, 41_200),
            (PORT_IPV6, 262_000, 45_400),
            (UPLINK_IPV6, 58_000, 17_400),
            (OUTSIDE_IPV6, 144_000, 26_000),
            (PORT_IPV6_OUT, 66_200, 17_500),
            (SVC, 3_380, 7_280),
            (UPLINK, 220_000, 54_600),
            (OUTSIDE, 54_000, 35_000),
            (TRANSLATE, 122_000, 8_700),
            (PORT_BUFFER, 826_000, 41_600),
            (PORT_IPV6_BUFFER, 171_000, 41_600),
            (PORT_IPV6_OUT_BUFFER, 36_400, 16_700),
            (TRANSLATE_BUFFER, 127_000, 8_800),
            (ONWARD, 100, 300),
            (PASS, 10, 100),
            (CLOCK, 50, 200),
        ] {
            let info = match name {
                PORT_BUFFER | PORT_IPV6_BUFFER | PORT_IPV6_OUT_BUFFER | TRANSLATE_BUFFER
                | ONWARD => programs
                    .load_classifier(name)
                    .expect("the kernel takes the program")
                    .info(),
                _ => programs
                    .load(name)
                    .expect("the kernel takes the program")
                    .info(),
            };
            let info = info.expect("its description");
            let verified = info.verified_instruction_count().expect("Linux 5.16");
            let bytes = info.size_jitted();
            println!("{name}: {verified} instructions verified, {bytes} bytes");
            over.extend((verified > verified_limit || bytes > bytes_limit).then_some(name));
        }
        assert!(over.is_empty(), "{over:?}");
    }
}
