//! The packet path of this host: made, adopted, told what to do, taken down.
//!
//! ```text
//!  netns taps (no address, no route, lo down)        netns svc
//!  ┌──────────────────────────────────────┐   ┌───────────────────────────┐
//!  │ tap… ◀─XDP port─▶ DEVICES ─▶ svc0 ───┼───┼── svc1 169.254.169.254/32 │
//!  └───▲──────────────────────────────────┘   └─────────▲─────────────────┘
//!      │ fd                                             │ sockets
//!     VMM                                           ocs-responder
//!
//!  bpffs/vN/maps/NAME, bpffs/vN/links/{svc0,svc1,uplink,outside,INTERFACE}
//! ```
//!
//! How it leads to other hosts and to the outside: `uplink.rs`.
//!
//! Everything that matters is in the kernel, held by pins, and outlives this process:
//! [`Fabric::open`] finds what a predecessor left, at whatever moment it died, and
//! carries on. A tap without a program passes nothing to anyone: its namespace has no
//! address that would answer and no route that would forward.

mod bpf;
mod bpffs;
mod clock;
mod contents;
mod error;
mod explain;
mod links;
mod maps;
mod netns;
mod programs;
mod rtnl;
mod secret;
mod stack;
mod succession;
mod switch;
mod tap;
mod taps;
mod uplink;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use ocs_dataplane_shared::layout::{Direction, RESPONDER_SLOT, Reason};

use crate::compiler::{self, Numbers, Slots};
use crate::model::{Policy, PortId};

use bpffs::Pins;
use contents::Contents;
use maps::KernelMaps;
use programs::{Programs, Stage};

pub use error::FabricError;
pub use explain::{Explanation, Packet, Step};
pub use stack::{Stack, StackConfig};
pub use tap::Tap;
pub use uplink::UplinkConfig;
pub use watch::{Capture, FlowLog, FlowRecord, Frame};

/// Where a fabric's parts are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FabricConfig {
    /// A folder on which a BPF file system is mounted, or will be.
    pub bpffs: PathBuf,
    /// The file that the taps' network namespace is mounted on, or will be.
    pub taps_netns: PathBuf,
    /// The file that the responder's network namespace is mounted on, or will be.
    pub svc_netns: PathBuf,
}

impl FabricConfig {
    /// The usual places in a run directory.
    #[must_use]
    pub fn under(run_dir: &Path) -> Self {
        Self {
            bpffs: run_dir.join("bpf"),
            taps_netns: run_dir.join("netns/taps"),
            svc_netns: run_dir.join("netns/svc"),
        }
    }
}

/// What [`Fabric::apply`] did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Map elements written or deleted; 0: nothing had changed.
    pub map_writes: usize,
}

/// What became of a port's packets: those it sent count as egress, those that reached
/// its ingress rules as ingress.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Packets by direction and reason; none that are 0.
    pub packets: BTreeMap<(Direction, Reason), u64>,
}

impl Counters {
    /// Packets of one direction and reason.
    #[must_use]
    pub fn get(&self, direction: Direction, reason: Reason) -> u64 {
        self.packets.get(&(direction, reason)).copied().unwrap_or(0)
    }
}

/// All that there is of a fabric.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    /// Taps by interface index.
    pub taps: BTreeMap<u32, String>,
    /// Interfaces whose program is pinned, and the program's number in the kernel.
    pub links: BTreeMap<u32, u32>,
    /// Entries of each map.
    pub map_entries: BTreeMap<String, usize>,
    /// Ports of the policy in force.
    pub ports: BTreeSet<PortId>,
}

/// What a test run of the `port` program gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Run {
    /// The XDP action.
    pub action: u32,
    /// The frame afterwards.
    pub frame: Vec<u8>,
    /// Mean duration of a run.
    pub mean_ns: u64,
}

/// The packet path of this host.
#[derive(Debug)]
pub struct Fabric {
    config: FabricConfig,
    taps_netns: OwnedFd,
    pins: Pins,
    hz: u32,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    programs: Programs,
    maps: KernelMaps,
    contents: Contents,
    numbers: Numbers,
    slots: Slots,
    uplink: Option<uplink::Attached>,
    /// A predecessor of another layout is in force until a policy is applied.
    succeeds: bool,
    /// What the maps were last made equal to; empty until then.
    policy: Policy,
}

