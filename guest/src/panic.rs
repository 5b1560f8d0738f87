//! The end: a line on the console, then a halt, so that the host still has the machine
//! to look at.

use crate::{console, ring0};
use core::panic::PanicInfo;

/// Rust's panics.
#[panic_handler]
fn panic(info: &PanicInfo<'_>) -> ! {
    match info.location() {
        Some(at) => console::print_now(format_args!(
            "panic: {} at={}:{}",
            info.message(),
            at.file(),
            at.line()
        )),
        None => console::print_now(format_args!("panic: {}", info.message())),
    }
    ring0::halt()
}

/// Exceptions: stub.S comes here with what the processor said.
#[unsafe(no_mangle)]
extern "C" fn fault_entry(vector: u64, error: u64, rip: u64, address: u64, rsp: u64) -> ! {
    console::print_now(format_args!(
        "panic: exception={vector} error={error:#x} rip={rip:#x} address={address:#x} rsp={rsp:#x}"
    ));
    ring0::halt()
}
