//! A machine that runs a BPF program instruction by instruction (RFC 9669), and counts them.
//!
//! Its maps are the kernel's: what a look-up finds is copied out by bpf(2), so the program
//! meets what the loader has written. What the program writes into an element stays here.

use std::cell::RefCell;
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsFd, AsRawFd};
use std::path::Path;

use aya::maps::{MapData, MapType};
use aya_obj::Object;
use aya_obj::generated::{bpf_attr, bpf_cmd, bpf_insn};

/// What a run took.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Ran {
    /// What the program returned.
    pub action: u64,
    /// Instructions that were executed.
    pub instructions: u64,
    /// Calls of the kernel's helpers, by their numbers (`enum bpf_func_id`).
    pub helpers: BTreeMap<i32, u32>,
}

/// A program and its maps.
pub struct Machine {
    program: Vec<bpf_insn>,
    maps: BTreeMap<i32, MapData>,
    /// Copies of elements, by map and key: their addresses do not change.
    elements: RefCell<BTreeMap<(u64, Vec<u8>), Element>>,
}

enum Element {
    Absent,
    Value(Box<[u64]>),
    /// An inner map, by its descriptor.
    Map(MapData),
}

const LOOK_UP: i32 = 1;
const TAIL_CALL: i32 = 12;
const ADJUST_HEAD: i32 = 44;
const REDIRECT_MAP: i32 = 51;
const JIFFIES: i32 = 118;
const XDP_REDIRECT: u64 = 4;
/// `BPF_PSEUDO_CALL`.
const PSEUDO: u8 = 1;

const HEADROOM: usize = 256;
const STACK: usize = 512;

/// A frame with room in front, and the context that leads to it.
struct Context {
    bytes: Vec<u8>,
    start: usize,
    ifindex: u32,
    marker: Box<[u32; 8]>,
}

impl Context {
    fn address(&self) -> u64 {
        self.marker.as_ptr().addr() as u64
    }

    /// Reads a field of `struct xdp_md`; the kernel gives pointers for its numbers.
    fn field(&self, at: u64) -> u64 {
        let start = self.bytes.as_ptr().addr() as u64;
        match at {
            0 => start + self.start as u64,
            4 => start + self.bytes.len() as u64,
            12 => self.ifindex.into(),
            other => panic!("field {other} of the context"),
        }
    }
}

impl Machine {
    /// A program of `object`, with maps pinned in a folder.
    pub fn new(object: &[u8], name: &str, pins: &Path) -> Self {
        let mut object = Object::parse(object).expect("an object");
        let maps: BTreeMap<String, MapData> = object
            .maps
            .keys()
            // Constants, which no program that runs here reads.
            .filter(|name| !name.starts_with('.'))
            .map(|name| {
                let data = MapData::from_pin(pins.join(name)).expect("a pinned map");
                (name.clone(), data)
            })
            .collect();
        let text: HashSet<usize> = object.functions.keys().map(|(index, _)| *index).collect();
        let known = object.maps.clone();
        let by_name = known
            .iter()
            .map(|(name, form)| (name.as_str(), maps.get(name).map_or(-1, descriptor), form));
        object.relocate_maps(by_name, &text).expect("its maps");
        object.relocate_calls(&text).expect("its calls");
        let key = object.programs[name].function_key();
        Self {
            program: object.functions[&key].instructions.clone(),
            maps: maps
                .into_values()
                .map(|data| (descriptor(&data), data))
                .collect(),
            elements: RefCell::default(),
        }
    }

    /// Runs it on a frame that came in on an interface.
    pub fn run(&self, ifindex: u32, frame: &[u8], jiffies: u64) -> Ran {
        let mut bytes = vec![0; HEADROOM];
        bytes.extend_from_slice(frame);
        let mut context = Context {
            bytes,
            start: HEADROOM,
            ifindex,
            marker: Box::default(),
        };
        let mut ran = Ran::default();
        let first = [0, context.address(), 0, 0, 0, 0];
        ran.action = self.function(0, first, &mut context, &mut ran, jiffies);
        ran
    }

