//! Manifests, indexes and configurations of images: what a registry or an archive says an image is.
//!
//! Defined by the OCI image specification, and by Docker's "Image Manifest V 2, Schema 2", which differs
//! in media types only.
//!
//! Invariant: whatever a [`Manifest`] or [`ConfigFile`] holds was within the bounds here.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::digest::{Digest, Hasher};
use super::error::{ImageError, one_line};
use super::layers::Layer;

pub const MANIFEST_BYTES_MAX: u64 = 4 << 20;
pub const CONFIG_BYTES_MAX: u64 = 8 << 20;
/// More would not fit into the page that mount options may take; Docker allows 127.
pub const LAYERS_MAX: usize = 128;

pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
pub const OCI_LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What is asked of a registry.
pub const ACCEPTED: &str = "application/vnd.oci.image.index.v1+json, \
    application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, \
    application/vnd.docker.distribution.manifest.v2+json";

const LAYERS: [&str; 10] = [
    OCI_LAYER,
    "application/vnd.oci.image.layer.v1.tar+gzip",
    "application/vnd.oci.image.layer.v1.tar+zstd",
    "application/vnd.oci.image.layer.nondistributable.v1.tar",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+gzip",
    "application/vnd.oci.image.layer.nondistributable.v1.tar+zstd",
    "application/vnd.docker.image.rootfs.diff.tar",
    "application/vnd.docker.image.rootfs.diff.tar.gzip",
    "application/vnd.docker.image.rootfs.diff.tar.zstd",
    "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip",
];

#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    pub media_type: String,
    pub digest: Digest,
    pub size: u64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

impl Descriptor {
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self { media_type: media_type.into(), digest, size, platform: None, annotations: None }
    }

    pub fn annotation(&self, key: &str) -> Option<&str> {
        self.annotations.as_ref()?.get(key).map(String::as_str)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Platform {
    pub os: String,
    pub architecture: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl Platform {
    /// This machine's, in the words of Go, which images use.
    pub fn here() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        Self { os: "linux".into(), architecture: architecture.into(), variant: None }
    }

    /// Whether what is made for `self` runs on `machine`. The variants of arm64 all run on arm64.
    fn runs_on(&self, machine: &Platform) -> bool {
        self.os == machine.os && self.architecture == machine.architecture
    }

    pub fn text(&self) -> String {
        format!("{}/{}", one_line(&self.os), one_line(&self.architecture))
    }
}

/// Layers and configuration of one image for one platform.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub config: Descriptor,
    pub layers: Vec<Descriptor>,
}

/// Manifests of an image for several platforms, or of several images in an archive.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    pub schema_version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    pub manifests: Vec<Descriptor>,
}

pub enum Document {
    Manifest(Manifest),
    Index(Index),
}

impl Document {
    /// Reads a manifest or an index. `media_type` is what it was announced as; what it says of itself
    /// counts more.
    pub fn parse(bytes: &[u8], media_type: Option<&str>) -> Result<Self, ImageError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Probe {
            #[serde(default)]
            media_type: Option<String>,
            #[serde(default)]
            manifests: Option<serde::de::IgnoredAny>,
            #[serde(default)]
            schema_version: Option<u32>,
        }
        let probe: Probe = parse("manifest", bytes)?;
        let announced = media_type.filter(|name| *name == OCI_INDEX || *name == DOCKER_INDEX || is_manifest(name));
        let name = match probe.media_type.as_deref().or(announced) {
            Some(name) => name,
            None if probe.schema_version != Some(2) => media_type.unwrap_or("schema version 1"),
            None if probe.manifests.is_some() => OCI_INDEX,
            None => OCI_MANIFEST,
        };
        match name {
            OCI_INDEX | DOCKER_INDEX => Ok(Self::Index(parse("image index", bytes)?)),
            name if is_manifest(name) => Manifest::parse(bytes).map(Self::Manifest),
            other => Err(ImageError::MediaType { what: "manifest".into(), media_type: one_line(other) }),
        }
    }
}

pub fn is_manifest(media_type: &str) -> bool {
    media_type == OCI_MANIFEST || media_type == DOCKER_MANIFEST
}

