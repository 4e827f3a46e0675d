//! Volumes, claims and what provides them.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{
    PersistentVolumeClaimSpec, PersistentVolumeClaimStatus, PersistentVolumeSpec, TopologySelectorTerm,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

use super::remote::{self, Holder};
use super::{name, one_of, resources, scheduling, volume};
use crate::field::{Errors, Path};
use crate::quantity::Amount;
use crate::{names, selector};

const MODES: [&str; 4] = ["ReadOnlyMany", "ReadWriteMany", "ReadWriteOnce", "ReadWriteOncePod"];
const STORAGE: &str = "storage";
const MAX_PARAMETERS: usize = 512;
/// Keys and values together.
const MAX_PARAMETERS_BYTES: usize = 256 * 1024;
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
    if let Some(affinity) = &spec.node_affinity {
        let path = path.child("nodeAffinity").child("required");
        match &affinity.required {
            None => errors.required(&path, "must specify required node constraints"),
            Some(required) => scheduling::node_selector(required, &path, errors),
        }
    }
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
        Some(first) => {
            source(spec, first, path, errors);
            remote::source(first, &value[first], Holder::PersistentVolume, path, errors);
        }
    }
    used.for_each(|more| errors.forbidden(&path.child(more), "may not specify more than 1 volume type"));
}

fn source(spec: &PersistentVolumeSpec, field: &str, path: &Path, errors: &mut Errors) {
    let at = path.child(field);
    match (field, &spec.host_path, &spec.nfs, &spec.local) {
        ("hostPath", Some(source), ..) => {
            volume::host_path(source, &at, errors);
            let is_root = !source.path.is_empty() && source.path.bytes().all(|b| b == b'/');
            if is_root && spec.persistent_volume_reclaim_policy.as_deref() == Some("Recycle") {
                let detail = "may not be 'recycle' for a hostPath mount of '/'";
                errors.forbidden(&path.child("persistentVolumeReclaimPolicy"), detail);
            }
        }
        ("nfs", _, Some(source), _) => volume::nfs(source, &at, errors),
        ("local", .., Some(source)) => {
            volume::need(&source.path, &at.child("path"), errors);
            volume::no_backsteps(&source.path, &at.child("path"), errors);
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
    data_source(spec, path, errors);
    class(spec.volume_attributes_class_name.as_deref(), &path.child("volumeAttributesClassName"), errors);
}

/// What a claim's storage is filled from, which two fields say.
fn data_source(spec: &PersistentVolumeClaimSpec, path: &Path, errors: &mut Errors) {
    let (old, new) = (spec.data_source.as_ref(), spec.data_source_ref.as_ref());
    let old = old.map(|source| (source.api_group.as_deref(), source.kind.as_str(), source.name.as_str()));
    let namespace = new.and_then(|source| source.namespace.as_deref()).filter(|namespace| !namespace.is_empty());
    let new = new.map(|source| (source.api_group.as_deref(), source.kind.as_str(), source.name.as_str()));
    for (field, source) in [("dataSource", old), ("dataSourceRef", new)] {
        let (Some((group, kind, named)), path) = (source, path.child(field)) else { continue };
        volume::need(named, &path.child("name"), errors);
        volume::need(kind, &path.child("kind"), errors);
        match group.unwrap_or_default() {
            "" if kind != "PersistentVolumeClaim" => {
                errors.invalid(&path, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup");
            }
            "" => {}
            group => name(group, names::dns_subdomain, &path.child("apiGroup"), errors),
        }
    }
    if let Some(namespace) = namespace {
        name(namespace, names::dns_label, &path.child("dataSourceRef").child("namespace"), errors);
    }
    let detail = match (old, new) {
        (Some(_), Some(_)) if namespace.is_some() => "may not be specified when dataSourceRef.namespace is specified",
        (Some(old), Some(new)) if old != new => "must match dataSourceRef",
        _ => return,
    };
    errors.invalid(path, path.child("dataSource").as_str(), detail);
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

/// What a class tells its provisioner.
pub(crate) fn parameters(parameters: Option<&BTreeMap<String, String>>, path: &Path, errors: &mut Errors) {
    let Some(parameters) = parameters else { return };
    if parameters.len() > MAX_PARAMETERS {
        return errors.too_long(path, MAX_PARAMETERS);
    }
    if parameters.contains_key("") {
        errors.invalid(path, "", "field can not be empty.");
    }
    if parameters.iter().map(|(key, value)| key.len() + value.len()).sum::<usize>() > MAX_PARAMETERS_BYTES {
        errors.too_long(path, MAX_PARAMETERS_BYTES);
    }
}

/// Where volumes of a class may be.
pub(crate) fn topologies(terms: &[TopologySelectorTerm], path: &Path, errors: &mut Errors) {
    for (index, term) in terms.iter().enumerate() {
        let path = path.index(index).child("matchLabelExpressions");
        let expressions = term.match_label_expressions.as_deref().unwrap_or_default();
        for (index, expression) in expressions.iter().enumerate() {
            let (path, values) = (path.index(index), &expression.values);
            if values.is_empty() {
                errors.required(&path.child("values"), "");
            }
            for (index, value) in values.iter().enumerate().filter(|(index, value)| values[..*index].contains(value)) {
                errors.duplicate(&path.child("values").index(index), value.as_str());
            }
            name(&expression.key, names::qualified_name, &path.child("key"), errors);
            if expressions[..index].iter().any(|other| other.key == expression.key) {
                errors.duplicate(&path.child("key"), expression.key.as_str());
            }
        }
    }
}

/// The capacity that a claim is said to have.
pub(crate) fn claim_status(status: &PersistentVolumeClaimStatus, errors: &mut Errors) {
    for (resource, quantity) in status.capacity.iter().flatten() {
        if let Some(amount) = Amount::parse(&quantity.0).ok().filter(|amount| amount.value() < 0) {
            let path = Path::new("status").child("capacity").key(resource);
            errors.invalid(&path, amount.value(), "must be a valid resource quantity");
        }
    }
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