    /// Runs from an instruction on until the function returns.
    fn function(
        &self,
        mut at: usize,
        arguments: [u64; 6],
        context: &mut Context,
        ran: &mut Ran,
        jiffies: u64,
    ) -> u64 {
        let mut stack = vec![0_u64; STACK / 8];
        let mut r = [0_u64; 11];
        r[..6].copy_from_slice(&arguments);
        r[10] = stack.as_mut_ptr().addr() as u64 + STACK as u64;
        loop {
            let insn = self.program[at];
            let (to, from) = (usize::from(insn.dst_reg()), usize::from(insn.src_reg()));
            at += 1;
            ran.instructions += 1;
            let operand = |wide: bool| match (insn.code & 0x08 != 0, wide) {
                (true, true) => r[from],
                (true, false) => r[from] & 0xffff_ffff,
                (false, true) => i64::from(insn.imm).cast_unsigned(),
                (false, false) => insn.imm.cast_unsigned().into(),
            };
            match insn.code & 0x07 {
                0x00 => {
                    assert_eq!(insn.code, 0x18, "a load of 64 bits");
                    let high = u64::from(self.program[at].imm.cast_unsigned());
                    r[to] = high << 32 | u64::from(insn.imm.cast_unsigned());
                    at += 1;
                }
                0x01 => {
                    let address = r[from].wrapping_add_signed(insn.off.into());
                    let field = address.wrapping_sub(context.address());
                    r[to] = if field < 32 {
                        context.field(field)
                    } else {
                        load(address, insn.code)
                    };
                }
                0x02 | 0x03 => {
                    let address = r[to].wrapping_add_signed(insn.off.into());
                    match insn.code {
                        0xdb | 0xc3 => atomic(address, insn, &mut r),
                        code if code & 0x07 == 0x03 => store(address, code, r[from]),
                        code => store(address, code, i64::from(insn.imm).cast_unsigned()),
                    }
                }
                0x04 => r[to] = alu32(insn, r[to], operand(false)),
                0x07 => r[to] = alu64(insn, r[to], operand(true)),
                _ if insn.code == 0x95 => return r[0],
                _ if insn.code == 0x85 => {
                    let arguments = [0, r[1], r[2], r[3], r[4], r[5]];
                    r[0] = if insn.src_reg() == PSEUDO {
                        let target = at.wrapping_add_signed(insn.imm as isize);
                        self.function(target, arguments, context, ran, jiffies)
                    } else {
                        *ran.helpers.entry(insn.imm).or_default() += 1;
                        self.help(insn.imm, arguments, context, jiffies)
                    };
                }
                class => {
                    let wide = class == 0x05;
                    let own = if wide { r[to] } else { r[to] & 0xffff_ffff };
                    if jumps(insn.code, own, operand(wide), wide) {
                        let by = if insn.code == 0x06 {
                            insn.imm as isize
                        } else {
                            insn.off.into()
                        };
                        at = at.wrapping_add_signed(by);
                    }
                }
            }
        }
    }

    fn help(&self, number: i32, arguments: [u64; 6], context: &mut Context, jiffies: u64) -> u64 {
        match number {
            LOOK_UP => self.look_up(arguments[1], arguments[2]),
            // The program that it would go on to is not there.
            TAIL_CALL => u64::MAX,
            ADJUST_HEAD => {
                let by = arguments[2] as i32;
                context.start = context.start.wrapping_add_signed(by as isize);
                assert!(context.start < context.bytes.len(), "within the frame");
                0
            }
            REDIRECT_MAP => XDP_REDIRECT,
            JIFFIES => jiffies,
            other => panic!("helper {other}"),
        }
    }

    /// The address of an element's copy, or 0. A map is what a relocation or an outer map
    /// gave for it: its descriptor.
    fn look_up(&self, map: u64, key: u64) -> u64 {
        let mut elements = self.elements.borrow_mut();
        let inner = elements.values().find_map(|element| match element {
            Element::Map(data) if descriptor(data) as u64 == map => Some(data),
            _ => None,
        });
        let data = self.maps.get(&(map as i32)).or(inner).expect("a map");
        let info = data.info().expect("what the map is");
        let mut bytes = vec![0; info.key_size() as usize];
        for (index, byte) in bytes.iter_mut().enumerate() {
            *byte = load(key + index as u64, 0x71) as u8;
        }
        let copied = elements.get(&(map, bytes.clone())).is_some();
        if !copied {
            let element = element(data, &info, &bytes);
            elements.insert((map, bytes.clone()), element);
        }
        match &mut elements.get_mut(&(map, bytes)) {
            Some(Element::Value(words)) => words.as_mut_ptr().addr() as u64,
            Some(Element::Map(data)) => descriptor(data) as u64,
            _ => 0,
        }
    }
}

fn descriptor(map: &MapData) -> i32 {
    map.fd().as_fd().as_raw_fd()
}

/// Copies an element.
fn element(data: &MapData, info: &aya::maps::MapInfo, key: &[u8]) -> Element {
    let cpus = aya::util::nr_cpus().expect("the number of CPUs");
    let each = (info.value_size() as usize).next_multiple_of(8);
    let mut words = vec![0_u64; each * cpus / 8].into_boxed_slice();
    // SAFETY: `bpf_attr` is a union of structures of integers: zeros are valid.
    let mut attributes: bpf_attr = unsafe { std::mem::zeroed() };
    // SAFETY: this member is the one that BPF_MAP_LOOKUP_ELEM reads.
    let element = unsafe { &mut attributes.__bindgen_anon_2 };
    element.map_fd = descriptor(data) as u32;
    element.key = key.as_ptr().addr() as u64;
    element.__bindgen_anon_1.value = words.as_mut_ptr().addr() as u64;
    // SAFETY: the attributes hold an open map, and point to a key of its size and room for a
    // value of each CPU.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            bpf_cmd::BPF_MAP_LOOKUP_ELEM as u32,
            &raw const attributes,
            size_of::<bpf_attr>(),
        )
    };
    if result < 0 {
        return Element::Absent;
    }
    match info.map_type().expect("a known kind of map") {
        MapType::ArrayOfMaps => {
            Element::Map(MapData::from_id(words[0] as u32).expect("an inner map"))
        }
        _ => Element::Value(words),
    }
}

