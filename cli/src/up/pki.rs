//! The certificates with which control and nodes know each other.
//!
//! The authority is made once and stays; its leaves are made afresh by every
//! `ocs up`, so nothing expires under a system that is started now and then.

use super::parts::{CONTROL_NAME, LOCAL_NAME};
use crate::host::Bundle;
use crate::part::Part;
use crate::state::{State, Uids, write_whole};
use anyhow::{Context, Result, ensure};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::Path;
use time::{Duration, OffsetDateTime};

const AUTHORITY_NAME: &str = "OCS installation authority";
const AUTHORITY_LIFE: Duration = Duration::days(3650);
const LEAF_LIFE: Duration = Duration::days(825);
/// A clock that is a little behind must not find a certificate not valid yet.
const BACKDATE: Duration = Duration::hours(1);

/// Makes what is missing of `DIR/pki`, and both leaves anew. Tenants and nodes reach
/// control at the addresses of `listen`, and on this host by loopback.
pub fn renew(state: &State, uids: Uids, listen: [IpAddr; 2]) -> Result<()> {
    let mut hosts: Vec<String> = ["localhost", "127.0.0.1", "::1"].map(str::to_owned).into();
    for address in listen {
        if !address.is_unspecified() && !hosts.contains(&address.to_string()) {
            hosts.push(address.to_string());
        }
    }
    let authority = authority(state)?;
    let control = leaf(
        &authority,
        CONTROL_NAME,
        &hosts,
        ExtendedKeyUsagePurpose::ServerAuth,
    )?;
    control.install(state, "control", uids.of(Part::Control))?;
    let node = leaf(
        &authority,
        LOCAL_NAME,
        &[],
        ExtendedKeyUsagePurpose::ClientAuth,
    )?;
    node.install(state, "node", uids.of(Part::Node))
}

/// What a host proves itself with.
pub struct Credentials {
    /// The authority (PEM).
    pub authority: String,
    /// Its certificate (PEM).
    pub certificate: String,
    /// Its key (PEM).
    pub key: String,
    /// When the certificate ends, in seconds since 1970.
    pub expires_s: i64,
}

/// Makes a certificate for the node of another host.
pub fn admit(state: &State, name: &str) -> Result<Credentials> {
    let path = state.path("pki/ca.pem");
    let certificate = fs::read_to_string(&path)
        .with_context(|| format!("{}: has `ocs up` made it?", path.display()))?;
    let usage = ExtendedKeyUsagePurpose::ClientAuth;
    let leaf = leaf(&authority(state)?, name, &[], usage)?;
    Ok(Credentials {
        authority: certificate,
        certificate: leaf.certificate,
        key: leaf.key,
        expires_s: leaf.expires_s,
    })
}

/// Puts another installation's certificates in the place of our own.
pub fn join(state: &State, uids: Uids, bundle: &Bundle) -> Result<()> {
    let authority = state.path("pki/ca.pem");
    write_whole(&authority, bundle.authority.as_bytes(), 0o644, 0)?;
    let leaf = Leaf {
        certificate: bundle.certificate.clone(),
        key: bundle.key.clone(),
        expires_s: bundle.expires_s,
    };
    leaf.install(state, "node", uids.of(Part::Node))?;
    let mut identities = bundle.identities.iter();
    identities.try_for_each(|(region, pair)| identity(state, region, &pair.0, &pair.1))
}

/// Makes the key and certificate that each region's identity documents are signed with,
/// where they are missing. They stay: who checks a document has the certificate.
pub fn identities(state: &State, regions: &[String]) -> Result<()> {
    for region in regions {
        if state.path(&format!("pki/identity/{region}.pem")).exists() {
            continue;
        }
        let params = named(&format!("OCS {region}"), &[], AUTHORITY_LIFE)?;
        let key = KeyPair::generate()?;
        let certificate = params.self_signed(&key)?;
        identity(state, region, &key.serialize_pem(), &certificate.pem())?;
    }
    Ok(())
}

fn identity(state: &State, region: &str, key: &str, certificate: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    ensure!(
        !region.is_empty() && region.chars().all(plain),
        "region name {region:?} is not lower-case letters, digits and dashes"
    );
    let path = |kind| state.path(&format!("pki/identity/{region}.{kind}"));
    write_whole(&path("key"), key.as_bytes(), 0o600, 0)?;
    // Last: it says that there is a key.
    write_whole(&path("pem"), certificate.as_bytes(), 0o644, 0)
}

/// The keys and certificates that [`identities`] made, for a host that joins.
pub fn kept_identities(state: &State) -> Result<BTreeMap<String, (String, String)>> {
    let folder = state.path("pki/identity");
    let mut kept = BTreeMap::new();
    for entry in fs::read_dir(&folder).with_context(|| folder.display().to_string())? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "pem")
            && let Some(region) = path.file_stem().and_then(|stem| stem.to_str())
        {
            let read =
                |path: &Path| fs::read_to_string(path).with_context(|| path.display().to_string());
            let pair = (read(&path.with_extension("key"))?, read(&path)?);
            kept.insert(region.to_owned(), pair);
        }
    }
    Ok(kept)
}

