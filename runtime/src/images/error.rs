//! What can go wrong with images, in words that say what to do about it.
//!
//! Invariant: the Display of each error is one line and complete in itself, since it ends up in a Pod's
//! status. Text from a registry is bounded and stripped of control characters before it gets here.

use std::io;
use std::path::Path;

use super::digest::Digest;
use super::reference::ReferenceError;
use super::unpack::UnpackError;

/// Why the local store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("{action}: {cause}")]
    Io { action: String, cause: io::Error },
    #[error("no space left on device while trying to {action}")]
    DiskFull { action: String },
    #[error("another process uses the image store {0}")]
    Locked(String),
    #[error("image {0} is not on this node")]
    NotFound(String),
    #[error("image {reference} is in use by container {container}")]
    InUse { reference: String, container: String },
    #[error("image {image} cannot be mounted: layer {layer} is missing; pull it again")]
    LayerMissing { image: String, layer: Digest },
    #[error("image has {layers} layers; at most {max} can be mounted")]
    TooManyLayers { layers: usize, max: usize },
    #[error("{0:?} is not a container id: at most 128 letters, digits, - _ and .")]
    BadContainerId(String),
    #[error("container {id} is already mounted at {path}")]
    MountedElsewhere { id: String, path: String },
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("archive: {0}")]
    Archive(String),
    #[error("{what} is not valid: {reason}")]
    Content { what: String, reason: String },
    #[error("{what}: expected {expected}, got {actual}")]
    DigestMismatch { what: String, expected: Digest, actual: Digest },
    #[error("{what} is larger than {limit_bytes} bytes")]
    TooLarge { what: String, limit_bytes: u64 },
    #[error("{what} has the unsupported media type {media_type:?}")]
    MediaType { what: String, media_type: String },
    #[error("image has no {wanted} variant; it has {available}")]
    NoPlatform { wanted: String, available: String },
    #[error("layer {diff_id} cannot be unpacked: {error}")]
    Unpack { diff_id: Digest, error: UnpackError },
    #[error("the operation was cancelled")]
    Cancelled,
}

impl ImageError {
    /// Wraps an I/O error of an `action`, such as "open /var/lib/flotilla/images".
    pub fn io(action: impl Into<String>, cause: io::Error) -> Self {
        match cause.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::DiskFull { action: action.into() },
            _ => Self::Io { action: action.into(), cause },
        }
    }

    /// For `map_err`: what was being done to which path.
    pub fn at(action: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::io(format!("{action} {}", path.display()), cause)
    }
}

/// Why an image was not pulled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum PullError {
    #[error(transparent)]
    Reference(#[from] ReferenceError),
    #[error("registry {host} has no {what}")]
    NotFound { host: String, what: String },
    #[error("registry {host} refuses access to {repository}: {detail}")]
    Unauthorized { host: String, repository: String, detail: String },
    #[error("registry {host} limits the rate of requests: {detail}")]
    RateLimited { host: String, detail: String },
    #[error("registry {host} cannot be reached: {detail}")]
    Unreachable { host: String, detail: String },
    #[error("registry {host} sent nothing for {seconds} s")]
    Stalled { host: String, seconds: u64 },
    #[error("registry {host} broke off after {done_bytes} of {total_bytes} bytes of {digest}: {detail}")]
    Interrupted { host: String, digest: Digest, done_bytes: u64, total_bytes: u64, detail: String },
    #[error("registry {host} answered {status}: {detail}")]
    Registry { host: String, status: u16, detail: String },
    #[error("registry {host} sent {what} with the wrong digest: expected {expected}, got {actual}")]
    DigestMismatch { host: String, what: String, expected: Digest, actual: Digest },
    #[error("registry {host} sent something invalid: {detail}")]
    Protocol { host: String, detail: String },
    #[error("{what} is larger than {limit_bytes} bytes")]
    TooLarge { what: String, limit_bytes: u64 },
    #[error("{what} has the unsupported media type {media_type:?}")]
    MediaType { what: String, media_type: String },
    #[error("image has no {wanted} variant; it has {available}")]
    NoPlatform { wanted: String, available: String },
    #[error("registry configuration of {host}: {detail}")]
    Configuration { host: String, detail: String },
    #[error("no space left on device while trying to {action}")]
    DiskFull { action: String },
    #[error("{0}")]
    Image(String),
    #[error("the pull was cancelled")]
    Cancelled,
}

impl PullError {
    /// One word in CamelCase, stable, for status fields and metrics.
    pub fn reason(&self) -> &'static str {
        match self {
            PullError::Reference(_) => "InvalidImageName",
            PullError::NotFound { .. } => "NotFound",
            PullError::Unauthorized { .. } => "Unauthorized",
            PullError::RateLimited { .. } => "RateLimited",
            PullError::Unreachable { .. } => "RegistryUnavailable",
            PullError::Stalled { .. } => "Stalled",
            PullError::Interrupted { .. } => "Interrupted",
            PullError::Registry { .. } => "RegistryError",
            PullError::DigestMismatch { .. } => "DigestMismatch",
            PullError::Protocol { .. } => "ProtocolError",
            PullError::TooLarge { .. } => "TooLarge",
            PullError::MediaType { .. } => "UnsupportedMediaType",
            PullError::NoPlatform { .. } => "NoMatchingPlatform",
            PullError::Configuration { .. } => "BadConfiguration",
            PullError::DiskFull { .. } => "DiskFull",
            PullError::Image(_) => "InvalidImage",
            PullError::Cancelled => "Cancelled",
        }
    }

    /// Whether it is the other side that failed, so that somebody else may do better.
    pub(super) fn is_others(&self) -> bool {
        matches!(
            self,
            PullError::Unreachable { .. }
                | PullError::Stalled { .. }
                | PullError::Interrupted { .. }
                | PullError::DigestMismatch { .. }
                | PullError::Protocol { .. }
        )
    }

    /// Whether the same request may well succeed a moment later.
    pub(super) fn is_passing(&self) -> bool {
        match self {
            PullError::Interrupted { .. } => true,
            PullError::Registry { status, .. } => *status >= 500,
            _ => false,
        }
    }
}

impl From<ImageError> for PullError {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::DiskFull { action } => Self::DiskFull { action },
            ImageError::Unpack { error: UnpackError::DiskFull { .. }, diff_id } => {
                Self::DiskFull { action: format!("unpack layer {diff_id}") }
            }
            ImageError::TooLarge { what, limit_bytes } => Self::TooLarge { what, limit_bytes },
            ImageError::MediaType { what, media_type } => Self::MediaType { what, media_type },
            ImageError::NoPlatform { wanted, available } => Self::NoPlatform { wanted, available },
            ImageError::Cancelled => Self::Cancelled,
            other => Self::Image(other.to_string()),
        }
    }
}

const FOREIGN_TEXT_CHARS_MAX: usize = 200;

/// Text from outside, on one line and of bounded length.
pub(super) fn one_line(text: &str) -> String {
    let words = text.split(|c: char| c.is_control() || c.is_whitespace()).filter(|word| !word.is_empty());
    let line = words.collect::<Vec<_>>().join(" ");
    match line.char_indices().nth(FOREIGN_TEXT_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &line[..end]),
        None => line,
    }
}

/// An error and its causes on one line.
pub(super) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    one_line(&text)
}
