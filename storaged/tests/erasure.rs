//! An instance store's end: no key anywhere, no plaintext at rest or in memory; and each
//! way in which it could be otherwise is found.

mod common;

use common::host::*;
use common::*;
use ocs_storaged_api::erasure::Search;
use ocs_storaged_api::{Erasure, ErrorCode, Reply, Request, VolumeKind, VolumeName};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

const MIB: u64 = 1 << 20;
const SECRET: &[u8] = b"attack at dawn, ";
use VolumeKind::{Ephemeral, Persistent};

/// Tests run one by one: what one starts would inherit what another one's VMM holds.
static ALONE: Mutex<()> = Mutex::new(());

fn alone() -> MutexGuard<'static, ()> {
    ALONE.lock().unwrap_or_else(PoisonError::into_inner)
}

fn attest(host: &Host, name: &str) -> Result<Erasure, ErrorCode> {
    let volume = VolumeName(name.into());
    match host.ask(&Request::AttestErasure { volume })? {
        Reply::Erasure { erasure } => Ok(erasure),
        other => panic!("{other:?}"),
    }
}

/// Looks where a key may be: in storaged, and in what VMMs hold for it.
fn search(erasure: &Erasure) -> Search {
    let mut search = Search::default();
    search.process(erasure.pid, &erasure.traces).unwrap();
    search.regions(&erasure.traces).unwrap();
    assert!(search.searched_bytes > MIB, "{search:?}");
    search
}

/// storaged's own writable memory: where it is, and its bytes.
fn memory(pid: u32) -> Vec<(u64, Vec<u8>)> {
    let maps = std::fs::read_to_string(format!("/proc/{pid}/maps")).unwrap();
    let memory = File::open(format!("/proc/{pid}/mem")).unwrap();
    let own = maps.lines().filter(|line| line.contains(" rw-p "));
    own.filter_map(|line| {
        let (start, end) = line.split(' ').next()?.split_once('-')?;
        let number = |text| u64::from_str_radix(text, 16).unwrap();
        let (start, end) = (number(start), number(end));
        let mut bytes = vec![0; (end - start) as usize];
        memory.read_exact_at(&mut bytes, start).ok()?;
        Some((start, bytes))
    })
    .collect()
}

/// An instance store with a secret on it, written and read back.
fn planted(host: &Host, name: &str) -> Guest {
    std::fs::write(host.dir.path().join("images/small"), [0x77; 10_000]).unwrap();
    let image = name.ends_with("layered").then_some("small");
    host.put(name, 8 * MIB, Ephemeral, image).unwrap();
    let (mut guest, _listener) = host.guest(name);
    let bytes = SECRET.repeat(8192);
    for at in [MIB, 4 * MIB, 5 * MIB + 512] {
        assert_eq!(guest.write_at(at, &bytes), 0);
        assert!(guest.read_at(at, bytes.len()) == bytes);
    }
    assert_eq!(guest.run(T_FLUSH, 0, 0), 0);
    guest
}

/// The page in which a VMM keeps the key, and the file that it is of.
fn key_page(guest: &Guest) -> (File, u64, [u8; 72]) {
    let (layout, file) = guest.inflight.as_ref().unwrap();
    let at = layout.mmap_size - 4096;
    let mut page = [0; 72];
    file.read_exact_at(&mut page, at).unwrap();
    (file.try_clone().unwrap(), at, page)
}

