//! Images as layers: each content once, named by its SHA-256, shared by all volumes.
//!
//! An image's file may be replaced by its operator; a layer may not change under the
//! volumes that stand on it. So the first volume of an image copies it, sparsely, and
//! checks it against its name where that is its hash.

use super::volume::{Store, hex};
use crate::cow::map::GRAIN_BYTES;
use crate::cow::store::{create, sync_dir};
use crate::crypt::is_zero;
use ring::digest::{Context, SHA256};
use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::{Mutex, PoisonError};

/// What tells one content of an image's file from another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: (i64, i64),
}

/// Images whose layer is known.
#[derive(Default)]
pub struct Known(Mutex<BTreeMap<String, (Stamp, String)>>);

impl Store {
    /// The layer that holds image `name`, made where there is none.
    pub fn image_layer(&self, name: &str) -> io::Result<String> {
        let mut file = self.image(name)?;
        let metadata = file.metadata()?;
        let stamp = Stamp {
            inode: metadata.ino(),
            bytes: metadata.len(),
            modified: (metadata.mtime(), metadata.mtime_nsec()),
        };
        // Held while the image is copied: two volumes copy it once.
        let mut known = self.known.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((of, layer)) = known.get(name)
            && *of == stamp
            && self.dir.join(layer).exists()
        {
            return Ok(layer.clone());
        }
        let layer = self.copy(name, &mut file)?;
        known.insert(name.to_owned(), (stamp, layer.clone()));
        Ok(layer)
    }

    fn copy(&self, name: &str, from: &mut File) -> io::Result<String> {
        let temporary = self.dir.join("image.tmp");
        let to = create(&temporary)?;
        let mut hash = Context::new(&SHA256);
        let mut bytes = vec![0u8; GRAIN_BYTES as usize];
        let mut at = 0;
        loop {
            let n = fill(from, &mut bytes)?;
            let part = &bytes[..n];
            hash.update(part);
            if !is_zero(part) {
                to.write_all_at(part, at)?;
            }
            at += n as u64;
            if n < bytes.len() {
                break;
            }
        }
        let hash = hex(hash.finish().as_ref());
        if let Some(stated) = name.strip_prefix("sha256-")
            && stated != hash
        {
            let why = format!("image {name} holds something else: its SHA-256 is {hash}");
            return Err(io::Error::new(io::ErrorKind::InvalidData, why));
        }
        let layer = format!("sha256-{hash}.layer");
        to.set_len(at.next_multiple_of(GRAIN_BYTES))?;
        to.sync_all()?;
        std::fs::rename(&temporary, self.dir.join(&layer))?;
        sync_dir(&self.dir)?;
        Ok(layer)
    }
}

fn fill(file: &mut File, into: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < into.len() {
        match file.read(&mut into[done..]) {
            Ok(0) => break,
            Ok(n) => done += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}
