//! Why an effect did not happen, and whether trying again can help.

use ocs_storaged_api::{ClientError, ErrorCode};
use std::fmt::Display;

/// An effect's failure.
#[derive(Debug, thiserror::Error)]
pub enum EffectError {
    /// The world may be kinder later: try again.
    #[error("{0}")]
    Transient(String),
    /// The desired object cannot be made true: try no further at this start.
    #[error("{0}")]
    Permanent(String),
}

impl EffectError {
    /// Names what was being done; keeps the kind.
    #[must_use]
    pub fn doing(self, what: impl Display) -> Self {
        match self {
            Self::Transient(why) => Self::Transient(format!("{what}: {why}")),
            Self::Permanent(why) => Self::Permanent(format!("{what}: {why}")),
        }
    }
}

impl From<ClientError> for EffectError {
    fn from(error: ClientError) -> Self {
        match &error {
            ClientError::Refused {
                code:
                    ErrorCode::Invalid | ErrorCode::NotFound | ErrorCode::Conflict | ErrorCode::KeyLost,
                ..
            } => Self::Permanent(error.to_string()),
            _ => Self::Transient(error.to_string()),
        }
    }
}

/// Adds what was being done to a system error, which counts as transient.
pub trait Doing<T> {
    /// `what: error`
    fn doing(self, what: impl Display) -> Result<T, EffectError>;
}

impl<T, E: std::error::Error> Doing<T> for Result<T, E> {
    fn doing(self, what: impl Display) -> Result<T, EffectError> {
        self.map_err(|e| EffectError::Transient(format!("{what}: {e}")))
    }
}
