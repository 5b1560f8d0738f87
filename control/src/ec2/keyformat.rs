//! Key material: made, encoded, parsed and fingerprinted as EC2 does it.
//!
//! | key | fingerprint (EC2 user guide, "Verify the fingerprint of your key pair") |
//! |---|---|
//! | RSA made here | SHA-1 of the private key's PKCS #8 DER |
//! | RSA imported | MD5 of the public key's SubjectPublicKeyInfo DER |
//! | Ed25519 | SHA-256 of the OpenSSH public blob, base64 |

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest as _, Md5};
use ring::digest;
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use rsa::pkcs1::{EncodeRsaPrivateKey as _, LineEnding};
use rsa::pkcs8::{DecodePublicKey as _, EncodePrivateKey as _, EncodePublicKey as _};
use rsa::traits::PublicKeyParts as _;
use rsa::{BoxedUint, PrivateKey, PublicKey};

/// RSA key lengths that may be imported.
const RSA_BITS: [u32; 3] = [1_024, 2_048, 4_096];
/// What OpenSSH's private format starts with (its PROTOCOL.key).
const OPENSSH_MAGIC: &[u8] = b"openssh-key-v1\0";

/// A public key.
#[derive(Debug, PartialEq, Eq)]
pub struct Public {
    /// `rsa` or `ed25519`.
    pub kind: &'static str,
    /// `ssh-rsa AAAA…`.
    pub line: String,
    /// As EC2 shows it.
    pub fingerprint: String,
}

/// A new key pair.
pub struct New {
    /// The public half.
    pub public: Public,
    /// The private half as text.
    pub private: String,
}

/// Why no key pair can be made.
#[derive(Debug, thiserror::Error)]
#[error("cannot make a key pair: {0}")]
pub struct MakeError(String);

fn failed(error: impl std::fmt::Display) -> MakeError {
    MakeError(error.to_string())
}

fn colons(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|b| format!("{b:02x}")).collect();
    parts.join(":")
}

/// A string of RFC 4251 §5.
fn string(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(u32::try_from(bytes.len()).unwrap_or(u32::MAX).to_be_bytes());
    out.extend(bytes);
}

/// A positive multiple-precision integer of RFC 4251 §5.
fn mpint(out: &mut Vec<u8>, number: &BoxedUint) {
    let bytes = number.to_be_bytes();
    let start = bytes.iter().position(|b| *b != 0).unwrap_or(bytes.len());
    let mut magnitude = bytes[start..].to_vec();
    if magnitude.first().is_some_and(|b| *b >= 0x80) {
        magnitude.insert(0, 0);
    }
    string(out, &magnitude);
}

fn rsa_line(key: &PublicKey) -> String {
    let mut blob = Vec::new();
    string(&mut blob, b"ssh-rsa");
    mpint(&mut blob, key.e());
    mpint(&mut blob, key.n());
    format!("ssh-rsa {}", STANDARD.encode(blob))
}

/// A new 2048-bit RSA key pair; the private half is PKCS #1 PEM, as EC2's is.
///
/// # Errors
/// Where the kernel gives no random numbers.
pub fn new_rsa() -> Result<New, MakeError> {
    let private = PrivateKey::new(&mut getrandom::SysRng, 2_048).map_err(failed)?;
    let der = private.to_pkcs8_der().map_err(failed)?;
    let print = digest::digest(&digest::SHA1_FOR_LEGACY_USE_ONLY, der.as_bytes());
    let pem = private.to_pkcs1_pem(LineEnding::LF).map_err(failed)?;
    Ok(New {
        public: Public {
            kind: "rsa",
            line: rsa_line(private.as_public_key()),
            fingerprint: colons(print.as_ref()),
        },
        private: pem.to_string(),
    })
}

fn ed25519(point: &[u8]) -> (Vec<u8>, Public) {
    let mut blob = Vec::new();
    string(&mut blob, b"ssh-ed25519");
    string(&mut blob, point);
    let public = Public {
        kind: "ed25519",
        line: format!("ssh-ed25519 {}", STANDARD.encode(&blob)),
        fingerprint: STANDARD.encode(digest::digest(&digest::SHA256, &blob)),
    };
    (blob, public)
}

/// A new Ed25519 key pair; the private half is in OpenSSH's own format.
///
/// # Errors
/// Where the kernel gives no random numbers.
pub fn new_ed25519(comment: &str) -> Result<New, MakeError> {
    let mut random = [0; 36];
    getrandom::fill(&mut random).map_err(failed)?;
    let (seed, check) = random.split_at(32);
    let pair = Ed25519KeyPair::from_seed_unchecked(seed).map_err(failed)?;
    let point = pair.public_key().as_ref();
    let (blob, public) = ed25519(point);
    let mut inner = [check, check].concat();
    string(&mut inner, b"ssh-ed25519");
    string(&mut inner, point);
    string(&mut inner, &[seed, point].concat());
    string(&mut inner, comment.as_bytes());
    inner.extend((1..8_u8).take((8 - inner.len() % 8) % 8));
    let mut outer = OPENSSH_MAGIC.to_vec();
    for text in [b"none".as_slice(), b"none", b""] {
        string(&mut outer, text);
    }
    outer.extend(1_u32.to_be_bytes());
    string(&mut outer, &blob);
    string(&mut outer, &inner);
    let body = STANDARD.encode(outer);
    let lines: Vec<&str> = (0..body.len())
        .step_by(70)
        .map(|at| &body[at..(at + 70).min(body.len())])
        .collect();
    let private = format!(
        "-----BEGIN OPENSSH PRIVATE KEY-----\n{}\n-----END OPENSSH PRIVATE KEY-----\n",
        lines.join("\n")
    );
    Ok(New { public, private })
}