fn load(address: u64, code: u8) -> u64 {
    assert_eq!(code & 0xe0, 0x60, "a plain load");
    let pointer = std::ptr::with_exposed_provenance::<u8>(address as usize);
    // SAFETY: the kernel's verifier has shown that the program reads its frame, its stack and
    // elements of its maps alone, which are here what they are there.
    unsafe {
        match code & 0x18 {
            0x00 => pointer.cast::<u32>().read_unaligned().into(),
            0x08 => pointer.cast::<u16>().read_unaligned().into(),
            0x10 => pointer.read().into(),
            _ => pointer.cast::<u64>().read_unaligned(),
        }
    }
}

fn store(address: u64, code: u8, value: u64) {
    assert_eq!(code & 0xe0, 0x60, "a plain store");
    let pointer = std::ptr::with_exposed_provenance_mut::<u8>(address as usize);
    // SAFETY: as in `load`.
    unsafe {
        match code & 0x18 {
            0x00 => pointer.cast::<u32>().write_unaligned(value as u32),
            0x08 => pointer.cast::<u16>().write_unaligned(value as u16),
            0x10 => pointer.write(value as u8),
            _ => pointer.cast::<u64>().write_unaligned(value),
        }
    }
}

/// Additions and exchanges of a word that here nobody shares.
fn atomic(address: u64, insn: bpf_insn, r: &mut [u64; 11]) {
    let plain = insn.code & 0x18 | 0x63;
    let old = load(address, plain & 0xf8 | 0x01);
    let value = r[usize::from(insn.src_reg())];
    match insn.imm {
        0x00 | 0x01 => store(address, plain, old.wrapping_add(value)),
        0xf1 if old == r[0] => store(address, plain, value),
        0xf1 => {}
        other => panic!("atomic operation {other:#x}"),
    }
    match insn.imm {
        0x01 => r[usize::from(insn.src_reg())] = old,
        0xf1 => r[0] = old,
        _ => {}
    }
}

fn alu64(insn: bpf_insn, own: u64, value: u64) -> u64 {
    assert_eq!(insn.off, 0, "no signed operation");
    match insn.code & 0xf0 {
        0x00 => own.wrapping_add(value),
        0x10 => own.wrapping_sub(value),
        0x20 => own.wrapping_mul(value),
        0x30 => own.checked_div(value).unwrap_or(0),
        0x40 => own | value,
        0x50 => own & value,
        0x60 => own.wrapping_shl(value as u32),
        0x70 => own.wrapping_shr(value as u32),
        0x80 => own.wrapping_neg(),
        0x90 => own.checked_rem(value).unwrap_or(own),
        0xa0 => own ^ value,
        0xb0 => value,
        0xc0 => own.cast_signed().wrapping_shr(value as u32).cast_unsigned(),
        other => panic!("operation {other:#x}"),
    }
}

fn alu32(insn: bpf_insn, own: u64, value: u64) -> u64 {
    let (half, by) = (own as u32, value as u32);
    let result = match insn.code & 0xf0 {
        0x60 => half.wrapping_shl(by),
        0x70 => half.wrapping_shr(by),
        0xc0 => half.cast_signed().wrapping_shr(by).cast_unsigned(),
        0xd0 => return swap(insn, own),
        _ => alu64(insn, half.into(), value) as u32,
    };
    result.into()
}

/// To an order of bytes, of so many bits.
fn swap(insn: bpf_insn, own: u64) -> u64 {
    let to_big = insn.code & 0x08 != 0;
    match (insn.imm, to_big) {
        (16, true) => (own as u16).to_be().into(),
        (32, true) => (own as u32).to_be().into(),
        (64, true) => own.to_be(),
        (bits, false) => own & (u64::MAX >> (64 - bits)),
        (bits, true) => panic!("{bits} bits"),
    }
}

fn jumps(code: u8, own: u64, value: u64, wide: bool) -> bool {
    let signed = |value: u64| match wide {
        true => value.cast_signed(),
        false => i64::from((value as u32).cast_signed()),
    };
    let (own_signed, value_signed) = (signed(own), signed(value));
    match code & 0xf0 {
        0x00 => true,
        0x10 => own == value,
        0x20 => own > value,
        0x30 => own >= value,
        0x40 => own & value != 0,
        0x50 => own != value,
        0x60 => own_signed > value_signed,
        0x70 => own_signed >= value_signed,
        0xa0 => own < value,
        0xb0 => own <= value,
        0xc0 => own_signed < value_signed,
        0xd0 => own_signed <= value_signed,
        other => panic!("jump {other:#x}"),
    }
}
