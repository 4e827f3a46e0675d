//! Storage that is not a node's own: the sources that volumes of pods and PersistentVolumes have in common.
//!
//! They are read as JSON, since their types differ in little but in where their secrets are.

use serde_json::Value;

use super::{name, one_of, storage, volume};
use crate::field::{Errors, Path};
use crate::names;

/// What each source must say.
const NEEDED: [(&str, &[&str]); 17] = [
    ("awsElasticBlockStore", &["volumeID"]),
    ("azureDisk", &["diskName", "diskURI"]),
    ("azureFile", &["secretName", "shareName"]),
    ("cephfs", &["monitors"]),
    ("cinder", &["volumeID"]),
    ("flexVolume", &["driver"]),
    ("gcePersistentDisk", &["pdName"]),
    ("gitRepo", &["repository"]),
    ("glusterfs", &["endpoints", "path"]),
    ("iscsi", &["targetPortal", "iqn"]),
    ("persistentVolumeClaim", &["claimName"]),
    ("photonPersistentDisk", &["pdID"]),
    ("portworxVolume", &["volumeID"]),
    ("rbd", &["monitors", "image"]),
    ("scaleIO", &["gateway", "system", "volumeName"]),
    ("storageos", &["volumeName"]),
    ("vsphereVolume", &["volumePath"]),
];
const MAX_TENANT_BYTES: usize = 64;

/// What the source belongs to. The secrets of a pod's are in its namespace.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Holder {
    Pod,
    PersistentVolume,
}

pub(super) fn source(kind: &str, source: &Value, holder: Holder, path: &Path, errors: &mut Errors) {
    // Upstream calls that one so.
    let path = path.child(if kind == "gcePersistentDisk" { "persistentDisk" } else { kind });
    let needed = NEEDED.iter().find(|(of, _)| *of == kind).map_or(&[][..], |(_, needed)| needed);
    for field in needed.iter().filter(|field| is_empty(&source[**field])) {
        errors.required(&path.child(field), "");
    }
    match kind {
        "gcePersistentDisk" | "awsElasticBlockStore" => {
            at_most_255(source, "partition", "must be between 1 and 255, inclusive", &path, errors);
        }
        "azureDisk" => azure_disk(source, &path, errors),
        "azureFile" if source["secretNamespace"] == "" => errors.required(&path.child("secretNamespace"), ""),
        "cinder" => secret(source, holder, &path, errors),
        "csi" => csi(source, holder, &path, errors),
        "fc" => fibre_channel(source, &path, errors),
        "flexVolume" => flex_options(source, &path.child("options"), errors),
        "flocker" => flocker(source, &path, errors),
        "gitRepo" => volume::path_below(text(source, "directory"), &path.child("directory"), errors),
        "glusterfs" => match source["endpointsNamespace"].as_str() {
            Some("") => {
                let detail = "if the endpointnamespace is set, it must be a valid namespace name";
                errors.invalid(&path.child("endpointsNamespace"), "", detail);
            }
            namespace => optional(namespace, names::dns_label, &path.child("endpointsNamespace"), errors),
        },
        "iscsi" => iscsi(source, holder, &path, errors),
        "quobyte" => quobyte(source, &path, errors),
        "storageos" => {
            for field in ["volumeName", "volumeNamespace"] {
                optional(source[field].as_str(), names::dns_label, &path.child(field), errors);
            }
            secret(source, holder, &path, errors);
        }
        _ => {}
    }
}

fn text<'a>(source: &'a Value, field: &str) -> &'a str {
    source[field].as_str().unwrap_or_default()
}

fn is_empty(value: &Value) -> bool {
    value.is_null() || value == "" || value.as_array().is_some_and(Vec::is_empty)
}

/// A name that may be left out.
fn optional(value: Option<&str>, rule: fn(&str) -> Vec<String>, path: &Path, errors: &mut Errors) {
    if let Some(value) = value.filter(|value| !value.is_empty()) {
        name(value, rule, path, errors);
    }
}

fn at_most_255(source: &Value, field: &str, detail: &str, path: &Path, errors: &mut Errors) {
    if let Some(number) = source[field].as_i64().filter(|number| !(0..=255).contains(number)) {
        errors.invalid(&path.child(field), number, detail);
    }
}

fn lun(source: &Value, path: &Path, errors: &mut Errors) {
    at_most_255(source, "lun", "must be between 0 and 255, inclusive", path, errors);
}

fn secret(source: &Value, holder: Holder, path: &Path, errors: &mut Errors) {
    let (secret, path) = (&source["secretRef"], path.child("secretRef"));
    if !secret.is_null() {
        volume::need(text(secret, "name"), &path.child("name"), errors);
        if holder == Holder::PersistentVolume {
            volume::need(text(secret, "namespace"), &path.child("namespace"), errors);
        }
    }
}

fn azure_disk(source: &Value, path: &Path, errors: &mut Errors) {
    let modes = ["None", "ReadOnly", "ReadWrite"];
    one_of(source["cachingMode"].as_str(), &modes, &path.child("cachingMode"), errors);
    one_of(source["kind"].as_str(), &["Dedicated", "Managed", "Shared"], &path.child("kind"), errors);
    let (start, form) = match source["kind"].as_str() {
        Some("Managed") => (
            "/subscriptions/",
            "/subscriptions/{sub-id}/resourcegroups/{group-name}/providers/microsoft.compute/disks/{disk-id}",
        ),
        Some(_) => ("https://", "https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd"),
        None => return,
    };
    let uri = text(source, "diskURI");
    if !uri.starts_with(start) {
        errors.not_supported(&path.child("diskURI"), uri, &[form]);
    }
}

