//! Accounts and access keys: made, sealed at rest, opened to verify a signature.

use crate::core::{Core, Tx};
use crate::rows::{AccessKey, Account, Limits, Scope};
use crate::wire::ApiError;
use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use serde::Serialize;
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

/// Seals secrets with a key in a file of its own, so that the store alone (a
/// backup of it, say) gives nobody's secret away.
pub struct Sealer(LessSafeKey);

impl Sealer {
    /// Reads the key, or makes it.
    ///
    /// # Errors
    /// Where the file cannot be read or made, or is not a key.
    pub fn open(path: &Path) -> Result<Self> {
        if !path.exists() {
            write_private(path, &random::<32>()?)?;
        }
        let bytes =
            std::fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
        ensure!(
            bytes.len() == 32,
            "{} holds {} bytes, not a key",
            path.display(),
            bytes.len()
        );
        let key = UnboundKey::new(&CHACHA20_POLY1305, &bytes)
            .map_err(|_| anyhow::anyhow!("{} is not a key", path.display()))?;
        Ok(Self(LessSafeKey::new(key)))
    }

    fn seal(&self, id: &str, secret: &str) -> Result<String> {
        let nonce = random::<NONCE_LEN>()?;
        let mut sealed = secret.as_bytes().to_vec();
        self.0
            .seal_in_place_append_tag(
                Nonce::assume_unique_for_key(nonce),
                Aad::from(id.as_bytes()),
                &mut sealed,
            )
            .map_err(|_| anyhow::anyhow!("cannot seal the secret of {id}"))?;
        Ok(BASE64.encode([&nonce[..], &sealed].concat()))
    }

    /// The secret of an access key; nothing if it was sealed with another key.
    pub fn secret(&self, key: &AccessKey) -> Option<String> {
        let bytes = BASE64.decode(&key.sealed).ok()?;
        let (nonce, sealed) = bytes.split_at_checked(NONCE_LEN)?;
        let mut sealed = sealed.to_vec();
        let nonce = Nonce::try_assume_unique_for_key(nonce).ok()?;
        let opened = self
            .0
            .open_in_place(nonce, Aad::from(key.id.as_bytes()), &mut sealed)
            .ok()?;
        String::from_utf8(opened.to_vec()).ok()
    }
}

fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).context("the kernel gives no random numbers")?;
    Ok(bytes)
}

/// Text of `length` letters of an alphabet of 2ⁿ.
fn random_text(alphabet: &[u8], length: usize) -> Result<String> {
    let bytes = random::<64>()?;
    Ok(bytes[..length]
        .iter()
        .map(|b| char::from(alphabet[usize::from(*b) % alphabet.len()]))
        .collect())
}

/// Credentials of the first account.
#[derive(Debug, Serialize)]
pub struct Bootstrap {
    /// Twelve digits.
    pub account_id: String,
    /// `AKIA…`.
    pub access_key_id: String,
    /// Forty letters.
    pub secret_access_key: String,
    /// The first configured region.
    pub default_region: String,
}

/// A new account, not yet written.
///
/// # Errors
/// Where the kernel gives no random numbers.
pub fn new_account(limits: Limits) -> Result<Account> {
    let number = u64::from_le_bytes(random::<8>()?) % 900_000_000_000 + 100_000_000_000;
    Ok(Account {
        id: format!("{number:012}"),
        limits,
    })
}

/// A new access key of an account, not yet written, and its secret.
///
/// # Errors
/// Where the kernel gives no random numbers.
pub fn new_key(sealer: &Sealer, account: &str) -> Result<(AccessKey, String)> {
    let made = random_text(b"ABCDEFGHIJKLMNOPQRSTUVWXYZ234567", 16)?;
    let id = format!("AKIA{made}");
    let letters = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let secret = random_text(letters, 40)?;
    let key = AccessKey {
        sealed: sealer.seal(&id, &secret)?,
        account: account.to_owned(),
        id,
    };
    Ok((key, secret))
}

/// The first account's credentials, made on the first start.
///
/// # Errors
/// Where the store fails, or the sealed secret cannot be opened.
pub async fn bootstrap(core: &Core, sealer: &Sealer) -> Result<Bootstrap> {
    let scope = Scope::global();
    let account = new_account(Limits::Private)?;
    let (new, _) = new_key(sealer, &account.id)?;
    let key = core
        .write(&scope, |tx: &mut Tx<'_>| -> Result<AccessKey, ApiError> {
            if let Some(key) = tx.view.all::<AccessKey>(&scope).next() {
                return Ok(key.as_ref().clone());
            }
            tx.put(account.clone())?;
            tx.put(new.clone())?;
            Ok(new.clone())
        })
        .await?;
    let secret = sealer
        .secret(&key)
        .with_context(|| format!("the secret of {} was sealed with another key", key.id))?;
    Ok(Bootstrap {
        account_id: key.account,
        access_key_id: key.id,
        secret_access_key: secret,
        default_region: core.config.regions.first().cloned().unwrap_or_default(),
    })
}

/// Writes a file that only this user may read, whole or not at all.
///
/// # Errors
/// Where it cannot be written.
pub fn write_private(path: &Path, bytes: &[u8]) -> Result<()> {
    let dir = path.parent().unwrap_or(Path::new("."));
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let temporary = dir.join(format!(".{name}.{}", std::process::id()));
    let write = || -> std::io::Result<()> {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        std::fs::rename(&temporary, path)
    };
    write().with_context(|| format!("cannot write {}", path.display()))
}
