//! A daemon on folders of its own, and what is asked of it.

use super::{Daemon, Guest, PATIENCE, SLOTS, T_FLUSH, T_IN, T_OUT, accept, pattern, wait};
use ocs_storaged_api::{
    Client, ClientError, ErrorCode, Reply, Request, SnapshotStatus, VolumeKind, VolumeName,
    VolumeStatus,
};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;

/// A daemon on folders of its own.
pub struct Host {
    pub dir: tempfile::TempDir,
    pub daemon: Daemon,
    pub uid: u32,
}

impl Host {
    pub fn new() -> Self {
        Self::of_uid(0)
    }

    pub fn of_uid(uid: u32) -> Self {
        Self::with(uid, &[])
    }

    /// A daemon with further arguments, which later ones on its folders do not have.
    pub fn with(uid: u32, more: &[&str]) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("state")).unwrap();
        std::fs::create_dir(dir.path().join("images")).unwrap();
        for owned in [dir.path().to_owned(), dir.path().join("state")] {
            std::os::unix::fs::chown(owned, Some(uid), Some(uid)).unwrap();
        }
        let daemon = Self::start_with(&dir, uid, more);
        Self { dir, daemon, uid }
    }

    /// A new daemon that takes over; answers the old one, which ends by itself.
    pub fn upgrade(&mut self) -> Daemon {
        let new = Self::start_with(&self.dir, self.uid, &["--take-over"]);
        std::mem::replace(&mut self.daemon, new)
    }

    pub fn start(dir: &tempfile::TempDir, uid: u32) -> Daemon {
        Self::start_with(dir, uid, &[])
    }

    pub fn start_with(dir: &tempfile::TempDir, uid: u32, more: &[&str]) -> Daemon {
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let (state, images, control) = (at("state"), at("images"), at("control.sock"));
        let args = [
            "--state",
            &state,
            "--images",
            &images,
            "--control",
            &control,
        ];
        Daemon::spawn_as(&[&args, more].concat(), uid)
    }

    /// SIGTERM, its orderly end, and a new daemon on the same state.
    pub fn restart(&mut self) {
        let pid = rustix::process::Pid::from_child(&self.daemon.0);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        let status = self.daemon.0.wait().unwrap();
        assert!(status.success(), "{status}");
        self.daemon = Self::start(&self.dir, self.uid);
    }

    /// SIGKILL and a new daemon on the same state.
    pub fn crash(&mut self) {
        self.daemon.kill();
        self.daemon = Self::start(&self.dir, self.uid);
    }

    pub fn client(&self) -> Client {
        let socket = self.dir.path().join("control.sock");
        wait("control socket", || Client::connect(&socket, PATIENCE).ok())
    }

    pub fn ask(&self, request: &Request) -> Result<Reply, ErrorCode> {
        self.client().call(request).map_err(|error| match error {
            ClientError::Refused { code, .. } => code,
            other => panic!("{request:?}: {other}"),
        })
    }

    /// Asks with a file; a refusal's sentence is the error.
    pub fn ask_on(&self, request: &Request, file: &std::fs::File) -> Result<(), String> {
        use std::os::fd::AsFd;
        match self.client().call_on(request, file.as_fd()) {
            Ok(reply) => {
                assert_eq!(reply, Reply::Ok);
                Ok(())
            }
            Err(ClientError::Refused { message, .. }) => Err(message),
            Err(other) => panic!("{request:?}: {other}"),
        }
    }

    pub fn put(
        &self,
        name: &str,
        size_bytes: u64,
        kind: VolumeKind,
        image: Option<&str>,
    ) -> Result<(), ErrorCode> {
        self.ask(&Request::PutVolume {
            volume: VolumeName(name.into()),
            size_bytes,
            kind,
            image: image.map(Into::into),
            snapshot: None,
            encrypted: false,
        })
        .map(drop)
    }

    /// A persistent volume of a snapshot, or of nothing.
    pub fn put_of(
        &self,
        name: &str,
        size_bytes: u64,
        snapshot: Option<&str>,
        encrypted: bool,
    ) -> Result<(), ErrorCode> {
        self.ask(&Request::PutVolume {
            volume: VolumeName(name.into()),
            size_bytes,
            kind: VolumeKind::Persistent,
            image: None,
            snapshot: snapshot.map(|name| VolumeName(name.into())),
            encrypted,
        })
        .map(drop)
    }

    pub fn snapshot(&self, snapshot: &str, volume: &str) -> Result<(), ErrorCode> {
        self.ask(&Request::PutSnapshot {
            snapshot: VolumeName(snapshot.into()),
            volume: VolumeName(volume.into()),
            with: Vec::new(),
        })
        .map(drop)
    }

    pub fn delete_snapshot(&self, snapshot: &str) {
        self.ask(&Request::DeleteSnapshot {
            snapshot: VolumeName(snapshot.into()),
        })
        .unwrap();
    }

    pub fn snapshots(&self) -> Vec<SnapshotStatus> {
        match self.ask(&Request::ListSnapshots).unwrap() {
            Reply::Snapshots { snapshots } => snapshots,
            other => panic!("{other:?}"),
        }
    }

    /// The files that end in `suffix`.
    pub fn files(&self, suffix: &str) -> Vec<PathBuf> {
        let mut files: Vec<PathBuf> = std::fs::read_dir(self.dir.path().join("state"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.to_str().unwrap().ends_with(suffix))
            .collect();
        files.sort();
        files
    }

    /// Bytes that all files of the state take on the disk.
    pub fn used_bytes(&self) -> u64 {
        let blocks = |path: &PathBuf| std::fs::metadata(path).unwrap().blocks() * 512;
        self.files("").iter().map(blocks).sum()
    }

    /// Does any file of the state hold `needle`?
    pub fn holds(&self, needle: &[u8]) -> bool {
        self.files("").iter().any(|path| {
            let bytes = std::fs::read(path).unwrap();
            bytes.windows(needle.len()).any(|window| window == needle)
        })
    }

    /// A guest of volume `name`, and where it listens.
    pub fn guest(&self, name: &str) -> (Guest, UnixListener) {
        let socket = format!("{name}.sock");
        let listener = self.listen(&socket);
        self.attach(name, &socket).unwrap();
        let mut guest = Guest::new();
        guest.attach(accept(&listener));
        (guest, listener)
    }

    pub fn attach(&self, name: &str, socket: &str) -> Result<(), ErrorCode> {
        self.ask(&Request::Attach {
            volume: VolumeName(name.into()),
            socket: self.dir.path().join(socket),
            read_only: false,
        })
        .map(drop)
    }

    pub fn detach(&self, name: &str) {
        self.ask(&Request::Detach {
            volume: VolumeName(name.into()),
        })
        .unwrap();
    }

    pub fn delete(&self, name: &str) {
        self.ask(&Request::DeleteVolume {
            volume: VolumeName(name.into()),
        })
        .unwrap();
    }

    pub fn list(&self) -> Vec<VolumeStatus> {
        match self.ask(&Request::List).unwrap() {
            Reply::Volumes { volumes } => volumes,
            other => panic!("{other:?}"),
        }
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join("state").join(format!("{name}.raw"))
    }

    pub fn listen(&self, socket: &str) -> UnixListener {
        UnixListener::bind(self.dir.path().join(socket)).unwrap()
    }
}

