//! Configuration space: 256 bytes, of which the guest may change some bits
//! (PCI local bus 3.0 §6).

/// Bytes of conventional configuration space; the extended rest reads as zero.
pub const CONFIG_BYTES: usize = 256;
/// Command register: answer memory accesses.
pub const COMMAND_MEMORY: u8 = 1 << 1;
/// Command register: may be bus master.
const COMMAND_MASTER: u8 = 1 << 2;
const COMMAND_INTX_DISABLE: u8 = 1 << 2;

const COMMAND: usize = 0x04;
const STATUS: usize = 0x06;
const STATUS_CAPABILITIES: u8 = 1 << 4;
const BAR0: usize = 0x10;
const CAPABILITIES: usize = 0x34;
const FIRST_CAPABILITY: usize = 0x40;
/// A 64-bit memory BAR, not prefetchable.
const BAR_MEMORY_64: u8 = 0x4;

/// Who a function says it is.
#[derive(Clone, Copy, Debug)]
pub struct Identity {
    /// Vendor.
    pub vendor: u16,
    /// Device.
    pub device: u16,
    /// Revision.
    pub revision: u8,
    /// Base class, subclass, programming interface.
    pub class: [u8; 3],
    /// Subsystem vendor.
    pub subsystem_vendor: u16,
    /// Subsystem.
    pub subsystem: u16,
}

/// The bytes and which bits of them the guest may write.
pub struct ConfigSpace {
    bytes: [u8; CONFIG_BYTES],
    writable: [u8; CONFIG_BYTES],
    last_capability: usize,
    next_capability: usize,
}

impl ConfigSpace {
    /// A type 0 header.
    pub fn new(identity: Identity) -> Self {
        let mut config = Self {
            bytes: [0; CONFIG_BYTES],
            writable: [0; CONFIG_BYTES],
            last_capability: CAPABILITIES,
            next_capability: FIRST_CAPABILITY,
        };
        config.put(0x00, &identity.vendor.to_le_bytes());
        config.put(0x02, &identity.device.to_le_bytes());
        let [base, sub, interface] = identity.class;
        config.put(0x08, &[identity.revision, interface, sub, base]);
        config.put(0x2c, &identity.subsystem_vendor.to_le_bytes());
        config.put(0x2e, &identity.subsystem.to_le_bytes());
        config.writable[COMMAND] = COMMAND_MEMORY | COMMAND_MASTER;
        config.writable[COMMAND + 1] = COMMAND_INTX_DISABLE;
        // The interrupt line register is software's own.
        config.writable[0x3c] = 0xff;
        config
    }

    /// Declares BAR 0 and 1 as one 64-bit memory BAR of `bytes` (a power of two), at `base`
    /// and enabled, or for the guest to place.
    pub fn set_bar(&mut self, base: Option<u64>, bytes: u64) {
        self.put(BAR0, &base.unwrap_or(0).to_le_bytes());
        self.bytes[BAR0] |= BAR_MEMORY_64;
        let mask = !(bytes - 1);
        self.writable[BAR0..BAR0 + 8].copy_from_slice(&mask.to_le_bytes());
        if base.is_some() {
            self.bytes[COMMAND] |= COMMAND_MEMORY;
        }
    }

    /// Where BAR 0 answers now, if memory accesses are enabled.
    pub fn bar(&self) -> Option<u64> {
        let mut base = [0u8; 8];
        base.copy_from_slice(&self.bytes[BAR0..BAR0 + 8]);
        let base = u64::from_le_bytes(base) & !0xf;
        (self.bytes[COMMAND] & COMMAND_MEMORY != 0 && base != 0).then_some(base)
    }

    /// Appends a capability: id, link, then `body`, of which the bits in `writable`
    /// may be written. Returns its offset.
    pub fn add_capability(&mut self, id: u8, body: &[u8], writable: &[u8]) -> usize {
        let at = self.next_capability;
        self.bytes[self.last_capability] = u8::try_from(at).unwrap_or(0);
        self.bytes[STATUS] |= STATUS_CAPABILITIES;
        self.put(at, &[id, 0]);
        self.put(at + 2, body);
        self.writable[at + 2..at + 2 + writable.len()].copy_from_slice(writable);
        self.last_capability = at + 1;
        self.next_capability = (at + 2 + body.len()).next_multiple_of(4);
        at
    }

