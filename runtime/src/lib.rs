//! One node's images and containers: the registry client and its store, the shim, the engines, the pod bridge.
//!
//! It takes plain specifications; what a Kubernetes object means is decided elsewhere.

pub mod cgroup;
pub mod engine;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
pub mod images;
pub mod network;
pub mod pods;
pub mod shim;
pub mod state;

pub use pods::Pods;
pub use shim::shim_main;
