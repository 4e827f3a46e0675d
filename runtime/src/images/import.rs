//! Images from archives: OCI layouts, and what `docker save` writes, old and new, gzipped or not.
//!
//! An archive is read once, front to back, so that it may be a stream. Its files go into the blob store
//! under the digests of what they hold; what it says about them is looked at afterwards.
//!
//! Defined by the OCI image specification, "Image Layout".
//!
//! Invariant: a name given to content in the archive is checked against the content.
//! Invariant: memory does not depend on the size of the archive.

use std::collections::HashMap;
use std::io::Read;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::catalog::{Contents, Image};
use super::digest::Digest;
use super::error::{ImageError, one_line};
use super::layers::Layer;
use super::locks::Pin;
use super::manifest::{
    CONFIG_BYTES_MAX, ConfigFile, Descriptor, Document, Index, MANIFEST_BYTES_MAX, Manifest, OCI_CONFIG, OCI_LAYER,
    OCI_MANIFEST, Platform, parse,
};
use super::reference::Reference;
use super::tarball::{Entry, TarError, TarReader};
use super::tarheader::Kind;
use super::{Store, blocking, pull, unpack};

pub const ANNOTATION_REF_NAME: &str = "org.opencontainers.image.ref.name";
pub const ANNOTATION_IMAGE_NAME: &str = "io.containerd.image.name";
const ENTRIES_MAX: usize = 10_000;
const IMAGES_MAX: usize = 256;
const INDEX_DEPTH_MAX: usize = 2;
const READ_BYTES: usize = 256 << 10;

/// One image in Docker's `manifest.json`.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct DockerImage {
    pub config: String,
    pub repo_tags: Option<Vec<String>>,
    pub layers: Vec<String>,
}

/// What an archive held.
struct Archive {
    /// Where the contents of each file went.
    files: HashMap<String, Digest>,
    /// Links between files, as old versions of `docker save` make them.
    links: HashMap<String, String>,
    index: Option<Vec<u8>>,
    docker: Option<Vec<u8>>,
    pin: Pin,
}

/// An image found in an archive, all of whose blobs are in the store.
struct Found {
    names: Vec<Reference>,
    target: Digest,
    manifest_digest: Digest,
    manifest: Manifest,
    config: ConfigFile,
    layers: Vec<Layer>,
}

/// Reads an archive, unpacks the images in it, and gives them their names: `name` if there is one, else
/// those in the archive.
pub async fn import(
    store: &Arc<Store>,
    input: impl Read + Send + 'static,
    name: Option<Reference>,
) -> Result<Vec<Image>, ImageError> {
    let shared = store.clone();
    let (found, pin) = blocking(move || {
        let mut archive = read(&shared, input)?;
        let found = examine(&shared, &mut archive, name)?;
        Ok((found, archive.pin))
    })
    .await?;
    let mut images = Vec::new();
    for image in found {
        for index in 0..image.layers.len() {
            pull::unpack_layer(store, &image.layers, index).await?;
        }
        let shared = store.clone();
        images.push(blocking(move || record(&shared, image)).await?);
    }
    drop(pin);
    Ok(images)
}

fn record(store: &Store, found: Found) -> Result<Image, ImageError> {
    store.layers.settle(&found.layers)?;
    let layer_bytes: u64 = found.layers.iter().map(|layer| store.blobs.size_bytes(&layer.blob)).sum();
    let documents = [found.manifest_digest, found.manifest.config.digest];
    let document_bytes: u64 = documents.iter().map(|digest| store.blobs.size_bytes(digest)).sum();
    let contents = Contents {
        manifest: found.manifest_digest,
        config: found.manifest.config.digest,
        size_bytes: layer_bytes + document_bytes,
        layers: found.layers,
        used_ms: jiff::Timestamp::now().as_millisecond(),
    };
    let mut image = Err(ImageError::Archive("it does not name its image".into()));
    for name in &found.names {
        image = store.catalog.put(name, found.target, contents.clone(), &found.config);
    }
    image
}

