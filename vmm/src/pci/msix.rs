//! MSI-X (PCI local bus 3.0 §6.8.2), every vector an eventfd.
//!
//! ```text
//!  device or vhost-user backend ── write ──▶ eventfd ── irqfd, while unmasked ──▶ KVM ──▶ guest
//!                                              └─ while masked the count stays: that *is* the pending bit
//! ```
//! Masking detaches the irqfd, unmasking attaches it again, and KVM then fires at
//! once if the eventfd was signalled meanwhile. So a backend in another process
//! needs no word with the VMM about masks.

use crate::error::Result;
use crate::irq::{Gsi, Irqs, Msi, borrow, new_event};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use vmm_sys_util::eventfd::EventFd;

/// Capability id.
pub const CAPABILITY: u8 = 0x11;
/// Message control: function enabled.
const ENABLE: u16 = 1 << 15;
/// Message control: all vectors masked.
const FUNCTION_MASK: u16 = 1 << 14;
/// Bytes of one table entry.
const ENTRY_BYTES: u64 = 16;
/// Vector control: masked.
const VECTOR_MASKED: u32 = 1;
/// A vector number that means "none" (virtio 1.3 §4.1.5.1.2).
pub const NO_VECTOR: u16 = 0xffff;

struct Vector {
    message: Msi,
    masked: bool,
    gsi: Gsi,
    event: EventFd,
    attached: bool,
}

/// The table, pending bits and message control of one function.
pub struct Msix {
    irqs: Arc<Irqs>,
    vectors: Vec<Vector>,
    control: u16,
}

impl Msix {
    /// `count` masked vectors.
    pub fn new(irqs: Arc<Irqs>, count: u16) -> Result<Self> {
        let mut vectors = Vec::new();
        for _ in 0..count {
            vectors.push(Vector {
                message: Msi::default(),
                masked: true,
                gsi: irqs.allocate(),
                event: new_event()?,
                attached: false,
            });
        }
        Ok(Self {
            irqs,
            vectors,
            control: 0,
        })
    }

    /// How many vectors there are.
    pub fn count(&self) -> u16 {
        u16::try_from(self.vectors.len()).unwrap_or(u16::MAX)
    }

    /// The eventfd of vector `index`, [`NO_VECTOR`] and others outside the table having none.
    pub fn event(&self, index: u16) -> Option<&EventFd> {
        self.vectors
            .get(usize::from(index))
            .map(|vector| &vector.event)
    }

    /// A new value of message control.
    pub fn set_control(&mut self, control: u16) {
        self.control = control;
        for index in 0..self.vectors.len() {
            self.update(index);
        }
    }

    /// Reads the table.
    pub fn table_read(&self, offset: u64, data: &mut [u8]) {
        let mut bytes = [0u8; ENTRY_BYTES as usize];
        data.fill(0);
        let Some(vector) = self.vectors.get(index_of(offset)) else {
            return;
        };
        bytes[..8].copy_from_slice(&vector.message.address.to_le_bytes());
        bytes[8..12].copy_from_slice(&vector.message.data.to_le_bytes());
        bytes[12..].copy_from_slice(&u32::from(vector.masked).to_le_bytes());
        for (slot, byte) in data.iter_mut().zip(&bytes[within(offset)..]) {
            *slot = *byte;
        }
    }

    /// Writes the table; only aligned words and double words have an effect (§6.8.2).
    pub fn table_write(&mut self, offset: u64, data: &[u8]) {
        if let Ok(double) = <[u8; 8]>::try_from(data) {
            if within(offset).is_multiple_of(8) {
                self.write_word(offset, low_word(&double[..4]));
                self.write_word(offset + 4, low_word(&double[4..]));
            }
        } else if data.len() == 4 && within(offset).is_multiple_of(4) {
            self.write_word(offset, low_word(data));
        }
    }

    fn write_word(&mut self, offset: u64, word: u32) {
        let index = index_of(offset);
        let Some(vector) = self.vectors.get_mut(index) else {
            return;
        };
        let word64 = u64::from(word);
        match within(offset) {
            0 => vector.message.address = vector.message.address & !0xffff_ffff | word64 & !0x3,
            4 => vector.message.address = vector.message.address & 0xffff_ffff | word64 << 32,
            8 => vector.message.data = word,
            _ => vector.masked = word & VECTOR_MASKED != 0,
        }
        self.update(index);
    }

    /// Reads the pending bits: vectors signalled while masked.
    pub fn pending_read(&self, offset: u64, data: &mut [u8]) {
        let offset = usize::try_from(offset).unwrap_or(usize::MAX);
        for (i, byte) in data.iter_mut().enumerate() {
            *byte = (0..8).fold(0, |bits, bit| {
                let index = offset
                    .saturating_add(i)
                    .saturating_mul(8)
                    .saturating_add(bit);
                bits | u8::from(self.is_pending(index)) << bit
            });
        }
    }

    fn is_pending(&self, index: usize) -> bool {
        let Some(vector) = self.vectors.get(index).filter(|v| !v.attached) else {
            return false;
        };
        let mut polled = [PollFd::from_borrowed_fd(
            borrow(&vector.event),
            PollFlags::IN,
        )];
        matches!(poll(&mut polled, Some(&Timespec::default())), Ok(1))
    }

    /// Forgets signals not delivered yet: after a device reset there is nothing to tell.
    pub fn clear_pending(&self) {
        for vector in self.vectors.iter().filter(|vector| !vector.attached) {
            // An error only says that nothing was pending.
            let _ = vector.event.read();
        }
    }