#[test]
fn a_deleted_instance_store_left_no_key_and_no_plaintext() {
    let _alone = alone();
    let host = Host::new();
    for name in ["e-plain", "e-layered"] {
        let guest = planted(&host, name);
        assert_eq!(attest(&host, name), Err(ErrorCode::Conflict), "in use");
        let (file, at, page) = key_page(&guest);
        let detached = name == "e-layered";
        if detached {
            host.detach(name);
            assert_eq!(attest(&host, name), Err(ErrorCode::Conflict), "key held");
        }
        host.delete(name);
        let erasure = attest(&host, name).unwrap();
        if detached {
            // Let go before the end, its VMM kept the page; it goes with the VMM.
            assert!(!search(&erasure).found.is_empty());
            file.write_all_at(&[0; 72], at).unwrap();
        }
        assert!(erasure.erased_at_s.is_some() && erasure.traces.len() == 2);
        assert!(
            erasure.blocks >= 80 && erasure.blocks_sampled >= 80,
            "{erasure:?}"
        );
        assert_eq!((erasure.blocks_plain, &erasure.files[..]), (0, &[][..]));
        let clean = search(&erasure);
        assert_eq!(clean.found, [""; 0]);
        assert!(clean.regions > 0, "the VMM still holds its region");
        assert!(!host.holds(SECRET));
        let plain = memory(erasure.pid);
        let holds = |bytes: &[u8]| bytes.windows(SECRET.len()).any(|w| w == SECRET);
        assert!(!plain.iter().any(|(_, bytes)| holds(bytes)), "in memory");
        // A VMM that kept the key, and a storaged that did.
        file.write_all_at(&page, at).unwrap();
        assert!(!search(&erasure).found.is_empty());
        file.write_all_at(&[0; 72], at).unwrap();
        assert_eq!(search(&erasure).found, [""; 0]);
        let mut options = File::options();
        let mem = options
            .write(true)
            .open(format!("/proc/{}/mem", erasure.pid));
        // A page that nobody uses: the far end of a stack, of zeros.
        let unused = |(_, bytes): &&(u64, Vec<u8>)| {
            bytes.len() >= 65_536 && bytes[..8192].iter().all(|b| *b == 0)
        };
        let (start, _) = plain.iter().find(unused).unwrap();
        let mem = mem.unwrap();
        mem.write_all_at(&page[8 + 32..], start + 4099).unwrap();
        let found = search(&erasure).found;
        assert!(
            found.len() == 1 && found[0].contains("process"),
            "{found:?}"
        );
        mem.write_all_at(&[0; 32], start + 4099).unwrap();
        // A file that came back.
        std::fs::write(host.file(name), b"x").unwrap();
        assert_eq!(attest(&host, name).unwrap().files, [format!("{name}.raw")]);
        std::fs::remove_file(host.file(name)).unwrap();
        drop(guest);
        std::fs::remove_file(host.dir.path().join(format!("{name}.sock"))).unwrap();
    }
}

#[test]
fn bytes_that_are_not_ciphertext_are_counted() {
    let _alone = alone();
    let host = Host::new();
    drop(planted(&host, "e-plain"));
    host.detach("e-plain");
    // As if the encryption had been off.
    let file = File::options().write(true).open(host.file("e-plain"));
    file.unwrap()
        .write_all_at(&SECRET.repeat(2048), MIB)
        .unwrap();
    host.delete("e-plain");
    let erasure = attest(&host, "e-plain").unwrap();
    assert_eq!(erasure.blocks_plain, 8, "{erasure:?}");
}

#[test]
fn a_lost_key_is_attested_before_and_after_the_volume_goes() {
    let _alone = alone();
    let mut host = Host::new();
    host.put("vol-1", MIB, Persistent, None).unwrap();
    assert_eq!(attest(&host, "vol-1"), Err(ErrorCode::Invalid));
    assert_eq!(attest(&host, "e-none"), Err(ErrorCode::NotFound));
    // Its VMM dies, and storaged before a new one comes.
    drop(planted(&host, "e-plain"));
    host.crash();
    host.detach("e-plain");
    let lost = attest(&host, "e-plain").unwrap();
    assert_eq!((lost.erased_at_s, lost.blocks_plain), (None, 0));
    assert_eq!(
        lost.files,
        ["e-plain.raw"],
        "ciphertext whose key is nowhere"
    );
    assert_eq!(search(&lost).found, [""; 0]);
    host.delete("e-plain");
    host.crash();
    let erasure = attest(&host, "e-plain").unwrap();
    assert!(erasure.erased_at_s.is_some() && erasure.files.is_empty());
    assert_eq!(erasure.traces, lost.traces);
    assert_eq!(search(&erasure).found, [""; 0]);
    // A new one of the name is in use, and its end another erasure.
    host.put("e-plain", 8 * MIB, Ephemeral, None).unwrap();
    assert_eq!(attest(&host, "e-plain"), Err(ErrorCode::Conflict));
    host.delete("e-plain");
    assert_ne!(attest(&host, "e-plain").unwrap().traces, lost.traces);
}
