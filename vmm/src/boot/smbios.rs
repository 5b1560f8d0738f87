//! SMBIOS 3.0 tables (DMTF DSP0134): what firmware says that the machine is. Linux shows them
//! in `/sys/class/dmi/id`, and cloud-init knows its cloud by them.
//!
//! ```text
//!  0xf0000  "_SM3_" ─▶ 0xf0020  BIOS (0), system (1), board (2), chassis (3), end (127)
//! ```
//! A kernel that was not booted by UEFI looks for the anchor from 0xf0000 on (§5.2.2).

use super::write;
use crate::error::Result;
use crate::layout;
use crate::memory::GuestRam;
use ocs_vmm_spec::Smbios;

/// Of the entry point, 64-bit form (§5.2.2).
const ANCHOR_BYTES: usize = 24;
/// Of the tables, behind the anchor.
const TABLES: u64 = layout::SMBIOS + 32;
const VERSION: [u8; 3] = [3, 0, 0];
const BIOS_VERSION: &str = "1.0";
/// Some kernels distrust the tables of old firmware by this.
const BIOS_DATE: &str = "01/01/2026";
/// BIOS characteristics (§7.1.1): "not supported"; and (§7.1.2.2): ACPI, a virtual machine.
const NO_CHARACTERISTICS: u64 = 1 << 3;
const EXTENSIONS: [u8; 2] = [1, 1 << 4];
/// Wake-up type (§7.2.2): power switch.
const WAKE_UP: u8 = 6;
/// Chassis type, states and security (§7.4.1 to §7.4.3): other, safe, none.
const CHASSIS_OTHER: u8 = 1;
const STATE_SAFE: u8 = 3;
const SECURITY_NONE: u8 = 3;
/// Board features (§7.3.1) and type (§7.3.2): a hosting board, motherboard.
const BOARD_FEATURES: u8 = 1;
const MOTHERBOARD: u8 = 10;

/// Writes the anchor and the tables behind it.
pub fn write_tables(ram: &GuestRam, identity: &Smbios) -> Result<()> {
    let tables = tables(identity);
    let mut anchor = Vec::with_capacity(ANCHOR_BYTES);
    anchor.extend_from_slice(b"_SM3_\0");
    anchor.extend_from_slice(&[ANCHOR_BYTES as u8]);
    anchor.extend_from_slice(&VERSION);
    anchor.extend_from_slice(&[1, 0]);
    // Five structures and strings of a bounded length: far less than 64 KiB.
    anchor.extend_from_slice(&u32::try_from(tables.len()).unwrap_or(0).to_le_bytes());
    anchor.extend_from_slice(&TABLES.to_le_bytes());
    let sum = anchor.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
    anchor[5] = sum.wrapping_neg();
    write(ram, &anchor, layout::SMBIOS)?;
    write(ram, &tables, TABLES)
}

fn tables(identity: &Smbios) -> Vec<u8> {
    let mut out = Vec::new();
    let vendor = identity.vendor.as_str();
    let mut bios = Structure::new(0, 0);
    bios.string(vendor).string(BIOS_VERSION).bytes(&[0, 0]);
    bios.string(BIOS_DATE).bytes(&[0]);
    bios.bytes(&NO_CHARACTERISTICS.to_le_bytes())
        .bytes(&EXTENSIONS);
    // Release 1.0 of the BIOS, none of a controller.
    bios.bytes(&[1, 0, 0xff, 0xff]);
    bios.finish(&mut out);

    let mut system = Structure::new(1, 1);
    system.string(vendor).string(&identity.product).string("");
    system.string(&identity.serial);
    system.bytes(&mixed_endian(identity.uuid_bytes().unwrap_or_default()));
    system.bytes(&[WAKE_UP]).string("").string("");
    system.finish(&mut out);

    let mut board = Structure::new(2, 2);
    board.string(vendor).string("").string("").string("");
    board.string(&identity.board_asset_tag);
    board.bytes(&[BOARD_FEATURES]).string("");
    board
        .bytes(&CHASSIS_HANDLE.to_le_bytes())
        .bytes(&[MOTHERBOARD, 0]);
    board.finish(&mut out);

    let mut chassis = Structure::new(3, CHASSIS_HANDLE);
    chassis.string(vendor).bytes(&[CHASSIS_OTHER]).string("");
    chassis.string("").string(&identity.asset_tag);
    chassis.bytes(&[STATE_SAFE, STATE_SAFE, STATE_SAFE, SECURITY_NONE]);
    // OEM-defined, height, power cords, contained elements: none.
    chassis.bytes(&[0; 8]).string("");
    chassis.finish(&mut out);

    Structure::new(127, 4).finish(&mut out);
    out
}

const CHASSIS_HANDLE: u16 = 3;

/// Its first three fields are little-endian, the rest are bytes (§7.2.1).
fn mixed_endian(mut uuid: [u8; 16]) -> [u8; 16] {
    uuid[..4].reverse();
    uuid[4..6].reverse();
    uuid[6..8].reverse();
    uuid
}

/// One structure (§6.1): a header and fields, then the strings that the fields number from 1.
struct Structure {
    fields: Vec<u8>,
    strings: Vec<u8>,
    count: u8,
}

