//! Real daemons in a box, things to do to them, and ways to see what became of it.
//!
//! A test makes a [`Cluster`], submits work through the gRPC API, breaks something, and waits with [`eventually`] for
//! what must hold. Nothing here stands in for the product: the daemons are the `flotilla` binary, the registry is
//! Debian's, the images are made by other tools.
//!
//! Invariant: whatever a test makes goes away with it, even if it panics or is killed: a later run sweeps up.

pub mod api;
pub mod burden;
pub mod chaos;
pub mod cli;
pub mod cluster;
pub mod disk;
pub mod figure;
pub mod http;
pub mod image;
pub mod job;
pub mod kubectl;
pub mod object;
pub mod outsider;
pub mod process;
pub mod proxy;
pub mod registry;
pub mod rest;
pub mod scene;
pub mod wait;
pub mod writer;

pub use cluster::Cluster;
pub use figure::figure;
pub use kubectl::Kubectl;
pub use registry::Registry;
pub use scene::Scene;
pub use wait::{eventually, within};
