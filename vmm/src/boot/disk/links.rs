//! Symbolic links, followed here: the file system's reader makes room for a link's target that
//! is as large as the link claims to be.

use ext4_view::{Ext4, Ext4Error, PathBuf};

/// A link's target; Linux's longest path.
const MAX_TARGET_BYTES: u64 = 4095;
/// Links on the way to one file, as Linux follows.
const MAX_LINKS: usize = 40;

/// `path` without a link in it, from the file system's root.
pub(super) fn follow(fs: &Ext4, path: &str) -> Result<PathBuf, Ext4Error> {
    let mut here: Vec<Vec<u8>> = Vec::new();
    // What is still to be walked, the next name last.
    let mut rest = names(path.as_bytes());
    let mut links = 0;
    while let Some(name) = rest.pop() {
        match name.as_slice() {
            b"." => continue,
            b".." => {
                here.pop();
                continue;
            }
            _ => here.push(name),
        }
        let at = joined(&here)?;
        let metadata = fs.symlink_metadata(&at)?;
        if !metadata.is_symlink() {
            continue;
        }
        links += 1;
        if links > MAX_LINKS {
            return Err(Ext4Error::TooManySymlinks);
        }
        if metadata.len() > MAX_TARGET_BYTES {
            return Err(Ext4Error::PathTooLong);
        }
        let target = fs.read_link(&at)?;
        here.pop();
        if target.as_ref().starts_with(b"/") {
            here.clear();
        }
        rest.extend(names(target.as_ref()));
    }
    joined(&here)
}

/// The names in a path, the first last.
fn names(path: &[u8]) -> Vec<Vec<u8>> {
    let names = path.split(|byte| *byte == b'/').rev();
    let names = names.filter(|name| !name.is_empty());
    names.map(<[u8]>::to_vec).collect()
}

fn joined(names: &[Vec<u8>]) -> Result<PathBuf, Ext4Error> {
    let mut path = vec![b'/'];
    path.extend(names.join(&b'/'));
    PathBuf::try_from(path).map_err(|_| Ext4Error::MalformedPath)
}
