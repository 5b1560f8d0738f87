//! The BPF file system: what is pinned there outlives its maker.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use ocs_dataplane_shared::layout::LAYOUT_VERSION;
use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount as mount_fs, unmount};

use super::error::{FabricError, file};

/// Magic number of the BPF file system (`BPF_FS_MAGIC` of linux/magic.h).
const BPF_FS_MAGIC: i64 = 0xcafe_4a11;

/// What the names of links begin with of taps whose guests leave work to us.
pub(super) const BUFFER_LINK: &str = "buffer-";

/// The name of a tap's link.
pub(super) fn port_name(ifindex: u32) -> String {
    ifindex.to_string()
}

/// The name of the link of a tap whose guest leaves work to us.
pub(super) fn buffer_name(ifindex: u32) -> String {
    format!("{BUFFER_LINK}{ifindex}")
}

fn is_mounted(path: &Path) -> Result<bool, FabricError> {
    match statfs(path) {
        Ok(status) => Ok(status.f_type == BPF_FS_MAGIC),
        Err(rustix::io::Errno::NOENT) => Ok(false),
        Err(error) => Err(file("look at", path)(error.into())),
    }
}

/// Mounts a BPF file system on `path`, unless it is one.
pub(super) fn mount(path: &Path) -> Result<(), FabricError> {
    fs::create_dir_all(path).map_err(file("create folder", path))?;
    if is_mounted(path)? {
        return Ok(());
    }
    let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
    mount_fs("ocs-bpf", path, "bpf", flags, Some(c"mode=0700"))
        .map_err(io::Error::from)
        .map_err(file("mount a BPF file system on", path))
}

/// Removes all pins below `path`, which takes links off their interfaces, unmounts it and
/// removes it.
pub(super) fn remove(path: &Path) -> Result<(), FabricError> {
    if is_mounted(path)? {
        for entry in fs::read_dir(path).map_err(file("list", path))? {
            let entry = entry.map_err(file("list", path))?.path();
            if entry.is_dir() {
                fs::remove_dir_all(&entry).map_err(file("remove", &entry))?;
            }
        }
        unmount(path, UnmountFlags::DETACH)
            .map_err(io::Error::from)
            .map_err(file("unmount", path))?;
    }
    match fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(file("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Names of pins of this layout's version.
#[derive(Clone, Debug)]
pub(super) struct Pins {
    root: PathBuf,
    maps: PathBuf,
    links: PathBuf,
}

/// Pins of another layout's version, which a predecessor left.
#[derive(Clone, Debug)]
pub(super) struct Before {
    /// Its version.
    pub(super) version: u32,
    folder: PathBuf,
}

impl Before {
    /// A map's pin.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.folder.join("maps").join(name)
    }

    /// The links that it holds in force: their names and pins.
    pub(super) fn links(&self) -> Result<Vec<(String, PathBuf)>, FabricError> {
        let links = self.folder.join("links");
        let mut found = Vec::new();
        let entries = match fs::read_dir(&links) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(found),
            entries => entries.map_err(file("list", &links))?,
        };
        for entry in entries {
            let entry = entry.map_err(file("list", &links))?;
            found.extend(
                entry
                    .file_name()
                    .into_string()
                    .map(|name| (name, entry.path())),
            );
        }
        Ok(found)
    }

    /// Removes its pins; fails where it holds a link in force. Killed at any point, what is
    /// left is still a predecessor's, and empty of links.
    pub(super) fn forget(self) -> Result<(), FabricError> {
        let links = self.folder.join("links");
        match fs::remove_dir(&links) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(file("remove", &links)(error));
            }
            _ => {}
        }
        fs::remove_dir_all(&self.folder).map_err(file("remove", &self.folder))
    }
}

impl Pins {
    /// Makes the folders.
    pub(super) fn make(bpffs: &Path) -> Result<Self, FabricError> {
        let version = bpffs.join(format!("v{LAYOUT_VERSION}"));
        let pins = Self {
            root: bpffs.to_owned(),
            maps: version.join("maps"),
            links: version.join("links"),
        };
        for folder in [&pins.maps, &pins.links] {
            fs::create_dir_all(folder).map_err(file("create folder", folder))?;
        }
        Ok(pins)
    }

    /// What predecessors of other layouts left, the newest first.
    pub(super) fn before(&self) -> Result<Vec<Before>, FabricError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(file("list", &self.root))? {
            let entry = entry.map_err(file("list", &self.root))?;
            let name = entry.file_name();
            let version = name.to_str().and_then(|name| name.strip_prefix('v'));
            let version = version.and_then(|version| version.parse().ok());
            if let Some(version) = version.filter(|version| *version != LAYOUT_VERSION) {
                let folder = entry.path();
                found.push(Before { version, folder });
            }
        }
        found.sort_by_key(|before| std::cmp::Reverse(before.version));
        Ok(found)
    }

    /// Whether a predecessor of another layout holds a link in force.
    pub(super) fn is_held(&self, link: &str) -> Result<bool, FabricError> {
        let holds = |before: &Before| before.folder.join("links").join(link).exists();
        Ok(self.before()?.iter().any(holds))
    }

    /// A map's pin.
    pub(super) fn map(&self, name: &str) -> PathBuf {
        self.maps.join(name)
    }

    /// The pin of a link by its name.
    pub(super) fn link(&self, name: &str) -> PathBuf {
        self.links.join(name)
    }

    /// The pin of a tap's link.
    pub(super) fn port_link(&self, ifindex: u32) -> PathBuf {
        self.links.join(port_name(ifindex))
    }

    /// The pin of the link of a tap whose guest leaves work to us.
    pub(super) fn buffer_link(&self, ifindex: u32) -> PathBuf {
        self.links.join(buffer_name(ifindex))
    }

    /// Interfaces of taps whose links are pinned.
    pub(super) fn port_links(&self) -> Result<BTreeSet<u32>, FabricError> {
        self.links_after("")
    }

    /// Interfaces of taps whose guests leave work to us.
    pub(super) fn buffer_links(&self) -> Result<BTreeSet<u32>, FabricError> {
        self.links_after(BUFFER_LINK)
    }

    fn links_after(&self, prefix: &str) -> Result<BTreeSet<u32>, FabricError> {
        let mut found = BTreeSet::new();
        for entry in fs::read_dir(&self.links).map_err(file("list", &self.links))? {
            let name = entry.map_err(file("list", &self.links))?.file_name();
            let number = name.to_str().and_then(|name| name.strip_prefix(prefix));
            found.extend(number.and_then(|number| number.parse::<u32>().ok()));
        }
        Ok(found)
    }
}
