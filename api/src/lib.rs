//! Every noun of Flotilla: keys, changes, kinds and the one list of them, names, errors.
//!
//! Objects are Kubernetes' own. Where code decides, they are `k8s-openapi` types; where bytes pass
//! through, they are JSON with a schema, so that kinds added at run time travel the same road.
//!
//! Invariant: nothing here does I/O, reads a clock or draws randomness that it was not handed.

pub mod account;
pub mod admit;
pub mod cel;
pub mod change;
pub mod columns;
pub mod custom;
mod defaults;
pub mod error;
pub mod field;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod job;
pub mod jsonpath;
pub mod key;
pub mod kinds;
pub mod managed;
pub mod names;
pub mod object;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod questions;
pub mod registry;
pub mod schedule;
pub mod schema;
pub mod sealing;
pub mod selector;
pub mod structural;
mod validate;
pub mod versions;
pub mod warn;
pub mod zones;

pub use change::{Change, Conflict, Expect, Precondition, Write};
pub use error::{Cause, Reason, Status};
pub use k8s_openapi;
pub use key::{GroupResource, Key};
pub use kinds::{Builtin, Kind, Scope};
pub use registry::Registry;
