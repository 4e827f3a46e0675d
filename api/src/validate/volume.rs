//! Volumes and where containers mount them.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::core::v1::{
    DownwardAPIVolumeFile, EphemeralVolumeSource, HostPathVolumeSource, KeyToPath, NFSVolumeSource,
    ProjectedVolumeSource, Volume, VolumeDevice, VolumeMount,
};

use super::remote::{self, Holder};
use super::{container, metadata, name, one_of, resources, storage};
use crate::field::{Errors, Path};
use crate::names;
use crate::quantity::Amount;

const MODE: &str = "must be a number between 0 and 0777 (octal), both inclusive";
const HOST_PATH_TYPES: [&str; 8] =
    ["", "BlockDevice", "CharDevice", "Directory", "DirectoryOrCreate", "File", "FileOrCreate", "Socket"];
const ACCESS_TOKEN_MIN_SECONDS: i64 = 600;
const ACCESS_TOKEN_MAX_SECONDS: i64 = 1 << 32;

/// The volumes of a pod by their names.
pub(crate) type Volumes<'a> = BTreeMap<&'a str, &'a Volume>;

/// Checks the volumes of a pod.
pub(crate) fn volumes<'a>(volumes: &'a [Volume], path: &Path, errors: &mut Errors) -> Volumes<'a> {
    let mut named = BTreeMap::new();
    for (index, volume) in volumes.iter().enumerate() {
        let path = path.index(index);
        if volume.name.is_empty() {
            errors.required(&path.child("name"), "");
        } else {
            name(&volume.name, crate::names::dns_label, &path.child("name"), errors);
        }
        if named.insert(volume.name.as_str(), volume).is_some() {
            errors.duplicate(&path.child("name"), volume.name.as_str());
        }
        source(volume, &path, errors);
    }
    named
}

fn source(volume: &Volume, path: &Path, errors: &mut Errors) {
    let fields = serde_json::to_value(volume).unwrap_or_default();
    let sources: Vec<&str> =
        fields.as_object().into_iter().flatten().map(|(k, _)| k.as_str()).filter(|k| *k != "name").collect();
    match sources.as_slice() {
        [] => errors.required(path, "must specify a volume type"),
        [_] => {}
        [_, more @ ..] => {
            more.iter().for_each(|m| errors.forbidden(&path.child(m), "may not specify more than 1 volume type"));
        }
    }
    local_source(volume, path, errors);
    sources.iter().for_each(|kind| remote::source(kind, &fields[*kind], Holder::Pod, path, errors));
}

