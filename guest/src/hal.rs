//! Memory: the heap, device memory, and both as virtio-drivers wants them.
//!
//! All memory below 4 GiB is mapped one to one, so a pointer is a physical address.

use crate::global::Global;
use crate::machine::Start;
use alloc::alloc::{alloc_zeroed, dealloc, handle_alloc_error};
use core::alloc::{GlobalAlloc, Layout};
use core::ptr::{NonNull, addr_of_mut, null_mut, read_volatile, write_volatile};
use linked_list_allocator::Heap;
use virtio_drivers::{BufferDirection, PAGE_SIZE, PhysAddr};

/// Enough for 32 orders with all their sockets and disk buffers.
const MAX_HEAP_BYTES: usize = 12 << 20;

struct Allocator(Global<Heap>);

#[global_allocator]
static ALLOCATOR: Allocator = Allocator(Global::new(Heap::empty()));

// SAFETY: `Heap` hands out blocks that are disjoint and fit their layout; `Global`
// keeps two uses from overlapping.
unsafe impl GlobalAlloc for Allocator {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        self.0
            .with(|heap| heap.allocate_first_fit(layout))
            .map_or(null_mut(), NonNull::as_ptr)
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        if let Some(pointer) = NonNull::new(pointer) {
            // SAFETY: the caller gives back what `alloc` gave for the same layout.
            self.0
                .with(|heap| unsafe { heap.deallocate(pointer, layout) });
        }
    }
}

unsafe extern "C" {
    static mut __heap_start: u8;
}

/// Gives the memory behind the image to the heap. Nothing of it is touched here: a page
/// becomes resident on the host only when it is used.
pub fn init_heap(start: &Start) {
    let bottom = addr_of_mut!(__heap_start);
    let free = start.memory_behind(bottom as u64).min(MAX_HEAP_BYTES);
    // SAFETY: the linker script puts nothing behind `__heap_start`, the memory map says
    // that `free` bytes of RAM follow, and this is called once.
    ALLOCATOR.0.with(|heap| unsafe { heap.init(bottom, free) });
}

/// A window of device memory.
#[derive(Clone, Copy, Debug)]
pub struct Mmio {
    base: u64,
    len: usize,
}

macro_rules! access {
    ($read:ident, $write:ident, $type:ty) => {
        #[doc = "Reads a register."]
        pub fn $read(self, at: usize) -> $type {
            // SAFETY: `pointer` checked that the aligned register lies in the window,
            // which by the contract of `new` is mapped device memory.
            unsafe { read_volatile(self.pointer::<$type>(at)) }
        }

        #[doc = "Writes a register."]
        pub fn $write(self, at: usize, value: $type) {
            // SAFETY: as for reading.
            unsafe { write_volatile(self.pointer::<$type>(at), value) }
        }
    };
}

impl Mmio {
    /// # Safety
    ///
    /// `base` and `len` are of device memory that is mapped (below 4 GiB, no RAM) for as
    /// long as the window is used.
    pub const unsafe fn new(base: u64, len: usize) -> Self {
        Self { base, len }
    }

    /// Bytes of the window.
    pub const fn len(self) -> usize {
        self.len
    }

    /// A part of the window, if it lies inside.
    pub fn part(self, offset: usize, len: usize) -> Option<Self> {
        (offset.checked_add(len)? <= self.len).then(|| Self {
            base: self.base + offset as u64,
            len,
        })
    }

    fn pointer<T>(self, at: usize) -> *mut T {
        assert!(
            at.is_multiple_of(size_of::<T>()) && at + size_of::<T>() <= self.len,
            "register {at:#x} is outside of its window of {:#x} bytes",
            self.len
        );
        (self.base as usize + at) as *mut T
    }

    access!(read8, write8, u8);
    access!(read16, write16, u16);
    access!(read32, write32, u32);
}

/// [`virtio_drivers::Hal`] without an IOMMU.
pub struct Hal;

// SAFETY: blocks come zeroed, page-aligned and unaliased from the heap, and physical
// addresses are virtual ones.
unsafe impl virtio_drivers::Hal for Hal {
    fn dma_alloc(pages: usize, _: BufferDirection) -> (PhysAddr, NonNull<u8>) {
        let layout = dma_layout(pages);
        // SAFETY: `dma_layout` never has size 0.
        let Some(block) = NonNull::new(unsafe { alloc_zeroed(layout) }) else {
            handle_alloc_error(layout)
        };
        (block.as_ptr() as u64, block)
    }

    unsafe fn dma_dealloc(_: PhysAddr, block: NonNull<u8>, pages: usize) -> i32 {
        // SAFETY: the caller gives back what `dma_alloc` gave for as many pages.
        unsafe { dealloc(block.as_ptr(), dma_layout(pages)) };
        0
    }

    unsafe fn mmio_phys_to_virt(address: PhysAddr, _: usize) -> NonNull<u8> {
        NonNull::new(address as *mut u8).expect("no device is at address 0")
    }

    unsafe fn share(buffer: NonNull<[u8]>, _: BufferDirection) -> PhysAddr {
        buffer.as_ptr().cast::<u8>() as u64
    }

    unsafe fn unshare(_: PhysAddr, _: NonNull<[u8]>, _: BufferDirection) {}
}

fn dma_layout(pages: usize) -> Layout {
    Layout::from_size_align(pages.max(1) * PAGE_SIZE, PAGE_SIZE)
        .expect("virtqueues have a few pages")
}
