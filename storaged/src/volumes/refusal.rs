//! Refusals of requests, and what is refused by its mere shape.

use ocs_storaged_api::{ErrorCode, VolumeName};
use std::io;

/// A refusal: nothing changed.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Refused {
    /// What kind.
    pub code: ErrorCode,
    /// One sentence.
    pub message: String,
}

/// A refusal.
pub fn refused(code: ErrorCode, message: impl Into<String>) -> Refused {
    Refused {
        code,
        message: message.into(),
    }
}

/// An error of the system, while doing `what`.
pub fn failed(what: &str, error: &io::Error) -> Refused {
    let full = matches!(
        error.kind(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge
    );
    let code = if full { ErrorCode::Full } else { ErrorCode::Io };
    refused(code, format!("{what}: {error}"))
}

/// No such volume.
pub fn not_found(name: &str) -> Refused {
    refused(ErrorCode::NotFound, format!("there is no volume {name}"))
}

/// Nobody holds the key.
pub fn key_lost(name: &str) -> Refused {
    refused(ErrorCode::KeyLost, format!("the key of {name} is lost"))
}

/// May it be a part of a path? `[a-z0-9-]`, 1 to 64 bytes.
#[must_use]
pub fn is_name(name: &str) -> bool {
    let good = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    (1..=64).contains(&name.len()) && name.bytes().all(good)
}

/// The name as a part of a path.
pub fn check_name(name: &VolumeName) -> Result<&str, Refused> {
    if is_name(&name.0) {
        Ok(&name.0)
    } else {
        let shown: String = name.0.chars().take(80).collect();
        Err(refused(
            ErrorCode::Invalid,
            format!("volume: {shown:?} is not 1 to 64 of [a-z0-9-]"),
        ))
    }
}
