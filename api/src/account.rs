//! What running as a ServiceAccount adds to a pod: its name, a token, the cluster's certificate, pull secrets.
//!
//! Defined by upstream's ServiceAccount admission.

use k8s_openapi::api::core::v1::{
    ConfigMapProjection, Container, DownwardAPIProjection, DownwardAPIVolumeFile, KeyToPath, ObjectFieldSelector,
    PodSpec, ProjectedVolumeSource, ServiceAccount, ServiceAccountTokenProjection, Volume, VolumeMount,
    VolumeProjection,
};

/// The account of pods that name none; each namespace has it.
pub const DEFAULT: &str = "default";
/// The ConfigMap of each namespace that holds the cluster's certificate, and the key that it is under.
pub const ROOT_CA: &str = "kube-root-ca.crt";
pub const ROOT_CA_KEY: &str = "ca.crt";
/// The life that a pod's token is asked for with. It is known by this odd number that nobody asked for it.
pub const TOKEN_SECONDS: i64 = 60 * 60 + 7;

const MOUNT_PATH: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
const VOLUME_PREFIX: &str = "kube-api-access-";
const FILE_MODE: i32 = 0o644;

/// The account that a pod runs as.
pub fn name(spec: &PodSpec) -> &str {
    spec.service_account_name.as_deref().filter(|name| !name.is_empty()).unwrap_or(DEFAULT)
}

/// Makes a new pod, by its namespace and what is known of its name, one of its account. The default account is made soon
/// after its namespace, and again whenever it is gone: until then it says nothing.
///
/// # Errors
/// In upstream's words, that there is no such account.
pub fn admit(
    spec: &mut PodSpec,
    account: Option<&ServiceAccount>,
    suffix: &str,
    (namespace, pod): (&str, &str),
) -> Result<(), String> {
    let name = name(spec).to_owned();
    if account.is_none() && name != DEFAULT {
        return Err(format!(
            "pods \"{pod}\" is forbidden: error looking up service account {namespace}/{name}: serviceaccount \"{name}\" \
             not found"
        ));
    }
    spec.service_account = Some(name.clone());
    spec.service_account_name = Some(name);
    if spec.image_pull_secrets.as_ref().is_none_or(Vec::is_empty) {
        spec.image_pull_secrets = account.and_then(|account| account.image_pull_secrets.clone());
    }
    let wanted = spec.automount_service_account_token;
    let wanted = wanted.or(account.and_then(|account| account.automount_service_account_token));
    if wanted.unwrap_or(true) {
        mount(spec, suffix);
    }
    Ok(())
}

/// Mounts the volume in each container that has nothing in its place.
fn mount(spec: &mut PodSpec, suffix: &str) {
    let volumes = spec.volumes.iter().flatten();
    let existing = volumes.map(|volume| &volume.name).find(|name| name.starts_with(VOLUME_PREFIX)).cloned();
    let name = existing.clone().unwrap_or_else(|| format!("{VOLUME_PREFIX}{suffix}"));
    let mut mounted = false;
    let containers = spec.init_containers.iter_mut().flatten().chain(&mut spec.containers);
    for container in containers.filter(|container| !has_mount(container)) {
        container.volume_mounts.get_or_insert_default().push(VolumeMount {
            name: name.clone(),
            read_only: Some(true),
            mount_path: MOUNT_PATH.into(),
            ..VolumeMount::default()
        });
        mounted = true;
    }
    if mounted && existing.is_none() {
        spec.volumes.get_or_insert_default().push(volume(name));
    }
}

fn has_mount(container: &Container) -> bool {
    container.volume_mounts.iter().flatten().any(|mount| mount.mount_path == MOUNT_PATH)
}

