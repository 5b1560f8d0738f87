//! What the guest of the VMM's own tests does while it is saved, restored, cloned and moved:
//! writes and verifies a disk, and keeps a stream. Built by itself, without a crate (`stock.rs`).
//!
//! `moves DISK PEER:PORT`   for ever; PEER echoes. Prints how far it came.
//!
//! A thread a CPU rewrites its part of DISK, past the page cache, and compares with what it knows
//! to have written: state that only this memory has, so a disk of another time is noticed. Two
//! threads send numbered records and compare what comes back. A stream that breaks is an error,
//! unless the kernel says that it runs in a clone, or has no driver that could: then it looks at
//! its interface's address anew and asks its own peer.

use std::fs::{File, OpenOptions, read_link, read_to_string, write};
use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst};
use std::thread::{sleep, spawn};
use std::time::Duration;

const O_NONBLOCK: i32 = 0o4000;
const O_DIRECT: i32 = 0o40000;
/// What is written at a time, and how many of them a thread has.
const SLOT: usize = 16 << 10;
const SLOTS: usize = 64;
/// Sometimes this many at a time: more than one piece of a bounced request.
const RUN: usize = 8;
const PART: u64 = 16 << 20;
const RECORD: usize = 512;
/// Records on their way at most.
const WINDOW: u64 = 32;
/// Of a kernel that looks at the generation id: 6.1's, 6.12's.
const WATCHERS: [&str; 2] = ["/sys/bus/acpi/drivers/vmgenid", "/sys/bus/platform/drivers/vmgenid"];
/// Of the kernel's log (drivers/char/random.c).
const FORK: &str = "crng reseeded due to virtual machine fork";

#[derive(Default)]
struct Seen {
    disk: AtomicU64,
    net: AtomicU64,
    /// The kernel noticed another generation id.
    fork: AtomicBool,
}

fn main() {
    let words: Vec<String> = std::env::args().collect();
    let seen = Arc::new(Seen::default());
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    for thread in 0..cpus as u64 {
        let (disk, seen) = (words[1].clone(), Arc::clone(&seen));
        spawn(move || rewrite(&disk, thread, &seen));
    }
    let (peer, shared) = (words[2].clone(), Arc::clone(&seen));
    spawn(move || talk(&peer, &shared));
    let mut log = OpenOptions::new();
    let mut log = log.read(true).custom_flags(O_NONBLOCK).open("/dev/kmsg").expect("kmsg");
    loop {
        let mut record = [0; 8192];
        // Fails when there is nothing new.
        while let Ok(count) = log.read(&mut record) {
            if String::from_utf8_lossy(&record[..count]).contains(FORK) {
                println!("stock: fork urandom={}", random());
                seen.fork.store(true, SeqCst);
            }
        }
        let (disk, net) = (seen.disk.load(SeqCst), seen.net.load(SeqCst));
        println!("stock: moves disk={disk} net={net}");
        sleep(Duration::from_millis(500));
    }
}

fn random() -> String {
    let mut bytes = [0; 16];
    let mut file = File::open("/dev/urandom").expect("urandom");
    file.read_exact(&mut bytes).expect("random bytes");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Any word of any version of any slot is another one.
fn word(thread: u64, slot: usize, version: u64, index: usize) -> u64 {
    let seed = thread << 56 ^ (slot as u64) << 44 ^ version << 16 ^ index as u64;
    (seed ^ seed >> 29).wrapping_mul(0xbf58_476d_1ce4_e5b9) ^ seed
}

fn rewrite(disk: &str, thread: u64, seen: &Seen) {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true).custom_flags(O_DIRECT);
    let disk = options.open(disk).expect("the disk");
    let mut versions = [0u64; SLOTS];
    let mut room = vec![0; RUN * SLOT + 4096];
    let aligned = room.as_ptr().align_offset(4096);
    let buffer = &mut room[aligned..aligned + RUN * SLOT];
    let at = |slot: usize| thread * PART + (slot * SLOT) as u64;
    let mut dice = 0x9e37_79b9_7f4a_7c15 ^ thread;
    for turn in 1u64.. {
        dice ^= dice << 13;
        dice ^= dice >> 7;
        dice ^= dice << 17;
        let count = if turn % 8 == 0 { RUN } else { 1 };
        let first = dice as usize % (SLOTS - count + 1);
        for slot in first..first + count {
            let into = &mut buffer[(slot - first) * SLOT..][..SLOT];
            for (index, bytes) in into.chunks_exact_mut(8).enumerate() {
                bytes.copy_from_slice(&word(thread, slot, versions[slot] + 1, index).to_le_bytes());
            }
        }
        disk.write_all_at(&buffer[..count * SLOT], at(first)).expect("write");
        versions[first..first + count].iter_mut().for_each(|version| *version += 1);
        if turn % 16 == 0 {
            disk.sync_data().expect("flush");
        }
        let one = (dice >> 32) as usize % SLOTS;
        let look = if turn % 64 == 0 { 0..SLOTS } else { one..one + 1 };
        for slot in look.filter(|slot| versions[*slot] > 0) {
            disk.read_exact_at(&mut buffer[..SLOT], at(slot)).expect("read");
            for (index, bytes) in buffer[..SLOT].chunks_exact(8).enumerate() {
                let wanted = word(thread, slot, versions[slot], index).to_le_bytes();
                if bytes != wanted {
                    println!("stock: MISMATCH slot={slot} word={index} {bytes:x?} {wanted:x?}");
                    return;
                }
            }
        }
        seen.disk.fetch_add(1, SeqCst);
        // Others have the emulated host's only CPU, too.
        sleep(Duration::from_millis(5));
    }
}

