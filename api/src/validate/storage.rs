//! Volumes, claims and what provides them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{PersistentVolumeClaimSpec, PersistentVolumeSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::{name, one_of, resources, volume};
use crate::field::{Errors, Path};
use crate::{names, selector};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const STORAGE: &str = "storage";
/// Fields that say where storage is, in the order in which they are looked at.
const SOURCES: [&str; 22] = [
    "hostPath",
    "gcePersistentDisk",
    "awsElasticBlockStore",
    "glusterfs",
    "flocker",
    "nfs",
    "rbd",
    "quobyte",
    "cephfs",
    "iscsi",
    "cinder",
    "fc",
    "flexVolume",
    "azureFile",
    "vsphereVolume",
    "photonPersistentDisk",
    "portworxVolume",
    "azureDisk",
    "scaleIO",
    "local",
    "storageos",
    "csi",
];

pub(crate) fn volume(spec: &PersistentVolumeSpec, path: &Path, errors: &mut Errors) {
    access_modes(spec.access_modes.as_deref(), path, errors);
    let capacity = spec.capacity.as_ref().filter(|capacity| !capacity.is_empty());
    match capacity {
        None => errors.required(&path.child("capacity"), ""),
        Some(capacity) if capacity.len() > 1 || !capacity.contains_key(STORAGE) => {
            let value = serde_json::to_value(capacity).unwrap_or_default();
            errors.not_supported(&path.child("capacity"), value, &[STORAGE]);
        }
        Some(capacity) => storage_amount(capacity, &path.child("capacity"), errors),
    }
    let policies = ["Delete", "Recycle", "Retain"];
    let policy = spec.persistent_volume_reclaim_policy.as_deref();
    one_of(policy, &policies, &path.child("persistentVolumeReclaimPolicy"), errors);
    sources(spec, path, errors);
    if spec.local.is_some() && spec.node_affinity.is_none() {
        errors.required(&path.child("nodeAffinity"), "Local volume requires node affinity");
    }
    class(spec.storage_class_name.as_deref(), &path.child("storageClassName"), errors);
    volume_mode(spec.volume_mode.as_deref(), &path.child("volumeMode"), errors);
}

/// Where the storage is, which is one place only.
fn sources(spec: &PersistentVolumeSpec, path: &Path, errors: &mut Errors) {
    let value = serde_json::to_value(spec).unwrap_or_default();
    let mut used = SOURCES.into_iter().filter(|field| value.get(field).is_some());
    match used.next() {
        None => errors.required(path, "must specify a volume type"),
        Some(first) => source(spec, first, path, errors),
    }
    used.for_each(|more| errors.forbidden(&path.child(more), "may not specify more than 1 volume type"));
}

fn source(spec: &PersistentVolumeSpec, field: &str, path: &Path, errors: &mut Errors) {
    let at = path.child(field);
    match (field, &spec.host_path, &spec.nfs, &spec.local, &spec.csi) {
        ("hostPath", Some(source), ..) => {
            volume::host_path(source, &at, errors);
            let is_root = !source.path.is_empty() && source.path.bytes().all(|b| b == b'/');
            if is_root && spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
                let detail = "may not be 'recycle' for a hostPath mount of '/'";
                errors.forbidden(&path.child("persistentVolumeReclaimPolicy"), detail);
            }
        }
        ("nfs", _, Some(source), ..) => volume::nfs(source, &at, errors),
        ("local", _, _, Some(source), _) => {
            volume::need(&source.path, &at.child("path"), errors);
            volume::no_backsteps(&source.path, &at.child("path"), errors);
        }
        ("csi", .., Some(source)) => {
            driver(&source.driver, &at.child("driver"), errors);
            volume::need(&source.volume_handle, &at.child("volumeHandle"), errors);
        }
        _ => {}
    }
}

pub(crate) fn claim(spec: &PersistentVolumeClaimSpec, path: &Path, errors: &mut Errors) {
    access_modes(spec.access_modes.as_deref(), path, errors);
    if let Some(labels) = &spec.selector {
        selector::validate(labels, &path.child("selector"), errors);
    }
    let requests = spec.resources.as_ref().and_then(|resources| resources.requests.clone()).unwrap_or_default();
    let at = path.child("resources");
    match requests.contains_key(STORAGE) {
        false => errors.required(&at.key(STORAGE), ""),
        true => storage_amount(&requests, &at.child("requests"), errors),
    }
    class(spec.storage_class_name.as_deref(), &path.child("storageClassName"), errors);
    volume_mode(spec.volume_mode.as_deref(), &path.child("volumeMode"), errors);
    class(spec.volume_attributes_class_name.as_deref(), &path.child("volumeAttributesClassName"), errors);
}

fn access_modes(modes: Option<&[String]>, path: &Path, errors: &mut Errors) {
    let path = path.child("accessModes");
    let modes = modes.unwrap_or_default();
    if modes.is_empty() {
        errors.required(&path, "at least 1 access mode is required");
    }
    modes.iter().for_each(|mode| one_of(Some(mode), &MODES, &path, errors));
    if modes.len() > 1 && modes.iter().any(|mode| mode == "ReadWriteOncePod") {
        errors.forbidden(&path, "may not use ReadWriteOncePod with other access modes");
    }
}

fn storage_amount(amounts: &BTreeMap<String, Quantity>, path: &Path, errors: &mut Errors) {
    let Some(quantity) = amounts.get(STORAGE) else { return };
    let path = path.key(STORAGE);
    if resources::amount(STORAGE, quantity, &path, errors).is_some_and(|amount| amount.is_zero()) {
        errors.invalid(&path, quantity.0.as_str(), "must be greater than zero");
    }
}

fn class(class: Option<&str>, path: &Path, errors: &mut Errors) {
    if let Some(class) = class.filter(|class| !class.is_empty()) {
        name(class, names::dns_subdomain, path, errors);
    }
}

fn volume_mode(mode: Option<&str>, path: &Path, errors: &mut Errors) {
    one_of(mode, &["Block", "Filesystem"], path, errors);
}

/// The name of a driver: a domain, at most 63 bytes.
pub(crate) fn driver(driver: &str, path: &Path, errors: &mut Errors) {
    if driver.is_empty() {
        return errors.required(path, "");
    }
    if driver.len() > names::LABEL_MAX_BYTES {
        errors.too_long(path, names::LABEL_MAX_BYTES);
    }
    let lower = driver.to_lowercase();
    names::dns_subdomain(&lower).iter().for_each(|complaint| errors.invalid(path, driver, complaint));
}

/// How much storage there is, for people.
pub(crate) fn capacity(amounts: Option<&BTreeMap<String, Quantity>>) -> String {
    amounts.and_then(|amounts| amounts.get(STORAGE)).map_or_else(|| "0".to_owned(), |quantity| quantity.0.clone())
}

/// Access modes in short, in upstream's order: `RWO,ROX`.
pub(crate) fn modes(modes: Option<&[String]>) -> String {
    let short =
        [("ReadWriteOnce", "RWO"), ("ReadOnlyMany", "ROX"), ("ReadWriteMany", "RWX"), ("ReadWriteOncePod", "RWOP")];
    let has = |long: &str| modes.unwrap_or_default().iter().any(|mode| mode == long);
    short.into_iter().filter(|(long, _)| has(long)).map(|(_, short)| short).collect::<Vec<_>>().join(",")
}