fn volume(name: String) -> Volume {
    let token = VolumeProjection {
        service_account_token: Some(ServiceAccountTokenProjection {
            expiration_seconds: Some(TOKEN_SECONDS),
            path: "token".into(),
            ..ServiceAccountTokenProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let authority = VolumeProjection {
        config_map: Some(ConfigMapProjection {
            name: ROOT_CA.into(),
            items: Some(vec![KeyToPath { key: ROOT_CA_KEY.into(), path: ROOT_CA_KEY.into(), ..KeyToPath::default() }]),
            ..ConfigMapProjection::default()
        }),
        ..VolumeProjection::default()
    };
    let field = ObjectFieldSelector { api_version: Some("v1".into()), field_path: "metadata.namespace".into() };
    let namespace = VolumeProjection {
        downward_api: Some(DownwardAPIProjection {
            items: Some(vec![DownwardAPIVolumeFile {
                path: "namespace".into(),
                field_ref: Some(field),
                ..DownwardAPIVolumeFile::default()
            }]),
        }),
        ..VolumeProjection::default()
    };
    Volume {
        name,
        projected: Some(ProjectedVolumeSource {
            default_mode: Some(FILE_MODE),
            sources: Some(vec![token, authority, namespace]),
            ..ProjectedVolumeSource::default()
        }),
        ..Volume::default()
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn admitted(spec: Value, account: Value) -> PodSpec {
        let mut spec: PodSpec = serde_json::from_value(spec).unwrap();
        let account: ServiceAccount = serde_json::from_value(account).unwrap();
        admit(&mut spec, Some(&account), "abcde", ("a", "p")).unwrap();
        spec
    }

    fn mounts(spec: &PodSpec) -> Vec<&str> {
        let containers = spec.init_containers.iter().flatten().chain(&spec.containers);
        containers.flat_map(|container| container.volume_mounts.iter().flatten()).map(|m| m.name.as_str()).collect()
    }

    #[test]
    fn every_container_gets_the_token_unless_it_has_something_there() {
        let spec = json!({
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "a"}, {"name": "b", "volumeMounts": [{"name": "own", "mountPath": MOUNT_PATH}]}],
        });
        let spec = admitted(spec, json!({"imagePullSecrets": [{"name": "registry"}]}));
        assert_eq!(mounts(&spec), ["kube-api-access-abcde", "kube-api-access-abcde", "own"]);
        assert_eq!(spec.service_account_name.as_deref(), Some("default"));
        assert_eq!(spec.image_pull_secrets.unwrap()[0].name, "registry");
        let sources = spec.volumes.unwrap().remove(0).projected.unwrap().sources.unwrap();
        assert_eq!(sources[0].service_account_token.as_ref().unwrap().path, "token");
        assert_eq!((sources[1].config_map.is_some(), sources[2].downward_api.is_some()), (true, true));
    }

    #[test]
    fn pod_and_account_may_refuse_the_token() {
        let plain = || json!({"containers": [{"name": "a"}]});
        let with = |value: bool| {
            let mut spec = plain();
            spec["automountServiceAccountToken"] = json!(value);
            spec
        };
        let table = [
            (plain(), json!({}), 1),
            (plain(), json!({"automountServiceAccountToken": false}), 0),
            (with(true), json!({"automountServiceAccountToken": false}), 1),
            (with(false), json!({}), 0),
        ];
        for (spec, account, count) in table {
            let found = admitted(spec.clone(), account.clone());
            assert_eq!(mounts(&found).len(), count, "{spec} {account}");
            assert_eq!(found.volumes.iter().flatten().count(), count);
        }
    }

    #[test]
    fn a_pod_that_was_admitted_once_is_left_alone() {
        let once = admitted(json!({"containers": [{"name": "a"}], "serviceAccountName": "bot"}), json!({}));
        let mut twice = once.clone();
        admit(&mut twice, Some(&ServiceAccount::default()), "other", ("a", "p")).unwrap();
        assert_eq!(once, twice);
    }

    #[test]
    fn only_the_default_account_may_be_missing() {
        let mut spec = PodSpec::default();
        assert_eq!(admit(&mut spec, None, "abcde", ("a", "p")), Ok(()));
        spec.service_account_name = Some("bot".into());
        let words = admit(&mut spec, None, "abcde", ("a", "p")).unwrap_err();
        assert_eq!(
            words,
            "pods \"p\" is forbidden: error looking up service account a/bot: serviceaccount \"bot\" not found"
        );
    }
}
