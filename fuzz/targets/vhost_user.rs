//! vhost-user messages of a hostile frontend, with descriptors of every kind.
//!
//! A session ends, whatever it was told, without a panic, and says that nobody is connected.

#![no_main]

use libfuzzer_sys::fuzz_target;
use ocs_storaged::connection;
use ocs_storaged::disk::{Backing, Disk};
use ocs_storaged::memory::{Trust, sealed_memfd};
use ocs_storaged::session::Served;
use ocs_storaged::shard::Shard;
use rustix::event::{EventfdFlags, eventfd};
use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
use std::io::IoSlice;
use std::net::Shutdown;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

/// Request, flags, a size that may lie, body, descriptors.
type Message = (u8, u8, Option<u16>, Vec<u8>, Vec<u8>);

/// What must have been agreed on before most messages are looked at: SET_FEATURES and
/// SET_PROTOCOL_FEATURES, each preceded by the request one below it, which asks what there is.
const AGREED: [(u32, u64); 2] = [(2, 1 << 30 | 1 << 32), (16, 0x1209)];
const MOST: usize = 32;

fn message(header: [u32; 3], body: &[u8], into: &mut Vec<u8>) {
    into.extend(header.iter().flat_map(|word| word.to_ne_bytes()));
    into.extend_from_slice(body);
}

fn send(stream: &UnixStream, bytes: &mut Vec<u8>, files: &[&OwnedFd]) -> bool {
    let fds: Vec<_> = files.iter().map(|file| file.as_fd()).collect();
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() {
        control.push(SendAncillaryMessage::ScmRights(&fds));
    }
    let flags = SendFlags::NOSIGNAL | SendFlags::DONTWAIT;
    let sent = rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut control, flags);
    bytes.clear();
    sent.is_ok()
}

/// What inputs share, since making it anew takes most of an input's time.
struct Kept {
    shard: Shard,
    kinds: [OwnedFd; 4],
}

fn kept() -> &'static Kept {
    static KEPT: OnceLock<Kept> = OnceLock::new();
    KEPT.get_or_init(|| Kept {
        shard: Shard::spawn("fuzz").unwrap(),
        kinds: [
            eventfd(0, EventfdFlags::NONBLOCK).unwrap(),
            sealed_memfd("fuzz", 1 << 16).unwrap().into(),
            tempfile::tempfile().unwrap().into(),
            std::fs::File::open("/dev/null").unwrap().into(),
        ],
    })
}

fuzz_target!(|messages: Vec<Message>| {
    let Kept { shard, kinds } = kept();
    let (ours, theirs) = UnixStream::pair().unwrap();
    // Messages without descriptors go together.
    let mut bytes = Vec::with_capacity(4096);
    for (code, value) in AGREED {
        message([code - 1, 1, 0], &[], &mut bytes);
        message([code, 1, 8], &value.to_ne_bytes(), &mut bytes);
    }
    for (code, flags, size, body, files) in messages.iter().take(MOST) {
        let files: Vec<_> = files
            .iter()
            .take(4)
            .map(|n| &kinds[usize::from(n % 4)])
            .collect();
        let body = &body[..body.len().min(4096)];
        let size = size.map_or(body.len() as u32, u32::from);
        let header = [u32::from(code % 48), u32::from(*flags), size];
        // A descriptor comes with the first byte of what it was sent with.
        if !files.is_empty() && !bytes.is_empty() && !send(&ours, &mut bytes, &[]) {
            break;
        }
        message(header, body, &mut bytes);
        if !files.is_empty() && !send(&ours, &mut bytes, &files) {
            break;
        }
    }
    let _ = send(&ours, &mut bytes, &[]);
    ours.shutdown(Shutdown::Write).unwrap();
    let disk = Arc::new(Disk::new(1 << 20, 2, Backing::Null));
    let connected = AtomicBool::new(false);
    let served = Served::Plain(disk);
    // Most of what is sent is an error, and ends the session.
    let _ = connection::serve(theirs, shard.clone(), served, Trust::SealedOnly, &connected);
    assert!(!connected.load(Ordering::Relaxed));
});
