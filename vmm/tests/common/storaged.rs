//! `ocs-storaged`, the backend of disks.

use super::{PATIENCE, wait_for};
use ocs_storaged_api::{Client, Reply, Request, VolumeKind, VolumeName};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

/// A daemon on folders of its own, killed with the value.
pub struct Storaged {
    dir: PathBuf,
    child: Child,
}

fn storaged_path() -> PathBuf {
    let path = Path::new(env!("CARGO_BIN_EXE_ocs-vmm")).with_file_name("ocs-storaged");
    assert!(
        path.exists(),
        "{} is missing: run `cargo xtask build` or `cargo build -p ocs-storaged`",
        path.display()
    );
    path
}

impl Storaged {
    pub fn start(dir: &Path) -> Self {
        let dir = dir.join("storaged");
        for folder in ["state", "images"] {
            std::fs::create_dir_all(dir.join(folder)).unwrap();
        }
        let child = Self::spawn(&dir);
        Self { dir, child }
    }

    fn spawn(dir: &Path) -> Child {
        Command::new(storaged_path())
            .arg("--state")
            .arg(dir.join("state"))
            .arg("--images")
            .arg(dir.join("images"))
            .arg("--control")
            .arg(dir.join("control.sock"))
            .stderr(Stdio::null())
            .spawn()
            .unwrap()
    }

    /// SIGKILL, then a new one on the same folders.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        self.child = Self::spawn(&self.dir);
    }

    pub fn ask(&self, request: &Request) {
        let socket = self.dir.join("control.sock");
        let mut client = wait_for("storaged", || Client::connect(&socket, PATIENCE).ok());
        let reply = client.call(request).unwrap();
        assert_eq!(reply, Reply::Ok, "{request:?}");
    }

    /// Makes a volume of 64 MiB, if there is none of this name, and attaches it.
    pub fn attach(&self, volume: &str, kind: VolumeKind, socket: PathBuf) {
        self.put_and_attach(volume, kind, socket, [None, None]);
    }

    /// The same with a snapshot as its first content.
    pub fn attach_snapshot(&self, volume: &str, socket: PathBuf, snapshot: &str) {
        let from = [None, Some(snapshot.to_owned())];
        self.put_and_attach(volume, VolumeKind::Persistent, socket, from);
    }

    /// Keeps what a volume holds now.
    pub fn snapshot(&self, volume: &str, snapshot: &str) {
        self.ask(&Request::PutSnapshot {
            snapshot: VolumeName(snapshot.to_owned()),
            volume: VolumeName(volume.to_owned()),
            with: Vec::new(),
        });
    }

    /// The same with a file of `storaged/images` as its first content.
    pub fn attach_image(&self, volume: &str, kind: VolumeKind, socket: PathBuf, image: &str) {
        self.put_and_attach(volume, kind, socket, [Some(image.to_owned()), None]);
    }

    fn put_and_attach(
        &self,
        volume: &str,
        kind: VolumeKind,
        socket: PathBuf,
        [image, snapshot]: [Option<String>; 2],
    ) {
        let volume = VolumeName(volume.to_owned());
        self.ask(&Request::PutVolume {
            volume: volume.clone(),
            size_bytes: 64 << 20,
            kind,
            image,
            snapshot: snapshot.map(VolumeName),
            encrypted: false,
        });
        self.ask(&Request::Attach {
            volume,
            socket,
            read_only: false,
        });
    }
}

impl Storaged {
    /// Serves a volume to nobody.
    pub fn detach(&self, volume: &str) {
        let volume = VolumeName(volume.to_owned());
        self.ask(&Request::Detach { volume });
    }
}

impl Drop for Storaged {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
