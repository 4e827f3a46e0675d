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
fn sources_of_volumes() {
    let volume = |source: &str| pod(&format!("volumes: [{{name: v, {source}}}]"));
    let missing = |source: &str, fields: &[&str]| {
        let words: Vec<String> =
            fields.iter().map(|field| format!("spec.volumes[0].{source}.{field}: Required value")).collect();
        match words.as_slice() {
            [one] => one.clone(),
            more => format!("[{}]", more.join(", ")),
        }
    };
    let empty = [
        ("awsElasticBlockStore", &["volumeID"][..]),
        ("azureFile", &["secretName", "shareName"]),
        ("cephfs", &["monitors"]),
        ("cinder", &["volumeID"]),
        ("flexVolume", &["driver"]),
        ("gitRepo", &["repository"]),
        ("glusterfs", &["endpoints", "path"]),
        ("photonPersistentDisk", &["pdID"]),
        ("portworxVolume", &["volumeID"]),
        ("rbd", &["monitors", "image"]),
        ("scaleIO", &["gateway", "system", "volumeName"]),
        ("storageos", &["volumeName"]),
        ("vsphereVolume", &["volumePath"]),
        ("ephemeral", &["volumeClaimTemplate"]),
    ];
    for (source, fields) in empty {
        check(&[(volume(&format!("{source}: {{}}")), &missing(source, fields))]);
    }
    check(&[
        (volume("gcePersistentDisk: {}"), &missing("persistentDisk", &["pdName"])),
        (
            volume("gcePersistentDisk: {pdName: d, partition: 256}"),
            "spec.volumes[0].persistentDisk.partition: Invalid value: 256: must be between 1 and 255, inclusive",
        ),
        (
            volume("azureDisk: {diskName: d, diskURI: 'http://x'}"),
            "spec.volumes[0].azureDisk.diskURI: Unsupported value: \"http://x\": supported values: \
             \"https://{account-name}.blob.core.windows.net/{container-name}/{disk-name}.vhd\"",
        ),
        (
            volume("fc: {}"),
            "spec.volumes[0].fc.targetWWNs: Required value: must specify either targetWWNs or wwids, but not both",
        ),
        (
            volume("fc: {targetWWNs: [a]}"),
            "spec.volumes[0].fc.lun: Required value: lun is required if targetWWNs is specified",
        ),
        (volume("fc: {wwids: [a]}"), ""),
        (
            volume("flexVolume: {driver: d, options: {a.k8s.io/b: c}}"),
            "spec.volumes[0].flexVolume.options[a.k8s.io/b]: Invalid value: \"a.k8s.io/b\": kubernetes.io and k8s.io \
             namespaces are reserved",
        ),
        (
            volume("flocker: {}"),
            "spec.volumes[0].flocker: Required value: one of datasetName and datasetUUID is required",
        ),
        (
            volume("gitRepo: {repository: r, directory: ../x}"),
            "spec.volumes[0].gitRepo.directory: Invalid value: \"../x\": must not contain '..'",
        ),
        (
            volume("quobyte: {registry: here, volume: v}"),
            "spec.volumes[0].quobyte.registry: Invalid value: \"here\": must be a host:port pair or multiple pairs \
             separated by commas",
        ),
        (volume("iscsi: {targetPortal: p, iqn: 'iqn.2001-04.com.example:disk', lun: 0}"), ""),
        (
            volume("iscsi: {targetPortal: p, iqn: disk, lun: 300}"),
            "[spec.volumes[0].iscsi.iqn: Invalid value: \"disk\": must be valid format starting with iqn, eui, or naa, \
             spec.volumes[0].iscsi.lun: Invalid value: 300: must be between 0 and 255, inclusive]",
        ),
        (
            volume("iscsi: {targetPortal: p, iqn: 'iqn.2001', lun: 0}"),
            "spec.volumes[0].iscsi.iqn: Invalid value: \"iqn.2001\": must be valid format",
        ),
        (
            volume("emptyDir: {sizeLimit: '-1'}"),
            "spec.volumes[0].emptyDir.sizeLimit: Forbidden: SizeLimit field must be a valid resource quantity",
        ),
        (
            volume("ephemeral: {volumeClaimTemplate: {spec: {}}}"),
            "[spec.volumes[0].ephemeral.volumeClaimTemplate.spec.accessModes: Required value: at least 1 access mode is \
             required, spec.volumes[0].ephemeral.volumeClaimTemplate.spec.resources[storage]: Required value]",
        ),
    ]);
    let message = create(&volume("csi: {driver: A_}")).unwrap_err().message;
    assert!(message.contains("spec.volumes[0].csi.driver: Invalid value: \"A_\": a lowercase RFC 1123"), "{message}");
}