fn local_source(volume: &Volume, path: &Path, errors: &mut Errors) {
    if let Some(limit) = volume.empty_dir.as_ref().and_then(|source| source.size_limit.as_ref()) {
        let negative = Amount::parse(&limit.0).is_ok_and(Amount::is_negative);
        let path = path.child("emptyDir").child("sizeLimit");
        match negative {
            true => errors.forbidden(&path, "SizeLimit field must be a valid resource quantity"),
            false => _ = resources::amount("", limit, &path, errors),
        }
    }
    if let Some(source) = &volume.host_path {
        host_path(source, &path.child("hostPath"), errors);
    }
    if let Some(source) = &volume.secret {
        let path = path.child("secret");
        need(source.secret_name.as_deref().unwrap_or_default(), &path.child("secretName"), errors);
        mode(source.default_mode, &path.child("defaultMode"), errors);
        key_paths(source.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
    }
    if let Some(source) = &volume.config_map {
        let path = path.child("configMap");
        need(&source.name, &path.child("name"), errors);
        mode(source.default_mode, &path.child("defaultMode"), errors);
        key_paths(source.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
    }
    if let Some(source) = &volume.downward_api {
        let path = path.child("downwardAPI");
        mode(source.default_mode, &path.child("defaultMode"), errors);
        downward_files(source.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
    }
    if let Some(source) = &volume.projected {
        projected(source, &path.child("projected"), errors);
    }
    if let Some(source) = &volume.ephemeral {
        ephemeral(source, &path.child("ephemeral").child("volumeClaimTemplate"), errors);
    }
    if let Some(source) = &volume.nfs {
        nfs(source, &path.child("nfs"), errors);
    }
}

/// A claim that is made with the pod.
fn ephemeral(source: &EphemeralVolumeSource, path: &Path, errors: &mut Errors) {
    let Some(template) = &source.volume_claim_template else { return errors.required(path, "") };
    if let Some(of) = &template.metadata {
        let path = path.child("metadata");
        metadata::annotations(of.annotations.as_ref(), &path.child("annotations"), errors);
        metadata::labels(of.labels.as_ref(), &path.child("labels"), errors);
    }
    storage::claim(&template.spec, &path.child("spec"), errors);
}

/// A place on the node.
pub(super) fn host_path(source: &HostPathVolumeSource, path: &Path, errors: &mut Errors) {
    need(&source.path, &path.child("path"), errors);
    no_backsteps(&source.path, &path.child("path"), errors);
    one_of(source.type_.as_deref(), &HOST_PATH_TYPES, &path.child("type"), errors);
}

pub(super) fn nfs(source: &NFSVolumeSource, path: &Path, errors: &mut Errors) {
    need(&source.server, &path.child("server"), errors);
    need(&source.path, &path.child("path"), errors);
    if !source.path.starts_with('/') {
        errors.invalid(&path.child("path"), source.path.as_str(), "must be an absolute path");
    }
}

fn projected(projected: &ProjectedVolumeSource, path: &Path, errors: &mut Errors) {
    mode(projected.default_mode, &path.child("defaultMode"), errors);
    for (index, source) in projected.sources.iter().flatten().enumerate() {
        let path = path.child("sources").index(index);
        let mut found = 0;
        if let Some(secret) = &source.secret {
            found += 1;
            let path = path.child("secret");
            need(&secret.name, &path.child("name"), errors);
            key_paths(secret.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
        }
        if let Some(map) = &source.config_map {
            found += 1;
            let path = path.child("configMap");
            need(&map.name, &path.child("name"), errors);
            key_paths(map.items.as_deref().unwrap_or_default(), &path.child("items"), errors);
        }
        if let Some(downward) = &source.downward_api {
            found += 1;
            let items = downward.items.as_deref().unwrap_or_default();
            downward_files(items, &path.child("downwardAPI").child("items"), errors);
        }
        if let Some(token) = &source.service_account_token {
            found += 1;
            let path = path.child("serviceAccountToken");
            let seconds = token.expiration_seconds.unwrap_or(ACCESS_TOKEN_MIN_SECONDS);
            if seconds < ACCESS_TOKEN_MIN_SECONDS {
                errors.invalid(
                    &path.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration less than 10 minutes",
                );
            } else if seconds > ACCESS_TOKEN_MAX_SECONDS {
                errors.invalid(
                    &path.child("expirationSeconds"),
                    seconds,
                    "may not specify a duration larger than 2^32 seconds",
                );
            }
            need(&token.path, &path.child("path"), errors);
            local_path(&token.path, &path.child("path"), errors);
        }
        found += usize::from(source.cluster_trust_bundle.is_some()) + usize::from(source.pod_certificate.is_some());
        if found > 1 {
            errors.forbidden(&path, "may not specify more than 1 volume type");
        }
    }
}

fn key_paths(items: &[KeyToPath], path: &Path, errors: &mut Errors) {
    for (index, item) in items.iter().enumerate() {
        let path = path.index(index);
        need(&item.key, &path.child("key"), errors);
        need(&item.path, &path.child("path"), errors);
        local_path(&item.path, &path.child("path"), errors);
        mode(item.mode, &path.child("mode"), errors);
    }
}

fn downward_files(files: &[DownwardAPIVolumeFile], path: &Path, errors: &mut Errors) {
    for (index, file) in files.iter().enumerate() {
        let path = path.index(index);
        need(&file.path, &path.child("path"), errors);
        local_path(&file.path, &path.child("path"), errors);
        mode(file.mode, &path.child("mode"), errors);
        match (&file.field_ref, &file.resource_field_ref) {
            (Some(_), Some(_)) => {
                errors.invalid(
                    &path,
                    file.path.as_str(),
                    "fieldRef and resourceFieldRef can not be specified simultaneously",
                );
            }
            (Some(field), None) => container::field_ref(field, true, &path.child("fieldRef"), errors),
            (None, Some(field)) => {
                let path = path.child("resourceFieldRef");
                need(field.container_name.as_deref().unwrap_or_default(), &path.child("containerName"), errors);
                container::resource_ref(field, &path, errors);
            }
            (None, None) => errors.required(&path, "one of fieldRef and resourceFieldRef is required"),
        }
    }
}

pub(super) fn need(value: &str, path: &Path, errors: &mut Errors) {
    if value.is_empty() {
        errors.required(path, "");
    }
}

fn mode(mode: Option<i32>, path: &Path, errors: &mut Errors) {
    if let Some(mode) = mode.filter(|mode| !(0..=0o777).contains(mode)) {
        errors.invalid(path, mode, MODE);
    }
}

pub(super) fn no_backsteps(text: &str, path: &Path, errors: &mut Errors) {
    if text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not contain '..'");
    }
}

/// A path that stays below where it starts.
pub(super) fn path_below(text: &str, path: &Path, errors: &mut Errors) {
    if text.starts_with('/') {
        errors.invalid(path, text, "must be a relative path");
    }
    no_backsteps(text, path, errors);
}

/// A path below of which no part looks as if it were not.
fn local_path(text: &str, path: &Path, errors: &mut Errors) {
    path_below(text, path, errors);
    if text.starts_with("..") && !text.split('/').any(|part| part == "..") {
        errors.invalid(path, text, "must not start with '..'");
    }
}

/// What checking a mount needs to know of its container.
pub(crate) struct MountContext<'a> {
    pub volumes: &'a Volumes<'a>,
    pub devices: &'a [VolumeDevice],
    pub privileged: bool,
}

pub(crate) fn mounts(mounts: &[VolumeMount], context: &MountContext<'_>, path: &Path, errors: &mut Errors) {
    let mut places = BTreeSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        let path = path.index(index);
        need(&mount.name, &path.child("name"), errors);
        if !mount.name.is_empty() && !context.volumes.contains_key(mount.name.as_str()) {
            errors.not_found(&path.child("name"), mount.name.as_str());
        }
        need(&mount.mount_path, &path.child("mountPath"), errors);
        if !places.insert(mount.mount_path.as_str()) {
            errors.invalid(&path.child("mountPath"), mount.mount_path.as_str(), "must be unique");
        }
        if context.devices.iter().any(|device| device.name == mount.name) {
            errors.invalid(&path.child("name"), mount.name.as_str(), "must not already exist in volumeDevices");
        }
        if context.devices.iter().any(|device| device.device_path == mount.mount_path) {
            let detail = "must not already exist as a path in volumeDevices";
            errors.invalid(&path.child("mountPath"), mount.mount_path.as_str(), detail);
        }
        let sub_path = mount.sub_path.as_deref().unwrap_or_default();
        let expression = mount.sub_path_expr.as_deref().unwrap_or_default();
        local_path(sub_path, &path.child("subPath"), errors);
        if !expression.is_empty() {
            if !sub_path.is_empty() {
                errors.invalid(
                    &path.child("subPathExpr"),
                    expression,
                    "subPathExpr and subPath are mutually exclusive",
                );
            }
            local_path(expression, &path.child("subPathExpr"), errors);
        }
        let propagation = mount.mount_propagation.as_deref();
        let supported = ["Bidirectional", "HostToContainer", "None"];
        one_of(propagation, &supported, &path.child("mountPropagation"), errors);
        if propagation == Some("Bidirectional") && !context.privileged {
            let detail = "Bidirectional mount propagation is available only to privileged containers";
            errors.forbidden(&path.child("mountPropagation"), detail);
        }
        let recursive = ["Disabled", "Enabled", "IfPossible"];
        one_of(mount.recursive_read_only.as_deref(), &recursive, &path.child("recursiveReadOnly"), errors);
    }
}

/// What a container has as devices, which are claims that it does not mount.
pub(crate) fn devices(
    devices: &[VolumeDevice],
    mounts: &[VolumeMount],
    volumes: &Volumes<'_>,
    path: &Path,
    errors: &mut Errors,
) {
    for (index, device) in devices.iter().enumerate() {
        let (path, before) = (path.index(index), &devices[..index]);
        let (name, place) = (device.name.as_str(), device.device_path.as_str());
        let at = path.child("name");
        need(name, &at, errors);
        if !name.is_empty() && before.iter().any(|other| other.name == name) {
            errors.invalid(&at, name, "must be unique");
        }
        match volumes.get(name) {
            None if name.is_empty() => {}
            None => errors.not_found(&at, name),
            Some(volume) if volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some() => {}
            Some(_) => {
                let detail = "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode";
                errors.invalid(&at, name, detail);
            }
        }
        if mounts.iter().any(|mount| mount.name == name) {
            errors.invalid(&at, name, "must not already exist in volumeMounts");
        }
        let at = path.child("devicePath");
        need(place, &at, errors);
        if before.iter().any(|other| other.device_path == place) {
            errors.invalid(&at, place, "must be unique");
        }
        if place.split('/').any(|part| part == "..") {
            errors.invalid(&at, place, "can not contain backsteps ('..')");
        }
        if mounts.iter().any(|mount| mount.mount_path == place) {
            errors.invalid(&at, place, "must not already exist as a path in volumeMounts");
        }
    }
}

/// The name of a ConfigMap or Secret that something refers to.
pub(crate) fn reference(value: &str, path: &Path, errors: &mut Errors) {
    need(value, path, errors);
    if !value.is_empty() {
        name(value, names::dns_subdomain, path, errors);
    }
}
