//! The audit log: every call, who made it, from where, what it asked, what came of it.
//!
//! ```text
//!   {"sequence":7,"at":…,"previous":"HASH OF 6",…,"hash":"HASH OF ALL BEFORE IT"}
//! ```
//! Append-only text, one JSON object a line, each with the hash of the one before:
//! a line that is changed, dropped or inserted breaks the chain from there on, over
//! the borders of files too. A call is answered once its line is written, so a
//! SIGKILL loses none; lines reach the disk within a second. While lines cannot be
//! written, no call is served.

mod chain;

pub use chain::{Summary, verify};

use crate::fronts::sigv4::sha256_hex;
use crate::wire::Value;
use anyhow::{Context, Result};
use serde_json::json;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// The file that is written to.
pub const FILE: &str = "audit.log";
/// A file that is larger is set aside.
const MAX_FILE_BYTES: u64 = 64 << 20;
/// Files that were set aside and are kept.
const MAX_FILES: u64 = 16;
/// Longest text of the parameters; longer ones are told by their hash.
const MAX_PARAMETERS_BYTES: usize = 4_096;
/// How often lines are made to reach the disk.
const SYNC_PERIOD: Duration = Duration::from_secs(1);
/// Parameters whose values are secret or large: told by their length.
const HIDDEN: &[&str] = &["UserData", "PublicKeyMaterial"];

/// What is known of a call, filled in as it is learnt.
#[derive(Debug, Default, Clone)]
pub struct Trail {
    /// The id that its answer carries.
    pub request_id: String,
    /// `query`, `grpc` or `tunnel`.
    pub front: &'static str,
    /// The caller's address.
    pub source: String,
    /// Account; nothing before the signature is verified.
    pub account: String,
    /// Access key of a verified signature.
    pub access_key: String,
    /// Region of the credential scope.
    pub region: String,
    /// The action.
    pub action: String,
    /// Its parameters.
    pub parameters: Value,
}

/// The log.
pub struct Audit {
    folder: PathBuf,
    tail: Mutex<Tail>,
}

struct Tail {
    file: File,
    bytes: u64,
    next: u64,
    hash: String,
    /// Lines that could not be written yet.
    backlog: Vec<u8>,
}