impl State {
    fn slot(&self, port: &PortId) -> Result<u32, FabricError> {
        self.slots.of(port).ok_or_else(|| FabricError::UnknownPort {
            port: port.0.clone(),
        })
    }
}

impl Fabric {
    /// Makes the packet path, or adopts what is there and swaps its programs for ours.
    pub fn open(config: FabricConfig) -> Result<Self, FabricError> {
        bpffs::mount(&config.bpffs)?;
        let pins = Pins::make(&config.bpffs)?;
        let taps_netns = netns::ensure(&config.taps_netns)?;
        let svc_netns = netns::ensure(&config.svc_netns)?;
        links::ensure(taps_netns.as_fd(), svc_netns.as_fd())?;

        let mut object = programs::load(&pins)?;
        let mut maps = KernelMaps::take(&mut object, &pins)?;
        let mut programs = Programs::new(object)?;
        let hz = clock::hz(&programs)?;
        let contents = maps.read()?;
        let first_address = clock::elsewhere(&programs)?;
        secret::ensure(&mut maps, &pins)?;
        maps.adopt(&contents.entries)?;
        // Whoever watched a port through a predecessor is gone with it.
        for slot in &contents.tables {
            maps.remove_capture(*slot)?;
        }
        for stage in Stage::needed(&contents.entries) {
            set_stage(&mut programs, &mut maps, &pins, stage)?;
        }
        programs.adopt(&pins)?;
        programs.adopt_buffers(&pins)?;
        let svc0 = netns::within(taps_netns.as_fd(), || {
            let svc0 = rtnl::index_of(links::SVC0)?;
            programs.attach_svc(&pins, svc0)?;
            maps.set_own_device(RESPONDER_SLOT, Some(svc0))?;
            maps.set_interface(RESPONDER_SLOT, svc0)?;
            Ok(svc0)
        })?;
        netns::within(svc_netns.as_fd(), || {
            let svc1 = rtnl::index_of(links::SVC1)?;
            programs.attach_pass(&pins, svc1)
        })?;
        tracing::debug!(svc0, hz, "packet path open");
        let state = State {
            programs,
            maps,
            numbers: Numbers::after(contents.highest_number(), first_address),
            slots: Slots::adopt(&contents.entries),
            contents,
            policy: Policy::default(),
            uplink: None,
            succeeds: !pins.before()?.is_empty(),
        };
        Ok(Self {
            config,
            taps_netns,
            pins,
            hz,
            state: Mutex::new(state),
        })
    }

    /// Makes the maps say what `policy` says. At no moment does a packet pass that
    /// neither the old nor the new policy allows. On an error the old one is in force.
    ///
    /// Where [`Self::open`] found a predecessor of another layout, the first policy takes its
    /// place (`succession.rs`); then in the uplink's namespace, as [`Self::refresh_hosts`].
    /// What of it cannot be replaced is an error: there the predecessor's policy is in force
    /// until the next call replaces it.
    pub fn apply(&self, policy: &Policy) -> Result<Applied, FabricError> {
        let mut state = self.state();
        let state = &mut *state;
        let mut numbers = state.numbers.clone();
        let mut slots = state.slots.clone();
        if state.succeeds {
            for before in self.pins.before()? {
                slots.adopt_numbers(succession::numbers(&before, policy));
            }
        }
        let entries = compiler::compile(policy, &mut numbers, &mut slots, self.hz)?;
        let there: Vec<Stage> = Stage::needed(&state.contents.entries).collect();
        for stage in Stage::needed(&entries).filter(|stage| !there.contains(stage)) {
            set_stage(&mut state.programs, &mut state.maps, &self.pins, stage)?;
        }
        let map_writes = netns::within(self.taps_netns.as_fd(), || {
            switch::switch(&mut state.contents, &mut state.maps, &entries)
        })?;
        state.numbers = numbers;
        state.slots = slots;
        state.policy.clone_from(policy);
        if state.succeeds {
            self.succeed(state)?;
        }
        Ok(Applied { map_writes })
    }

