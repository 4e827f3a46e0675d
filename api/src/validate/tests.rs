//! What is refused in the details of objects, and what is not.

use rand::SeedableRng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::admit::{self, Create, Prepared, Subresource, UnknownFields};
use crate::{Registry, Status};

fn create(manifest: &str) -> Result<Prepared, Status> {
    let parsed = admit::parse(manifest.as_bytes(), &Registry::builtin())?.remove(0);
    let now = "2026-01-02T03:04:05Z".parse().unwrap();
    let rng = &mut StdRng::seed_from_u64(7);
    let request = Create { namespace: "", now, rng, unknown_fields: UnknownFields::Refuse };
    admit::prepare_create(&parsed.kind, parsed.object, request)
}

/// What is said beside `Pod "a" is invalid: `; nothing of what is taken.
fn check(table: &[(String, &str)]) {
    for (manifest, expected) in table {
        let said = create(manifest).map_or_else(|status| status.message, |_| String::new());
        let words = said.split_once(" is invalid: ").map_or(said.as_str(), |(_, words)| words);
        assert_eq!(words, *expected, "{manifest}");
    }
}

fn object(kind: &str, fields: &str) -> String {
    format!("{{apiVersion: v1, kind: {kind}, metadata: {{name: a}}, {fields}}}")
}

fn pod(fields: &str) -> String {
    object("Pod", &format!("spec: {{containers: [{{name: c, image: x}}], {fields}}}"))
}

/// A pod whose container has these fields.
fn container(fields: &str) -> String {
    object("Pod", &format!("spec: {{containers: [{{name: c, image: x, {fields}}}]}}"))
}

#[test]
fn a_container_of_a_stateful_set_mounts_its_claims() {
    let set = |mount: &str, volume: &str| {
        format!(
            "{{apiVersion: apps/v1, kind: StatefulSet, metadata: {{name: a}}, spec: {{selector: {{matchLabels: {{app: a}}}}, \
            template: {{metadata: {{labels: {{app: a}}}}, spec: {{containers: [{{name: c, image: x, {mount}}}], volumes: \
            [{volume}]}}}}, volumeClaimTemplates: [{{metadata: {{name: www}}, spec: {{accessModes: [ReadWriteOnce], \
            resources: {{requests: {{storage: 1Gi}}}}}}}}]}}}}"
        )
    };
    let mounts = |name: &str| format!("volumeMounts: [{{name: {name}, mountPath: /v}}]");
    check(&[
        (set(&mounts("www"), ""), ""),
        (set("volumeDevices: [{name: www, devicePath: /dev/x}]", ""), ""),
        (set(&mounts("www"), "{name: www, emptyDir: {}}"), ""),
        (set(&mounts("log"), ""), "spec.template.spec.containers[0].volumeMounts[0].name: Not found: \"log\""),
    ]);
}

#[test]
fn only_a_capability_by_its_whole_name_is_an_escalation() {
    let adds = |capability: &str| {
        container(&format!(
            "securityContext: {{allowPrivilegeEscalation: false, capabilities: {{add: [{capability}]}}}}"
        ))
    };
    check(&[
        (adds("SYS_ADMIN"), ""),
        (
            adds("CAP_SYS_ADMIN"),
            "spec.containers[0].securityContext: Invalid value: \"\": cannot set `allowPrivilegeEscalation` to false and \
             `capabilities.Add` CAP_SYS_ADMIN",
        ),
    ]);
}

#[test]
fn an_event_of_the_core_group_may_be_called_anything() {
    let event = |name: &str| {
        format!(
            "{{apiVersion: v1, kind: Event, metadata: {{name: '{name}'}}, involvedObject: {{kind: Pod, name: p, namespace: \
             default}}}}"
        )
    };
    check(&[
        (event("system:foo.17ab"), ""),
        (event("A b"), ""),
        (event("a/b"), "metadata.name: Invalid value: \"a/b\": may not contain '/'"),
    ]);
    let strict = create(
        "{apiVersion: events.k8s.io/v1, kind: Event, metadata: {name: 'A b'}, eventTime: 2026-01-02T03:04:05.000000Z, type: \
         Normal, reason: r, action: a, reportingController: x.y/z, reportingInstance: i, regarding: {kind: Pod, namespace: \
         default}}",
    );
    let message = strict.unwrap_err().message;
    assert!(message.contains("metadata.name: Invalid value: \"A b\": a lowercase RFC 1123 subdomain"), "{message}");
}

#[test]
fn what_was_stored_without_a_default_may_change() {
    let pod = container("env: [{name: A, valueFrom: {resourceFieldRef: {resource: limits.cpu}}}]");
    let said = changed(&pod, Subresource::None, |old, new| {
        old.pointer_mut("/spec/containers/0/env/0/valueFrom/resourceFieldRef").unwrap()["divisor"].take();
        *new = old.clone();
        new["metadata"]["labels"] = json!({"a": "b"});
    });
    assert_eq!(said, "");
}

/// What is said of a change to an object, or of what it is thought to have been.
fn changed(manifest: &str, subresource: Subresource, change: impl Fn(&mut Value, &mut Value)) -> String {
    let mut old = create(manifest).unwrap().object;
    let mut new = old.clone();
    change(&mut old, &mut new);
    let kind = admit::parse(manifest.as_bytes(), &Registry::builtin()).unwrap().remove(0).kind;
    let said = admit::prepare_update(&kind, &old, new, subresource, UnknownFields::Refuse);
    let message = said.map_or_else(|status| status.message, |_| String::new());
    message.split_once(" is invalid: ").map_or(message.clone(), |(_, words)| words.to_owned())
}

#[test]
fn what_keeps_a_namespace_is_named() {
    let finalize = |names: Value| {
        let namespace = object("Namespace", "spec: {}");
        changed(&namespace, Subresource::Finalize, |_, new| new["spec"]["finalizers"] = names.clone())
    };
    assert_eq!(finalize(json!(["kubernetes", "example.com/a"])), "");
    assert_eq!(
        finalize(json!(["kubernetes", "a"])),
        "spec.finalizers[1]: Invalid value: \"a\": name is neither a standard finalizer name nor is it fully qualified"
    );
}

#[test]
fn metadata() {
    let map = |fields: &str| format!("{{apiVersion: v1, kind: ConfigMap, metadata: {{name: a, {fields}}}}}");
    check(&[
        (map("generation: -1"), "metadata.generation: Invalid value: -1: must be greater than or equal to 0"),
        (
            map("ownerReferences: [{apiVersion: a/b/c, kind: K, name: '', uid: u}]"),
            "[metadata.ownerReferences.apiVersion: Invalid value: \"a/b/c\": version must not be empty, \
             metadata.ownerReferences.name: Invalid value: \"\": name must not be empty]",
        ),
    ]);
    let message = create(&map("finalizers: ['a b/c']")).unwrap_err().message;
    assert!(message.contains("metadata.finalizers: Invalid value: \"a b/c\": prefix part"), "{message}");
}
