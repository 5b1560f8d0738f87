//! Makes a machine from a spec: everything is opened, then allocated here, in order.
//!
//! ```text
//!  spec ─▶ open files ─▶ (jail) ─▶ VM, memory, local APICs ─▶ devices ─▶ kernel, tables ─▶ vCPUs
//! ```

use crate::boot::{self, Payload, acpi, generation, reset, smbios};
use crate::bus::{Bus, BusMetrics};
use crate::cpu::{self, Gate, Start};
use crate::devices::{Devices, Hosts, When};
use crate::error::{Result, host, kvm};
use crate::events::Epoll;
use crate::ioapic::Ioapic;
use crate::irq::{Irqs, share};
use crate::legacy::power::Power;
use crate::legacy::ring::{ConsoleRing, MappedRing};
use crate::legacy::rtc::Rtc;
use crate::legacy::serial::SerialPort;
use crate::machine::{Machine, Vm};
use crate::memory::{self, GuestRam};
use crate::outcome::Outcome;
use crate::pci::hotplug::Hotplug;
use crate::pci::root::PciRoot;
use crate::snapshot::incoming::{self, Incoming};
use crate::snapshot::restore::{self, Loading};
use crate::virtio::block::Look;
use crate::virtio::mmio::MmioBus;
use crate::virtio::net::tap::Tap;
use crate::{inherit, layout};
use kvm_bindings::{KVM_CAP_SPLIT_IRQCHIP, kvm_enable_cap};
use kvm_ioctls::{Cap, Kvm, VmFd};
use ocs_vmm_spec::console::RingWriter;
use ocs_vmm_spec::{Boot, Restore, Source, Spec};
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use vmm_sys_util::eventfd::EventFd;

/// A machine whose threads do not run yet.
pub struct Built {
    /// The whole.
    pub machine: Machine,
    /// What it goes on from, to be loaded once its disks' threads run.
    pub loading: Option<Loading>,
    /// The VMM that it comes from.
    pub incoming: Option<Incoming>,
    /// The control socket.
    pub control: Option<UnixListener>,
    /// Signalled when devices come or go.
    pub news: EventFd,
    /// Signalled at the machine's end.
    pub ended: EventFd,
}

/// Builds what `spec` says of its open `files`, to be served by the event loop behind `epoll`;
/// `started_ns` is when the process began.
pub fn build(spec: &Spec, files: Files, epoll: &Arc<Epoll>, started_ns: u64) -> Result<Built> {
    let (ram, loading, incoming) = memory_of(spec, files.restore, files.incoming)?;
    let when = match loading {
        Some(_) => When::Restored,
        None => When::Start,
    };
    let (kvm_fd, fd) = create_vm(files.kvm, &ram)?;
    let irqs = Arc::new(Irqs::new(Arc::clone(&fd)));
    let news = crate::irq::new_event()?;
    let ended = crate::irq::new_event()?;
    let outcome = Arc::new(Outcome::new(share(&ended)?));

    let ring = MappedRing::new(files.ring).map_err(host("map the console ring"))?;
    let ring = ConsoleRing::new(ring);
    let ioapic = Ioapic::new(Arc::clone(&irqs));
    let bus = Arc::new(Bus {
        serial: SerialPort::new(ring.clone(), ioapic.line(layout::COM1_GSI)?),
        rtc: Rtc::default(),
        power: Power::new(ioapic.line(layout::EVENT_GSI)?),
        ioapic,
        // With virtio over MMIO no ACPI table names the bus, but its bridge answers: a kernel
        // that finds no mechanism at all complains on the console, a hundred exits long.
        pci: PciRoot::default(),
        mmio: MmioBus::default(),
        hotplug: Hotplug::new(share(&news)?),
        metrics: BusMetrics::default(),
    });
    let mut devices = Devices::new(
        Arc::clone(&fd),
        Arc::clone(&irqs),
        ram.clone(),
        Arc::clone(&bus),
        Arc::clone(epoll),
        Arc::clone(&outcome),
        share(&news)?,
    )?;
    devices.transport = spec.transport;
    devices.limit_net(None, &spec.transmit)?;
    for (net, tap) in spec.net.iter().zip(files.taps) {
        devices.add_net(net, tap, when)?;
    }
    for (block, listener) in spec.block.iter().zip(files.block_listeners) {
        devices.add_block(block, listener, when)?;
    }
    let hosts = Hosts {
        ring,
        console_input: files.console_input,
        vsock: files.vsock,
    };
    devices.add_hosted(spec, hosts)?;
    let start = match &spec.boot {
        Some(boot) => {
            acpi::write_tables(&ram, spec.vcpus, devices.without_pci())?;
            generation::renew(&ram)?;
            if let Some(identity) = &boot.smbios {
                smbios::write_tables(&ram, identity)?;
            }
            reset::write_vector(&ram)?;
            let cmdline = format!("{}{}", spec.transport.words(), boot.cmdline);
            let kernel = (files.kernel, files.initrd);
            boot_from(boot, cmdline, kernel, &ram, &devices, &outcome)?
        }
        None => Start::Loaded,
    };
    let vcpus = (0..spec.vcpus)
        .map(|index| cpu::create(&kvm_fd, &fd, index, spec, &start).map(Arc::new))
        .collect::<Result<_>>()?;
    let vm = Vm {
        fd,
        ram,
        irqs,
        vcpus,
    };
    let gate = Arc::new(Gate::default());
    let machine = Machine::new(&spec.id, vm, bus, devices, gate, outcome, started_ns);
    Ok(Built {
        machine,
        loading,
        incoming,
        control: files.control,
        news,
        ended,
    })
}