#[test]
fn persistent_volumes() {
    let volume = |fields: &str| {
        object(
            "PersistentVolume",
            &format!("spec: {{accessModes: [ReadWriteOnce], capacity: {{storage: 1Gi}}, {fields}}}"),
        )
    };
    let affinity = "spec.nodeAffinity.required";
    check(&[
        (
            volume("cinder: {secretRef: {}}"),
            "[spec.cinder.volumeID: Required value, spec.cinder.secretRef.name: Required value, spec.cinder.secretRef.namespace: Required value]",
        ),
        (volume("csi: {driver: d}"), "spec.csi.volumeHandle: Required value"),
        (
            volume("iscsi: {targetPortal: p, iqn: disk, lun: 0}"),
            "spec.iscsi.iqn: Invalid value: \"disk\": must be valid format",
        ),
        (
            volume("hostPath: {path: /a}, nodeAffinity: {}"),
            &format!("{affinity}: Required value: must specify required node constraints"),
        ),
        (
            volume("hostPath: {path: /a}, nodeAffinity: {required: {nodeSelectorTerms: []}}"),
            &format!("{affinity}.nodeSelectorTerms: Required value: must have at least one node selector term"),
        ),
    ]);
}

#[test]
fn claims() {
    let claim = |fields: &str| {
        object(
            "PersistentVolumeClaim",
            &format!("spec: {{accessModes: [ReadWriteOnce], resources: {{requests: {{storage: 1Gi}}}}, {fields}}}"),
        )
    };
    check(&[
        (claim("dataSource: {kind: Other, name: a}"), ""),
        (
            claim("dataSource: {kind: PersistentVolumeClaim, name: ''}"),
            "[spec.dataSource.name: Required value, spec.dataSourceRef.name: Required value]",
        ),
        (
            claim("dataSourceRef: {kind: '', name: a, apiGroup: b, namespace: c}"),
            "spec.dataSourceRef.kind: Required value",
        ),
        (
            claim("dataSourceRef: {kind: Other, name: a, namespace: c}"),
            "spec.dataSourceRef: Invalid value: \"Other\": must be 'PersistentVolumeClaim' when referencing the default apiGroup",
        ),
        (
            claim(
                "dataSource: {kind: PersistentVolumeClaim, name: a}, dataSourceRef: {kind: PersistentVolumeClaim, name: b}",
            ),
            "spec: Invalid value: \"spec.dataSource\": must match dataSourceRef",
        ),
    ]);
    let filled = |fields: &str| create(&claim(fields)).unwrap().object["spec"].clone();
    for field in ["dataSource", "dataSourceRef"] {
        let spec = filled(&format!("{field}: {{kind: PersistentVolumeClaim, name: b}}"));
        assert_eq!((&spec["dataSource"], &spec["dataSource"]["name"]), (&spec["dataSourceRef"], &json!("b")));
    }
    assert!(filled("dataSource: {kind: Other, name: a}").get("dataSource").is_none());
    // One that was stored with one of the fields is bound all the same.
    let manifest = claim("dataSource: {kind: PersistentVolumeClaim, name: b}");
    let bound = changed(&manifest, Subresource::None, |old, new| {
        old["spec"].as_object_mut().unwrap().remove("dataSourceRef");
        *new = old.clone();
        new["spec"]["volumeName"] = json!("v");
    });
    assert_eq!(bound, "");
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

#[test]
fn what_variables_and_files_refer_to() {
    let from = |source: &str| container(&format!("env: [{{name: A, valueFrom: {source}}}]"));
    let path = "spec.containers[0].env[0].valueFrom";
    let divided = |resource: &str, divisor: &str| {
        from(&format!("{{resourceFieldRef: {{resource: {resource}, divisor: {divisor}}}}}"))
    };
    check(&[
        (divided("limits.cpu", "1m"), ""),
        (divided("limits.memory", "1Mi"), ""),
        (
            divided("limits.cpu", "10m"),
            &format!(
                "{path}.resourceFieldRef.divisor: Invalid value: \"limits.cpu\": only divisor's values 1m and 1 are \
                 supported with the cpu resource"
            ),
        ),
        (
            divided("requests.memory", "2Mi"),
            &format!(
                "{path}.resourceFieldRef.divisor: Invalid value: \"requests.memory\": only divisor's values 1, 1k, 1M, 1G, \
                 1T, 1P, 1E, 1Ki, 1Mi, 1Gi, 1Ti, 1Pi, 1Ei are supported with the memory resource"
            ),
        ),
        (
            from("{fieldRef: {apiVersion: v2, fieldPath: metadata.name}}"),
            &format!(
                "{path}.fieldRef.fieldPath: Invalid value: \"metadata.name\": error converting fieldPath: unsupported pod \
                 version: v2"
            ),
        ),
    ]);
    let message = create(&from("{secretKeyRef: {key: a}}")).unwrap_err().message;
    assert!(message.contains("secretKeyRef.name: Invalid value: \"\": a lowercase RFC 1123 subdomain"), "{message}");
}

#[test]
fn devices() {
    let with = |devices: &str, mounts: &str| {
        object(
            "Pod",
            &format!(
                "spec: {{containers: [{{name: c, image: x, volumeDevices: [{devices}], volumeMounts: [{mounts}]}}], volumes: \
                 [{{name: e}}, {{name: p, persistentVolumeClaim: {{claimName: p}}}}]}}"
            ),
        )
    };
    let at = "spec.containers[0].volumeDevices";
    check(&[
        (with("{name: p, devicePath: /d}", ""), ""),
        (
            with("{name: p, devicePath: /d/../e}", ""),
            &format!("{at}[0].devicePath: Invalid value: \"/d/../e\": can not contain backsteps ('..')"),
        ),
        (
            with("{name: e, devicePath: /d}", ""),
            &format!(
                "{at}[0].name: Invalid value: \"e\": can only use volume source type of PersistentVolumeClaim or Ephemeral \
                 for block mode"
            ),
        ),
        (
            with("{name: p, devicePath: /d}, {name: p, devicePath: /d}", ""),
            &format!(
                "[{at}[1].name: Invalid value: \"p\": must be unique, {at}[1].devicePath: Invalid value: \"/d\": must be unique]"
            ),
        ),
        (
            with("{name: p, devicePath: /d}", "{name: p, mountPath: /d}"),
            &format!(
                "[spec.containers[0].volumeMounts[0].name: Invalid value: \"p\": must not already exist in volumeDevices, \
                 spec.containers[0].volumeMounts[0].mountPath: Invalid value: \"/d\": must not already exist as a path in \
                 volumeDevices, {at}[0].name: Invalid value: \"p\": must not already exist in volumeMounts, \
                 {at}[0].devicePath: Invalid value: \"/d\": must not already exist as a path in volumeMounts]"
            ),
        ),
    ]);
}

#[test]
fn search_paths() {
    let searches = |paths: &str| pod(&format!("dnsConfig: {{searches: [{paths}]}}"));
    check(&[
        (searches("a.b, a.b., ., _tcp.a_b.c"), ""),
        (
            searches("a, B"),
            "spec.dnsConfig.searches[1]: Invalid value: \"B\": a lowercase RFC 1123 subdomain must consist of lower case \
             alphanumeric characters, '_', '-' or '.', and must start and end with an alphanumeric character (e.g. \
             'example.com', regex used for validation is \
             '_?[a-z0-9]([-_a-z0-9]*[a-z0-9])?(\\._?[a-z0-9]([-_a-z0-9]*[a-z0-9])?)*')",
        ),
        (pod("dnsPolicy: None"), "spec.dnsConfig: Required value: must provide `dnsConfig` when `dnsPolicy` is None"),
        (
            pod("dnsPolicy: None, dnsConfig: {}"),
            "spec.dnsConfig.nameservers: Required value: must provide at least one DNS nameserver when `dnsPolicy` is None",
        ),
    ]);
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
fn statuses() {
    let address = "must be a valid IP address, (e.g. 10.9.8.7 or 2001:db8::ffff)";
    let service = object("Service", "spec: {type: LoadBalancer, ports: [{port: 80}]}");
    let claim =
        object("PersistentVolumeClaim", "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}");
    let here = json!({"type": "InternalIP", "address": "10.0.0.1"});
    let table = [
        (pod(""), json!({"podIP": "10.0.0.1"}), String::new()),
        (pod(""), json!({"podIP": "x"}), format!("status.podIPs[0]: Invalid value: \"x\": {address}")),
        (pod(""), json!({"nominatedNodeName": "A"}), "status.nominatedNodeName: Invalid value: \"A\"".to_owned()),
        (
            pod(""),
            json!({"conditions": [{"type": "a b", "status": "True"}]}),
            "metadata.conditions[0].Type: Invalid value: \"a b\"".to_owned(),
        ),
        (
            service.clone(),
            json!({"loadBalancer": {"ingress": [{"ip": "x"}]}}),
            format!("status.loadBalancer.ingress[0].ip: Invalid value: \"x\": {address}"),
        ),
        (
            service,
            json!({"loadBalancer": {"ingress": [{"hostname": "10.0.0.1"}]}}),
            "status.loadBalancer.ingress[0].hostname: Invalid value: \"10.0.0.1\": must be a DNS name, not an IP address"
                .to_owned(),
        ),
        (
            object("Node", "spec: {}"),
            json!({"addresses": [here, here]}),
            "status.addresses[1]: Duplicate value: {\"address\":\"10.0.0.1\",\"type\":\"InternalIP\"}".to_owned(),
        ),
        (
            object("Node", "spec: {}"),
            json!({"capacity": {"cpu": "-1"}}),
            "status.capacity.cpu: Invalid value: \"-1\": must be greater than or equal to 0".to_owned(),
        ),
        (
            claim,
            json!({"capacity": {"storage": "-1"}}),
            "status.capacity[storage]: Invalid value: -1: must be a valid resource quantity".to_owned(),
        ),
        (
            object("Namespace", "spec: {}"),
            json!({"phase": "Terminating"}),
            "status.Phase: Invalid value: \"Terminating\": may only be 'Active' if `deletionTimestamp` is empty".to_owned(),
        ),
    ];
    for (manifest, status, expected) in table {
        let said = changed(&manifest, Subresource::Status, |_, new| new["status"] = status.clone());
        assert!(said.starts_with(&expected) && said.is_empty() == expected.is_empty(), "{said}");
    }
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
fn a_cron_job_leaves_the_selector_to_its_jobs() {
    let job = |fields: &str| {
        format!(
            "{{apiVersion: batch/v1, kind: CronJob, metadata: {{name: a}}, spec: {{schedule: '* * * * *', jobTemplate: {{spec: \
             {{{fields}, template: {{spec: {{restartPolicy: Never, containers: [{{name: c, image: x}}]}}}}}}}}}}}}"
        )
    };
    check(&[
        (
            job("selector: {matchLabels: {a: b}}"),
            "spec.jobTemplate.spec.selector: Invalid value: {\"matchLabels\":{\"a\":\"b\"}}: `selector` will be auto-generated",
        ),
        (
            job("manualSelector: true"),
            "spec.jobTemplate.spec.manualSelector: Unsupported value: true: supported values: \"nil\", \"false\"",
        ),
    ]);
}

#[test]
fn classes_of_storage() {
    let class = |fields: &str| {
        format!(
            "{{apiVersion: storage.k8s.io/v1, kind: StorageClass, metadata: {{name: a}}, provisioner: a.b/c, {fields}}}"
        )
    };
    let many: Vec<String> = (0..513).map(|i| format!("a{i}: b")).collect();
    check(&[
        (class("parameters: {'': a}"), "parameters: Invalid value: \"\": field can not be empty."),
        (
            class(&format!("parameters: {{{}}}", many.join(", "))),
            "parameters: Too long: may not be more than 512 bytes",
        ),
        (
            class("allowedTopologies: [{matchLabelExpressions: [{key: a, values: []}, {key: a, values: [b, b]}]}]"),
            "[allowedTopologies[0].matchLabelExpressions[0].values: Required value, \
             allowedTopologies[0].matchLabelExpressions[1].values[1]: Duplicate value: \"b\", \
             allowedTopologies[0].matchLabelExpressions[1].key: Duplicate value: \"a\"]",
        ),
    ]);
    let message =
        create(&class("allowedTopologies: [{matchLabelExpressions: [{key: '', values: [a]}]}]")).unwrap_err().message;
    assert!(
        message.contains("matchLabelExpressions[0].key: Invalid value: \"\": name part must be non-empty"),
        "{message}"
    );
}

#[test]
fn services_and_endpoints() {
    check(&[(
        object("Service", "spec: {clusterIPs: [10.0.0.1], ports: [{port: 80}]}"),
        "spec.clusterIPs: Invalid value: [\"10.0.0.1\"]: must be empty when `clusterIP` is not specified",
    )]);
    let endpoints =
        object("Endpoints", "subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80, appProtocol: a b}]}]");
    let message = create(&endpoints).unwrap_err().message;
    assert!(message.contains("subsets[0].ports[0].appProtocol: Invalid value: \"a b\""), "{message}");
    let families = |fields: &str| {
        let spec =
            create(&object("Service", &format!("spec: {{clusterIP: None, {fields}}}"))).unwrap().object["spec"].clone();
        (spec["ipFamilies"].clone(), spec["ipFamilyPolicy"].clone())
    };
    assert_eq!(families(""), (json!(["IPv4", "IPv6"]), json!("RequireDualStack")));
    assert_eq!(families("ipFamilyPolicy: SingleStack"), (json!(["IPv4"]), json!("SingleStack")));
    assert_eq!(families("selector: {a: b}"), (json!(["IPv4"]), json!("SingleStack")));
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

#[test]
fn hosts_and_backends_of_ingresses() {
    let ingress = |spec: &str| {
        format!("{{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {{name: a}}, spec: {{{spec}}}}}")
    };
    let wildcard = |host: &str| {
        format!(
            "spec.rules[0].host: Invalid value: \"{host}\": a wildcard DNS-1123 subdomain must start with '*.', followed by a \
             valid DNS subdomain, which must consist of lower case alphanumeric characters, '-' or '.' and end with an \
             alphanumeric character (e.g. '*.example.com', regex used for validation is \
             '\\*\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')"
        )
    };
    check(&[
        (ingress("rules: [{host: '*.a'}]"), ""),
        (ingress("rules: [{host: '*'}]"), &wildcard("*")),
        (ingress("rules: [{host: a.*.b}]"), &wildcard("a.*.b")),
        (
            ingress("defaultBackend: {}"),
            "spec.defaultBackend: Invalid value: \"\": resource or service backend is required",
        ),
    ]);
}
