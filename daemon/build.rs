//! Compiles the gRPC API from `api/proto`, without needing `protoc`.

use std::path::PathBuf;
use std::{env, error::Error, fs};

use prost::Message;

fn main() -> Result<(), Box<dyn Error>> {
    let root = PathBuf::from(env::var("CARGO_MANIFEST_DIR")?).join("../api/proto");
    println!("cargo:rerun-if-changed={}", root.display());
    let files = ["jobs", "objects", "pods", "cluster", "secrets"].map(|name| format!("flotilla/v1/{name}.proto"));
    let descriptors = protox::compile(files, [&root])?;
    let out = PathBuf::from(env::var("OUT_DIR")?);
    fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    // Watchers of one event share its bytes, and whoever reads a list does not copy each of its items.
    tonic_prost_build::configure()
        .bytes(".flotilla.v1.WatchEvent.json")
        .bytes(".flotilla.v1.ListObjectsResponse.items")
        .codec_path("crate::codec::Codec")
        .compile_fds(descriptors)?;
    Ok(())
}
