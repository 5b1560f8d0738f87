//! Help for the kernel's verifier.

/// The same index, of which the verifier knows no more than that it is below `N`, a power
/// of two.
///
/// The verifier follows each value that an index may have through the rest of the
/// program. Where a search ends, that multiplies its work by the number of places where it
/// may end. `any` is a value that the verifier does not know.
#[inline(always)]
pub(crate) fn forget<const N: usize>(index: usize, any: u64) -> usize {
    const { assert!(N.is_power_of_two()) };
    (index + zero(any)) & (N - 1)
}

/// The same value, of which the verifier knows nothing.
///
/// Where branches that each leave another constant meet again, the verifier follows all
/// that comes after once per constant. `any` is a value that the verifier does not know.
#[inline(always)]
pub(crate) fn blur(value: u8, any: u64) -> u8 {
    value.wrapping_add(zero(any) as u8)
}

/// The same number, of which the verifier knows nothing. `any` is a value that the verifier
/// does not know.
#[inline(always)]
#[must_use]
pub fn forget_number(value: u64, any: u64) -> u64 {
    value.wrapping_add(zero(any) as u64)
}

/// 0, computed in a way that the verifier does not see through.
#[cfg(target_arch = "bpf")]
#[inline(always)]
fn zero(any: u64) -> usize {
    let mut zero = any;
    // SAFETY: arithmetic on two registers.
    unsafe {
        core::arch::asm!(
            "{0} -= {1}",
            inout(reg) zero,
            in(reg) any,
            options(pure, nomem, nostack)
        );
    }
    zero as usize
}

#[cfg(not(target_arch = "bpf"))]
fn zero(_any: u64) -> usize {
    0
}
