//! A daemon on folders of its own, and what is asked of it.

use super::{Daemon, Guest, PATIENCE, SLOTS, T_IN, T_OUT, accept, pattern, wait};
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

/// Keeps all slots busy with verified random writes while the daemon is killed.
pub fn survive_kills(host: &mut Host, listener: &UnixListener, guest: &mut Guest, kills: usize) {
    let len = 16384;
    let mut seeds = [0u64; SLOTS];
    let mut reading = [false; SLOTS];
    let mut next = 1u64;
    let mut verified = 0;
    let submit = |guest: &mut Guest, slot: usize, seed: u64| {
        let at = Guest::data_at(slot);
        guest.bytes(at, len).copy_from_slice(&pattern(seed, len));
        guest.submit(slot, T_OUT, slot as u64 * 32, len);
    };
    for (slot, seed) in seeds.iter_mut().enumerate() {
        *seed = next;
        submit(guest, slot, next);
        next += 1;
    }
    for kill in 0..kills {
        let until = verified + 20 + (kill * 37) % 200;
        wait("progress", || {
            for (slot, status) in guest.poll() {
                assert_eq!(status, 0);
                if !std::mem::replace(&mut reading[slot], true) {
                    guest.bytes(Guest::data_at(slot), len).fill(0);
                    guest.submit(slot, T_IN, slot as u64 * 32, len);
                    continue;
                }
                assert!(
                    guest.bytes(Guest::data_at(slot), len) == pattern(seeds[slot], len),
                    "slot {slot}"
                );
                verified += 1;
                (reading[slot], seeds[slot]) = (false, next);
                submit(guest, slot, next);
                next += 1;
            }
            (verified >= until).then_some(())
        });
        host.crash();
        guest.attach(accept(listener));
    }
    let mut left = SLOTS;
    wait("the rest", || {
        for (slot, status) in guest.poll() {
            assert_eq!(status, 0);
            if reading[slot] {
                assert!(guest.bytes(Guest::data_at(slot), len) == pattern(seeds[slot], len));
            }
            left -= 1;
        }
        (left == 0).then_some(())
    });
}

pub fn kills() -> usize {
    if std::env::var_os("OCS_LONG").is_some() {
        1000
    } else {
        12
    }
}
