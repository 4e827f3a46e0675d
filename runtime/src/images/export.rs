//! Images as archives that other tools read: an OCI layout with Docker's `manifest.json` beside it.
//!
//! Defined by the OCI image specification, "Image Layout", and by `docker save`.
//!
//! Invariant: the same image under the same name gives the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Read, Write};

use super::blobs::Blobs;
use super::catalog::Image;
use super::digest::Digest;
use super::error::ImageError;
use super::import::{ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME, DockerImage};
use super::manifest::{Descriptor, Index, MANIFEST_BYTES_MAX, Manifest, OCI_INDEX, OCI_MANIFEST};

const BUFFER_BYTES: usize = 256 << 10;

/// Writes `image` under `name`. Blocks.
pub fn write(blobs: &Blobs, image: &Image, name: &str, output: impl Write) -> Result<(), ImageError> {
    let bytes = blobs.read(&image.digest, MANIFEST_BYTES_MAX)?;
    let manifest = Manifest::parse(&bytes)?;
    let mut archive = Archive(tar::Builder::new(BufWriter::with_capacity(BUFFER_BYTES, output)));
    archive.document("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let mut written = Vec::new();
    for digest in [image.digest, image.id].into_iter().chain(manifest.layers.iter().map(|layer| layer.digest)) {
        if !written.contains(&digest) {
            archive.blob(blobs, &digest)?;
            written.push(digest);
        }
    }
    archive.document("index.json", &json(&index(image, &manifest, name, bytes.len()))?)?;
    archive.document("manifest.json", &json(&[docker_image(image, &manifest, name)])?)?;
    let mut output = archive.0.into_inner().map_err(failed)?;
    output.flush().map_err(failed)
}

fn index(image: &Image, manifest: &Manifest, name: &str, size_bytes: usize) -> Index {
    let media_type = manifest.media_type.as_deref().unwrap_or(OCI_MANIFEST);
    let mut descriptor = Descriptor::new(media_type, image.digest, size_bytes as u64);
    let names = [ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME].map(|key| (key.to_owned(), name.to_owned()));
    descriptor.annotations = Some(names.into());
    Index { schema_version: 2, media_type: Some(OCI_INDEX.into()), manifests: vec![descriptor] }
}

fn docker_image(image: &Image, manifest: &Manifest, name: &str) -> DockerImage {
    let layers = manifest.layers.iter().map(|layer| path(&layer.digest)).collect();
    // A digest is no tag in Docker's eyes.
    let tags = if name.contains('@') { None } else { Some(vec![name.to_owned()]) };
    DockerImage { config: path(&image.id), repo_tags: tags, layers }
}

fn path(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn json(value: &impl serde::Serialize) -> Result<Vec<u8>, ImageError> {
    serde_json::to_vec(value).map_err(|error| ImageError::Archive(error.to_string()))
}

fn failed(cause: io::Error) -> ImageError {
    ImageError::io("write the archive", cause)
}

struct Archive<W: Write>(tar::Builder<W>);

impl<W: Write> Archive<W> {
    fn blob(&mut self, blobs: &Blobs, digest: &Digest) -> Result<(), ImageError> {
        let source = blobs.path(digest);
        let file = File::open(&source).map_err(ImageError::at("open", &source))?;
        let size_bytes = file.metadata().map_err(ImageError::at("read", &source))?.len();
        self.entry(&path(digest), size_bytes, file)
    }

    fn document(&mut self, path: &str, bytes: &[u8]) -> Result<(), ImageError> {
        self.entry(path, bytes.len() as u64, bytes)
    }

    fn entry(&mut self, path: &str, size_bytes: u64, contents: impl Read) -> Result<(), ImageError> {
        let mut header = tar::Header::new_ustar();
        header.set_mode(0o644);
        header.set_size(size_bytes);
        self.0.append_data(&mut header, path, contents).map_err(failed)
    }
}
