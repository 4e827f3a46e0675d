//! Which names this node knows, and which image each means.
//!
//! Invariant: the file on disk is the catalog as it was after some whole change.
//! Invariant: every manifest and configuration that the catalog names was in the store when it was named.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::blobs::Blobs;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::layers::Layer;
use super::manifest::{CONFIG_BYTES_MAX, ConfigFile, ImageConfig, parse};
use super::reference::Reference;

const CATALOG_BYTES_MAX: u64 = 64 << 20;

/// An image on this node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The names that mean it, sorted: `docker.io/library/nginx:latest`.
    pub references: Vec<String>,
    /// Names by content, as Kubernetes' `imageID` wants them: `docker.io/library/nginx@sha256:…`.
    pub repo_digests: Vec<String>,
    /// Of the manifest for this machine.
    pub digest: Digest,
    /// Of the configuration: the image's id in Docker's sense.
    pub id: Digest,
    /// Compressed layers, configuration and manifest.
    pub size_bytes: u64,
    pub created: Option<jiff::Timestamp>,
    pub config: ImageConfig,
    /// Lowest first.
    pub layers: Vec<Layer>,
    /// When it was last pulled or mounted.
    pub used: jiff::Timestamp,
}

/// What an image is, apart from its names.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Contents {
    pub manifest: Digest,
    pub config: Digest,
    pub size_bytes: u64,
    pub layers: Vec<Layer>,
    /// Milliseconds since 1970.
    pub used_ms: i64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct State {
    /// From a full name to what it resolved to.
    names: BTreeMap<String, Name>,
    /// By manifest.
    contents: BTreeMap<Digest, Contents>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Name {
    /// What the name was resolved to first: an index, or the manifest itself.
    target: Digest,
    manifest: Digest,
}

#[derive(Debug)]
pub struct Catalog {
    path: PathBuf,
    scratch: PathBuf,
    inner: Mutex<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    state: State,
    configs: BTreeMap<Digest, (Option<jiff::Timestamp>, ImageConfig)>,
}

impl Catalog {
    /// Opens the catalog in `directory`. Images whose configuration is lost are forgotten.
    pub fn open(directory: &Path, scratch: &Path, blobs: &Blobs) -> Result<Self, ImageError> {
        let path = directory.join("catalog.json");
        let mut state = match disk::read_bounded(&path, CATALOG_BYTES_MAX)? {
            Some(bytes) => parse::<State>("image catalog", &bytes)?,
            None => State::default(),
        };
        let mut configs = BTreeMap::new();
        for contents in state.contents.values() {
            match read_config(blobs, &contents.config) {
                Ok(config) => drop(configs.insert(contents.config, config)),
                Err(error) => tracing::warn!(image = %contents.manifest, %error, "image is forgotten"),
            }
        }
        state.contents.retain(|_, contents| configs.contains_key(&contents.config));
        state.names.retain(|_, name| state.contents.contains_key(&name.manifest));
        Ok(Self { path, scratch: scratch.to_owned(), inner: Mutex::new(Inner { state, configs }) })
    }

    /// Makes `reference` mean `contents`, by way of `target`. Blocks.
    pub fn put(
        &self,
        reference: &Reference,
        target: Digest,
        contents: Contents,
        config: &ConfigFile,
    ) -> Result<Image, ImageError> {
        let mut inner = self.lock();
        let manifest = contents.manifest;
        let mut state = inner.state.clone();
        state.names.insert(reference.to_string(), Name { target, manifest });
        inner.configs.insert(contents.config, (created(config), config.image_config()));
        state.contents.insert(manifest, contents);
        self.store(&mut inner, state)?;
        inner.image(&manifest).ok_or_else(|| ImageError::NotFound(reference.to_string()))
    }

    /// The image that `name` means: a reference, or the digest of a configuration or manifest.
    pub fn find(&self, name: &str) -> Option<Image> {
        let inner = self.lock();
        let manifest = inner.manifest_of(name)?;
        inner.image(&manifest)
    }

    pub fn list(&self) -> Vec<Image> {
        let inner = self.lock();
        inner.state.contents.keys().filter_map(|manifest| inner.image(manifest)).collect()
    }

    /// Notes that an image is being used; written with the next change.
    pub fn touch(&self, manifest: &Digest, now: jiff::Timestamp) {
        if let Some(contents) = self.lock().state.contents.get_mut(manifest) {
            contents.used_ms = now.as_millisecond();
        }
    }

    /// Forgets one name. An image without names goes too, and so does an image named by its digest.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        let mut inner = self.lock();
        let manifest = inner.manifest_of(name).ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
        let mut state = inner.state.clone();
        match full_name(name).filter(|full| state.names.contains_key(full)) {
            Some(full) => drop(state.names.remove(&full)),
            None => state.names.retain(|_, name| name.manifest != manifest),
        }
        if !state.names.values().any(|name| name.manifest == manifest) {
            state.contents.remove(&manifest);
        }
        self.store(&mut inner, state)
    }

    /// Forgets images with all their names.
    pub fn remove_images(&self, manifests: &[Digest]) -> Result<(), ImageError> {
        let mut inner = self.lock();
        let mut state = inner.state.clone();
        state.names.retain(|_, name| !manifests.contains(&name.manifest));
        state.contents.retain(|manifest, _| !manifests.contains(manifest));
        self.store(&mut inner, state)
    }

    /// Every blob that an image here needs.
    pub fn blobs(&self) -> Vec<Digest> {
        let inner = self.lock();
        let contents = inner.state.contents.values();
        let parts = contents.flat_map(|contents| {
            contents.layers.iter().map(|layer| layer.blob).chain([contents.manifest, contents.config])
        });
        parts.chain(inner.state.names.values().map(|name| name.target)).collect()
    }

    fn store(&self, inner: &mut Inner, mut state: State) -> Result<(), ImageError> {
        // An image may have lost its last name to another image.
        let named: Vec<Digest> = state.names.values().map(|name| name.manifest).collect();
        state.contents.retain(|manifest, _| named.contains(manifest));
        let bytes = serde_json::to_vec(&state)
            .map_err(|error| ImageError::Content { what: "image catalog".into(), reason: error.to_string() })?;
        disk::replace(&self.path, &bytes, &self.scratch)?;
        inner.state = state;
        let used: Vec<Digest> = inner.state.contents.values().map(|contents| contents.config).collect();
        inner.configs.retain(|config, _| used.contains(config));
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn manifest_of(&self, name: &str) -> Option<Digest> {
        if let Ok(digest) = name.parse::<Digest>() {
            let fits = |contents: &&Contents| contents.manifest == digest || contents.config == digest;
            return self.state.contents.values().find(fits).map(|contents| contents.manifest);
        }
        let reference: Reference = name.parse().ok()?;
        if let Some(name) = self.state.names.get(&reference.to_string()) {
            return Some(name.manifest);
        }
        // A digest means the same under whatever tag it was pulled from this repository.
        let digest = reference.digest()?;
        let is_same = |(full, name): &(&String, &Name)| {
            (name.target == digest || name.manifest == digest) && repository_of(full) == Some(reference.name())
        };
        self.state.names.iter().find(is_same).map(|(_, name)| name.manifest)
    }

    fn image(&self, manifest: &Digest) -> Option<Image> {
        let contents = self.state.contents.get(manifest)?;
        let (created, config) = self.configs.get(&contents.config)?.clone();
        let names: Vec<_> = self.state.names.iter().filter(|(_, name)| name.manifest == *manifest).collect();
        let mut repo_digests: Vec<String> =
            names.iter().filter_map(|(full, name)| Some(format!("{}@{}", repository_of(full)?, name.target))).collect();
        repo_digests.sort();
        repo_digests.dedup();
        Some(Image {
            references: names.iter().map(|(full, _)| (*full).clone()).collect(),
            repo_digests,
            digest: contents.manifest,
            id: contents.config,
            size_bytes: contents.size_bytes,
            created,
            config,
            layers: contents.layers.clone(),
            used: jiff::Timestamp::from_millisecond(contents.used_ms).unwrap_or_default(),
        })
    }
}

fn full_name(name: &str) -> Option<String> {
    name.parse::<Reference>().ok().map(|reference| reference.to_string())
}

fn repository_of(full: &str) -> Option<String> {
    full.parse::<Reference>().ok().map(|reference| reference.name())
}

fn read_config(blobs: &Blobs, digest: &Digest) -> Result<(Option<jiff::Timestamp>, ImageConfig), ImageError> {
    let config = ConfigFile::parse(&blobs.read(digest, CONFIG_BYTES_MAX)?)?;
    Ok((created(&config), config.image_config()))
}

fn created(config: &ConfigFile) -> Option<jiff::Timestamp> {
    config.created.as_deref()?.parse().ok()
}
