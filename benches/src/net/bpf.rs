//! Programs of a few instructions, and live frames through them.
//!
//! The peer's sender must be the same as ours: `BPF_PROG_TEST_RUN` with
//! `BPF_F_TEST_XDP_LIVE_FRAMES` (Documentation/bpf/bpf_prog_run.rst).

use anyhow::{Context, Result};
use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};

const BPF_PROG_LOAD: libc::c_long = 5;
const BPF_PROG_TEST_RUN: libc::c_long = 10;
const BPF_PROG_TYPE_XDP: u32 = 6;
const LIVE_FRAMES: u32 = 1 << 1;
const LICENSE: &CStr = c"Apache-2.0";
/// Frames that the kernel keeps in flight; NAPI's own budget.
const BATCH: u32 = 64;

/// `struct bpf_insn`.
#[repr(C)]
#[derive(Clone, Copy)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

const fn mov(register: u8, immediate: i32) -> Instruction {
    Instruction {
        code: 0xb7,
        registers: register,
        offset: 0,
        immediate,
    }
}
const CALL_REDIRECT: Instruction = Instruction {
    code: 0x85,
    registers: 0,
    offset: 0,
    immediate: 23,
};
const EXIT: Instruction = Instruction {
    code: 0x95,
    registers: 0,
    offset: 0,
    immediate: 0,
};
const XDP_PASS: i32 = 2;
const BPF_MAP_CREATE: libc::c_long = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_long = 2;
const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_MAP_TYPE_PROG_ARRAY: u32 = 3;
/// `BPF_XDP`: what the loader of the path's programs names, too, or none could call them.
const BPF_XDP: u32 = 37;

const fn instruction(code: u8, to: u8, from: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction {
        code,
        registers: to | from << 4,
        offset,
        immediate,
    }
}

/// Every bit of a port.
pub const ANY_PORT: u16 = u16::MAX;

/// Makes each frame another flow's: a UDP source port by chance (helper 7,
/// `bpf_get_prandom_u32`) of which these bits may be set, at offset 34. Leaves the context in
/// register 6.
fn another_flow(bits: u16) -> [Instruction; 10] {
    [
        instruction(0xbf, 6, 1, 0, 0),
        instruction(0x61, 7, 1, 0, 0),
        instruction(0x61, 3, 1, 4, 0),
        instruction(0xbf, 4, 7, 0, 0),
        instruction(0x07, 4, 0, 0, 36),
        // A shorter frame is left as it is.
        instruction(0x2d, 4, 3, 3, 0),
        instruction(0x85, 0, 0, 0, 7),
        instruction(0x57, 0, 0, 0, i32::from(bits)),
        instruction(0x6b, 7, 0, 34, 0),
        instruction(0xbf, 1, 6, 0, 0),
    ]
}

/// Makes each frame that is wrapped in VXLAN another flow's, to one of many addresses: of the
/// inner source port and of the inner destination's last 16 bits, which begin at `first`, these
/// bits by chance. The last 16 of its Ethernet address are the same, and those of the IP header's
/// identification make up for them in its checksum, where the frame says 0xffff there. Leaves
/// the context in register 6.
fn another_flow_inside(first: u16, addresses: u16, ports: u16) -> [Instruction; 22] {
    [
        instruction(0xbf, 6, 1, 0, 0),
        instruction(0x61, 7, 1, 0, 0),
        instruction(0x61, 3, 1, 4, 0),
        instruction(0xbf, 4, 7, 0, 0),
        instruction(0x07, 4, 0, 0, 86),
        // A shorter frame is left as it is.
        instruction(0x2d, 4, 3, 15, 0),
        instruction(0x85, 0, 0, 0, 7),
        instruction(0xbf, 1, 0, 0, 0),
        instruction(0x57, 1, 0, 0, i32::from(ports)),
        instruction(0x6b, 7, 1, 84, 0),
        instruction(0x77, 0, 0, 0, 16),
        instruction(0x57, 0, 0, 0, i32::from(addresses)),
        instruction(0xbf, 1, 0, 0, 0),
        instruction(0x07, 1, 0, 0, i32::from(first)),
        instruction(0xdc, 1, 0, 0, 16),
        instruction(0x6b, 7, 1, 82, 0),
        instruction(0x6b, 7, 1, 54, 0),
        mov(1, 0xffff),
        instruction(0x1f, 1, 0, 0, 0),
        instruction(0xdc, 1, 0, 0, 16),
        instruction(0x6b, 7, 1, 68, 0),
        instruction(0xbf, 1, 6, 0, 0),
    ]
}

