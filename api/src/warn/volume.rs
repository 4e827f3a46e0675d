//! Volumes of pods.

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Volume, VolumeProjection};

use super::{Warnings, storage};
use crate::field::Path;

pub(super) fn volumes(volumes: &[Volume], path: &Path, warnings: &mut Warnings) {
    for (index, volume) in volumes.iter().enumerate() {
        source(volume, &path.index(index), warnings);
    }
    volumes.iter().for_each(|volume| overlaps(volume, warnings));
}

/// Sources that are to go, or are gone.
fn source(volume: &Volume, path: &Path, warnings: &mut Warnings) {
    let deprecated = [
        ("photonPersistentDisk", volume.photon_persistent_disk.is_some(), "v1.11, non-functional in v1.16+"),
        ("gitRepo", volume.git_repo.is_some(), "v1.11"),
        ("scaleIO", volume.scale_io.is_some(), "v1.16, non-functional in v1.22+"),
        ("flocker", volume.flocker.is_some(), "v1.22, non-functional in v1.25+"),
        ("storageOS", volume.storageos.is_some(), "v1.22, non-functional in v1.25+"),
        ("quobyte", volume.quobyte.is_some(), "v1.22, non-functional in v1.25+"),
        ("glusterfs", volume.glusterfs.is_some(), "v1.25, non-functional in v1.26+"),
        ("cephfs", volume.cephfs.is_some(), "v1.28, non-functional in v1.31+"),
        ("rbd", volume.rbd.is_some(), "v1.28, non-functional in v1.31+"),
    ];
    for (field, _, since) in deprecated.into_iter().filter(|(_, used, _)| *used) {
        warnings.at(&path.child(field), format_args!("deprecated in {since}"));
    }
    let claim = volume.ephemeral.as_ref().and_then(|ephemeral| ephemeral.volume_claim_template.as_ref());
    if let Some(claim) = claim {
        let path = path.child("ephemeral").child("volumeClaimTemplate").child("spec");
        storage::claim_spec(&claim.spec, &path, warnings);
    }
}

/// A file of a volume and, in a projected one, where it comes from.
struct File {
    path: String,
    from: Option<String>,
}

impl File {
    fn new(path: &str, from: Option<String>) -> Self {
        Self { path: path.trim_end_matches('/').to_owned(), from }
    }

    fn shown(&self) -> String {
        match &self.from {
            Some(from) => format!("{:?} ({from})", self.path),
            None => format!("{:?}", self.path),
        }
    }

    /// Whether one is the other, or a file where the other wants a directory.
    fn overlaps(&self, other: &File) -> bool {
        let (mine, others) = (format!("{}/", self.path), format!("{}/", other.path));
        mine.starts_with(&others) || others.starts_with(&mine)
    }
}

/// Files of a volume that lie in each other's way.
fn overlaps(volume: &Volume, warnings: &mut Warnings) {
    if let Some(map) = &volume.config_map {
        told(keys(map.items.as_deref(), None), volume, &format!("ConfigMap {:?}", map.name), warnings);
    }
    if let Some(secret) = &volume.secret {
        let what = format!("Secret {:?}", secret.secret_name.as_deref().unwrap_or_default());
        told(keys(secret.items.as_deref(), None), volume, &what, warnings);
    }
    if let Some(downward) = &volume.downward_api {
        told(fields(downward.items.as_deref(), None), volume, "DownwardAPI", warnings);
    }
    if let Some(projected) = &volume.projected {
        let mut files = Vec::new();
        for source in projected.sources.iter().flatten() {
            if *source == VolumeProjection::default() {
                warnings.say(format_args!("volume {:?} (Projected) has no sources provided", volume.name));
            }
            files.extend(of_source(source));
        }
        told(files, volume, "Projected", warnings);
    }
}

fn told(files: Vec<File>, volume: &Volume, what: &str, warnings: &mut Warnings) {
    for (index, file) in files.iter().enumerate().filter(|(_, file)| !file.path.is_empty()) {
        for other in files[..index].iter().filter(|other| !other.path.is_empty() && file.overlaps(other)) {
            let (file, other) = (file.shown(), other.shown());
            warnings.say(format_args!("volume {:?} ({what}): overlapping paths: {file} with {other}", volume.name));
        }
    }
}

fn keys(items: Option<&[KeyToPath]>, from: Option<String>) -> Vec<File> {
    items.into_iter().flatten().map(|item| File::new(&item.path, from.clone())).collect()
}

fn fields(items: Option<&[DownwardAPIVolumeFile]>, from: Option<String>) -> Vec<File> {
    items.into_iter().flatten().map(|item| File::new(&item.path, from.clone())).collect()
}

fn of_source(source: &VolumeProjection) -> Vec<File> {
    if let Some(map) = &source.config_map {
        return keys(map.items.as_deref(), Some(format!("ConfigMap {:?}", map.name)));
    }
    if let Some(secret) = &source.secret {
        return keys(secret.items.as_deref(), Some(format!("Secret {:?}", secret.name)));
    }
    if let Some(downward) = &source.downward_api {
        return fields(downward.items.as_deref(), Some("DownwardAPI".to_owned()));
    }
    if let Some(token) = &source.service_account_token {
        return vec![File::new(&token.path, Some("ServiceAccountToken".to_owned()))];
    }
    if let Some(bundle) = &source.cluster_trust_bundle {
        let name = bundle.name.as_ref().or(bundle.signer_name.as_ref()).cloned().unwrap_or_default();
        return vec![File::new(&bundle.path, Some(format!("ClusterTrustBundle {name:?}")))];
    }
    Vec::new()
}
