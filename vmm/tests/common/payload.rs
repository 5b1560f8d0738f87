//! Guests of a few bytes: 32-bit code behind a PVH note.

/// Where the code lies.
const BASE: u32 = 0x10_0000;
const HEADERS: usize = 64 + 2 * 56;

/// Wraps `code` into an ELF with one loadable segment and a PVH note.
pub fn elf(code: &[u8]) -> Vec<u8> {
    let note_at = HEADERS;
    let code_at = note_at + 20;
    let mut out = Vec::new();
    // e_ident, type EXEC, machine x86-64, version, entry, phoff, shoff, flags, sizes.
    out.extend_from_slice(b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0");
    out.extend_from_slice(&2u16.to_le_bytes());
    out.extend_from_slice(&62u16.to_le_bytes());
    out.extend_from_slice(&1u32.to_le_bytes());
    for word in [u64::from(BASE), 64, 0] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 2, 0, 0, 0] {
        out.extend_from_slice(&half.to_le_bytes());
    }
    let mut segment = |kind: u32, offset: usize, at: u32, len: usize| {
        out.extend_from_slice(&kind.to_le_bytes());
        out.extend_from_slice(&7u32.to_le_bytes());
        for word in [
            offset as u64,
            at.into(),
            at.into(),
            len as u64,
            len as u64,
            4,
        ] {
            out.extend_from_slice(&word.to_le_bytes());
        }
    };
    segment(1, code_at, BASE, code.len());
    segment(4, note_at, 0, 20);
    for word in [4u32, 4, 18] {
        out.extend_from_slice(&word.to_le_bytes());
    }
    out.extend_from_slice(b"Xen\0");
    out.extend_from_slice(&BASE.to_le_bytes());
    out.extend_from_slice(code);
    out
}

/// `mov dx, port; mov al, value; out dx, al`
pub fn out_byte(port: u16, value: u8) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    vec![0x66, 0xba, low, high, 0xb0, value, 0xee]
}

/// Writes `text` to COM1.
pub fn print(text: &str) -> Vec<u8> {
    text.bytes()
        .flat_map(|byte| out_byte(0x3f8, byte))
        .collect()
}

/// ACPI S5.
pub fn power_off() -> Vec<u8> {
    out_byte(0x600, 0x34)
}

/// `cli; hlt; jmp back`
pub fn halt() -> Vec<u8> {
    vec![0xfa, 0xf4, 0xeb, 0xfd]
}

/// An empty interrupt table and an undefined instruction: triple fault.
pub fn triple_fault() -> Vec<u8> {
    // lidt [BASE - 16] (zeros), ud2
    let [a, b, c, d] = (BASE - 16).to_le_bytes();
    vec![0x0f, 0x01, 0x1d, a, b, c, d, 0x0f, 0x0b]
}

/// Back to real mode and to the reset vector, as Linux does where it knows no other way. To
/// follow `before` bytes of other code.
pub fn real_mode_reset(before: usize) -> Vec<u8> {
    let table = (BASE as usize + before + 27) as u32;
    // lgdt [table]; ljmp 8:14
    let mut code = vec![0x0f, 0x01, 0x15];
    code.extend_from_slice(&table.to_le_bytes());
    code.extend_from_slice(&[0xea, 14, 0, 0, 0, 8, 0]);
    // 16 bits: mov eax, cr0; and al, 0xfe; mov cr0, eax; ljmp f000:fff0
    code.extend_from_slice(&[0x0f, 0x20, 0xc0, 0x24, 0xfe, 0x0f, 0x22, 0xc0]);
    code.extend_from_slice(&[0xea, 0xf0, 0xff, 0x00, 0xf0]);
    // The table's limit and address; then an entry for code of 16 bits that begins here.
    code.extend_from_slice(&[15, 0]);
    code.extend_from_slice(&(table + 6).to_le_bytes());
    code.extend_from_slice(&[0; 8]);
    let [low, mid, high, _] = (BASE + before as u32).to_le_bytes();
    code.extend_from_slice(&[0xff, 0xff, low, mid, high, 0x9b, 0, 0]);
    code
}

/// Reads `port` until it is not zero.
pub fn wait_port(port: u16) -> Vec<u8> {
    let [low, high] = port.to_le_bytes();
    // mov dx, port; again: in al, dx; test al, al; jz again
    vec![0x66, 0xba, low, high, 0xec, 0x84, 0xc0, 0x74, 0xfb]
}

/// `mov dword [at], value`
pub fn store(at: u32, value: u32) -> Vec<u8> {
    let mut code = vec![0xc7, 0x05];
    code.extend_from_slice(&at.to_le_bytes());
    code.extend_from_slice(&value.to_le_bytes());
    code
}
