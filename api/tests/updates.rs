//! What may change of an object that is there, and what follows from the change.

mod common;

use common::create;
use flotilla_api::admit::{self, Subresource, UnknownFields};
use flotilla_api::{Registry, Status};
use serde_json::{Value, json};

fn stored(manifest: &Value) -> Value {
    create(&manifest.to_string()).unwrap().object
}

fn update(old: &Value, change: impl FnOnce(&mut Value)) -> Result<Value, Status> {
    update_part(old, Subresource::None, change)
}

fn update_part(old: &Value, part: Subresource, change: impl FnOnce(&mut Value)) -> Result<Value, Status> {
    let mut new = old.clone();
    change(&mut new);
    let text = |field: &str| old[field].as_str().unwrap();
    let kind = Registry::builtin().of_object(text("apiVersion"), text("kind")).unwrap();
    admit::prepare_update(&kind, old, new, part, UnknownFields::Refuse).map(|updated| updated.object)
}

fn pod(spec: Value) -> Value {
    let mut spec = spec;
    spec["containers"] = json!([{"name": "c", "image": "x"}]);
    stored(&json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"}, "spec": spec}))
}

fn said(result: Result<Value, Status>) -> String {
    result.unwrap_err().message
}

#[test]
fn gates_open_and_none_is_added() {
    let gated = pod(json!({"schedulingGates": [{"name": "x/a"}, {"name": "x/b"}]}));
    let condition = &gated["status"]["conditions"][0];
    assert_eq!((&condition["type"], &condition["reason"]), (&json!("PodScheduled"), &json!("SchedulingGated")));
    let half = update(&gated, |pod| pod["spec"]["schedulingGates"] = json!([{"name": "x/b"}])).unwrap();
    let free = update(&half, |pod| _ = pod["spec"].as_object_mut().unwrap().remove("schedulingGates")).unwrap();
    let more = update(&half, |pod| pod["spec"]["schedulingGates"] = json!([{"name": "x/b"}, {"name": "x/c"}]));
    let words =
        "spec.schedulingGates[1].name: Forbidden: only deletion is allowed, but found new scheduling gate 'x/c'";
    assert!(said(more).ends_with(words));
    assert!(
        said(update(&free, |pod| pod["spec"]["schedulingGates"] = json!([{"name": "x/a"}]))).contains("only deletion")
    );
}

#[test]
fn a_gated_pod_is_sent_to_fewer_nodes_only() {
    let terms = |expressions: Value| {
        json!({"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
        {"nodeSelectorTerms": [{"matchExpressions": expressions}]}}})
    };
    let (one, two) = (json!({"key": "a", "operator": "Exists"}), json!({"key": "b", "operator": "Exists"}));
    let gates = json!([{"name": "x/a"}]);
    let gated = pod(json!({"schedulingGates": gates, "nodeSelector": {"k": "v"}, "affinity": terms(json!([one]))}));
    let narrow = |pod: &mut Value| {
        pod["spec"]["nodeSelector"]["more"] = json!("v");
        pod["spec"]["affinity"] = terms(json!([one, two]));
    };
    update(&gated, narrow).unwrap();
    let selector = update(&gated, |pod| pod["spec"]["nodeSelector"] = json!({"k": "w"}));
    assert!(said(selector).contains("only additions to spec.nodeSelector are allowed (no mutations or deletions)"));
    let term = update(&gated, |pod| pod["spec"]["affinity"] = terms(json!([two])));
    assert!(said(term).contains("nodeSelectorTerms[0]: Invalid value"));
    let none = update(&gated, |pod| pod["spec"]["affinity"] = json!({}));
    assert!(said(none).contains("no additions/deletions to non-empty NodeSelectorTerms list are allowed"));
    let plain = pod(json!({"schedulingGates": gates}));
    update(&plain, |pod| pod["spec"]["affinity"] = terms(json!([one]))).unwrap();
    assert!(said(update(&pod(json!({})), narrow)).contains("pod updates may not change fields other than"));
}

#[test]
fn tolerations_are_added_and_change_in_their_seconds_only() {
    let old = pod(
        json!({"tolerations": [{"key": "a", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 9}]}),
    );
    let changed = |field: &'static str, value: Value| {
        update(&old, |pod| {
            pod["spec"]["tolerations"][0][field] = value;
            pod["spec"]["tolerations"].as_array_mut().unwrap().push(json!({"key": "b", "operator": "Exists"}));
        })
    };
    changed("tolerationSeconds", json!(60)).unwrap();
    let words = "spec.tolerations: Forbidden: existing toleration can not be modified except its tolerationSeconds";
    assert!(said(changed("key", json!("c"))).ends_with(words));
}

