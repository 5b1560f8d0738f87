//! The four calls into ring 0, by `int3`: the only trap that every host passes on.

use core::arch::asm;

const IDLE: u32 = 0;
const WRITE: u32 = 1;
const IO: u32 = 2;
const HALT: u32 = 3;

/// Halts until an interrupt. One that is already pending ends it at once, so nothing
/// is lost between the last look at the rings and this call.
pub fn idle() {
    // SAFETY: the gate's `idle` changes rdi and flags only, both named as clobbered,
    // and its interrupt handlers change nothing.
    unsafe { asm!("int3", in("eax") IDLE, clobber_abi("sysv64")) };
}

/// Writes to COM1.
pub fn write(bytes: &[u8]) {
    // SAFETY: the gate reads `rcx` bytes at `rsi`, which is this slice, and changes no
    // register but those of the C ABI.
    unsafe {
        asm!("int3", in("eax") WRITE, in("rsi") bytes.as_ptr(), in("rcx") bytes.len(),
            clobber_abi("sysv64"));
    }
}

/// Stops this processor for good.
pub fn halt() -> ! {
    // SAFETY: the gate never returns from this call.
    unsafe { asm!("int3", in("eax") HALT, options(noreturn)) };
}

#[derive(Clone, Copy)]
enum Op {
    In8 = 0,
    Out8 = 1,
    Out16 = 2,
}

fn io(op: Op, port: u16, value: u32) -> u32 {
    let result: u32;
    // SAFETY: port I/O of the device that the caller names; the gate changes no
    // register but those of the C ABI and no memory.
    unsafe {
        asm!("int3", inlateout("eax") IO => result, in("edi") op as u32, in("esi") value,
            in("edx") u32::from(port), clobber_abi("sysv64"));
    }
    result
}

/// Reads a byte from an I/O port.
pub fn in8(port: u16) -> u8 {
    io(Op::In8, port, 0).to_le_bytes()[0]
}

/// Writes a byte to an I/O port.
pub fn out8(port: u16, value: u8) {
    io(Op::Out8, port, value.into());
}

/// Writes 16 bits to an I/O port.
pub fn out16(port: u16, value: u16) {
    io(Op::Out16, port, value.into());
}
