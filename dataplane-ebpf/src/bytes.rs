//! Bytes of the kernel's frame, which the verifier sees compared with their end.

use core::arch::asm;

use ocs_dataplane_shared::packet::{HEAD_BYTES, Head};
use ocs_dataplane_shared::parse::{ETH_LEN, ETH_SOURCE, ETH_TYPE};
use ocs_dataplane_shared::vxlan::{OVERHEAD, Outer};

/// What lies between `data` and `data_end`.
///
/// The verifier wants the very pointer that is used compared with `data_end`. The
/// compiler would compare one sum and use another that it knows to be equal, so
/// [`opaque`] hides from it how the pointer came to be.
pub struct Bytes {
    start: usize,
    end: usize,
}

impl Bytes {
    #[inline(always)]
    pub fn between(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    #[inline(always)]
    pub fn len(&self) -> usize {
        self.end - self.start
    }

    #[inline(always)]
    pub fn at<T>(&self, at: usize) -> Option<*mut T> {
        let pointer = opaque(self.start + at);
        if pointer + size_of::<T>() > self.end {
            return None;
        }
        Some(pointer as *mut T)
    }

    #[inline(always)]
    pub fn load<T: Copy>(&self, at: usize) -> Option<T> {
        // SAFETY: `at` has checked that the bytes are the frame's; `T` is an integer.
        // XDP programs are compiled for kernels that read any alignment, as the verifier
        // checks (BPF_F_ANY_ALIGNMENT is implied on x86-64).
        self.at::<T>(at).map(|pointer| unsafe { *pointer })
    }

    #[inline(always)]
    pub fn store<T: Copy>(&mut self, at: usize, value: T) -> Option<()> {
        let pointer = self.at::<T>(at)?;
        // SAFETY: as in `load`; the frame is this program's alone while it runs.
        unsafe { *pointer = value };
        Some(())
    }

    #[inline(always)]
    pub fn load_head(&self) -> Option<Head> {
        let start = self.at::<[u8; HEAD_BYTES]>(0)?;
        Some(Head {
            source_front: within(start, ETH_SOURCE),
            source_rest: within(start, ETH_SOURCE + 4),
            ether_type: within(start, ETH_TYPE),
            version: within(start, ETH_LEN),
            length: within(start, ETH_LEN + 2),
            id: within(start, ETH_LEN + 4),
            fragment: within(start, ETH_LEN + 6),
            ttl: within(start, ETH_LEN + 8),
            protocol: within(start, ETH_LEN + 9),
            source: within(start, ETH_LEN + 12),
            destination: within(start, ETH_LEN + 16),
        })
    }

    #[inline(always)]
    pub fn load_mac(&self, at: usize) -> Option<[u8; 6]> {
        let start = self.at::<[u8; 6]>(at)?;
        let [a, b, c, d] = within::<u32, 6>(start, 0).to_ne_bytes();
        let [e, f] = within::<u16, 6>(start, 4).to_ne_bytes();
        Some([a, b, c, d, e, f])
    }

    #[inline(always)]
    pub fn store_mac(&mut self, at: usize, mac: [u8; 6]) -> Option<()> {
        let start = self.at::<[u8; 6]>(at)?;
        let [a, b, c, d, e, f] = mac;
        // SAFETY: as in `store`.
        unsafe {
            *start.cast::<u32>() = u32::from_ne_bytes([a, b, c, d]);
            *start.cast::<u32>().add(1).cast::<u16>() = u16::from_ne_bytes([e, f]);
        }
        Some(())
    }

    /// Writes an outer header at the start.
    #[inline(always)]
    pub fn store_front(&mut self, outer: &Outer<'_>) -> Option<()> {
        let (front, rest) = outer.header();
        // Compared once for all.
        let start = self.at::<[u8; OVERHEAD]>(0)?;
        let words = start.cast::<u64>();
        for (index, word) in front.iter().enumerate() {
            // SAFETY: as in `store`; the words and the half lie within what `at` has checked.
            unsafe { *words.add(index) = *word };
        }
        // SAFETY: as above.
        unsafe { *words.add(front.len()).cast::<u16>() = rest };
        Some(())
    }
}

/// The methods of `Packet` that a field `bytes` has an answer to.
macro_rules! bytes_of_packet {
    () => {
        #[inline(always)]
        fn load_u8(&self, at: usize) -> Option<u8> {
            self.bytes.load(at)
        }

        #[inline(always)]
        fn load_u16(&self, at: usize) -> Option<u16> {
            self.bytes.load(at)
        }

        #[inline(always)]
        fn load_u32(&self, at: usize) -> Option<u32> {
            self.bytes.load(at)
        }

        #[inline(always)]
        fn load_u64(&self, at: usize) -> Option<u64> {
            self.bytes.load(at)
        }

        #[inline(always)]
        fn load_head(&self) -> Option<Head> {
            self.bytes.load_head()
        }

        #[inline(always)]
        fn load_mac(&self, at: usize) -> Option<[u8; 6]> {
            self.bytes.load_mac(at)
        }

        #[inline(always)]
        fn store_mac(&mut self, at: usize, mac: [u8; 6]) -> Option<()> {
            self.bytes.store_mac(at, mac)
        }

        #[inline(always)]
        fn store_u8(&mut self, at: usize, value: u8) -> Option<()> {
            self.bytes.store(at, value)
        }

        #[inline(always)]
        fn store_u16(&mut self, at: usize, value: u16) -> Option<()> {
            self.bytes.store(at, value)
        }

        #[inline(always)]
        fn store_u32(&mut self, at: usize, value: u32) -> Option<()> {
            self.bytes.store(at, value)
        }

        #[inline(always)]
        fn store_u64(&mut self, at: usize, value: u64) -> Option<()> {
            self.bytes.store(at, value)
        }
    };
}
pub(crate) use bytes_of_packet;

/// Reads within bytes that [`Bytes::at`] has checked.
#[inline(always)]
fn within<T: Copy, const BYTES: usize>(start: *mut [u8; BYTES], at: usize) -> T {
    debug_assert!(at + size_of::<T>() <= BYTES);
    // SAFETY: as in `Bytes::load`.
    unsafe { *start.cast::<u8>().add(at).cast::<T>() }
}

/// The same value, of which the compiler knows nothing.
#[inline(always)]
pub fn opaque(mut value: usize) -> usize {
    // SAFETY: a register is copied to itself; memory, stack and all else stay as they are.
    // (Without an instruction two lines would claim the same place, which the kernel
    // refuses to load.)
    unsafe { asm!("{0} = {0}", inout(reg) value, options(nomem, nostack, preserves_flags)) };
    value
}
