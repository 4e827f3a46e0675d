//! The `flotilla` daemon and command line.
//!
//! Everything that decides, stores, talks or runs lives in the other crates; this one wires them together and
//! shows them to people.

// Requests are futures within futures, deeper than the compiler looks by itself.
#![recursion_limit = "256"]

mod accounts;
mod addresses;
mod agent;
mod audit;
mod blobs;
pub mod cli;
pub mod client;
mod codec;
pub mod config;
pub mod convert;
mod data_dir;
mod definitions;
pub mod dev;
mod drain;
pub mod enrol;
mod footprint;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod gate;
mod grpc;
mod handshakes;
mod lead;
mod listen;
mod members;
mod metrics;
mod node;
mod peers;
mod pods;
pub mod proto;
mod requests;
mod rest;
pub mod revive;
mod roles;
mod secrets;
pub mod serve;
mod slice;
mod streams;
mod trust;
mod turnstile;
mod usage;

/// What `flotilla --version` says, and what nodes tell each other.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");