#[test]
fn a_pod_with_an_added_container_is_changed_like_any_other() {
    let old = pod(json!({}));
    let container = json!({"name": "d", "image": "busybox",
        "env": [{"name": "N", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]});
    let added = update_part(&old, Subresource::EphemeralContainers, |pod| {
        pod["spec"]["ephemeralContainers"] = json!([container]);
    });
    update(&added.unwrap(), |pod| pod["metadata"]["labels"] = json!({"a": "b"})).unwrap();
}

#[test]
fn a_service_keeps_its_ports_by_their_names() {
    let spec = json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081,
        "ports": [{"name": "a", "port": 80, "nodePort": 30080}, {"name": "b", "port": 81, "nodePort": 30082}]});
    let old = stored(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}));
    let with = |ports: Value| {
        update(&old, |service| {
            service["spec"]["ports"] = ports;
            service["spec"].as_object_mut().unwrap().remove("healthCheckNodePort");
        })
    };
    let kept = with(json!([{"name": "b", "port": 8081}, {"name": "c", "port": 80}])).unwrap();
    assert_eq!(kept["spec"]["ports"][0]["nodePort"], 30082);
    assert_eq!(kept["spec"]["ports"][1].get("nodePort"), None);
    assert_eq!(kept["spec"]["healthCheckNodePort"], 30081);
    let swapped = with(json!([{"name": "a", "port": 80}, {"name": "b", "port": 81, "nodePort": 30080}])).unwrap();
    assert_eq!(swapped["spec"]["ports"][0].get("nodePort"), None);
    let moved = update(&old, |service| service["spec"]["healthCheckNodePort"] = json!(30083));
    assert!(said(moved).contains("spec.healthCheckNodePort: Forbidden: field is immutable"));
}

#[test]
fn a_service_that_becomes_another_name_has_no_address() {
    let spec = json!({"type": "NodePort", "clusterIP": "10.96.0.7", "ports": [{"port": 80, "nodePort": 30080}]});
    let old = stored(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}));
    for clears in [false, true] {
        let named = update(&old, |service| {
            service["spec"]["type"] = json!("ExternalName");
            service["spec"]["externalName"] = json!("example.com");
            if clears {
                service["spec"].as_object_mut().unwrap().remove("clusterIP");
            }
        });
        let spec = named.unwrap()["spec"].clone();
        for field in ["clusterIP", "clusterIPs", "ipFamilies", "ipFamilyPolicy", "internalTrafficPolicy"] {
            assert_eq!(spec.get(field), None, "{field} {clears}");
        }
        assert_eq!(spec["ports"][0].get("nodePort"), None);
    }
}

#[test]
fn a_service_changes_its_type_and_keeps_nothing_of_the_old_one() {
    let service = |spec: Value| {
        let mut spec = spec;
        spec["ports"] = json!([{"port": 80, "nodePort": 30080}]);
        stored(&json!({"apiVersion": "v1", "kind": "Service", "metadata": {"name": "a"}, "spec": spec}))
    };
    for spec in [
        json!({"type": "NodePort"}),
        json!({"type": "LoadBalancer", "externalTrafficPolicy": "Local", "healthCheckNodePort": 30081, "loadBalancerClass": "x/y"}),
    ] {
        let inner = update(&service(spec), |service| service["spec"]["type"] = json!("ClusterIP")).unwrap();
        let left = |field: &str| inner["spec"].get(field).cloned();
        for field in
            ["externalTrafficPolicy", "healthCheckNodePort", "allocateLoadBalancerNodePorts", "loadBalancerClass"]
        {
            assert_eq!(left(field), None, "{field}");
        }
        assert_eq!(inner["spec"]["ports"][0].get("nodePort"), None);
    }
    let other = update(&service(json!({"type": "NodePort"})), |service| {
        service["spec"]["type"] = json!("ClusterIP");
        service["spec"]["ports"][0]["nodePort"] = json!(30099);
    });
    assert!(said(other).contains("spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'"));
}

#[test]
fn the_pods_of_a_suspended_job_are_marked_anew() {
    let job = |suspend: bool| {
        stored(&json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "a"}, "spec": {"suspend": suspend,
            "template": {"spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "x"}]}}}}))
    };
    let mark = |job: &mut Value| {
        job["spec"]["template"]["metadata"]["labels"]["queue"] = json!("q");
        job["spec"]["template"]["metadata"]["annotations"] = json!({"a": "b"});
    };
    update(&job(true), mark).unwrap();
    assert!(said(update(&job(false), mark)).contains("field is immutable"));
}

#[test]
fn a_pod_speaks_for_its_containers() {
    let class = |resources: Value| pod(json!({"resources": resources}))["status"]["qosClass"].clone();
    assert_eq!(class(json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
    assert_eq!(class(json!({"requests": {"cpu": "1"}})), "Burstable");
    assert_eq!(class(json!({})), "BestEffort");
}

#[test]
fn an_object_of_the_cluster_is_in_no_namespace_whatever_is_said() {
    let class = json!({"apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "value": 1,
        "metadata": {"name": "a", "namespace": "x"}});
    let old = stored(&class);
    assert!(old["metadata"].get("namespace").is_none());
    let new = update(&old, |class| class["metadata"]["namespace"] = json!("y")).unwrap();
    assert_eq!(new, old);
}

#[test]
fn the_base_of_a_name_is_the_writers() {
    let old = stored(&json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"generateName": "a-"}}));
    let new = update(&old, |map| map["metadata"]["generateName"] = json!("b-")).unwrap();
    assert_eq!((&new["metadata"]["generateName"], &new["metadata"]["name"]), (&json!("b-"), &old["metadata"]["name"]));
}
