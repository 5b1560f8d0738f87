//! Errors as EC2 tells them: code, message, HTTP status.
//!
//! Codes: EC2 API reference, "Error codes for the Amazon EC2 API".

use std::borrow::Cow;

/// An error that a caller sees.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{code}: {message}")]
pub struct ApiError {
    /// EC2's code, such as `InvalidInstanceID.NotFound`.
    pub code: Cow<'static, str>,
    /// One sentence with the value that was wrong.
    pub message: String,
    /// HTTP status.
    pub status: u16,
}

impl ApiError {
    /// A client error (HTTP 400), unless EC2 gives the code another status.
    pub fn new(code: impl Into<Cow<'static, str>>, message: impl Into<String>) -> Self {
        let code = code.into();
        let status = match code.as_ref() {
            "AuthFailure" => 401,
            "UnauthorizedOperation"
            | "MissingAuthenticationToken"
            | "SignatureDoesNotMatch"
            | "InvalidClientTokenId"
            | "IncompleteSignature" => 403,
            "DryRunOperation" => 412,
            "RequestEntityTooLarge" => 413,
            "InternalError"
            | "InsufficientAddressCapacity"
            | "InsufficientCapacity"
            | "InsufficientInstanceCapacity" => 500,
            "RequestLimitExceeded" | "Unavailable" => 503,
            _ => 400,
        };
        Self {
            code,
            message: message.into(),
            status,
        }
    }

    /// `InvalidParameterValue` for a value and the parameter it came in.
    pub fn value(value: impl std::fmt::Display, parameter: &str, why: &str) -> Self {
        Self::new(
            "InvalidParameterValue",
            format!("Value ({value}) for parameter {parameter} is invalid. {why}"),
        )
    }

    /// `MissingParameter`.
    pub fn missing(parameter: &str) -> Self {
        Self::new(
            "MissingParameter",
            format!("The request must contain the parameter {parameter}"),
        )
    }

    /// `InvalidParameterCombination`.
    pub fn combination(message: impl Into<String>) -> Self {
        Self::new("InvalidParameterCombination", message)
    }

    /// A parameter that EC2 has and this cloud does not honour.
    pub fn unsupported_parameter(parameter: &str) -> Self {
        Self::new(
            "UnsupportedOperation",
            format!("The parameter {parameter} is not supported by this cloud."),
        )
    }

    /// A failure of ours; the cause goes to the log, not to the caller.
    pub fn internal(cause: &dyn std::fmt::Display) -> Self {
        tracing::error!(%cause, "internal error");
        Self::new("InternalError", "An internal error has occurred.")
    }
}
