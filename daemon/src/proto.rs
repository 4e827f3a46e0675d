//! The gRPC API, generated from `api/proto/flotilla/v1`.

#![allow(clippy::all, missing_docs)]

tonic::include_proto!("flotilla.v1");

/// The compiled descriptors, for server reflection.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));
