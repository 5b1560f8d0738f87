//! The void: one network namespace without a device or an address, in which every
//! VMM runs. What it sends and receives it does through its inherited taps.

use rustix::fs::statfs;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::fs::{self, File};
use std::io;
use std::path::Path;

/// `statfs` type of a namespace file (linux/magic.h).
const NSFS_MAGIC: i64 = 0x6e73_6673;

/// The namespace pinned at `path`, made where there is none.
pub fn open(path: &Path) -> io::Result<File> {
    if !is_namespace(path) {
        if let Some(folder) = path.parent() {
            fs::create_dir_all(folder)?;
        }
        File::create(path)?;
        let target = path.to_owned();
        // A namespace belongs to a thread; this one ends with the pin made.
        std::thread::spawn(move || -> io::Result<()> {
            // SAFETY: a new network namespace does not touch memory or
            // descriptors that other threads share.
            unsafe { unshare_unsafe(UnshareFlags::NEWNET) }?;
            mount(
                "/proc/thread-self/ns/net",
                &target,
                "",
                MountFlags::BIND,
                None,
            )?;
            Ok(())
        })
        .join()
        .map_err(|_| io::Error::other("the namespace's thread panicked"))??;
    }
    File::open(path)
}

/// Removes the pin; none there is fine.
pub fn remove(path: &Path) -> io::Result<()> {
    while is_namespace(path) {
        unmount(path, UnmountFlags::DETACH)?;
    }
    super::durable::remove(path, super::durable::Lasts::ThisBoot)
}

fn is_namespace(path: &Path) -> bool {
    statfs(path).is_ok_and(|fs| fs.f_type == NSFS_MAGIC)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn the_void_is_one_namespace_that_is_not_ours() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("netns/void");
        struct Unpin<'a>(&'a Path);
        impl Drop for Unpin<'_> {
            fn drop(&mut self) {
                let _ = remove(self.0);
            }
        }
        let _unpin = Unpin(&path);
        let first = open(&path).unwrap().metadata().unwrap().ino();
        assert_eq!(open(&path).unwrap().metadata().unwrap().ino(), first);
        assert_ne!(fs::metadata("/proc/self/ns/net").unwrap().ino(), first);
        remove(&path).unwrap();
        remove(&path).unwrap();
        assert!(!path.exists());
    }
}
