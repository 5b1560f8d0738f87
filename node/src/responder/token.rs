//! IMDSv2 session tokens without a table.
//!
//! ```text
//! base64( expiry, Unix seconds, 8 bytes | HMAC-SHA256(key, domain, instance, ENI, expiry), 32 bytes )
//! ```
//! A token is good for the ENI it was given to alone, until it expires, and
//! across restarts of the responder, whose key is a file. 56 characters, as EC2's.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::hmac;
use std::fs::{File, OpenOptions};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

const KEY_BYTES: usize = 32;
const EXPIRY_BYTES: usize = 8;
const TAG_BYTES: usize = 32;
const DOMAIN: &[u8] = b"ocs imds token 1";

/// Signs and checks tokens.
pub struct TokenKey(hmac::Key);

impl TokenKey {
    /// A key of these bytes.
    #[must_use]
    pub fn new(bytes: &[u8; KEY_BYTES]) -> Self {
        Self(hmac::Key::new(hmac::HMAC_SHA256, bytes))
    }

    /// The key in `path`, made (mode 0600) where there is none.
    pub fn load_or_create(path: &Path) -> io::Result<Self> {
        let mut bytes = [0u8; KEY_BYTES];
        match File::open(path) {
            Ok(mut file) => file.read_exact(&mut bytes)?,
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                getrandom::fill(&mut bytes).map_err(io::Error::other)?;
                let part = path.with_extension("part");
                let mut file = OpenOptions::new()
                    .write(true)
                    .create(true)
                    .truncate(true)
                    .mode(0o600)
                    .open(&part)?;
                file.write_all(&bytes)?;
                // A crash of the host must not leave the name of an empty file.
                file.sync_all()?;
                std::fs::rename(part, path)?;
            }
            Err(e) => return Err(e),
        }
        Ok(Self::new(&bytes))
    }

    /// A token for this ENI until `expiry_s`.
    #[must_use]
    pub fn issue(&self, instance: &str, eni: &str, expiry_s: u64) -> String {
        let mut token = [0u8; EXPIRY_BYTES + TAG_BYTES];
        token[..EXPIRY_BYTES].copy_from_slice(&expiry_s.to_be_bytes());
        let tag = hmac::sign(&self.0, &message(instance, eni, expiry_s));
        token[EXPIRY_BYTES..].copy_from_slice(tag.as_ref());
        STANDARD.encode(token)
    }

    /// Seconds left of a token that is good for this ENI at `now_s`.
    #[must_use]
    pub fn check(&self, token: &[u8], instance: &str, eni: &str, now_s: u64) -> Option<u64> {
        let token = STANDARD.decode(token).ok()?;
        let (expiry, tag) = token.split_first_chunk::<EXPIRY_BYTES>()?;
        let expiry_s = u64::from_be_bytes(*expiry);
        hmac::verify(&self.0, &message(instance, eni, expiry_s), tag).ok()?;
        expiry_s.checked_sub(now_s).filter(|left| *left > 0)
    }
}

fn message(instance: &str, eni: &str, expiry_s: u64) -> Vec<u8> {
    [
        DOMAIN,
        b"\0",
        instance.as_bytes(),
        b"\0",
        eni.as_bytes(),
        b"\0",
        &expiry_s.to_be_bytes(),
    ]
    .concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_good_for_its_eni_until_it_expires() {
        let key = TokenKey::new(&[7; 32]);
        let token = key.issue("i-1", "eni-1", 1060);
        assert_eq!(token.len(), 56);
        let check =
            |token: &str, instance, eni, now| key.check(token.as_bytes(), instance, eni, now);
        assert_eq!(check(&token, "i-1", "eni-1", 1000), Some(60));
        assert_eq!(check(&token, "i-1", "eni-1", 1060), None);
        assert_eq!(check(&token, "i-1", "eni-2", 1000), None);
        assert_eq!(check(&token, "i-2", "eni-1", 1000), None);
        assert_eq!(
            TokenKey::new(&[8; 32]).check(token.as_bytes(), "i-1", "eni-1", 1000),
            None
        );
    }

    #[test]
    fn each_changed_bit_spoils_a_token() {
        let key = TokenKey::new(&[7; 32]);
        let token = STANDARD.decode(key.issue("i-1", "eni-1", 1060)).unwrap();
        for bit in 0..token.len() * 8 {
            let mut other = token.clone();
            other[bit / 8] ^= 1 << (bit % 8);
            let other = STANDARD.encode(other);
            assert_eq!(key.check(other.as_bytes(), "i-1", "eni-1", 0), None);
        }
        for text in ["", "x", "AAAA", "====", "\u{1f600}"] {
            assert_eq!(key.check(text.as_bytes(), "i-1", "eni-1", 0), None);
        }
    }

    #[test]
    fn the_key_file_is_made_once_and_private() {
        use std::os::unix::fs::PermissionsExt;
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("token.key");
        let token = TokenKey::load_or_create(&path)
            .unwrap()
            .issue("i-1", "eni-1", 10);
        let again = TokenKey::load_or_create(&path).unwrap();
        assert_eq!(again.check(token.as_bytes(), "i-1", "eni-1", 0), Some(10));
        let mode = path.metadata().unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        std::fs::write(&path, b"short").unwrap();
        assert!(TokenKey::load_or_create(&path).is_err());
    }
}