    /// Takes the place of predecessors of other layouts.
    fn succeed(&self, state: &mut State) -> Result<(), FabricError> {
        if let Err(error) = uplink::refresh_hosts(state) {
            tracing::warn!(%error, "the way to other hosts");
        }
        for before in self.pins.before()? {
            // Once more what began while programs were swapped.
            for swaps in [true, false] {
                let now = state.programs.jiffies()?;
                let entries = &state.contents.entries;
                let flows = succession::carry(&state.maps, entries, &before, now);
                tracing::info!(version = before.version, flows, "flows carried over");
                if swaps {
                    state.programs.succeed(&self.pins, &before)?;
                }
            }
            let version = before.version;
            if let Err(error) = before.forget() {
                // It holds memory and nothing in force, until the next loader forgets it.
                tracing::warn!(version, %error, "a predecessor's pins");
            }
        }
        state.succeeds = false;
        Ok(())
    }

    /// What became of a port's packets since it got its slot.
    pub fn counters(&self, port: &PortId) -> Result<Counters, FabricError> {
        let state = self.state();
        state.maps.counters(state.slot(port)?)
    }

    /// Credits that a port has left in one direction, in bytes; `None`: it is not limited.
    pub fn credit_bytes(
        &self,
        port: &PortId,
        direction: Direction,
    ) -> Result<Option<u64>, FabricError> {
        let state = self.state();
        let slot = state.slot(port)?;
        let Some(limits) = state.contents.entries.limits.get(&slot) else {
            return Ok(None);
        };
        let meters = state.maps.meters(limits.meter)?;
        let now = state.programs.jiffies()?;
        let index = direction as usize;
        Ok(meters.directions[index].credit_bytes(&limits.directions[index], now))
    }

    /// Ports of the policy in force.
    pub fn ports(&self) -> Vec<PortId> {
        self.state().slots.ports().cloned().collect()
    }

    /// What would become of a packet that a port sends. Nothing is sent, counted or
    /// remembered.
    pub fn explain(&self, port: &PortId, packet: Packet) -> Result<Explanation, FabricError> {
        let state = self.state();
        let names = explain::Names {
            policy: &state.policy,
            numbers: &state.numbers,
            slots: &state.slots,
        };
        let now = state.programs.jiffies()?;
        explain::explain(&state.maps, &names, port, packet, now)
    }

    /// The first address of a port that is of the same IP as whom it sends to.
    pub fn first_address(&self, port: &PortId, to: IpAddr) -> Option<IpAddr> {
        let state = self.state();
        let mut own = state.policy.ports.get(port)?.addresses.iter().copied();
        own.find(|address| address.is_ipv6() == to.is_ipv6())
    }

    /// Watches a port's frames, in place of whoever watched it before.
    pub fn capture(&self, port: &PortId) -> Result<Capture, FabricError> {
        let mut state = self.state();
        let slot = state.slot(port)?;
        watch::capture(&mut state.maps, slot)
    }

    /// Watches them no more.
    pub fn end_capture(&self, capture: &Capture) -> Result<(), FabricError> {
        watch::end_capture(&self.state().maps, capture)
    }

    /// Logs a port's flows from now on, or no more.
    pub fn set_logged(&self, port: &PortId, logged: bool) -> Result<(), FabricError> {
        let mut state = self.state();
        let slot = state.slot(port)?;
        if logged {
            watch::start_log(&mut state.maps, slot)
        } else {
            state.maps.remove_flow_log(slot)
        }
    }

    /// Takes what a port's log was told since it was last taken; `None`: it has no log.
    pub fn take_flow_log(&self, port: &PortId) -> Result<Option<FlowLog>, FabricError> {
        let mut state = self.state();
        let slot = state.slot(port)?;
        let clock = watch::Clock {
            jiffies: state.programs.jiffies()?,
            hz: self.hz,
        };
        let addresses = watch::Addresses::of_host(&state.contents.entries);
        watch::take_log(&mut state.maps, slot, &clock, &addresses)
    }

    /// What became of the responder's packets, and of those that no port claims.
    pub fn responder_counters(&self) -> Result<Counters, FabricError> {
        self.state().maps.counters(RESPONDER_SLOT)
    }

    /// Lists taps, pins, map entries and ports.
    pub fn inventory(&self) -> Result<Inventory, FabricError> {
        let state = self.state();
        Ok(Inventory {
            taps: netns::within(self.taps_netns.as_fd(), rtnl::taps)?,
            links: self
                .links()?
                .into_iter()
                .map(|(ifindex, pin)| Ok((ifindex, programs::generation(&pin)?)))
                .collect::<Result<_, FabricError>>()?,
            map_entries: state.contents.entries.sizes(),
            ports: state.slots.ports().cloned().collect(),
        })
    }