/// Looks one of so many keys of 16 bytes up by chance, a power of two, and reads its value.
fn look_up(map: &OwnedFd, keys: u32) -> Result<[Instruction; 12]> {
    Ok([
        instruction(0x85, 0, 0, 0, 7),
        instruction(0x57, 0, 0, 0, i32::try_from(keys)? - 1),
        instruction(0x7b, 10, 0, -16, 0),
        mov(1, 0),
        instruction(0x7b, 10, 1, -8, 0),
        // Register 1 is the map's address, in two instructions.
        instruction(0x18, 1, 1, 0, map.as_raw_fd()),
        instruction(0, 0, 0, 0, 0),
        instruction(0xbf, 2, 10, 0, 0),
        instruction(0x07, 2, 0, 0, -16),
        instruction(0x85, 0, 0, 0, 1),
        instruction(0x15, 0, 0, 1, 0),
        instruction(0x79, 0, 0, 0, 0),
    ])
}

/// The head of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buffer: u64,
    kernel_version: u32,
    flags: u32,
    name: [u8; 16],
    ifindex: u32,
    expected_attach_type: u32,
}

/// The head of `union bpf_attr` for `BPF_MAP_CREATE`.
#[repr(C)]
struct Create {
    kind: u32,
    key_size: u32,
    value_size: u32,
    entries: u32,
}

/// The head of `union bpf_attr` for `BPF_MAP_UPDATE_ELEM`.
#[repr(C)]
struct Update {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

impl Update {
    fn new<K, V>(map: &OwnedFd, key: &K, value: &V) -> Result<Self> {
        Ok(Self {
            map: u32::try_from(map.as_raw_fd())?,
            padding: 0,
            key: std::ptr::from_ref(key) as u64,
            value: std::ptr::from_ref(value) as u64,
            flags: 0,
        })
    }
}

/// `union bpf_attr` for `BPF_PROG_TEST_RUN`.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    result: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context_size_in: u32,
    context_size_out: u32,
    context_in: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch_size: u32,
    padding: u32,
}

/// `struct xdp_md`.
#[repr(C)]
#[derive(Default)]
struct XdpContext {
    data: u32,
    data_end: u32,
    data_meta: u32,
    ingress_ifindex: u32,
    rx_queue_index: u32,
    egress_ifindex: u32,
}

/// A loaded program.
pub struct Program {
    fd: OwnedFd,
    /// A program array forgets its programs when nobody holds it.
    _map: Option<OwnedFd>,
}

impl Program {
    /// Passes every frame to the stack.
    pub fn pass() -> Result<Self> {
        Self::load(&[mov(0, XDP_PASS), EXIT])
    }

    /// Redirects every frame to an interface and does nothing else.
    pub fn redirect(ifindex: u32) -> Result<Self> {
        Self::load(&[
            mov(1, i32::try_from(ifindex)?),
            mov(2, 0),
            CALL_REDIRECT,
            EXIT,
        ])
    }

    /// [`Self::pass`], each frame another flow's.
    pub fn pass_new_flows() -> Result<Self> {
        Self::load(&[&another_flow(ANY_PORT)[..], &[mov(0, XDP_PASS), EXIT]].concat())
    }

    /// [`Self::redirect`], each frame another flow's.
    pub fn redirect_new_flows(ifindex: u32) -> Result<Self> {
        let redirect = [
            mov(1, i32::try_from(ifindex)?),
            mov(2, 0),
            CALL_REDIRECT,
            EXIT,
        ];
        Self::load(&[&another_flow(ANY_PORT)[..], &redirect].concat())
    }

    /// Gives each frame, another flow's each of those that differ in these bits of their source
    /// port, to a program.
    pub fn call_with_flows(program: &OwnedFd, bits: u16) -> Result<Self> {
        Self::call_after(&another_flow(bits), program)
    }

    /// The same of frames wrapped in VXLAN, with [`another_flow_inside`]'s bits.
    pub fn call_with_flows_inside(
        program: &OwnedFd,
        first: u16,
        addresses: u16,
        ports: u16,
    ) -> Result<Self> {
        Self::call_after(&another_flow_inside(first, addresses, ports), program)
    }

