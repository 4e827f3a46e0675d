//! What is refused in the details of objects, and what is not.

use rand::SeedableRng;
use rand::rngs::StdRng;

use crate::admit::{self, Create, Prepared, UnknownFields};
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