    /// A guest's read; bytes outside conventional space are zero.
    pub fn read(&self, offset: usize, data: &mut [u8]) {
        for (i, byte) in data.iter_mut().enumerate() {
            let at = offset.saturating_add(i);
            *byte = self.bytes.get(at).copied().unwrap_or(0);
        }
    }

    /// A guest's write; bits that are not writable keep their value.
    pub fn write(&mut self, offset: usize, data: &[u8]) {
        for (i, value) in data.iter().enumerate() {
            let at = offset.saturating_add(i);
            if at < CONFIG_BYTES {
                let mask = self.writable[at];
                self.bytes[at] = self.bytes[at] & !mask | value & mask;
            }
        }
    }

    /// The little-endian word at `offset`.
    pub fn word(&self, offset: usize) -> u32 {
        let mut word = [0; 4];
        self.read(offset, &mut word);
        u32::from_le_bytes(word)
    }

    /// All bytes, for a snapshot.
    pub(crate) fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Takes a snapshot's bytes; those that the guest could not have written must be the same.
    pub(crate) fn load(&mut self, bytes: &[u8]) -> Result<(), String> {
        let saved = <[u8; CONFIG_BYTES]>::try_from(bytes)
            .map_err(|_| format!("has a configuration space of {} bytes", bytes.len()))?;
        for (at, value) in saved.iter().enumerate() {
            let fixed = !self.writable[at];
            if (self.bytes[at] ^ value) & fixed != 0 {
                return Err(format!(
                    "is of another device: byte {at:#x} of its configuration space is {value:#x}, not {:#x}",
                    self.bytes[at]
                ));
            }
        }
        self.bytes = saved;
        Ok(())
    }

    fn put(&mut self, at: usize, bytes: &[u8]) {
        self.bytes[at..at + bytes.len()].copy_from_slice(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn space() -> ConfigSpace {
        let mut config = ConfigSpace::new(Identity {
            vendor: 0x1af4,
            device: 0x1041,
            revision: 1,
            class: [2, 0, 0],
            subsystem_vendor: 0x1af4,
            subsystem: 0x40,
        });
        config.set_bar(Some(0xc000_0000), 0x8000);
        config
    }

    #[test]
    fn a_bar_is_sized_and_moved_as_the_specification_says() {
        let mut config = space();
        assert_eq!(config.bar(), Some(0xc000_0000));
        config.write(0x10, &[0xff; 4]);
        config.write(0x14, &[0xff; 4]);
        assert_eq!(config.word(0x10), 0xffff_8004);
        assert_eq!(config.word(0x14), 0xffff_ffff);
        config.write(0x10, &0xd000_0000u32.to_le_bytes());
        config.write(0x14, &1u32.to_le_bytes());
        assert_eq!(config.bar(), Some(0x1_d000_0000));
        config.write(0x04, &[0, 0]);
        assert_eq!(config.bar(), None);
    }

    #[test]
    fn identity_is_read_only_and_capabilities_chain() {
        let mut config = space();
        config.write(0, &[0xff; 256]);
        assert_eq!(config.word(0), 0x1041_1af4);
        let first = config.add_capability(9, &[1, 2, 3], &[0xff]);
        let second = config.add_capability(0x11, &[0; 10], &[]);
        assert_eq!(config.word(0x34) & 0xff, first as u32);
        assert_eq!(config.word(first) & 0xffff, (second as u32) << 8 | 9);
        assert_eq!(config.word(second) & 0xffff, 0x11);
    }

    #[test]
    fn accesses_beyond_the_end_are_harmless() {
        let mut config = space();
        let mut data = [0xaa; 8];
        config.read(252, &mut data);
        assert_eq!(data[4..], [0; 4]);
        config.write(usize::MAX - 3, &[1, 2, 3]);
        config.write(254, &[0xff; 8]);
    }
}