/// Bytes that a slot writes to: from its number times this on, so that grains are shared
/// by slots and cut by writes. All windows end before 2 MiB.
const WINDOW: usize = 60 * 1024;
/// A snapshot is taken at every so many-th kill, where any are.
const SNAPSHOT_KILLS: usize = 16;

/// What a slot waits for.
enum Step {
    Write,
    Flush,
    Read { at: usize, len: usize },
}

/// A slot's window as it must be, and what it does with it.
struct Slot {
    window: Vec<u8>,
    step: Step,
}

/// A guest whose every slot writes, flushes and reads back, anywhere in its window.
struct Writer {
    slots: Vec<Slot>,
    random: u64,
    writes: u64,
    flushes: u64,
    verified: u64,
}

impl Writer {
    /// Goes on from what the volume holds.
    fn new(guest: &mut Guest, seed: u64) -> Self {
        let slot = |slot| Slot {
            window: guest.read_at((slot * WINDOW) as u64, WINDOW),
            step: Step::Write,
        };
        Self {
            slots: (0..SLOTS).map(slot).collect(),
            random: seed | 1,
            writes: 0,
            flushes: 0,
            verified: 0,
        }
    }

    fn below(&mut self, end: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % end
    }

    /// Some sectors of a window, 16 KiB at most: where and how many bytes.
    fn range(&mut self) -> (usize, usize) {
        let sectors = 1 + self.below(32) as usize;
        let at = self.below((WINDOW / 512 - sectors) as u64 + 1) as usize;
        (at * 512, sectors * 512)
    }