fn authority(state: &State) -> Result<Issuer<'static, KeyPair>> {
    let params = authority_params()?;
    let path = state.path("pki/ca.key");
    let key = match fs::read_to_string(&path) {
        Ok(pem) => KeyPair::from_pem(&pem).with_context(|| path.display().to_string())?,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let key = KeyPair::generate()?;
            let certificate = params.self_signed(&key)?;
            write_whole(
                &state.path("pki/ca.pem"),
                certificate.pem().as_bytes(),
                0o644,
                0,
            )?;
            write_whole(&path, key.serialize_pem().as_bytes(), 0o600, 0)?;
            key
        }
        Err(error) => return Err(error).with_context(|| path.display().to_string()),
    };
    Ok(Issuer::new(params, key))
}

fn authority_params() -> Result<CertificateParams> {
    let mut params = named(AUTHORITY_NAME, &[], AUTHORITY_LIFE)?;
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    Ok(params)
}

/// A certificate and its key, both PEM.
struct Leaf {
    certificate: String,
    key: String,
    expires_s: i64,
}

impl Leaf {
    fn install(&self, state: &State, file: &str, owner: u32) -> Result<()> {
        let key_path = state.path(&format!("pki/{file}.key"));
        write_whole(&key_path, self.key.as_bytes(), 0o600, owner)?;
        let certificate_path = state.path(&format!("pki/{file}.pem"));
        write_whole(&certificate_path, self.certificate.as_bytes(), 0o644, 0)
    }
}

fn leaf(
    authority: &Issuer<'_, KeyPair>,
    name: &str,
    alternatives: &[String],
    usage: ExtendedKeyUsagePurpose,
) -> Result<Leaf> {
    let mut names = vec![name.to_owned()];
    names.extend(alternatives.iter().cloned());
    let mut params = named(name, &names, LEAF_LIFE)?;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![usage];
    params.use_authority_key_identifier_extension = true;
    let expires_s = params.not_after.unix_timestamp();
    let key = KeyPair::generate()?;
    Ok(Leaf {
        certificate: params.signed_by(&key, authority)?.pem(),
        key: key.serialize_pem(),
        expires_s,
    })
}

/// When a certificate that is made now begins to be valid.
pub fn begins_now() -> OffsetDateTime {
    OffsetDateTime::now_utc() - BACKDATE
}

fn named(name: &str, alternatives: &[String], life: Duration) -> Result<CertificateParams> {
    let mut params = CertificateParams::new(alternatives)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.not_before = begins_now();
    params.not_after = params.not_before + life;
    Ok(params)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;
    use std::process::Command;

    #[test]
    fn leaves_come_from_one_authority_and_keys_are_private() {
        let folder = tempfile::tempdir().unwrap();
        fs::create_dir(folder.path().join("pki")).unwrap();
        let state = State::at(folder.path()).unwrap();
        let uids = Uids { base: 70_000 };
        let listen = [[192, 0, 2, 1], [192, 0, 2, 2]].map(IpAddr::from);
        renew(&state, uids, listen).unwrap();
        let first = fs::read(state.path("pki/ca.pem")).unwrap();
        let old_leaf = fs::read(state.path("pki/node.pem")).unwrap();
        renew(&state, uids, listen).unwrap();
        assert_eq!(fs::read(state.path("pki/ca.pem")).unwrap(), first);
        assert_ne!(fs::read(state.path("pki/node.pem")).unwrap(), old_leaf);
        let regions = ["us-east-1".to_owned(), "home".to_owned()];
        fs::create_dir(state.path("pki/identity")).unwrap();
        identities(&state, &regions[..1]).unwrap();
        let kept = fs::read(state.path("pki/identity/us-east-1.pem")).unwrap();
        identities(&state, &regions).unwrap();
        let given = kept_identities(&state).unwrap();
        assert_eq!(given.keys().collect::<Vec<_>>(), ["home", "us-east-1"]);
        assert_eq!(given["us-east-1"].1.as_bytes(), kept);
        assert!(identity(&state, "../home", "", "").is_err());
        assert_eq!(
            fs::read(state.path("pki/identity/us-east-1.pem")).unwrap(),
            kept
        );
        for (file, owner) in [
            ("identity/home", 0),
            ("ca", 0),
            ("control", 70_001),
            ("node", 0),
        ] {
            let key = fs::metadata(state.path(&format!("pki/{file}.key"))).unwrap();
            assert_eq!((key.uid(), key.mode() & 0o777), (owner, 0o600), "{file}");
        }
        let other = admit(&state, "rack-2").unwrap();
        assert_eq!(other.authority.as_bytes(), first);
        fs::write(state.path("pki/rack-2.pem"), other.certificate).unwrap();
        for (leaf, purpose) in [
            ("control", "sslserver"),
            ("node", "sslclient"),
            ("rack-2", "sslclient"),
        ] {
            let verified = Command::new("openssl")
                .args(["verify", "-purpose", purpose, "-CAfile"])
                .arg(state.path("pki/ca.pem"))
                .arg(state.path(&format!("pki/{leaf}.pem")))
                .status()
                .expect("openssl, a Debian package, is the judge of our certificates");
            assert!(verified.success(), "{leaf}");
        }
    }
}
