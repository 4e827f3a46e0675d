//! Which StorageClass a claim gets that names none.
//!
//! Defined by upstream's admission plugin `DefaultStorageClass`.

use std::cmp::Reverse;

use k8s_openapi::api::core::v1::PersistentVolumeClaim;
use k8s_openapi::api::storage::v1::StorageClass;

const DEFAULT: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
/// How claims named their class once.
const BETA_CLASS: &str = "volume.beta.kubernetes.io/storage-class";

/// Gives a claim the default class, if it leaves the choice and there is one. Of several the newest counts.
pub(super) fn apply(claim: &mut PersistentVolumeClaim, classes: &[StorageClass]) {
    let names_one = claim.spec.as_ref().is_some_and(|spec| spec.storage_class_name.is_some())
        || claim.metadata.annotations.as_ref().is_some_and(|all| all.contains_key(BETA_CLASS));
    if names_one {
        return;
    }
    let is_default = |class: &&StorageClass| {
        let annotations = class.metadata.annotations.as_ref();
        annotations.is_some_and(|all| DEFAULT.iter().any(|name| all.get(*name).is_some_and(|value| value == "true")))
    };
    let age = |class: &&StorageClass| {
        (Reverse(class.metadata.creation_timestamp.as_ref().map(|time| time.0)), class.metadata.name.clone())
    };
    if let Some(class) = classes.iter().filter(is_default).min_by_key(age) {
        claim.spec.get_or_insert_default().storage_class_name = class.metadata.name.clone();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_newest_default_is_for_who_leaves_the_choice() {
        let class = |name: &str, hour: u8, default: &str| {
            json!({"metadata": {"name": name, "creationTimestamp": format!("2026-01-01T{hour:02}:00:00Z"),
                "annotations": {"storageclass.kubernetes.io/is-default-class": default}}, "provisioner": "p"})
        };
        let classes: Vec<StorageClass> = serde_json::from_value(json!([
            class("old", 1, "true"),
            class("new-b", 2, "true"),
            class("new-a", 2, "true"),
            class("newest", 3, "false")
        ]))
        .unwrap();
        let given = |claim: serde_json::Value| {
            let mut claim: PersistentVolumeClaim = serde_json::from_value(claim).unwrap();
            apply(&mut claim, &classes);
            claim.spec.unwrap_or_default().storage_class_name
        };
        assert_eq!(given(json!({"spec": {}})).as_deref(), Some("new-a"));
        assert_eq!(given(json!({"spec": {"storageClassName": ""}})).as_deref(), Some(""));
        assert_eq!(given(json!({"metadata": {"annotations": {BETA_CLASS: "x"}}, "spec": {}})), None);
    }
}