impl Audit {
    /// Opens the log in a folder, or begins it. A last line that a crash cut short
    /// is cut off: its call was never answered.
    ///
    /// # Errors
    /// Where the file cannot be read or made, or its last line is no entry.
    pub fn open(folder: &Path) -> Result<Self> {
        let path = folder.join(FILE);
        let mut options = File::options();
        options.read(true).create(true).append(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        let file = options
            .open(&path)
            .with_context(|| format!("cannot open {}", path.display()))?;
        let end = chain::end(&file).with_context(|| format!("{}", path.display()))?;
        file.set_len(end.bytes)?;
        let (next, hash) = match end.last {
            Some(last) => last,
            None => chain::last_set_aside(folder)?.unwrap_or((1, String::new())),
        };
        Ok(Self {
            folder: folder.to_owned(),
            tail: Mutex::new(Tail {
                file,
                bytes: end.bytes,
                next,
                hash,
                backlog: Vec::new(),
            }),
        })
    }

    fn tail(&self) -> MutexGuard<'_, Tail> {
        self.tail.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether calls may be served: everything so far is written.
    pub fn ready(&self) -> bool {
        let mut tail = self.tail();
        tail.backlog.is_empty() || self.write(&mut tail).is_ok()
    }

    /// Writes a call down; `code` is EC2's error code, or nothing for success.
    ///
    /// # Errors
    /// Where the line cannot be written; it is kept for the next try.
    pub fn record(&self, trail: &Trail, code: Option<&str>, at_us: i128) -> std::io::Result<()> {
        let parameters = shown(&trail.parameters);
        let mut tail = self.tail();
        let entry = json!({
            "sequence": tail.next,
            "at": instant(at_us),
            "previous": tail.hash,
            "request_id": trail.request_id,
            "front": trail.front,
            "source": trail.source,
            "account": trail.account,
            "access_key": trail.access_key,
            "region": trail.region,
            "action": trail.action,
            "parameters": parameters,
            "result": code.unwrap_or("ok"),
        });
        let (line, hash) = chain::seal(&entry.to_string());
        tail.next += 1;
        tail.hash = hash;
        tail.backlog.extend(line.as_bytes());
        self.write(&mut tail)
    }

    fn write(&self, tail: &mut Tail) -> std::io::Result<()> {
        if tail.bytes >= MAX_FILE_BYTES {
            self.set_aside(tail)?;
        }
        let backlog = std::mem::take(&mut tail.backlog);
        let result = tail.file.write_all(&backlog);
        if let Err(error) = &result {
            tracing::error!(%error, "the audit log cannot be written");
            // What was written of it is cut off again, so that it is written once.
            let _ = tail.file.set_len(tail.bytes);
            tail.backlog = backlog;
        } else {
            tail.bytes += u64::try_from(backlog.len()).unwrap_or(0);
        }
        result
    }

    /// Begins a new file; the chain goes on.
    fn set_aside(&self, tail: &mut Tail) -> std::io::Result<()> {
        tail.file.sync_data()?;
        let path = self.folder.join(FILE);
        let numbers = chain::numbers(&self.folder)?;
        let number = numbers.last().map_or(1, |last| last + 1);
        std::fs::rename(&path, self.folder.join(format!("{FILE}.{number}")))?;
        for old in numbers.iter().filter(|old| **old + MAX_FILES <= number) {
            tracing::warn!(file = old, "the oldest audit file is removed");
            let _ = std::fs::remove_file(self.folder.join(format!("{FILE}.{old}")));
        }
        let mut options = File::options();
        options.read(true).create_new(true).append(true);
        std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
        tail.file = options.open(&path)?;
        tail.bytes = 0;
        Ok(())
    }

    /// Has lines reach the disk, each second, until the process ends.
    pub async fn keep_synced(&self) {
        let mut synced = 0;
        loop {
            tokio::time::sleep(SYNC_PERIOD).await;
            let (file, next) = {
                let tail = self.tail();
                (tail.file.try_clone(), tail.next)
            };
            if next == synced {
                continue;
            }
            synced = next;
            let sync = tokio::task::spawn_blocking(move || file.and_then(|file| file.sync_data()));
            if let Ok(Err(error)) = sync.await {
                tracing::error!(%error, "the audit log does not reach the disk");
            }
        }
    }
}

fn instant(at_us: i128) -> Value {
    let format = time::macros::format_description!(
        "[year]-[month]-[day]T[hour]:[minute]:[second].[subsecond digits:6]Z"
    );
    time::OffsetDateTime::from_unix_timestamp_nanos(at_us * 1_000)
        .ok()
        .and_then(|at| at.format(&format).ok())
        .map_or(Value::Null, Value::String)
}

/// Parameters without what is secret, and not too long.
fn shown(parameters: &Value) -> Value {
    let mut parameters = parameters.clone();
    hide(&mut parameters);
    let text = parameters.to_string();
    if text.len() > MAX_PARAMETERS_BYTES {
        return json!({"bytes": text.len(), "sha256": sha256_hex(text.as_bytes())});
    }
    parameters
}

fn hide(value: &mut Value) {
    match value {
        Value::Object(object) => {
            for (name, value) in object.iter_mut() {
                if HIDDEN.contains(&name.as_str()) {
                    *value = format!("[{} bytes]", value.to_string().len()).into();
                } else {
                    hide(value);
                }
            }
        }
        Value::Array(elements) => elements.iter_mut().for_each(hide),
        _ => {}
    }
}

#[cfg(test)]
mod tests;
