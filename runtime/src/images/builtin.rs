//! The image that ships inside Flotilla, so that the first job needs no registry.
//!
//! It holds one program, `hello/main.rs` of this crate. It comes in by the same way as any other archive.
//!
//! Invariant: all nodes with the same build have the same image, to the digest.

use super::digest::Digest;
use super::error::ImageError;
use super::import::ANNOTATION_IMAGE_NAME;
use super::manifest::{Descriptor, Index, Manifest, OCI_CONFIG, OCI_LAYER, OCI_MANIFEST, Platform};

/// What the image is called.
pub const NAME: &str = "flotilla.dev/hello:latest";

/// The image's program, which also is what holds the process namespace of pods that share one.
pub(crate) const PROGRAM: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/hello"));

/// An archive, as other tools would write it, and the digest of the manifest in it.
pub struct Builtin {
    pub archive: Vec<u8>,
    pub manifest: Digest,
}

/// Composes the image.
pub fn compose() -> Result<Builtin, ImageError> {
    let layer = layer()?;
    let layer_digest = Digest::of(&layer);
    let platform = Platform::here();
    let config = json(&serde_json::json!({
        "architecture": platform.architecture,
        "os": platform.os,
        "config": {
            "Entrypoint": ["/hello"],
            "Cmd": ["serve"],
            "WorkingDir": "/",
            "ExposedPorts": {"80/tcp": {}},
        },
        "rootfs": {"type": "layers", "diff_ids": [layer_digest.to_string()]},
    }))?;
    let manifest = json(&Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: Descriptor::new(OCI_CONFIG, Digest::of(&config), config.len() as u64),
        layers: vec![Descriptor::new(OCI_LAYER, layer_digest, layer.len() as u64)],
    })?;
    let manifest_digest = Digest::of(&manifest);
    let mut descriptor = Descriptor::new(OCI_MANIFEST, manifest_digest, manifest.len() as u64);
    descriptor.annotations = Some([(ANNOTATION_IMAGE_NAME.to_owned(), NAME.to_owned())].into());
    let index = json(&Index { schema_version: 2, media_type: None, manifests: vec![descriptor] })?;
    let mut archive = tar::Builder::new(Vec::new());
    for blob in [&layer, &config, &manifest] {
        append(&mut archive, &format!("blobs/sha256/{}", Digest::of(blob).hex()), 0o644, blob)?;
    }
    append(&mut archive, "index.json", 0o644, &index)?;
    Ok(Builtin { archive: archive.into_inner().map_err(failed)?, manifest: manifest_digest })
}

fn layer() -> Result<Vec<u8>, ImageError> {
    let mut layer = tar::Builder::new(Vec::new());
    append(&mut layer, "hello", 0o755, PROGRAM)?;
    layer.into_inner().map_err(failed)
}

fn append(archive: &mut tar::Builder<Vec<u8>>, path: &str, mode: u32, contents: &[u8]) -> Result<(), ImageError> {
    let mut header = tar::Header::new_ustar();
    header.set_mode(mode);
    header.set_size(contents.len() as u64);
    archive.append_data(&mut header, path, contents).map_err(failed)
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|error| ImageError::Archive(error.to_string()))
}

fn failed(cause: std::io::Error) -> ImageError {
    ImageError::io("compose the built-in image", cause)
}