/// Parses a public key in any form that EC2 takes.
pub fn parse(material: &[u8]) -> Option<Public> {
    let text = std::str::from_utf8(material).ok();
    if let Some(text) = text.map(str::trim) {
        if let Some(body) = text.strip_prefix("---- BEGIN SSH2 PUBLIC KEY ----") {
            return blob(&STANDARD.decode(rfc4716(body)?).ok()?);
        }
        if text.starts_with("ssh-") {
            let mut words = text.split_ascii_whitespace();
            let kind = words.next()?;
            let bytes = STANDARD.decode(words.next()?).ok()?;
            return blob(&bytes).filter(|key| key.line.starts_with(&format!("{kind} ")));
        }
        let joined: String = text.split_ascii_whitespace().collect();
        if let Ok(der) = STANDARD.decode(joined) {
            return rsa(&PublicKey::from_public_key_der(&der).ok()?);
        }
    }
    rsa(&PublicKey::from_public_key_der(material).ok()?)
}

/// The base64 of RFC 4716 §3: header lines, which may be continued, left out.
fn rfc4716(body: &str) -> Option<String> {
    let (body, _) = body.split_once("---- END SSH2 PUBLIC KEY ----")?;
    let mut joined = String::new();
    let mut continued = false;
    for line in body.lines().map(str::trim) {
        if continued || line.contains(':') {
            continued = line.ends_with('\\');
        } else {
            joined.push_str(line);
        }
    }
    Some(joined)
}

fn take<'a>(bytes: &mut &'a [u8]) -> Option<&'a [u8]> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
    let (field, rest) = rest.split_at_checked(length)?;
    *bytes = rest;
    Some(field)
}

/// An OpenSSH public blob (RFC 4253 §6.6, RFC 8709 §4).
fn blob(mut bytes: &[u8]) -> Option<Public> {
    match take(&mut bytes)? {
        b"ssh-ed25519" => {
            let point = take(&mut bytes)?;
            (point.len() == 32 && bytes.is_empty()).then(|| ed25519(point).1)
        }
        b"ssh-rsa" => {
            let (e, n) = (take(&mut bytes)?, take(&mut bytes)?);
            let number = |bytes: &[u8]| {
                let start = bytes.iter().position(|b| *b != 0)?;
                let bits = u32::try_from(bytes.len() - start).ok()?.checked_mul(8)?;
                BoxedUint::from_be_slice(&bytes[start..], bits.next_multiple_of(64)).ok()
            };
            bytes.is_empty().then_some(())?;
            let bits = 1_024..=4_096;
            rsa(&PublicKey::new_with_size_limits(number(n)?, number(e)?, bits).ok()?)
        }
        _ => None,
    }
}

fn rsa(key: &PublicKey) -> Option<Public> {
    if !RSA_BITS.contains(&key.n().bit_width()) {
        return None;
    }
    let der = key.to_public_key_der().ok()?;
    Some(Public {
        kind: "rsa",
        line: rsa_line(key),
        fingerprint: colons(Md5::digest(der.as_bytes()).as_slice()),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use rsa::pkcs1::DecodeRsaPrivateKey as _;

    #[test]
    fn made_keys_parse_again() {
        let new = new_ed25519("me").unwrap();
        assert_eq!(parse(new.public.line.as_bytes()), Some(new.public));
        assert!(
            new.private
                .starts_with("-----BEGIN OPENSSH PRIVATE KEY-----\n")
        );
        let new = new_rsa().unwrap();
        let parsed = parse(new.public.line.as_bytes()).unwrap();
        assert_eq!(parsed.line, new.public.line);
        assert_ne!(
            parsed.fingerprint, new.public.fingerprint,
            "one is SHA-1, one is MD5"
        );
        assert_eq!(
            (parsed.fingerprint.len(), new.public.fingerprint.len()),
            (47, 59)
        );
        let private = PrivateKey::from_pkcs1_pem(&new.private).unwrap();
        assert_eq!(rsa_line(private.as_public_key()), new.public.line);
    }

    /// The key of RFC 8032 §7.1, test 1, as `ssh-keygen -l` prints it.
    #[test]
    fn forms_of_one_key_agree() {
        let line =
            "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea";
        let key = parse(format!("{line} somebody@somewhere\n").as_bytes()).unwrap();
        assert_eq!(key.line, line);
        let (_, body) = line.split_once(' ').unwrap();
        let (a, b) = body.split_at(40);
        let ssh2 = format!(
            "---- BEGIN SSH2 PUBLIC KEY ----\nComment: \"a \\\nlong one\"\n{a}\n{b}\n---- END SSH2 PUBLIC KEY ----\n"
        );
        assert_eq!(parse(ssh2.as_bytes()), Some(key));
        for bad in [
            "",
            "ssh-rsa",
            "ssh-rsa AAAA",
            "ssh-rsa AAAAC3NzaC1lZDI1NTE5AAAAINdamAGCsQq31Uv+08lkBzoO4XLz2qYjJa8CGmj3B1Ea",
            "teapot",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn fuzz_any_material_is_a_key_or_none(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let _ = parse(&bytes);
            let _ = parse(format!("ssh-rsa {}", STANDARD.encode(&bytes)).as_bytes());
            let _ = blob(&bytes);
        }
    }
}