impl Manifest {
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        let manifest: Manifest = parse("manifest", bytes)?;
        manifest.check()?;
        Ok(manifest)
    }

    fn check(&self) -> Result<(), ImageError> {
        if self.layers.len() > LAYERS_MAX {
            return Err(ImageError::TooManyLayers { layers: self.layers.len(), max: LAYERS_MAX });
        }
        if self.config.media_type != OCI_CONFIG && self.config.media_type != DOCKER_CONFIG {
            return Err(unsupported("image configuration", &self.config));
        }
        match self.layers.iter().find(|layer| !LAYERS.contains(&layer.media_type.as_str())) {
            Some(layer) => Err(unsupported("layer", layer)),
            None => Ok(()),
        }
    }

    /// The layers with the names that the configuration gives them.
    pub fn layers(&self, config: &ConfigFile) -> Result<Vec<Layer>, ImageError> {
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != self.layers.len() {
            let reason = format!("it names {} layers, the manifest {}", diff_ids.len(), self.layers.len());
            return Err(ImageError::Content { what: "image configuration".into(), reason });
        }
        let mut below = None;
        let layers = self.layers.iter().zip(diff_ids).map(|(layer, diff_id)| {
            let chain_id = chain_id(below, *diff_id);
            below = Some(chain_id);
            Layer { blob: layer.digest, diff_id: *diff_id, chain_id }
        });
        Ok(layers.collect())
    }
}

fn unsupported(what: &str, descriptor: &Descriptor) -> ImageError {
    let what = format!("{what} {}", descriptor.digest);
    ImageError::MediaType { what, media_type: one_line(&descriptor.media_type) }
}

/// OCI image specification, "Layer ChainID".
fn chain_id(below: Option<Digest>, diff_id: Digest) -> Digest {
    match below {
        None => diff_id,
        Some(below) => {
            let mut hasher = Hasher::new();
            hasher.update(format!("{below} {diff_id}").as_bytes());
            hasher.finish()
        }
    }
}

impl Index {
    /// The manifest that runs on `machine`.
    pub fn choose(&self, machine: &Platform) -> Result<&Descriptor, ImageError> {
        let platforms: Vec<_> =
            self.manifests.iter().filter_map(|entry| Some((entry, entry.platform.as_ref()?))).collect();
        let fits =
            platforms.iter().find(|(entry, platform)| is_manifest(&entry.media_type) && platform.runs_on(machine));
        // Some tools leave the platform out when there is but one.
        let only = match self.manifests.as_slice() {
            [only] if only.platform.is_none() => Some(only),
            _ => None,
        };
        fits.map(|(entry, _)| *entry).or(only).ok_or_else(|| {
            let known = platforms.iter().filter(|(_, platform)| platform.os != "unknown");
            let available: Vec<String> = known.map(|(_, platform)| platform.text()).take(16).collect();
            no_platform(machine, available.join(", "))
        })
    }
}

fn no_platform(machine: &Platform, available: String) -> ImageError {
    let available = if available.is_empty() { "none".into() } else { available };
    ImageError::NoPlatform { wanted: machine.text(), available }
}

/// The blob that a manifest calls `config`.
#[derive(Clone, Debug, Deserialize)]
pub struct ConfigFile {
    #[serde(default)]
    pub architecture: String,
    #[serde(default)]
    pub os: String,
    #[serde(default)]
    pub created: Option<String>,
    #[serde(default)]
    config: Option<Process>,
    rootfs: RootFs,
}

#[derive(Clone, Debug, Deserialize)]
struct RootFs {
    #[serde(default)]
    diff_ids: Vec<Digest>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Process {
    user: Option<String>,
    exposed_ports: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    env: Option<Vec<String>>,
    entrypoint: Option<Vec<String>>,
    cmd: Option<Vec<String>>,
    volumes: Option<BTreeMap<String, serde::de::IgnoredAny>>,
    working_dir: Option<String>,
    labels: Option<BTreeMap<String, String>>,
    stop_signal: Option<String>,
}

impl ConfigFile {
    pub fn parse(bytes: &[u8]) -> Result<Self, ImageError> {
        parse("image configuration", bytes)
    }

    /// # Errors
    /// If the image is made for another platform than `machine`.
    pub fn check_platform(&self, machine: &Platform) -> Result<(), ImageError> {
        let platform = Platform { os: self.os.clone(), architecture: self.architecture.clone(), variant: None };
        if platform.runs_on(machine) { Ok(()) } else { Err(no_platform(machine, platform.text())) }
    }