fn read(store: &Store, input: impl Read) -> Result<Archive, ImageError> {
    let input = unpack::decompress(input).map_err(|cause| ImageError::io("read the archive", cause))?;
    let mut tar = TarReader::new(input);
    let mut archive =
        Archive { files: HashMap::new(), links: HashMap::new(), index: None, docker: None, pin: store.pins.pin([]) };
    let mut rest_bytes = store.config.limits.unpacked_bytes;
    let mut entries = 0;
    while let Some(entry) = tar.next_entry().map_err(broken)? {
        entries += 1;
        if entries > ENTRIES_MAX {
            return Err(ImageError::Archive(format!("it has more than {ENTRIES_MAX} entries")));
        }
        let name = file_name(&entry.path);
        match entry.kind {
            Kind::File if name == "index.json" => archive.index = Some(document(&entry, &mut tar)?),
            Kind::File if name == "manifest.json" => archive.docker = Some(document(&entry, &mut tar)?),
            Kind::File => {
                let too_large =
                    ImageError::TooLarge { what: "archive".into(), limit_bytes: store.config.limits.unpacked_bytes };
                rest_bytes = rest_bytes.checked_sub(entry.size_bytes).ok_or(too_large)?;
                archive.add_blob(store, name, &entry, &mut tar)?;
            }
            Kind::SymbolicLink => drop(archive.links.insert(name.clone(), beside(&name, &file_name(&entry.link)))),
            Kind::HardLink => drop(archive.links.insert(name, file_name(&entry.link))),
            _ => {}
        }
    }
    Ok(archive)
}

fn broken(error: TarError) -> ImageError {
    ImageError::Archive(one_line(&error.to_string()))
}

fn file_name(path: &[u8]) -> String {
    String::from_utf8_lossy(path.strip_prefix(b"./").unwrap_or(path)).into_owned()
}

/// The name that a relative link `target` in the file `name` means.
fn beside(name: &str, target: &str) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

fn document(entry: &Entry, data: &mut impl Read) -> Result<Vec<u8>, ImageError> {
    if entry.size_bytes > MANIFEST_BYTES_MAX {
        return Err(ImageError::TooLarge { what: file_name(&entry.path), limit_bytes: MANIFEST_BYTES_MAX });
    }
    let mut bytes = Vec::new();
    data.read_to_end(&mut bytes).map_err(|cause| ImageError::io("read the archive", cause))?;
    Ok(bytes)
}

impl Archive {
    fn add_blob(&mut self, store: &Store, name: String, entry: &Entry, data: &mut impl Read) -> Result<(), ImageError> {
        let limit_bytes = store.config.limits.blob_bytes;
        if entry.size_bytes > limit_bytes {
            return Err(ImageError::TooLarge { what: one_line(&name), limit_bytes });
        }
        let mut ingest = store.blobs.ingest_unknown()?;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            match data.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => ingest.write(&buffer[..count])?,
                Err(cause) => {
                    ingest.abandon()?;
                    return Err(ImageError::Archive(one_line(&cause.to_string())));
                }
            }
        }
        let actual = ingest.digest();
        if let Some(Ok(expected)) = name.strip_prefix("blobs/sha256/").map(|hex| format!("sha256:{hex}").parse())
            && expected != actual
        {
            ingest.abandon()?;
            return Err(ImageError::DigestMismatch { what: format!("archive's {name}"), expected, actual });
        }
        self.pin.extend([actual]);
        ingest.commit()?;
        self.files.insert(name, actual);
        Ok(())
    }

    fn file(&self, name: &str) -> Result<Digest, ImageError> {
        let name = file_name(name.as_bytes());
        let target = self.links.get(&name).unwrap_or(&name);
        let missing = || ImageError::Archive(format!("{} is missing", one_line(&name)));
        self.files.get(target).copied().ok_or_else(missing)
    }
}

fn examine(store: &Store, archive: &mut Archive, name: Option<Reference>) -> Result<Vec<Found>, ImageError> {
    let docker: Vec<DockerImage> = match &archive.docker {
        Some(bytes) => parse("archive's manifest.json", bytes)?,
        None => Vec::new(),
    };
    let mut found = match &archive.index {
        Some(bytes) => {
            let index: Index = parse("archive's index.json", bytes)?;
            from_index(store, &index, &docker, archive, 0)?
        }
        None => docker.iter().map(|image| from_docker(store, archive, image)).collect::<Result<_, _>>()?,
    };
    if found.is_empty() || found.len() > IMAGES_MAX {
        return Err(ImageError::Archive(format!("it has {} images; 1 to {IMAGES_MAX} are expected", found.len())));
    }
    if let Some(name) = name {
        match found.as_mut_slice() {
            [only] => only.names = vec![name],
            many => {
                let count = many.len();
                return Err(ImageError::Archive(format!("it has {count} images, so that none can be named {name}")));
            }
        }
    }
    match found.iter().find(|image| image.names.is_empty()) {
        Some(_) => Err(ImageError::Archive("it does not name its image; give it a name".into())),
        None => Ok(found),
    }
}