    /// The table, message control and what is pending.
    pub fn save(&self) -> MsixState {
        let vectors = (0..self.vectors.len())
            .zip(&self.vectors)
            .map(|(index, vector)| VectorState {
                address: vector.message.address,
                data: vector.message.data,
                masked: vector.masked,
                pending: self.is_pending(index),
            })
            .collect();
        MsixState {
            control: self.control & (ENABLE | FUNCTION_MASK),
            vectors,
        }
    }

    /// Takes over a table of the same size.
    pub fn load(&mut self, state: &MsixState) -> std::result::Result<(), String> {
        if state.vectors.len() != self.vectors.len() {
            return Err(format!(
                "has {} MSI-X vectors, and this device {}",
                state.vectors.len(),
                self.vectors.len()
            ));
        }
        for (vector, saved) in self.vectors.iter_mut().zip(&state.vectors) {
            vector.message = Msi {
                address: saved.address & !0x3,
                data: saved.data,
            };
            vector.masked = saved.masked;
            if saved.pending {
                vector.event.write(1).map_err(|e| e.to_string())?;
            }
        }
        self.set_control(state.control & (ENABLE | FUNCTION_MASK));
        Ok(())
    }

    /// Interrupts once more by vector `index`, if it is not masked.
    pub fn repeat(&self, index: u16) -> std::result::Result<(), String> {
        match self.vectors.get(usize::from(index)) {
            Some(vector) if vector.attached => vector.event.write(1).map_err(|e| e.to_string()),
            _ => Ok(()),
        }
    }

    /// Makes KVM's view match the registers.
    fn update(&mut self, index: usize) {
        let enabled = self.control & ENABLE != 0 && self.control & FUNCTION_MASK == 0;
        let vector = &mut self.vectors[index];
        let wanted = enabled && !vector.masked && vector.message != Msi::default();
        let done = if wanted {
            self.irqs
                .route(vector.gsi, vector.message)
                .and_then(|()| match vector.attached {
                    true => Ok(()),
                    false => self.irqs.attach(&vector.event, vector.gsi),
                })
        } else if vector.attached {
            self.irqs.detach(&vector.event, vector.gsi)
        } else {
            Ok(())
        };
        match done {
            Ok(()) => vector.attached = wanted,
            Err(error) => {
                tracing::debug!(%error, gsi = vector.gsi.0, "KVM refused an MSI-X vector")
            }
        }
    }
}

impl Drop for Msix {
    /// A function that goes takes its interrupts along.
    fn drop(&mut self) {
        for vector in &self.vectors {
            if vector.attached
                && let Err(error) = self.irqs.detach(&vector.event, vector.gsi)
            {
                tracing::debug!(%error, gsi = vector.gsi.0, "KVM keeps an MSI-X vector");
                continue;
            }
            self.irqs.release(vector.gsi);
        }
    }
}

/// [`Msix`] in a snapshot.
#[derive(Debug, Serialize, Deserialize)]
pub struct MsixState {
    control: u16,
    vectors: Vec<VectorState>,
}

#[derive(Debug, Serialize, Deserialize)]
struct VectorState {
    address: u64,
    data: u32,
    masked: bool,
    pending: bool,
}

fn index_of(offset: u64) -> usize {
    usize::try_from(offset / ENTRY_BYTES).unwrap_or(usize::MAX)
}

fn within(offset: u64) -> usize {
    usize::try_from(offset % ENTRY_BYTES).unwrap_or(0)
}

fn low_word(bytes: &[u8]) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[..4]);
    u32::from_le_bytes(word)
}

#[cfg(test)]
mod tests {
    use super::*;
    use kvm_ioctls::Kvm;

    fn table() -> Msix {
        let vm = Kvm::new().unwrap().create_vm().unwrap();
        vm.create_irq_chip().unwrap();
        Msix::new(Arc::new(Irqs::new(Arc::new(vm))), 2).unwrap()
    }

    fn program(msix: &mut Msix, vector: u64, masked: u32) {
        msix.table_write(vector * 16, &0xfee0_0000u32.to_le_bytes());
        msix.table_write(vector * 16 + 8, &0x41u32.to_le_bytes());
        msix.table_write(vector * 16 + 12, &masked.to_le_bytes());
    }

    #[test]
    fn a_signal_while_masked_is_pending_until_unmasked() {
        let mut msix = table();
        msix.set_control(ENABLE);
        program(&mut msix, 1, 1);
        msix.event(1).unwrap().write(1).unwrap();
        let mut pending = [0xff; 8];
        msix.pending_read(0, &mut pending);
        assert_eq!(pending, [2, 0, 0, 0, 0, 0, 0, 0]);
        program(&mut msix, 1, 0);
        assert!(msix.vectors[1].attached);
        msix.pending_read(0, &mut pending);
        assert_eq!(pending, [0; 8]);
        msix.set_control(ENABLE | FUNCTION_MASK);
        assert!(!msix.vectors[1].attached);
    }

    #[test]
    fn odd_accesses_change_nothing() {
        let mut msix = table();
        msix.set_control(ENABLE);
        msix.table_write(1, &[0xff; 4]);
        msix.table_write(0, &[0xff; 2]);
        msix.table_write(4, &[0xff; 8]);
        msix.table_write(u64::MAX - 16, &[0xff; 4]);
        let mut entry = [0xaa; 8];
        msix.table_read(0, &mut entry);
        assert_eq!(entry, [0; 8]);
        msix.table_read(1 << 40, &mut entry);
        assert_eq!(entry, [0; 8]);
    }
}