fn csi(source: &Value, holder: Holder, path: &Path, errors: &mut Errors) {
    storage::driver(text(source, "driver"), &path.child("driver"), errors);
    let secrets: &[&str] = match holder {
        Holder::Pod => &["nodePublishSecretRef"],
        Holder::PersistentVolume => {
            volume::need(text(source, "volumeHandle"), &path.child("volumeHandle"), errors);
            &["controllerPublishSecretRef", "controllerExpandSecretRef", "nodePublishSecretRef", "nodeExpandSecretRef"]
        }
    };
    for field in secrets.iter().filter(|field| !source[**field].is_null()) {
        let (secret, path) = (&source[*field], path.child(field));
        volume::reference(text(secret, "name"), &path.child("name"), errors);
        if holder == Holder::PersistentVolume {
            volume::need(text(secret, "namespace"), &path.child("namespace"), errors);
            optional(secret["namespace"].as_str(), names::dns_label, &path.child("namespace"), errors);
        }
    }
}

fn fibre_channel(source: &Value, path: &Path, errors: &mut Errors) {
    let at = path.child("targetWWNs");
    match (is_empty(&source["targetWWNs"]), is_empty(&source["wwids"])) {
        (true, true) => errors.required(&at, "must specify either targetWWNs or wwids, but not both"),
        (true, false) => return,
        (false, true) => {}
        (false, false) => {
            let detail = "targetWWNs and wwids can not be specified simultaneously";
            errors.invalid(&at, source["targetWWNs"].clone(), detail);
        }
    }
    if !is_empty(&source["targetWWNs"]) && source["lun"].is_null() {
        errors.required(&path.child("lun"), "lun is required if targetWWNs is specified");
    }
    lun(source, path, errors);
}

fn flex_options(source: &Value, path: &Path, errors: &mut Errors) {
    for key in source["options"].as_object().into_iter().flatten().map(|(key, _)| key.as_str()) {
        let namespace = format!(".{}", key.split('/').next().unwrap_or_default().to_lowercase());
        if [".kubernetes.io", ".k8s.io"].iter().any(|reserved| namespace.ends_with(reserved)) {
            errors.invalid(&path.key(key), key, "kubernetes.io and k8s.io namespaces are reserved");
        }
    }
}

fn flocker(source: &Value, path: &Path, errors: &mut Errors) {
    let dataset = text(source, "datasetName");
    match (dataset.is_empty(), text(source, "datasetUUID").is_empty()) {
        (true, true) => errors.required(path, "one of datasetName and datasetUUID is required"),
        (false, false) => {
            errors.invalid(path, "resource", "datasetName and datasetUUID can not be specified simultaneously");
        }
        _ => {}
    }
    if dataset.contains('/') {
        errors.invalid(&path.child("datasetName"), dataset, "must not contain '/'");
    }
}

fn iscsi(source: &Value, holder: Holder, path: &Path, errors: &mut Errors) {
    for (field, at) in [("iqn", "iqn"), ("initiatorName", "initiatorname")] {
        let Some(initiator) = source[field].as_str().filter(|text| field != "iqn" || !text.is_empty()) else {
            continue;
        };
        let known = ["iqn", "eui", "naa"].iter().any(|start| initiator.starts_with(start));
        if !known && holder == Holder::Pod {
            errors.invalid(&path.child(at), initiator, "must be valid format starting with iqn, eui, or naa");
        } else if !is_initiator(initiator) {
            errors.invalid(&path.child(at), initiator, "must be valid format");
        }
    }
    lun(source, path, errors);
    let asks = |field: &str| source[field] == true;
    let secret = &source["secretRef"];
    if (asks("chapAuthDiscovery") || asks("chapAuthSession")) && secret.is_null() {
        errors.required(&path.child("secretRef"), "");
    }
    if holder == Holder::PersistentVolume && !secret.is_null() {
        volume::need(text(secret, "name"), &path.child("secretRef").child("name"), errors);
    }
}

/// `iqn.2001-04.com.example:disk`, or `eui.` or `naa.` and a number; RFC 3721.
fn is_initiator(name: &str) -> bool {
    let number = |text: &str, digits| {
        text.get(1..).is_some_and(|id| id.len() == digits && id.bytes().all(|b| b.is_ascii_alphanumeric()))
    };
    match name.split_at_checked(3) {
        Some(("iqn", rest)) => rest.split_once(':').is_some_and(|(authority, disk)| {
            let [b'.', y1, y2, y3, y4, b'-', m1, m2, b'.', domain @ ..] = authority.as_bytes() else { return false };
            [y1, y2, y3, y4, m1, m2].iter().all(|b| b.is_ascii_digit())
                && !domain.is_empty()
                && domain.iter().all(|b| b.is_ascii_alphanumeric() || b"-.".contains(b))
                && !disk.is_empty()
                && !disk.contains(|c: char| c.is_ascii_whitespace() || ",;*&$|".contains(c))
        }),
        Some(("eui", rest)) => number(rest, 16),
        Some(("naa", rest)) => number(rest, 32),
        _ => false,
    }
}

fn quobyte(source: &Value, path: &Path, errors: &mut Errors) {
    let detail = "must be a host:port pair or multiple pairs separated by commas";
    let registry = text(source, "registry");
    if registry.is_empty() {
        errors.required(&path.child("registry"), detail);
    } else if text(source, "tenant").len() > MAX_TENANT_BYTES {
        errors.required(&path.child("tenant"), "must be a UUID and may not exceed a length of 64 characters");
    } else if registry.split(',').any(|pair| !pair.contains(':')) {
        errors.invalid(&path.child("registry"), registry, detail);
    }
    volume::need(text(source, "volume"), &path.child("volume"), errors);
}
