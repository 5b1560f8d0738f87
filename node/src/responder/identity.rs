//! Signatures of the instance identity document.
//!
//! ```text
//!  pki/identity/REGION.key, .pem ── read before root is given up ──▶ Signer
//!  document ─▶ signature   base64 of an ECDSA signature (ASN.1) over SHA-256
//!           └▶ pkcs7       base64 of a SignedData (RFC 2315) with document and certificate
//! ```
//! As EC2 offers them (EC2 User Guide, "Instance identity documents"), with one key a
//! region. EC2's keys are RSA and DSA, these are on P-256: `openssl smime -verify` and
//! `openssl dgst -sha256 -verify` take them alike.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::SystemRandom;
use ring::signature::{ECDSA_P256_SHA256_ASN1_SIGNING, EcdsaKeyPair};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use x509_parser::pem::parse_x509_pem;

// Object identifiers, DER.
const SIGNED_DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x02";
const DATA: &[u8] = b"\x06\x09\x2a\x86\x48\x86\xf7\x0d\x01\x07\x01";
const SHA256: &[u8] = b"\x06\x09\x60\x86\x48\x01\x65\x03\x04\x02\x01";
const ECDSA_WITH_SHA256: &[u8] = b"\x06\x08\x2a\x86\x48\xce\x3d\x04\x03\x02";
const VERSION_1: &[u8] = b"\x02\x01\x01";

// Tags, DER.
const INTEGER: u8 = 0x02;
const OCTETS: u8 = 0x04;
const SEQUENCE: u8 = 0x30;
const SET: u8 = 0x31;
const CONTEXT_0: u8 = 0xa0;

/// Characters of a line of base64, as EC2's.
const LINE: usize = 76;

/// One region's key and its certificate.
pub struct Signer {
    key: EcdsaKeyPair,
    random: SystemRandom,
    /// DER.
    certificate: Vec<u8>,
    /// Issuer and serial number, DER.
    issuer_and_serial: Vec<u8>,
}

/// Every region's signer, by the names of the keys in `folder`; none where it is missing.
///
/// # Errors
/// Where a key or a certificate cannot be read, or is none.
pub fn load(folder: &Path) -> io::Result<BTreeMap<String, Signer>> {
    let mut signers = BTreeMap::new();
    let entries = match std::fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(signers),
        entries => entries?,
    };
    for entry in entries {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "key")
            && let Some(region) = path.file_stem().and_then(|stem| stem.to_str())
        {
            let key = std::fs::read_to_string(&path)?;
            let certificate = std::fs::read_to_string(path.with_extension("pem"))?;
            let signer = Signer::new(&key, &certificate);
            let signer = signer.ok_or_else(|| {
                io::Error::other(format!(
                    "{} and its certificate are no pair",
                    path.display()
                ))
            })?;
            signers.insert(region.to_owned(), signer);
        }
    }
    Ok(signers)
}

impl Signer {
    /// From a key (PKCS #8) and its certificate, both PEM.
    fn new(key: &str, certificate: &str) -> Option<Self> {
        let random = SystemRandom::new();
        let key =
            EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_ASN1_SIGNING, &from_pem(key)?, &random)
                .ok()?;
        let certificate = from_pem(certificate)?;
        let issuer_and_serial = issuer_and_serial(&certificate)?;
        Some(Self {
            key,
            random,
            certificate,
            issuer_and_serial,
        })
    }

    /// The signature of `document`, base64.
    #[must_use]
    pub fn signature(&self, document: &[u8]) -> Option<Vec<u8>> {
        let signature = self.key.sign(&self.random, document).ok()?;
        Some(lines(signature.as_ref()))
    }

    /// `document` with its signature and the certificate (RFC 2315 §9), base64.
    #[must_use]
    pub fn pkcs7(&self, document: &[u8]) -> Option<Vec<u8>> {
        let signature = self.key.sign(&self.random, document).ok()?;
        let digest = der(SEQUENCE, &[SHA256]);
        let content = der(CONTEXT_0, &[&der(OCTETS, &[document])]);
        let signer = [
            VERSION_1,
            &self.issuer_and_serial,
            &digest,
            &der(SEQUENCE, &[ECDSA_WITH_SHA256]),
            &der(OCTETS, &[signature.as_ref()]),
        ];
        let signed = [
            VERSION_1,
            &der(SET, &[&digest]),
            &der(SEQUENCE, &[DATA, &content]),
            &der(CONTEXT_0, &[&self.certificate]),
            &der(SET, &[&der(SEQUENCE, &signer)]),
        ];
        let signed = der(CONTEXT_0, &[&der(SEQUENCE, &signed)]);
        Some(lines(&der(SEQUENCE, &[SIGNED_DATA, &signed])))
    }
}

