//! A small guest and VMM in one: memory, one split queue, vhost-user frontend.

#![allow(dead_code, reason = "each test binary uses its part")]

pub mod host;

use ocs_storaged::memory::{Mapping, Trust, sealed_memfd};
use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::atomic::{AtomicU16, Ordering, fence};
use std::time::{Duration, Instant};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserHeaderFlag, VhostUserInflight};
use vhost::vhost_user::{Frontend, VhostUserFrontend, VhostUserProtocolFeatures as Proto};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

pub const QUEUE: u16 = 128;
pub const SLOTS: usize = 32;
pub const DATA_BYTES: usize = 256 * 1024;
pub const MEMORY_BYTES: u64 = 16 << 20;
pub const DESC: u64 = 0;
pub const AVAIL: u64 = 0x1000;
pub const USED: u64 = 0x2000;
pub const HEADERS: u64 = 0x3000;
pub const DATA: u64 = 0x10_0000;
pub const T_IN: u32 = 0;
pub const T_OUT: u32 = 1;
pub const T_FLUSH: u32 = 4;
pub const T_GET_ID: u32 = 8;
pub const T_DISCARD: u32 = 11;
pub const T_WRITE_ZEROES: u32 = 13;
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Waits until `done` gives something.
pub fn wait<T>(what: &str, mut done: impl FnMut() -> Option<T>) -> T {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = done() {
            return value;
        }
        assert!(Instant::now() < end, "{what}: nothing after {PATIENCE:?}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// A process that dies with its test.
pub struct Daemon(pub Child);

impl Daemon {
    pub fn spawn(args: &[&str]) -> Self {
        Self::spawn_as(args, 0)
    }

    pub fn spawn_as(args: &[&str], uid: u32) -> Self {
        use std::os::unix::process::CommandExt;
        let mut command = Command::new(env!("CARGO_BIN_EXE_ocs-storaged"));
        if uid != 0 {
            command.uid(uid).gid(uid);
        }
        let child = command
            .args(args)
            .env(
                "RUST_LOG",
                std::env::var("RUST_LOG").unwrap_or("warn".into()),
            )
            .spawn()
            .unwrap();
        Self(child)
    }

    /// SIGKILL, and wait for the end.
    pub fn kill(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub fn path(p: &Path) -> &str {
    p.to_str().unwrap()
}

/// Starts `ocs-storaged serve` and connects.
pub fn serve(dir: &Path, args: &[&str]) -> (Daemon, PathBuf) {
    let socket = dir.join("blk.sock");
    let _ = std::fs::remove_file(&socket);
    let mut all = vec!["serve", "--listen", path(&socket)];
    all.extend(args);
    let daemon = Daemon::spawn(&all);
    (daemon, socket)
}

pub fn connect(socket: &Path) -> UnixStream {
    wait("connect", || UnixStream::connect(socket).ok())
}

/// The guest's memory and what must outlive a backend.
pub struct Guest {
    pub file: File,
    pub map: Mapping,
    pub kick: EventFd,
    pub call: EventFd,
    pub err: EventFd,
    pub inflight: Option<(VhostUserInflight, File)>,
    pub frontend: Option<Frontend>,
    next_avail: u16,
    last_used: u16,
    busy: [bool; SLOTS],
}

impl Guest {
    pub fn new() -> Self {
        let file = sealed_memfd("guest", MEMORY_BYTES).unwrap();
        let map = Mapping::new(&file, 0, MEMORY_BYTES, Trust::SealedOnly).unwrap();
        Self {
            file,
            map,
            kick: EventFd::new(EFD_NONBLOCK).unwrap(),
            call: EventFd::new(EFD_NONBLOCK).unwrap(),
            err: EventFd::new(EFD_NONBLOCK).unwrap(),
            inflight: None,
            frontend: None,
            next_avail: 0,
            last_used: 0,
            busy: [false; SLOTS],
        }
    }

    pub fn at(&self, offset: u64) -> *mut u8 {
        self.map.at(offset, 1).unwrap()
    }

    pub fn write<T>(&self, offset: u64, value: T) {
        let p = self.map.at(offset, size_of::<T>() as u64).unwrap();
        // SAFETY: inside the mapping; unaligned stores are allowed by the call.
        unsafe { p.cast::<T>().write_unaligned(value) }
    }

    pub fn read<T>(&self, offset: u64) -> T {
        let p = self.map.at(offset, size_of::<T>() as u64).unwrap();
        // SAFETY: inside the mapping; only plain integers are read.
        unsafe { p.cast::<T>().read_unaligned() }
    }

    #[expect(clippy::mut_from_ref, reason = "shared memory has no owner")]
    pub fn bytes(&self, offset: u64, len: usize) -> &mut [u8] {
        let p = self.map.at(offset, len as u64).unwrap();
        // SAFETY: inside the mapping; tests look at buffers that are not in flight.
        unsafe { std::slice::from_raw_parts_mut(p, len) }
    }

    fn index(&self, offset: u64) -> &AtomicU16 {
        // SAFETY: inside the mapping and even.
        unsafe { AtomicU16::from_ptr(self.at(offset).cast()) }
    }

    /// Negotiates, hands over memory and in-flight region, and starts the queue.
    pub fn attach(&mut self, stream: UnixStream) {
        self.attach_with(stream, 1).unwrap();
    }

    pub fn attach_with(&mut self, stream: UnixStream, queues: u16) -> Result<(), String> {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut f = Frontend::from_stream(stream, 16);
        let e = |e: vhost::Error| e.to_string();
        f.set_owner().map_err(e)?;
        let features = f.get_features().map_err(e)?;
        f.set_features(features).map_err(e)?;
        let protocol = f.get_protocol_features().map_err(e)?;
        assert!(protocol.contains(Proto::INFLIGHT_SHMFD | Proto::MQ | Proto::CONFIG));
        f.set_protocol_features(
            Proto::INFLIGHT_SHMFD | Proto::MQ | Proto::CONFIG | Proto::REPLY_ACK,
        )
        .map_err(e)?;
        f.set_hdr_flags(VhostUserHeaderFlag::NEED_REPLY);
        match &self.inflight {
            Some((layout, file)) => f.set_inflight_fd(layout, file.as_raw_fd()).map_err(e)?,
            None => {
                let ask = VhostUserInflight::new(0, 0, queues, QUEUE);
                self.inflight = Some(f.get_inflight_fd(&ask).map_err(e)?);
            }
        }
        let base = self.at(0) as u64;
        f.set_mem_table(&[VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY_BYTES,
            userspace_addr: base,
            mmap_offset: 0,
            mmap_handle: self.file.as_raw_fd(),
        }])
        .map_err(e)?;
        f.set_vring_num(0, QUEUE).map_err(e)?;
        f.set_vring_base(0, self.index(USED + 2).load(Ordering::Acquire))
            .map_err(e)?;
        f.set_vring_addr(0, &self.rings(base)).map_err(e)?;
        f.set_vring_call(0, &self.call).map_err(e)?;
        f.set_vring_err(0, &self.err).map_err(e)?;
        f.set_vring_kick(0, &self.kick).map_err(e)?;
        f.set_vring_enable(0, true).map_err(e)?;
        self.frontend = Some(f);
        Ok(())
    }

    pub fn rings(&self, base: u64) -> VringConfigData {
        VringConfigData {
            queue_max_size: QUEUE,
            queue_size: QUEUE,
            flags: 0,
            desc_table_addr: base + DESC,
            used_ring_addr: base + USED,
            avail_ring_addr: base + AVAIL,
            log_addr: None,
        }
    }

    pub fn config(&mut self, len: u32) -> Vec<u8> {
        let buf = vec![0; len as usize];
        let f = self.frontend.as_mut().unwrap();
        f.get_config(0, len, VhostUserConfigFlags::empty(), &buf)
            .unwrap()
            .1
    }

    pub fn descriptor(&self, index: u16, addr: u64, len: u32, flags: u16, next: u16) {
        let at = DESC + 16 * u64::from(index);
        self.write(at, addr.to_le());
        self.write(at + 8, len.to_le());
        self.write(at + 12, flags.to_le());
        self.write(at + 14, next.to_le());
    }

    /// A chain made by hand in `slot` is in flight from now on.
    pub fn claim(&mut self, slot: usize) {
        assert!(!std::mem::replace(&mut self.busy[slot], true));
    }

    /// Makes the chain at `head` available and kicks.
    pub fn offer(&mut self, head: u16) {
        let slot = u64::from(self.next_avail % QUEUE);
        self.write(AVAIL + 4 + 2 * slot, head.to_le());
        self.next_avail = self.next_avail.wrapping_add(1);
        self.index(AVAIL + 2)
            .store(self.next_avail, Ordering::Release);
        fence(Ordering::SeqCst);
        self.kick.write(1).unwrap();
    }

    pub fn data_at(slot: usize) -> u64 {
        DATA + (slot * DATA_BYTES) as u64
    }

    /// Submits a request of `len` data bytes in `slot`.
    pub fn submit(&mut self, slot: usize, kind: u32, sector: u64, len: usize) {
        assert!(!std::mem::replace(&mut self.busy[slot], true));
        assert!(len <= DATA_BYTES);
        let header = HEADERS + 64 * slot as u64;
        self.write(header, kind.to_le());
        self.write(header + 4, 0u32);
        self.write(header + 8, sector.to_le());
        self.write(header + 32, 0xffu8);
        let head = 4 * slot as u16;
        let device_writes = matches!(kind, T_IN | T_GET_ID);
        let middle = if len == 0 { head + 2 } else { head + 1 };
        self.descriptor(head, header, 16, 1, middle);
        let flags = if device_writes { 3 } else { 1 };
        self.descriptor(head + 1, Self::data_at(slot), len as u32, flags, head + 2);
        self.descriptor(head + 2, header + 32, 1, 2, 0);
        self.offer(head);
    }

    /// Completions since the last call: slot and status.
    pub fn poll(&mut self) -> Vec<(usize, u8)> {
        let mut done = Vec::new();
        while self.last_used != self.index(USED + 2).load(Ordering::Acquire) {
            let at = USED + 4 + 8 * u64::from(self.last_used % QUEUE);
            let slot = self.read::<u32>(at) as usize / 4;
            self.last_used = self.last_used.wrapping_add(1);
            // Interrupt me at the next one (VIRTIO_RING_F_EVENT_IDX).
            self.write(AVAIL + 4 + 2 * u64::from(QUEUE), self.last_used);
            assert!(
                std::mem::take(&mut self.busy[slot]),
                "slot {slot} completed twice"
            );
            done.push((slot, self.read::<u8>(HEADERS + 64 * slot as u64 + 32)));
        }
        done
    }

    /// Runs one request in slot 0, all others being idle; its status.
    pub fn run(&mut self, kind: u32, sector: u64, len: usize) -> u8 {
        self.submit(0, kind, sector, len);
        wait("completion", || self.poll().pop()).1
    }

    pub fn write_at(&mut self, offset: u64, bytes: &[u8]) -> u8 {
        self.bytes(Self::data_at(0), bytes.len())
            .copy_from_slice(bytes);
        self.run(T_OUT, offset / 512, bytes.len())
    }

    pub fn read_at(&mut self, offset: u64, len: usize) -> Vec<u8> {
        self.bytes(Self::data_at(0), len).fill(0xee);
        assert_eq!(self.run(T_IN, offset / 512, len), 0);
        self.bytes(Self::data_at(0), len).to_vec()
    }

    /// A discard or write-zeroes of one range.
    pub fn zeroes(&mut self, kind: u32, offset: u64, len: u64, unmap: bool) -> u8 {
        let at = Self::data_at(0);
        self.write(at, (offset / 512).to_le());
        self.write(at + 8, u32::try_from(len / 512).unwrap().to_le());
        self.write(at + 12, u32::from(unmap).to_le());
        self.run(kind, 0, 16)
    }
}

/// Bytes that depend on their place and on `seed`.
pub fn pattern(seed: u64, len: usize) -> Vec<u8> {
    let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    (0..len)
        .map(|_| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^= x << 17;
            x as u8
        })
        .collect()
}

/// Accepts the daemon's connection.
pub fn accept(listener: &UnixListener) -> UnixStream {
    listener.set_nonblocking(true).unwrap();
    let stream = wait("accept", || listener.accept().ok()).0;
    stream.set_nonblocking(false).unwrap();
    stream
}