/// The images of an OCI index that run here.
fn from_index(
    store: &Store,
    index: &Index,
    docker: &[DockerImage],
    archive: &Archive,
    depth: usize,
) -> Result<Vec<Found>, ImageError> {
    let mut found = Vec::new();
    let mut refusal = None;
    for descriptor in &index.manifests {
        match from_descriptor(store, descriptor, docker, archive, depth) {
            Ok(images) => found.extend(images),
            Err(error @ ImageError::NoPlatform { .. }) => refusal = Some(error),
            Err(error) => return Err(error),
        }
    }
    match (found.is_empty(), refusal) {
        (true, Some(error)) => Err(error),
        _ => Ok(found),
    }
}

fn from_descriptor(
    store: &Store,
    descriptor: &Descriptor,
    docker: &[DockerImage],
    archive: &Archive,
    depth: usize,
) -> Result<Vec<Found>, ImageError> {
    let (bytes, target) = (read_blob(store, &descriptor.digest, MANIFEST_BYTES_MAX)?, descriptor.digest);
    let (manifest, manifest_digest) = match Document::parse(&bytes, Some(&descriptor.media_type))? {
        Document::Manifest(manifest) => (manifest, target),
        Document::Index(_) if depth >= INDEX_DEPTH_MAX => {
            return Err(ImageError::Archive("its indexes are nested too deep".into()));
        }
        Document::Index(index) => {
            let chosen = index.choose(&Platform::here())?;
            let bytes = read_blob(store, &chosen.digest, MANIFEST_BYTES_MAX)?;
            (Manifest::parse(&bytes)?, chosen.digest)
        }
    };
    let names = names(descriptor, &manifest, docker, archive)?;
    Ok(vec![complete(store, names, target, manifest_digest, manifest)?])
}

/// The full names of an image: from its annotations, or from the `manifest.json` beside it. A bare tag
/// is no name.
fn names(
    descriptor: &Descriptor,
    manifest: &Manifest,
    docker: &[DockerImage],
    archive: &Archive,
) -> Result<Vec<Reference>, ImageError> {
    let annotated = [ANNOTATION_IMAGE_NAME, ANNOTATION_REF_NAME].iter().filter_map(|key| descriptor.annotation(key));
    let mut names: Vec<String> =
        annotated.filter(|name| name.contains(['/', ':'])).map(str::to_owned).take(1).collect();
    if names.is_empty() {
        let same = docker.iter().filter(|image| archive.file(&image.config).ok() == Some(manifest.config.digest));
        names.extend(same.flat_map(|image| image.repo_tags.clone().unwrap_or_default()));
    }
    Ok(names.iter().map(|name| name.parse()).collect::<Result<_, _>>()?)
}

/// Docker's own format has no manifest, so that one is made.
fn from_docker(store: &Store, archive: &Archive, image: &DockerImage) -> Result<Found, ImageError> {
    let descriptor = |name: &str, media_type: &str| {
        let digest = archive.file(name)?;
        Ok(Descriptor::new(media_type, digest, store.blobs.size_bytes(&digest)))
    };
    let layers = image.layers.iter().map(|name| descriptor(name, OCI_LAYER)).collect::<Result<_, ImageError>>()?;
    let config = descriptor(&image.config, OCI_CONFIG)?;
    let manifest = Manifest { schema_version: 2, media_type: Some(OCI_MANIFEST.into()), config, layers };
    let bytes = serde_json::to_vec(&manifest).map_err(|error| ImageError::Archive(error.to_string()))?;
    let manifest = Manifest::parse(&bytes)?;
    let digest = store.blobs.put(&bytes)?;
    let tags = image.repo_tags.iter().flatten();
    let names = tags.map(|name| name.parse()).collect::<Result<_, _>>()?;
    complete(store, names, digest, digest, manifest)
}

fn complete(
    store: &Store,
    names: Vec<Reference>,
    target: Digest,
    manifest_digest: Digest,
    manifest: Manifest,
) -> Result<Found, ImageError> {
    let config = ConfigFile::parse(&read_blob(store, &manifest.config.digest, CONFIG_BYTES_MAX)?)?;
    config.check_platform(&Platform::here())?;
    let layers = manifest.layers(&config)?;
    match layers.iter().find(|layer| !store.blobs.has(&layer.blob)) {
        Some(layer) => Err(ImageError::Archive(format!("layer {} is missing", layer.blob))),
        None => Ok(Found { names, target, manifest_digest, manifest, config, layers }),
    }
}

fn read_blob(store: &Store, digest: &Digest, limit_bytes: u64) -> Result<Vec<u8>, ImageError> {
    match store.blobs.read(digest, limit_bytes) {
        Err(ImageError::NotFound(_)) => Err(ImageError::Archive(format!("blob {digest} is missing"))),
        read => read,
    }
}
