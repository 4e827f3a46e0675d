//! What became of a Change, as apply decides it on every replica alike.

use flotilla_api::Conflict;
use serde::{Deserialize, Serialize};

/// The revisions that a Change took: `first_revision..=revision`, one for each write in order.
///
/// A Change without writes takes none; both fields then hold the revision it was checked at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    pub first_revision: u64,
    pub revision: u64,
}

/// The fate of one Change of a log entry.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Outcome {
    Applied(Applied),
    Conflict(Conflict),
    /// The Change was made for an earlier term than the one its entry was written in.
    StaleTerm {
        wanted: u64,
        current: u64,
    },
    Invalid(String),
}