    /// Runs the `port` program on a frame as if it had come in on `ifindex`, `repeat`
    /// times. For tests and benches: with `live_batch` the frames really go where the
    /// program sends them.
    pub fn run_port(
        &self,
        ifindex: u32,
        frame: &[u8],
        repeat: u32,
        live_batch: Option<u32>,
    ) -> Result<Run, FabricError> {
        let state = self.state();
        let programs = &state.programs;
        netns::within(self.taps_netns.as_fd(), || {
            programs.run_port(ifindex, frame, repeat, live_batch)
        })
    }

    /// Runs the `port` program's twin on a finished frame as if it had come in on `ifindex`.
    pub fn run_port_buffer(&self, ifindex: u32, frame: &[u8]) -> Result<Run, FabricError> {
        let state = self.state();
        let programs = &state.programs;
        netns::within(self.taps_netns.as_fd(), || {
            programs.run_port_buffer(ifindex, frame)
        })
    }

    /// The `port` program itself, for a sender that makes each frame another flow's and
    /// then calls it.
    pub fn port_program(&self) -> Result<OwnedFd, FabricError> {
        self.state().programs.port_program()
    }

    /// The `uplink` program, likewise.
    pub fn uplink_program(&self) -> Result<OwnedFd, FabricError> {
        self.state().programs.uplink_program()
    }

    /// Jiffies since boot, as programs know them.
    pub fn jiffies(&self) -> Result<u64, FabricError> {
        self.state().programs.jiffies()
    }

    /// The namespace that the taps are in.
    #[must_use]
    pub fn taps_namespace(&self) -> BorrowedFd<'_> {
        self.taps_netns.as_fd()
    }

    /// Runs the `svc` program on a frame as if the responder had sent it.
    pub fn run_svc(&self, frame: &[u8]) -> Result<Run, FabricError> {
        let state = self.state();
        state.programs.run_svc(frame)
    }

    /// What became of packets that came in from other hosts.
    pub fn uplink_counters(&self) -> Result<Counters, FabricError> {
        self.state()
            .maps
            .counters(ocs_dataplane_shared::layout::UPLINK_SLOT)
    }

    /// What became of packets that came in from outside, where that is another interface.
    pub fn outside_counters(&self) -> Result<Counters, FabricError> {
        self.state()
            .maps
            .counters(ocs_dataplane_shared::layout::OUTSIDE_SLOT)
    }

    /// Removes everything: programs, maps, pins, mounts, namespaces. Taps go with the
    /// descriptors that hold them.
    pub fn teardown(self) -> Result<(), FabricError> {
        let Self {
            config,
            taps_netns,
            state,
            ..
        } = self;
        drop(state);
        drop(taps_netns);
        Self::destroy(&config)
    }

    /// [`Fabric::teardown`] of what a predecessor left.
    pub fn destroy(config: &FabricConfig) -> Result<(), FabricError> {
        bpffs::remove(&config.bpffs)?;
        links::remove(&config.taps_netns)?;
        netns::remove(&config.taps_netns)?;
        netns::remove(&config.svc_netns)
    }

    /// A panic elsewhere leaves maps and contents as the last completed step did, and
    /// [`Self::apply`] compares before it writes.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Lets programs go on to that of a stage.
fn set_stage(
    programs: &mut Programs,
    maps: &mut KernelMaps,
    pins: &Pins,
    stage: Stage,
) -> Result<(), FabricError> {
    maps.set_stage(stage as u32, programs.stage(stage)?)?;
    if programs.has_buffers(pins)? {
        set_buffer_stage(programs, maps, stage)?;
    }
    Ok(())
}

/// [`set_stage`] for programs of socket buffers, of which a host without such taps needs none.
fn set_buffer_stage(
    programs: &mut Programs,
    maps: &mut KernelMaps,
    stage: Stage,
) -> Result<(), FabricError> {
    match programs.buffer_stage(stage)? {
        Some(program) => maps.set_buffer_stage(stage as u32, program),
        None => Ok(()),
    }
}