fn lines(bytes: &[u8]) -> Vec<u8> {
    let text = STANDARD.encode(bytes).into_bytes();
    text.chunks(LINE).collect::<Vec<_>>().join(&b'\n')
}

fn from_pem(text: &str) -> Option<Vec<u8>> {
    let (_, pem) = parse_x509_pem(text.as_bytes()).ok()?;
    Some(pem.contents)
}

/// A DER element of these parts.
fn der(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut element = vec![tag];
    match u8::try_from(length) {
        Ok(short @ 0..=0x7f) => element.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let from = bytes.iter().take_while(|byte| **byte == 0).count();
            // At most eight bytes of length.
            element.push(0x80 | u8::try_from(bytes.len() - from).unwrap_or(0));
            element.extend(&bytes[from..]);
        }
    }
    parts.iter().for_each(|part| element.extend(*part));
    element
}

/// IssuerAndSerialNumber (RFC 2315 §6.7) of a certificate.
fn issuer_and_serial(certificate: &[u8]) -> Option<Vec<u8>> {
    let (_, certificate) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let serial = der(INTEGER, &[certificate.raw_serial()]);
    Some(der(SEQUENCE, &[certificate.issuer().as_raw(), &serial]))
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, KeyPair};
    use std::fs;
    use std::process::Command;

    fn openssl(arguments: &[&str], folder: &Path) -> (bool, Vec<u8>) {
        let ran = Command::new("openssl")
            .args(arguments)
            .current_dir(folder)
            .output()
            .expect("openssl, a Debian package, is the judge of our signatures");
        (ran.status.success(), ran.stdout)
    }

    #[test]
    fn openssl_takes_both_signatures_and_neither_for_another_document() {
        let folder = tempfile::tempdir().unwrap();
        let path = |name: &str| folder.path().join(name);
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(Vec::new()).unwrap();
        let certificate = params.self_signed(&key).unwrap();
        fs::write(path("us-east-1.key"), key.serialize_pem()).unwrap();
        fs::write(path("us-east-1.pem"), certificate.pem()).unwrap();
        let signers = load(folder.path()).unwrap();
        let signer = &signers["us-east-1"];
        // Long enough for a length of two bytes.
        let document = "{\"instanceId\" : \"i-1\"}\n".repeat(20);
        fs::write(path("document"), &document).unwrap();

        let wrapped = [
            b"-----BEGIN PKCS7-----\n".to_vec(),
            signer.pkcs7(document.as_bytes()).unwrap(),
            b"\n-----END PKCS7-----\n".to_vec(),
        ];
        fs::write(path("pkcs7"), wrapped.concat()).unwrap();
        let smime = "smime -verify -in pkcs7 -inform PEM -certfile us-east-1.pem -noverify -binary";
        let smime: Vec<&str> = smime.split(' ').collect();
        let (fine, content) = openssl(&smime, folder.path());
        assert!(fine && content == document.as_bytes());

        let signature = signer.signature(document.as_bytes()).unwrap();
        let text: Vec<u8> = signature
            .into_iter()
            .filter(|byte| *byte != b'\n')
            .collect();
        fs::write(path("signature"), STANDARD.decode(text).unwrap()).unwrap();
        let public = "x509 -in us-east-1.pem -pubkey -noout -out public";
        assert!(openssl(&public.split(' ').collect::<Vec<_>>(), folder.path()).0);
        let verify = "dgst -sha256 -verify public -signature signature document";
        let verify: Vec<&str> = verify.split(' ').collect();
        assert!(openssl(&verify, folder.path()).0);
        fs::write(path("document"), document.replace("i-1", "i-2")).unwrap();
        assert!(!openssl(&verify, folder.path()).0);
    }

    #[test]
    fn no_folder_is_no_key_and_a_broken_one_is_named() {
        let folder = tempfile::tempdir().unwrap();
        assert!(load(&folder.path().join("none")).unwrap().is_empty());
        fs::write(folder.path().join("x.key"), "x").unwrap();
        fs::write(folder.path().join("x.pem"), "x").unwrap();
        let error = load(folder.path()).err().unwrap().to_string();
        assert!(error.contains("x.key"), "{error}");
    }
}
