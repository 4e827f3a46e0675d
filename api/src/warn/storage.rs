//! Volumes of the cluster, claims to them and their classes.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolume, PersistentVolumeClaim, PersistentVolumeClaimSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};

use super::{Warnings, deprecated_label, key_of_nodes, node_term, pod};
use crate::field::Path;

const CLASS: &str = "volume.beta.kubernetes.io/storage-class";
const STORAGE: &str = "storage";

pub(crate) fn volume(volume: &PersistentVolume, warnings: &mut Warnings) {
    class(&volume.metadata, warnings);
    let Some(spec) = &volume.spec else { return };
    let path = Path::new("spec");
    if spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
        let words = "The Recycle reclaim policy is deprecated. Instead, the recommended approach is to use dynamic \
                     provisioning.";
        warnings.at(&path.child("persistentVolumeReclaimPolicy"), words);
    }
    let required = spec.node_affinity.as_ref().and_then(|affinity| affinity.required.as_ref());
    for (index, term) in required.iter().flat_map(|required| &required.node_selector_terms).enumerate() {
        let path = path.child("nodeAffinity").child("required").child("nodeSelectorTerms").index(index);
        node_term(term, &path, warnings);
    }
    let deprecated = [
        ("cephfs", spec.cephfs.is_some(), "v1.28, non-functional in v1.31+"),
        ("photonPersistentDisk", spec.photon_persistent_disk.is_some(), "v1.11, non-functional in v1.16+"),
        ("scaleIO", spec.scale_io.is_some(), "v1.16, non-functional in v1.22+"),
        ("storageOS", spec.storageos.is_some(), "v1.22, non-functional in v1.25+"),
        ("glusterfs", spec.glusterfs.is_some(), "v1.25, non-functional in v1.26+"),
        ("rbd", spec.rbd.is_some(), "v1.28, non-functional in v1.31+"),
    ];
    for (field, _, since) in deprecated.into_iter().filter(|(_, used, _)| *used) {
        warnings.at(&path.child(field), format_args!("deprecated in {since}"));
    }
}

pub(crate) fn claim(claim: &PersistentVolumeClaim, warnings: &mut Warnings) {
    class(&claim.metadata, warnings);
    if let Some(spec) = &claim.spec {
        claim_spec(spec, &Path::new("spec"), warnings);
    }
}

fn class(metadata: &ObjectMeta, warnings: &mut Warnings) {
    if metadata.annotations.as_ref().is_some_and(|annotations| annotations.contains_key(CLASS)) {
        let path = Path::new("metadata").child("annotations").key(CLASS);
        warnings.at(&path, "deprecated since v1.8; use \"storageClassName\" attribute instead");
    }
}

pub(crate) fn claim_spec(spec: &PersistentVolumeClaimSpec, path: &Path, warnings: &mut Warnings) {
    let Some(resources) = &spec.resources else { return };
    let (path, none) = (path.child("resources"), BTreeMap::new());
    for (field, amounts) in [("requests", &resources.requests), ("limits", &resources.limits)] {
        pod::whole_bytes(amounts.as_ref().unwrap_or(&none), STORAGE, &path.child(field), warnings);
    }
}

/// The labels by which the nodes are chosen that storage is at.
pub(crate) fn topology(selector: &LabelSelector, path: &Path, warnings: &mut Warnings) {
    for (index, expression) in selector.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index).child("key");
        key_of_nodes(&expression.key, &path, warnings);
    }
    for key in selector.match_labels.iter().flatten().map(|(key, _)| key) {
        if let Some(words) = deprecated_label(key) {
            warnings.at(&path.child("matchLabels").child(key), words);
        }
    }
}
