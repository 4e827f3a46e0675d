//! The answer to a request that failed: Kubernetes' `Status`.
//!
//! Defined by the Kubernetes API reference, `meta/v1 Status`; the codes are upstream's for each reason.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Why a request failed, in Kubernetes' words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    BadRequest,
    Unauthorized,
    Forbidden,
    NotFound,
    AlreadyExists,
    Conflict,
    Gone,
    Expired,
    Invalid,
    RequestEntityTooLarge,
    UnsupportedMediaType,
    MethodNotAllowed,
    NotAcceptable,
    TooManyRequests,
    ServerTimeout,
    Timeout,
    ServiceUnavailable,
    InternalError,
}

impl Reason {
    /// The HTTP status code of the reason.
    pub fn code(self) -> u16 {
        match self {
            Reason::BadRequest => 400,
            Reason::Unauthorized => 401,
            Reason::Forbidden => 403,
            Reason::NotFound => 404,
            Reason::MethodNotAllowed => 405,
            Reason::NotAcceptable => 406,
            Reason::AlreadyExists | Reason::Conflict => 409,
            Reason::Gone | Reason::Expired => 410,
            Reason::RequestEntityTooLarge => 413,
            Reason::UnsupportedMediaType => 415,
            Reason::Invalid => 422,
            Reason::TooManyRequests => 429,
            Reason::InternalError | Reason::ServerTimeout => 500,
            Reason::ServiceUnavailable => 503,
            Reason::Timeout => 504,
        }
    }
}

/// One thing wrong with a request, at one place in it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    /// `FieldValueRequired`, `FieldValueInvalid`, `FieldValueNotSupported`, …
    pub reason: String,
    /// For people; does not repeat the field.
    pub message: String,
    /// `spec.containers[0].image`; empty if the cause is not in a field.
    pub field: String,
}

/// A failed request: what, where, and what to do.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Status {
    pub reason: Reason,
    pub message: String,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub causes: Vec<Cause>,
    /// With `TooManyRequests` and `ServerTimeout`: when to try again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_after_seconds: Option<u32>,
    /// With `Expired`: the token that goes on with the list at the newest revision.
    #[serde(default, rename = "continue", skip_serializing_if = "Option::is_none")]
    pub continue_token: Option<String>,
}

impl Status {
    pub fn new(reason: Reason, message: impl fmt::Display) -> Self {
        Self {
            reason,
            message: message.to_string(),
            causes: Vec::new(),
            retry_after_seconds: None,
            continue_token: None,
        }
    }

    pub fn bad_request(message: impl fmt::Display) -> Self {
        Self::new(Reason::BadRequest, message)
    }

    pub fn not_found(collection: impl fmt::Display, name: &str) -> Self {
        Self::new(Reason::NotFound, format!("{collection} \"{name}\" not found"))
    }

    pub fn already_exists(collection: impl fmt::Display, name: &str) -> Self {
        Self::new(Reason::AlreadyExists, format!("{collection} \"{name}\" already exists"))
    }

    pub fn internal(message: impl fmt::Display) -> Self {
        Self::new(Reason::InternalError, message)
    }

    /// Upstream's form: `Deployment.apps "web" is invalid: spec.replicas: Invalid value: …`.
    pub fn invalid(kind: impl fmt::Display, name: &str, causes: Vec<Cause>) -> Self {
        let details: Vec<String> = causes.iter().map(|c| format!("{}: {}", c.field, c.message)).collect();
        let details = match details.as_slice() {
            [one] => one.clone(),
            many => format!("[{}]", many.join(", ")),
        };
        Self { causes, ..Self::new(Reason::Invalid, format!("{kind} \"{name}\" is invalid: {details}")) }
    }
}
