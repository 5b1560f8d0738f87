//! Chains of one batch: taking them, and what must be done to buffers before or after a frame.

use super::{Chain, FRONT_BYTES, HEADER_BYTES};
use crate::virtio::queue::{QueueError, VirtQueue};
use vm_memory::VolatileSlice;

/// Takes up to `wanted` buffers to receive into.
pub(super) fn take_buffers(
    rx: &mut VirtQueue,
    chains: &mut [Chain],
    wanted: usize,
) -> std::result::Result<usize, QueueError> {
    for (taken, chain) in chains.iter_mut().take(wanted).enumerate() {
        let Some(head) = rx.pop(&mut chain.buffers)? else {
            return Ok(taken);
        };
        chain.head = head;
        let room = chain.buffers.writable_bytes();
        if room <= HEADER_BYTES {
            return Err(QueueError::Buffer {
                at: 0,
                len: u32::try_from(room).unwrap_or(u32::MAX),
            });
        }
    }
    Ok(wanted.min(chains.len()))
}

/// Copies a frame of `bytes` from the buffers of one chain to those of an earlier one; false
/// if they are too small.
pub(super) fn move_up(chains: &[Chain], from: usize, to: usize, bytes: usize) -> bool {
    let [from, to] = [from, to].map(|index| &chains[index].buffers);
    if to.writable_bytes() < bytes {
        return false;
    }
    let (mut source, mut target) = (from.writable.clone(), to.writable.clone());
    let mut left = bytes;
    while let (Some(a), Some(b)) = (source.first(), target.first())
        && left > 0
    {
        let len = a.iov_len.min(b.iov_len).min(left);
        // SAFETY: both are buffers that the queue's walk found in guest memory, which stays
        // mapped, and `len` is within either; volatile copies tolerate a racing guest.
        unsafe {
            let a = VolatileSlice::new(a.iov_base.cast(), len);
            let b = VolatileSlice::new(b.iov_base.cast(), len);
            a.copy_to_volatile_slice(b);
        }
        skip(&mut source, len);
        skip(&mut target, len);
        left -= len;
    }
    true
}

/// Drops the first `bytes` of a list of buffers.
pub(super) fn skip(buffers: &mut Vec<libc::iovec>, mut bytes: usize) {
    let mut whole = 0;
    for buffer in buffers.iter_mut() {
        if bytes < buffer.iov_len {
            buffer.iov_base = buffer.iov_base.cast::<u8>().wrapping_add(bytes).cast();
            buffer.iov_len -= bytes;
            break;
        }
        bytes -= buffer.iov_len;
        whole += 1;
    }
    buffers.drain(..whole);
}

/// The header in front of a frame that the guest sends, and the frame's Ethernet header; zeros
/// where it is cut short.
pub(super) fn read_front(buffers: &[libc::iovec]) -> [u8; FRONT_BYTES] {
    let mut front = [0; FRONT_BYTES];
    let mut left = front.as_mut_slice();
    for buffer in buffers {
        let here = buffer.iov_len.min(left.len());
        let (now, later) = left.split_at_mut(here);
        for (at, byte) in now.iter_mut().enumerate() {
            // SAFETY: the byte is inside a buffer that the queue's walk found in guest memory,
            // which stays mapped; a volatile byte load tolerates a racing guest.
            *byte = unsafe { buffer.iov_base.cast::<u8>().add(at).read_volatile() };
        }
        left = later;
    }
    front
}

/// `num_buffers` of the header is 1 for a driver of virtio 1 (§5.1.6.4.1); the tap leaves it 0.
pub(super) fn set_buffer_count(buffers: &[libc::iovec]) {
    const NUM_BUFFERS: usize = 10;
    for (index, value) in (NUM_BUFFERS..).zip(1u16.to_le_bytes()) {
        let mut at = index;
        for buffer in buffers {
            if at < buffer.iov_len {
                // SAFETY: the byte is inside a buffer that the queue's walk found in guest
                // memory, which stays mapped; a volatile byte store tolerates a racing guest.
                unsafe {
                    buffer.iov_base.cast::<u8>().add(at).write_volatile(value);
                }
                break;
            }
            at -= buffer.iov_len;
        }
    }
}