impl Structure {
    fn new(kind: u8, handle: u16) -> Self {
        let [low, high] = handle.to_le_bytes();
        Self {
            fields: vec![kind, 0, low, high],
            strings: Vec::new(),
            count: 0,
        }
    }

    fn bytes(&mut self, bytes: &[u8]) -> &mut Self {
        self.fields.extend_from_slice(bytes);
        self
    }

    /// A field that numbers `text`; an empty one is 0.
    fn string(&mut self, text: &str) -> &mut Self {
        let mut number = 0;
        if !text.is_empty() {
            self.strings.extend_from_slice(text.as_bytes());
            self.strings.push(0);
            self.count += 1;
            number = self.count;
        }
        self.bytes(&[number])
    }

    fn finish(&mut self, out: &mut Vec<u8>) {
        self.fields[1] = u8::try_from(self.fields.len()).unwrap_or(u8::MAX);
        out.extend_from_slice(&self.fields);
        out.extend_from_slice(&self.strings);
        out.push(0);
        if self.count == 0 {
            out.push(0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::memory;
    use std::collections::BTreeMap;
    use vm_memory::{Bytes, GuestAddress};

    fn identity() -> Smbios {
        Smbios {
            vendor: "Amazon EC2".into(),
            product: "t3.nano".into(),
            uuid: "ec201234-5678-9abc-def0-0123456789ab".into(),
            serial: "ec201234-5678-9abc-def0-0123456789ab".into(),
            asset_tag: "Amazon EC2".into(),
            board_asset_tag: "i-0123456789abcdef0".into(),
        }
    }

    /// Structures by type, fields and strings, as a naive reader finds them.
    fn read(ram: &GuestRam) -> BTreeMap<u8, (Vec<u8>, Vec<String>)> {
        let mut anchor = [0u8; ANCHOR_BYTES];
        ram.read_slice(&mut anchor, GuestAddress(0xf_0000)).unwrap();
        assert_eq!(&anchor[..5], b"_SM3_");
        assert_eq!(anchor.iter().fold(0u8, |sum, b| sum.wrapping_add(*b)), 0);
        let len = u32::from_le_bytes(anchor[12..16].try_into().unwrap()) as usize;
        let at = u64::from_le_bytes(anchor[16..].try_into().unwrap());
        assert!(at + (len as u64) < layout::GENERATION_ID);
        let mut bytes = vec![0; len];
        ram.read_slice(&mut bytes, GuestAddress(at)).unwrap();
        let (mut found, mut rest) = (BTreeMap::new(), &bytes[..]);
        while !rest.is_empty() {
            let fields = rest[..usize::from(rest[1])].to_vec();
            rest = &rest[fields.len()..];
            let end = rest.windows(2).position(|two| two == [0, 0]).unwrap();
            let strings = String::from_utf8(rest[..end].to_vec()).unwrap();
            rest = &rest[end + 2..];
            let strings = strings.split('\0').map(str::to_owned).collect();
            assert!(found.insert(fields[0], (fields, strings)).is_none());
        }
        found
    }

    #[test]
    fn a_reader_finds_what_was_written() {
        let ram = memory::create(16).unwrap();
        write_tables(&ram, &identity()).unwrap();
        let found = read(&ram);
        assert_eq!(found.keys().copied().collect::<Vec<_>>(), [0, 1, 2, 3, 127]);
        let string = |kind: u8, field: usize| {
            let (fields, strings) = &found[&kind];
            match fields[field] {
                0 => "",
                number => strings[usize::from(number) - 1].as_str(),
            }
        };
        // Offsets of DSP0134's tables 6, 10, 15 and 17.
        let uuid = "ec201234-5678-9abc-def0-0123456789ab";
        for (kind, field, text) in [
            (0, 4, "Amazon EC2"),
            (0, 5, BIOS_VERSION),
            (0, 8, BIOS_DATE),
            (1, 4, "Amazon EC2"),
            (1, 5, "t3.nano"),
            (1, 6, ""),
            (1, 7, uuid),
            (2, 4, "Amazon EC2"),
            (2, 8, "i-0123456789abcdef0"),
            (3, 4, "Amazon EC2"),
            (3, 8, "Amazon EC2"),
        ] {
            assert_eq!(string(kind, field), text, "type {kind} at {field}");
        }
        let system = &found[&1].0;
        assert_eq!(system[8..12], [0x34, 0x12, 0x20, 0xec][..]);
        assert_eq!(system[12..16], [0x78, 0x56, 0xbc, 0x9a][..]);
        assert_eq!(system[16..18], [0xde, 0xf0][..]);
        let lengths: Vec<usize> = found.values().map(|(fields, _)| fields.len()).collect();
        assert_eq!(lengths, [0x18, 0x1b, 0x0f, 0x16, 4]);
    }

    #[test]
    fn a_machine_of_no_words_has_tables_too() {
        let ram = memory::create(16).unwrap();
        write_tables(&ram, &Smbios::default()).unwrap();
        assert_eq!(read(&ram)[&1].0[7], 0);
    }
}