    /// [`Self::redirect`] after one look-up among so many keys, a power of two, in no order.
    pub fn redirect_after_look_up(ifindex: u32, keys: u32) -> Result<Self> {
        let create = Create {
            kind: BPF_MAP_TYPE_HASH,
            key_size: 16,
            value_size: 8,
            entries: keys,
        };
        let map = bpf(BPF_MAP_CREATE, &create).context("cannot make a hash map")?;
        // SAFETY: BPF_MAP_CREATE answered with a descriptor that is ours alone.
        let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(map)?) };
        for number in 0..u64::from(keys) {
            let (key, value) = ([number, 0], number);
            let update = Update::new(&map, &key, &value)?;
            bpf(BPF_MAP_UPDATE_ELEM, &update).context("cannot fill a hash map")?;
        }
        let redirect = [
            mov(1, i32::try_from(ifindex)?),
            mov(2, 0),
            CALL_REDIRECT,
            EXIT,
        ];
        let program = Self::load(&[&look_up(&map, keys)?[..], &redirect].concat())?;
        Ok(Self {
            _map: Some(map),
            ..program
        })
    }

    fn call_after(before: &[Instruction], program: &OwnedFd) -> Result<Self> {
        let create = Create {
            kind: BPF_MAP_TYPE_PROG_ARRAY,
            key_size: 4,
            value_size: 4,
            entries: 1,
        };
        let map = bpf(BPF_MAP_CREATE, &create).context("cannot make a program array")?;
        // SAFETY: BPF_MAP_CREATE answered with a descriptor that is ours alone.
        let map = unsafe { OwnedFd::from_raw_fd(i32::try_from(map)?) };
        let (key, value) = (0_u32, u32::try_from(program.as_raw_fd())?);
        let caller = Self::load(
            &[
                before,
                &[
                    // Register 2 is the map's address, in two instructions.
                    instruction(0x18, 2, 1, 0, map.as_raw_fd()),
                    instruction(0, 0, 0, 0, 0),
                    mov(3, 0),
                    // Helper 12, `bpf_tail_call`, does not return.
                    instruction(0x85, 0, 0, 0, 12),
                    mov(0, 0),
                    EXIT,
                ],
            ]
            .concat(),
        )?;
        let update = Update::new(&map, &key, &value)?;
        bpf(BPF_MAP_UPDATE_ELEM, &update).context("cannot call the path's program")?;
        Ok(Self {
            _map: Some(map),
            ..caller
        })
    }

    fn load(instructions: &[Instruction]) -> Result<Self> {
        let attributes = Load {
            kind: BPF_PROG_TYPE_XDP,
            count: u32::try_from(instructions.len())?,
            instructions: instructions.as_ptr() as u64,
            license: LICENSE.as_ptr() as u64,
            expected_attach_type: BPF_XDP,
            ..Load::default()
        };
        let fd = bpf(BPF_PROG_LOAD, &attributes).context("cannot load the sender's program")?;
        // SAFETY: BPF_PROG_LOAD answered with a descriptor that is ours alone.
        let fd = unsafe { OwnedFd::from_raw_fd(i32::try_from(fd)?) };
        Ok(Self { fd, _map: None })
    }

    /// Sends `frame` `repeat` times as if `ifindex` (of this thread's namespace) received it.
    pub fn send(&self, ifindex: u32, frame: &[u8], repeat: u32) -> Result<()> {
        let length = u32::try_from(frame.len())?;
        let context = XdpContext {
            data_end: length,
            ingress_ifindex: ifindex,
            ..XdpContext::default()
        };
        let attributes = TestRun {
            program: u32::try_from(self.fd.as_raw_fd())?,
            data_size_in: length,
            data_in: frame.as_ptr() as u64,
            repeat,
            context_size_in: u32::try_from(size_of::<XdpContext>())?,
            context_in: (&raw const context) as u64,
            flags: LIVE_FRAMES,
            batch_size: BATCH,
            ..TestRun::default()
        };
        bpf(BPF_PROG_TEST_RUN, &attributes).context("cannot send live frames")?;
        Ok(())
    }
}

fn bpf<T>(command: libc::c_long, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: bpf(2) reads `size_of::<T>()` bytes of attributes, whose pointers refer to
    // live buffers of the stated sizes.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(result)
    }
}