    pub fn image_config(&self) -> ImageConfig {
        let process = self.config.clone().unwrap_or_default();
        ImageConfig {
            entrypoint: process.entrypoint.unwrap_or_default(),
            cmd: process.cmd.unwrap_or_default(),
            env: process.env.unwrap_or_default(),
            working_dir: process.working_dir.filter(|text| !text.is_empty()),
            user: process.user.filter(|text| !text.is_empty()),
            stop_signal: process.stop_signal.filter(|text| !text.is_empty()),
            exposed_ports: process.exposed_ports.unwrap_or_default().into_keys().collect(),
            volumes: process.volumes.unwrap_or_default().into_keys().collect(),
            labels: process.labels.unwrap_or_default(),
        }
    }
}

/// How an image wants to be run; see the OCI image specification, "Image Configuration".
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ImageConfig {
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    /// `NAME=value`
    pub env: Vec<String>,
    pub working_dir: Option<String>,
    /// `user`, `uid`, `user:group` or `uid:gid`; names are those of the image's own `/etc/passwd`.
    pub user: Option<String>,
    /// `SIGQUIT` or a number.
    pub stop_signal: Option<String>,
    /// `80/tcp`
    pub exposed_ports: Vec<String>,
    pub volumes: Vec<String>,
    pub labels: BTreeMap<String, String>,
}

/// Parses JSON from outside. Depth is bounded by serde_json, size by whoever read it.
pub fn parse<'a, T: Deserialize<'a>>(what: &str, bytes: &'a [u8]) -> Result<T, ImageError> {
    serde_json::from_slice(bytes)
        .map_err(|error| ImageError::Content { what: what.into(), reason: one_line(&error.to_string()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest() -> Digest {
        Digest::of(b"x")
    }

    fn entry(os: &str, architecture: &str) -> Descriptor {
        let platform = Platform { os: os.into(), architecture: architecture.into(), variant: None };
        Descriptor { platform: Some(platform), ..Descriptor::new(OCI_MANIFEST, digest(), 1) }
    }

    #[test]
    fn the_platform_of_the_machine_is_chosen() {
        let manifests = vec![entry("unknown", "unknown"), entry("linux", "arm64"), entry("linux", "amd64")];
        let index = Index { schema_version: 2, media_type: None, manifests };
        let machine = Platform { os: "linux".into(), architecture: "amd64".into(), variant: None };
        assert_eq!(index.choose(&machine).unwrap().platform.as_ref(), Some(&machine));
        let machine = Platform { os: "linux".into(), architecture: "riscv64".into(), variant: None };
        let error = index.choose(&machine).unwrap_err().to_string();
        assert_eq!(error, "image has no linux/riscv64 variant; it has linux/arm64, linux/amd64");
    }

    #[test]
    fn documents_are_told_apart() {
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{{"mediaType":"{OCI_CONFIG}","digest":"{0}","size":1}},"layers":[]}}"#,
            digest()
        );
        assert!(matches!(Document::parse(manifest.as_bytes(), None), Ok(Document::Manifest(_))));
        let index = br#"{"schemaVersion":2,"manifests":[]}"#;
        assert!(matches!(Document::parse(index, Some("text/plain")), Ok(Document::Index(_))));
        let old =
            Document::parse(br#"{"schemaVersion":1}"#, Some("application/vnd.docker.distribution.manifest.v1+json"));
        assert!(matches!(old, Err(ImageError::MediaType { .. })));
        assert!(Document::parse(b"[]", None).is_err());
        assert!(Document::parse(b"<html>", None).is_err());
    }

    #[test]
    fn layers_of_an_unknown_type_are_refused() {
        let layer = Descriptor::new("application/vnd.oci.image.layer.v1.tar+encrypted", digest(), 1);
        let config = Descriptor::new(OCI_CONFIG, digest(), 1);
        let manifest = Manifest { schema_version: 2, media_type: None, config, layers: vec![layer] };
        assert!(matches!(manifest.check(), Err(ImageError::MediaType { .. })));
    }

    #[test]
    fn a_chain_names_a_layer_with_all_below_it() {
        let (a, b) = (Digest::of(b"a"), Digest::of(b"b"));
        assert_eq!(chain_id(None, a), a);
        assert_eq!(chain_id(Some(a), b), Digest::of(format!("{a} {b}").as_bytes()));
    }

    #[test]
    fn nulls_in_a_configuration_are_empty() {
        let text = br#"{"architecture":"amd64","os":"linux","config":{"Cmd":null,"Env":["A=b"],"User":"","ExposedPorts":{"80/tcp":{}}},"rootfs":{"type":"layers","diff_ids":[]}}"#;
        let config = ConfigFile::parse(text).unwrap().image_config();
        assert_eq!((config.cmd.len(), config.env, config.user), (0, vec!["A=b".to_owned()], None));
        assert_eq!(config.exposed_ports, ["80/tcp"]);
    }
}