    fn write(&mut self, guest: &mut Guest, slot: usize) {
        let (at, len) = self.range();
        self.writes += 1;
        let bytes = pattern(self.random, len);
        guest
            .bytes(Guest::data_at(slot), len)
            .copy_from_slice(&bytes);
        self.slots[slot].window[at..at + len].copy_from_slice(&bytes);
        self.slots[slot].step = Step::Write;
        guest.submit(slot, T_OUT, ((slot * WINDOW + at) / 512) as u64, len);
    }

    fn read(&mut self, guest: &mut Guest, slot: usize) {
        let whole = self.below(4) == 0;
        let (at, len) = if whole { (0, WINDOW) } else { self.range() };
        guest.bytes(Guest::data_at(slot), len).fill(0);
        self.slots[slot].step = Step::Read { at, len };
        guest.submit(slot, T_IN, ((slot * WINDOW + at) / 512) as u64, len);
    }

    /// Takes what completed; those slots go on if they shall.
    fn turn(&mut self, guest: &mut Guest, go_on: bool) -> usize {
        let done = guest.poll();
        for (slot, status) in &done {
            let slot = *slot;
            assert_eq!(*status, 0, "slot {slot}: the guest saw an error");
            let flush = self.below(3) == 0;
            match self.slots[slot].step {
                Step::Read { at, len } => {
                    let window = &self.slots[slot].window[at..at + len];
                    assert!(
                        guest.bytes(Guest::data_at(slot), len) == window,
                        "slot {slot}: {len} bytes at {at} of its window are lost"
                    );
                    self.verified += 1;
                    if go_on {
                        self.write(guest, slot);
                    }
                }
                _ if !go_on => {}
                Step::Write if flush => {
                    self.flushes += 1;
                    self.slots[slot].step = Step::Flush;
                    guest.submit(slot, T_FLUSH, 0, 0);
                }
                Step::Write | Step::Flush => self.read(guest, slot),
            }
        }
        done.len()
    }
}

/// Attaches to whom storaged connects now; one that died meanwhile left a connection
/// that leads nowhere.
pub fn attach_again(listener: &UnixListener, guest: &mut Guest) {
    while guest.attach_with(accept(listener), 1).is_err() {}
}

/// Keeps all slots busy with verified random writes and flushes while the daemon is
/// killed; with `snapshots_of`, also while snapshots of that volume are taken, and older
/// ones deleted. Returns the windows as the volume holds them in the end.
pub fn survive_kills(
    host: &mut Host,
    listener: &UnixListener,
    guest: &mut Guest,
    kills: usize,
    snapshots_of: Option<&str>,
) -> Vec<Vec<u8>> {
    let mut writer = Writer::new(guest, 0x9e37_79b9 + kills as u64);
    (0..SLOTS).for_each(|slot| writer.write(guest, slot));
    for kill in 0..kills {
        let until = writer.verified + writer.below(160);
        wait("progress", || {
            writer.turn(guest, true);
            (writer.verified >= until).then_some(())
        });
        let taken = snapshots_of.filter(|_| kill % SNAPSHOT_KILLS == 1);
        let asking = taken.map(|volume| {
            let request = Request::PutSnapshot {
                snapshot: VolumeName(format!("kill-{kill}")),
                volume: VolumeName(volume.into()),
                with: Vec::new(),
            };
            let mut client = host.client();
            // It is answered, or dies with the daemon.
            std::thread::spawn(move || client.call(&request).is_ok())
        });
        let instant = writer.below(3_000) * if asking.is_some() { 10 } else { 1 };
        std::thread::sleep(std::time::Duration::from_micros(instant));
        host.crash();
        attach_again(listener, guest);
        if let Some(asking) = asking {
            let answered = asking.join().unwrap();
            let name = format!("kill-{kill}");
            let there = host.snapshots().iter().any(|s| s.snapshot.0 == name);
            assert!(there || !answered, "{name} was answered for, and is gone");
            if let Some(old) = kill.checked_sub(2 * SNAPSHOT_KILLS) {
                host.delete_snapshot(&format!("kill-{old}"));
            }
        }
    }
    let mut left = SLOTS;
    wait("the rest", || {
        left -= writer.turn(guest, false);
        (left == 0).then_some(())
    });
    let windows: Vec<Vec<u8>> = writer.slots.into_iter().map(|s| s.window).collect();
    for (slot, window) in windows.iter().enumerate() {
        let read = guest.read_at((slot * WINDOW) as u64, WINDOW);
        assert!(read == *window, "slot {slot} at the end");
    }
    println!(
        "{kills} kills: {} writes, {} flushes, {} reads verified",
        writer.writes, writer.flushes, writer.verified
    );
    windows
}

pub fn kills() -> usize {
    if std::env::var_os("OCS_LONG").is_some() {
        1000
    } else {
        12
    }
}