/// New memory, or a snapshot's, with the state that belongs to it.
fn memory_of(
    spec: &Spec,
    files: Option<RestoreFiles>,
    incoming: Option<UnixStream>,
) -> Result<(GuestRam, Option<Loading>, Option<Incoming>)> {
    if let Some(stream) = incoming {
        let (ram, loading, incoming) = incoming::receive(stream, spec)?;
        return Ok((ram, Some(loading), Some(incoming)));
    }
    let Some(files) = files else {
        return Ok((memory::create(spec.memory_mib)?, None, None));
    };
    let loading = Loading::read(files.state)?;
    loading.check(spec)?;
    let ram = restore::map(files.memory, &loading.machine, files.verify)?;
    Ok((ram, Some(loading), None))
}

/// Fills new memory, now or once the disk that has the kernel can be read.
fn boot_from(
    boot: &Boot,
    cmdline: String,
    (kernel, initrd): (Option<File>, Option<File>),
    ram: &GuestRam,
    devices: &Devices,
    outcome: &Arc<Outcome>,
) -> Result<Start> {
    if let Some(kernel) = kernel {
        let payload = Payload {
            kernel,
            initrd,
            cmdline: &cmdline,
        };
        let entry = boot::load(ram, payload)?;
        boot::write_gdt(ram, entry)?;
        return Ok(Start::At(entry));
    }
    let known = Arc::new(OnceLock::new());
    if let Some(id) = &boot.disk {
        let (ram, known) = (ram.clone(), Arc::clone(&known));
        let look = Look::new(Arc::clone(outcome), move |disk| {
            let entry = boot::disk::load_own_kernel(&ram, disk, &cmdline)?;
            boot::write_gdt(&ram, entry)?;
            known.get_or_init(|| entry);
            Ok(())
        })?;
        devices.look_first(id, look)?;
    }
    Ok(Start::Late(known))
}

/// Everything the spec names, open.
pub struct Files {
    kvm: Kvm,
    kernel: Option<File>,
    initrd: Option<File>,
    restore: Option<RestoreFiles>,
    incoming: Option<UnixStream>,
    ring: RingWriter,
    taps: Vec<File>,
    block_listeners: Vec<UnixListener>,
    console_input: Option<File>,
    vsock: Option<UnixListener>,
    control: Option<UnixListener>,
}

struct RestoreFiles {
    state: File,
    memory: Vec<File>,
    verify: bool,
}

impl RestoreFiles {
    fn open(restore: &Restore) -> Result<Self> {
        let mut memory = Vec::new();
        for (i, source) in restore.memory.iter().enumerate() {
            memory.push(inherit::read(&format!("restore.memory[{i}]"), source)?);
        }
        Ok(Self {
            state: inherit::read("restore.state", &restore.state)?,
            memory,
            verify: restore.verify,
        })
    }
}

