//! The `flotilla` daemon and command line.
//!
//! Everything that decides, stores, talks or runs lives in the other crates; this one wires them together and
//! shows them to people.

pub mod cli;
pub mod client;
pub mod config;
pub mod convert;
pub mod dev;
pub mod proto;

/// What `flotilla --version` says, and what nodes tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