fn record(number: u64) -> [u8; RECORD] {
    let mut bytes = [number as u8; RECORD];
    bytes[..8].copy_from_slice(&number.to_le_bytes());
    bytes
}

/// Keeps a stream, and another one if this machine turned out to be a clone.
fn talk(peer: &str, seen: &Arc<Seen>) {
    loop {
        let why = stream(peer, seen);
        let watches = WATCHERS.iter().any(|driver| Path::new(driver).exists());
        if watches && !(0..100).any(|_| seen.fork.swap(false, SeqCst) || pause()) {
            println!("stock: the stream is broken: {why}");
            return;
        }
        take_address_anew();
        let mac = read_to_string("/sys/class/net/eth0/address").expect("the address");
        println!("stock: clone mac={}", mac.trim_end());
    }
}

/// False, after a while.
fn pause() -> bool {
    sleep(Duration::from_millis(100));
    false
}

/// Sends records and compares what comes back, until the stream breaks: why.
fn stream(peer: &str, seen: &Arc<Seen>) -> String {
    let mut stream = loop {
        match TcpStream::connect(peer) {
            Ok(stream) => break stream,
            Err(_) => sleep(Duration::from_millis(200)),
        }
    };
    let echoed = Arc::new(AtomicU64::new(0));
    let writer = spawn({
        let (mut stream, echoed) = (stream.try_clone().expect("a second handle"), echoed.clone());
        move || {
            for number in 0.. {
                while number >= echoed.load(SeqCst) + WINDOW {
                    sleep(Duration::from_millis(10));
                }
                if stream.write_all(&record(number)).is_err() {
                    return;
                }
                sleep(Duration::from_millis(10));
            }
        }
    });
    let why = loop {
        let (number, mut bytes) = (echoed.load(SeqCst), [0; RECORD]);
        if let Err(error) = stream.read_exact(&mut bytes) {
            break error.to_string();
        }
        if bytes != record(number) {
            println!("stock: MISMATCH record={number} {:x?}", &bytes[..16]);
            break "other records".to_owned();
        }
        echoed.store(number + 1, SeqCst);
        seen.net.fetch_add(1, SeqCst);
    };
    // The writer may wait for room in the window.
    echoed.store(u64::MAX / 2, SeqCst);
    let _ = stream.shutdown(Shutdown::Both);
    writer.join().expect("the writer");
    why
}

/// Lets the driver look at the interface again: it reads the address once, when it finds it.
fn take_address_anew() {
    let device = read_link("/sys/class/net/eth0/device").expect("the device");
    let name = device.file_name().expect("a name").to_str().expect("text");
    let driver = "/sys/bus/virtio/drivers/virtio_net";
    write(format!("{driver}/unbind"), name).expect("unbind");
    write(format!("{driver}/bind"), name).expect("bind");
    while !Path::new("/sys/class/net/eth0").exists() {
        pause();
    }
    let status = Command::new("network").status().expect("the network's script");
    assert!(status.success());
}