impl Files {
    /// Opens them; nothing is opened afterwards.
    pub fn open(spec: &Spec) -> Result<Self> {
        let default_kvm = Source::Path(PathBuf::from("/dev/kvm"));
        let kvm = inherit::device("kvm", spec.kvm.as_ref().unwrap_or(&default_kvm))?;
        // SAFETY: the descriptor is open and owned by nobody else; whether it is KVM is checked
        // by the first ioctl.
        let kvm = unsafe { Kvm::from_raw_fd(kvm.into_raw_fd()) };
        let ring = inherit::read_write("serial.ring", &spec.serial.ring)?;
        let ring = RingWriter::open(ring, spec.serial.capacity_bytes)
            .map_err(host("prepare the console ring"))?;
        let mut taps = Vec::new();
        for (i, net) in spec.net.iter().enumerate() {
            taps.push(inherit::tap(&format!("net[{i}].tap"), &net.tap, Tap::open)?);
        }
        let mut block_listeners = Vec::new();
        for (i, block) in spec.block.iter().enumerate() {
            let field = format!("block[{i}].listener");
            block_listeners.push(inherit::listener(&field, &block.listener)?);
        }
        Ok(Self {
            kvm,
            kernel: spec
                .boot
                .as_ref()
                .and_then(|boot| boot.kernel.as_ref())
                .map(|source| inherit::read("boot.kernel", source))
                .transpose()?,
            initrd: spec
                .boot
                .as_ref()
                .and_then(|boot| boot.initrd.as_ref())
                .map(|source| inherit::read("boot.initrd", source))
                .transpose()?,
            restore: spec.restore.as_ref().map(RestoreFiles::open).transpose()?,
            incoming: spec
                .incoming
                .as_ref()
                .map(|source| inherit::connected("incoming", source))
                .transpose()?,
            ring,
            taps,
            block_listeners,
            console_input: match spec.console.as_ref().and_then(|c| c.input.as_ref()) {
                Some(source) => Some(inherit::input("console.input", source)?),
                None => None,
            },
            vsock: match &spec.vsock {
                Some(vsock) => Some(inherit::listener("vsock.listener", &vsock.listener)?),
                None => None,
            },
            control: match &spec.control {
                Some(source) => Some(inherit::listener("control", source)?),
                None => None,
            },
        })
    }
}

/// The VM with its memory and local APICs.
fn create_vm(kvm_fd: Kvm, ram: &GuestRam) -> Result<(Arc<Kvm>, Arc<VmFd>)> {
    const API_VERSION: i32 = 12;
    if kvm_fd.get_api_version() != API_VERSION {
        return Err(kvm("speak API version 12")(kvm_ioctls::Error::last()));
    }
    for (cap, what) in [
        (Cap::SplitIrqchip, "have local APICs without an IOAPIC"),
        (Cap::Irqfd, "have irqfd"),
        (Cap::Ioeventfd, "have ioeventfd"),
        (Cap::IoeventfdNoLength, "have ioeventfd of any length"),
        (Cap::ImmediateExit, "have immediate exit"),
    ] {
        if !kvm_fd.check_extension(cap) {
            return Err(kvm(what)(kvm_ioctls::Error::new(libc::ENOTSUP)));
        }
    }
    let fd = kvm_fd.create_vm().map_err(kvm("create a VM"))?;
    fd.set_identity_map_address(layout::IDENTITY_MAP)
        .map_err(kvm("place the identity map"))?;
    fd.set_tss_address(layout::TSS)
        .map_err(kvm("place the TSS"))?;
    let local_apics = kvm_enable_cap {
        cap: KVM_CAP_SPLIT_IRQCHIP,
        ..Default::default()
    };
    fd.enable_cap(&local_apics)
        .map_err(kvm("create local APICs"))?;
    cpu::without_pmu(&fd)?;
    memory::dirty::set_slots(&fd, ram, 0).map_err(host("give KVM the guest's memory"))?;
    Ok((Arc::new(kvm_fd), Arc::new(fd)))
}
