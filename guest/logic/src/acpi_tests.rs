use super::*;
use alloc::vec;
use alloc::vec::Vec;
use proptest::prelude::*;

struct Image(Vec<u8>);

impl Memory for Image {
    fn bytes(&self, address: u64, len: usize) -> Option<&[u8]> {
        let start = usize::try_from(address).ok()?;
        self.0.get(start..start.checked_add(len)?)
    }
}

fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

fn seal(image: &mut [u8], at: usize, len: usize, sum_at: usize) {
    image[at + sum_at] = 0;
    let sum = image[at..at + len]
        .iter()
        .fold(0u8, |sum, b| sum.wrapping_add(*b));
    image[at + sum_at] = 0u8.wrapping_sub(sum);
}

fn table(image: &mut [u8], at: usize, signature: &[u8; 4], body: &[u8]) {
    let len = 36 + body.len();
    put(image, at, signature);
    put(image, at + 4, &u32::try_from(len).unwrap().to_le_bytes());
    put(image, at + 10, b"OCSOCS");
    put(image, at + 36, body);
    seal(image, at, len, 9);
}

/// RSDP at 16, XSDT at 0x100, MCFG 0x200, MADT 0x300, FADT 0x400, DSDT 0x600.
fn image() -> Vec<u8> {
    let mut image = vec![0; 0x700];
    put(&mut image, 16, b"RSD PTR ");
    image[16 + 15] = 2;
    put(&mut image, 16 + 20, &36u32.to_le_bytes());
    put(&mut image, 16 + 24, &0x100u64.to_le_bytes());
    seal(&mut image, 16, 20, 8);
    seal(&mut image, 16, 36, 32);
    let entries: Vec<u8> = [0x200u64, 0x300, 0x400]
        .iter()
        .flat_map(|a| a.to_le_bytes())
        .collect();
    table(&mut image, 0x100, b"XSDT", &entries);
    let mut mcfg = vec![0; 8 + 16];
    put(&mut mcfg, 8, &0xe000_0000u64.to_le_bytes());
    mcfg[8 + 11] = 3;
    table(&mut image, 0x200, b"MCFG", &mcfg);
    let mut madt = vec![0; 8];
    madt[4] = 1;
    madt.extend([0, 8, 0, 0, 1, 0, 0, 0]);
    madt.extend([0, 8, 1, 1, 0, 0, 0, 0]);
    madt.extend([1, 12, 0, 0, 0, 0, 0xc0, 0xfe, 0, 0, 0, 0]);
    table(&mut image, 0x300, b"APIC", &madt);
    let mut fadt = vec![0; 276 - 36];
    put(&mut fadt, 40 - 36, &0x600u32.to_le_bytes());
    put(
        &mut fadt,
        112 - 36,
        &((1u32 << 10) | (1 << 20)).to_le_bytes(),
    );
    fadt[116 - 36] = 1;
    put(&mut fadt, 120 - 36, &0x602u64.to_le_bytes());
    fadt[128 - 36] = 1;
    fadt[244 - 36] = 1;
    put(&mut fadt, 248 - 36, &0x600u64.to_le_bytes());
    table(&mut image, 0x400, b"FACP", &fadt);
    table(
        &mut image,
        0x600,
        b"DSDT",
        b"\x08_S5_\x12\x05\x02\x0a\x05\x00",
    );
    image
}

#[test]
fn a_whole_set_of_tables() {
    let acpi = Acpi::read(&Image(image()), 16).unwrap();
    assert_eq!(
        acpi,
        Acpi {
            ecam: Some(Ecam {
                base: 0xe000_0000,
                first_bus: 0,
                last_bus: 3
            }),
            legacy_pic: true,
            cpus: Some(1),
            io_apic: Some((0xfec0_0000, 0)),
            sleep_control: Some(Register::Port(0x600)),
            pm1a_control: None,
            s5: Some(5),
            reset: Some((Register::Port(0x602), 1)),
            oem_id: *b"OCSOCS",
        }
    );
}

#[test]
fn damage_is_seen() {
    let mut broken = image();
    broken[16] ^= 1;
    assert_eq!(Acpi::read(&Image(broken), 16), Err(AcpiError::BadRsdp));
    let mut broken = image();
    broken[0x100 + 36] ^= 1;
    assert_eq!(Acpi::read(&Image(broken), 16), Err(AcpiError::BadRoot));
    let mut broken = image();
    broken[0x200 + 50] ^= 1;
    assert_eq!(Acpi::read(&Image(broken), 16).unwrap().ecam, None);
    assert_eq!(
        Acpi::read(&Image(image()), u64::MAX - 3),
        Err(AcpiError::BadRsdp)
    );
}

proptest! {
    /// Flips bytes and repairs the checksums, so that the parsers themselves are met.
    #[test]
    fn fuzz_tables_never_panic(flips in proptest::collection::vec((0usize..0x700, any::<u8>()), 1..32)) {
        let mut image = image();
        for (at, value) in flips {
            image[at] = value;
        }
        for at in [0x100, 0x200, 0x300, 0x400, 0x600] {
            let len = u32_at(&image, at + 4).unwrap() as usize;
            if len >= 36 && at + len <= image.len() {
                seal(&mut image, at, len, 9);
            }
        }
        let _ = Acpi::read(&Image(image), 16);
    }
}
