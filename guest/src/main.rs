//! The probe: a bare-metal guest that takes orders from user data and reports on its
//! console. One image for PVM, VT-x, AMD-V and TCG.
//!
//! ```text
//!  ring 3 (all of the Rust)                              ring 0 (stub.S)
//!  ┌───────────────────────────────────────────┐ int3  ┌─────────────────────┐
//!  │ tasks: dhcp → imds → orders               │──────▶│ idle: sti; hlt      │
//!  │   ▲ executor (polls all, then idles)      │◀──────│ write: rep outsb    │
//!  │ net: smoltcp ── virtio-net ─┐             │ iretq │ io: in, out         │
//!  │ disks ───────── virtio-blk ─┤ rings, MMIO │       └──────▲──────────────┘
//!  └─────────────────────────────┼─────────────┘              │ MSI-X, timer
//!                                ▼  doorbells (ioeventfd) ────┘
//! ```
//!
//! Why two rings: a PVM host runs ring 3 natively and emulates ring 0 instruction by
//! instruction; elsewhere the split costs nothing. Start reading at [`probe_main`].

#![no_std]
#![no_main]

extern crate alloc;

mod clock;
mod console;
mod events;
mod executor;
mod global;
mod hal;
mod lapic;
mod machine;
mod net;
mod panic;
mod power;
mod ring0;
mod tasks;
mod virtio;

use console::say;
use machine::Start;

core::arch::global_asm!(include_str!("stub.S"));

/// Ring 3 begins here, on a stack of 128 KiB and with a zeroed bss.
#[unsafe(no_mangle)]
extern "C" fn probe_main() -> ! {
    let start = Start::get();
    hal::init_heap(&start);
    let acpi = start.acpi();
    clock::init();
    say!(
        "probe: boot version={} cpus={} memory_mib={} tsc_khz={}",
        env!("CARGO_PKG_VERSION"),
        acpi.ok().and_then(|acpi| acpi.cpus).unwrap_or(1),
        start.memory_mib(),
        clock::tsc_khz()
    );
    match acpi {
        Ok(acpi) => {
            lapic::init(acpi.legacy_pic);
            executor::spawn(tasks::main(start, acpi));
            executor::run()
        }
        Err(error) => {
            say!("probe: error={error}");
            ring0::halt()
        }
    }
}
