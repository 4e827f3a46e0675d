//! One node's images and containers: the registry client and its store, the shim, the engines, the pod bridge.
//!
//! It takes plain specifications; what a Kubernetes object means is decided elsewhere.

pub mod images;
