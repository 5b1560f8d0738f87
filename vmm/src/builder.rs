//! Makes a machine from a spec: everything is opened, then allocated here, in order.
//!
//! ```text
//!  spec ─▶ open files ─▶ (jail) ─▶ VM, memory, irqchip ─▶ devices ─▶ kernel, tables ─▶ vCPUs
//! ```

use crate::boot::{self, Payload, acpi};
use crate::bus::{Bus, BusMetrics};
use crate::cpu::{self, Gate, Vcpu};
use crate::devices::{Devices, When};
use crate::error::{Result, host, kvm};
use crate::events::Epoll;
use crate::irq::{Irqs, share};
use crate::legacy::power::Power;
use crate::legacy::rtc::Rtc;
use crate::legacy::serial::SerialPort;
use crate::machine::Machine;
use crate::memory::{self, GuestRam};
use crate::outcome::Outcome;
use crate::pci::hotplug::Hotplug;
use crate::pci::root::PciRoot;
use crate::virtio::net::tap::Tap;
use crate::{inherit, layout};
use kvm_bindings::kvm_userspace_memory_region;
use kvm_ioctls::{Cap, Kvm, VmFd};
use ocs_vmm_spec::console::RingWriter;
use ocs_vmm_spec::{Source, Spec};
use std::fs::File;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::Arc;
use vm_memory::{GuestMemoryBackend, GuestMemoryRegion};
use vmm_sys_util::eventfd::EventFd;

/// A machine whose threads do not run yet.
pub struct Built {
    /// The whole.
    pub machine: Machine,
    /// vCPUs in order.
    pub vcpus: Vec<Arc<Vcpu>>,
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
    let vm = Vm::new(files.kvm, spec.memory_mib)?;
    let irqs = Arc::new(Irqs::new(Arc::clone(&vm.fd)));
    let news = crate::irq::new_event()?;
    let ended = crate::irq::new_event()?;
    let outcome = Arc::new(Outcome::new(share(&ended)?));

    let bus = Arc::new(Bus {
        serial: SerialPort::new(files.ring, irqs.line(layout::COM1_GSI)?)
            .map_err(host("map the console ring"))?,
        rtc: Rtc::default(),
        power: Power::new(irqs.line(layout::EVENT_GSI)?),
        pci: PciRoot::default(),
        hotplug: Hotplug::new(share(&news)?),
        metrics: BusMetrics::default(),
    });
    let devices = Devices::new(
        Arc::clone(&vm.fd),
        irqs,
        vm.ram.clone(),
        Arc::clone(&bus),
        Arc::clone(epoll),
        Arc::clone(&outcome),
        share(&news)?,
    );
    for (net, tap) in spec.net.iter().zip(files.taps) {
        devices.add_net(net, tap, When::Start)?;
    }
    for (block, listener) in spec.block.iter().zip(files.block_listeners) {
        devices.add_block(block, listener, When::Start)?;
    }
    let vcpus = load(spec, files.kernel, files.initrd, &vm)?;

    let gate = Arc::new(Gate::default());
    let machine = Machine::new(&spec.id, vm.ram, bus, devices, gate, outcome, started_ns);
    Ok(Built {
        machine,
        vcpus,
        control: files.control,
        news,
        ended,
    })
}

/// Fills memory and makes the vCPUs.
fn load(spec: &Spec, kernel: File, initrd: Option<File>, vm: &Vm) -> Result<Vec<Arc<Vcpu>>> {
    let entry = boot::load(
        &vm.ram,
        Payload {
            kernel,
            initrd,
            cmdline: &spec.boot.cmdline,
        },
    )?;
    acpi::write_tables(&vm.ram, spec.vcpus)?;
    boot::write_gdt(&vm.ram, entry)?;
    (0..spec.vcpus)
        .map(|index| cpu::create(&vm.kvm, &vm.fd, index, spec.vcpus, entry).map(Arc::new))
        .collect()
}

/// Everything the spec names, open.
pub struct Files {
    kvm: Kvm,
    kernel: File,
    initrd: Option<File>,
    ring: RingWriter,
    taps: Vec<File>,
    block_listeners: Vec<UnixListener>,
    control: Option<UnixListener>,
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
            kernel: inherit::read("boot.kernel", &spec.boot.kernel)?,
            initrd: match &spec.boot.initrd {
                Some(source) => Some(inherit::read("boot.initrd", source)?),
                None => None,
            },
            ring,
            taps,
            block_listeners,
            control: match &spec.control {
                Some(source) => Some(inherit::listener("control", source)?),
                None => None,
            },
        })
    }
}

/// The VM with its memory and interrupt controllers.
struct Vm {
    kvm: Arc<Kvm>,
    fd: Arc<VmFd>,
    ram: GuestRam,
}

impl Vm {
    fn new(kvm_fd: Kvm, memory_mib: u64) -> Result<Self> {
        const API_VERSION: i32 = 12;
        if kvm_fd.get_api_version() != API_VERSION {
            return Err(kvm("speak API version 12")(kvm_ioctls::Error::last()));
        }
        for (cap, what) in [
            (Cap::Irqchip, "have an interrupt controller"),
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
        fd.create_irq_chip()
            .map_err(kvm("create interrupt controllers"))?;
        let ram = memory::create(memory_mib)?;
        for (slot, region) in (0u32..).zip(ram.iter()) {
            let region = kvm_userspace_memory_region {
                slot,
                flags: 0,
                guest_phys_addr: region.start_addr().0,
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
            // SAFETY: the region is a live mapping of exactly this size, which `ram` keeps for
            // as long as the VM exists; slots are distinct and do not overlap.
            unsafe { fd.set_user_memory_region(region) }.map_err(kvm("map guest memory"))?;
        }
        Ok(Self {
            kvm: Arc::new(kvm_fd),
            fd: Arc::new(fd),
            ram,
        })
    }
}
