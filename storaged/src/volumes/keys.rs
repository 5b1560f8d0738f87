//! Persistent volumes' keys at rest: wrapped by the node's key.
//!
//! Each volume has a data key of its own; what is kept of it is AES-256-GCM under the
//! node key, a file that storaged's user alone can read. Who needs more than a file
//! (TPM, KMS) implements [`Wrap`].

use crate::crypt::{KEY_BYTES, Key};
use crate::locked::Locked;
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use zeroize::Zeroizing;

const FILE: &str = "node.key";
const NODE_KEY_BYTES: usize = 32;
/// Binds a wrapped key to its purpose.
const PURPOSE: &[u8] = b"ocs volume data key 1";

/// Wraps and unwraps data keys.
pub trait Wrap: Send + Sync {
    /// A new data key, wrapped.
    fn generate(&self) -> io::Result<String>;
    /// The key that [`Self::generate`] wrapped; any other text is an error.
    fn unwrap(&self, wrapped: &str) -> io::Result<Key>;
}

/// The node's key, from a file.
pub struct NodeKey(Locked<[u8; NODE_KEY_BYTES]>);

impl NodeKey {
    /// The key in `dir`, made if there is none.
    pub fn open(dir: &Path) -> io::Result<Self> {
        let path = dir.join(FILE);
        let mut key = Locked::new([0; NODE_KEY_BYTES])?;
        match File::open(&path) {
            Ok(mut file) => {
                if file.metadata()?.permissions().mode() & 0o077 != 0 {
                    let why = format!("{} can be read by others", path.display());
                    return Err(io::Error::new(io::ErrorKind::PermissionDenied, why));
                }
                file.read_exact(&mut *key)?;
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                getrandom::fill(&mut *key).map_err(io::Error::other)?;
                let temporary = dir.join(format!("{FILE}.tmp"));
                let _ = std::fs::remove_file(&temporary);
                let mut options = File::options();
                let mut file = options
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(&temporary)?;
                file.write_all(&*key)?;
                file.sync_all()?;
                std::fs::rename(&temporary, &path)?;
                crate::cow::store::sync_dir(dir)?;
            }
            Err(error) => return Err(error),
        }
        Ok(Self(key))
    }

    fn cipher(&self) -> io::Result<LessSafeKey> {
        let key = UnboundKey::new(&AES_256_GCM, &*self.0).map_err(broken)?;
        Ok(LessSafeKey::new(key))
    }
}

impl Wrap for NodeKey {
    fn generate(&self) -> io::Result<String> {
        let mut bytes = Zeroizing::new(vec![0u8; KEY_BYTES]);
        let mut nonce = [0u8; NONCE_LEN];
        getrandom::fill(&mut bytes).map_err(io::Error::other)?;
        getrandom::fill(&mut nonce).map_err(io::Error::other)?;
        let tag = self
            .cipher()?
            .seal_in_place_separate_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(PURPOSE),
                &mut bytes,
            )
            .map_err(broken)?;
        let parts = [&nonce[..], &bytes, tag.as_ref()];
        Ok(parts.map(super::volume::hex).concat())
    }

    fn unwrap(&self, wrapped: &str) -> io::Result<Key> {
        let bad = || io::Error::new(io::ErrorKind::InvalidData, "a wrapped key is not ours");
        let mut bytes = Zeroizing::new(unhex(wrapped).ok_or_else(bad)?);
        let (nonce, sealed) = bytes.split_at_mut_checked(NONCE_LEN).ok_or_else(bad)?;
        let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| bad())?;
        let plain = self
            .cipher()?
            .open_in_place(nonce, Aad::from(PURPOSE), sealed)
            .map_err(|_| bad())?;
        let plain: &[u8; KEY_BYTES] = (&*plain).try_into().map_err(|_| bad())?;
        Key::new(plain).map_err(io::Error::other)
    }
}

fn broken(error: ring::error::Unspecified) -> io::Error {
    io::Error::other(error.to_string())
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_comes_back_from_its_wrapping_under_its_node_key_alone() {
        let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let node = NodeKey::open(a.path()).unwrap();
        let wrapped = node.generate().unwrap();
        assert_ne!(wrapped, node.generate().unwrap());
        let key = node.unwrap(&wrapped).unwrap();
        assert!(!wrapped.contains(&super::super::volume::hex(key.raw())));
        let again = NodeKey::open(a.path()).unwrap();
        assert_eq!(again.unwrap(&wrapped).unwrap().raw(), key.raw());
        assert!(NodeKey::open(b.path()).unwrap().unwrap(&wrapped).is_err());
        let other = if wrapped.starts_with("00") {
            "01"
        } else {
            "00"
        };
        for bad in [
            "",
            "zz",
            "é",
            "00",
            &wrapped[2..],
            &format!("{other}{}", &wrapped[2..]),
        ] {
            assert!(node.unwrap(bad).is_err(), "{bad:?}");
        }
        let mode = std::fs::metadata(a.path().join(FILE))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
        let open = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(a.path().join(FILE), open).unwrap();
        assert!(NodeKey::open(a.path()).is_err());
    }
}
