//! What a namespace's policies write into pods, refuse, and charge.

mod common;

use common::create;
use flotilla_api::admit::{Policies, Quota};
use flotilla_api::k8s_openapi::api::core::v1::ResourceQuota;
use flotilla_api::kinds::Builtin;
use flotilla_api::{Change, Expect, GroupResource, Key};
use serde_json::{Value, json};

fn pod(resources: &str) -> Value {
    let manifest = format!(
        "apiVersion: v1\nkind: Pod\nmetadata: {{name: a}}\nspec: {{containers: [{{name: c, image: x, resources: {resources}}}]}}"
    );
    create(&manifest).unwrap().object
}

fn quota(status: Value) -> Quota {
    let spec = json!({"hard": status["hard"]});
    let object: ResourceQuota = serde_json::from_value(
        json!({"metadata": {"name": "q", "namespace": "default"}, "spec": spec, "status": status}),
    )
    .unwrap();
    let key = Key::new(&Builtin::ResourceQuota.collection(), "default", "q");
    Quota { key, revision: 7, object, charged: false }
}

fn pods() -> GroupResource {
    GroupResource::new("", "pods")
}

fn ranges(limits: Value) -> Policies {
    let range = serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": {"limits": [limits]}})).unwrap();
    Policies { limit_ranges: vec![range], ..Policies::default() }
}

#[test]
fn a_limit_range_gives_what_is_not_said() {
    let policies = ranges(json!({"type": "Container", "default": {"cpu": "1"}, "defaultRequest": {"cpu": "500m"}}));
    let mut object = pod("{}");
    policies.admit(&pods(), &mut object).unwrap();
    let resources = &object["spec"]["containers"][0]["resources"];
    assert_eq!(*resources, json!({"limits": {"cpu": "1"}, "requests": {"cpu": "500m"}}));
    let note = &object["metadata"]["annotations"]["kubernetes.io/limit-ranger"];
    assert_eq!(*note, json!("LimitRanger plugin set: cpu request for container c; cpu limit for container c"));
    assert_eq!((&object["status"]["qosClass"], &object["spec"]["priority"]), (&json!("Burstable"), &json!(0)));
    // A default that does not go with what the pod says.
    let refused = policies.admit(&pods(), &mut pod("{requests: {cpu: 2}}")).unwrap_err();
    assert!(refused.message.contains("must be less than or equal to cpu limit of 1"), "{refused}");
}

#[test]
fn a_limit_range_refuses_in_upstreams_words() {
    let table = [
        (
            json!({"type": "Container", "min": {"cpu": "100m"}}),
            "{requests: {cpu: 50m}}",
            "minimum cpu usage per Container is 100m, but request is 50m",
        ),
        (
            json!({"type": "Container", "min": {"cpu": "100m"}}),
            "{}",
            "minimum cpu usage per Container is 100m.  No request is specified",
        ),
        (
            json!({"type": "Container", "max": {"memory": "1Gi"}}),
            "{limits: {memory: 2Gi}}",
            "maximum memory usage per Container is 1Gi, but limit is 2Gi",
        ),
        (
            json!({"type": "Pod", "max": {"cpu": "1"}}),
            "{limits: {cpu: 2}}",
            "maximum cpu usage per Pod is 1, but limit is 2",
        ),
        (
            json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}}),
            "{requests: {cpu: 1}, limits: {cpu: 3}}",
            "cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000",
        ),
    ];
    for (limits, resources, words) in table {
        let refused = ranges(limits).admit(&pods(), &mut pod(resources)).unwrap_err();
        assert_eq!(refused.message, format!("pods \"a\" is forbidden: {words}"));
    }
}

#[test]
fn a_quota_is_charged_with_the_object_and_at_its_revision() {
    let hard = json!({"pods": "2", "requests.cpu": "1"});
    let mut policies = Policies {
        quotas: vec![quota(json!({"hard": hard, "used": {"pods": "1", "requests.cpu": "500m"}}))],
        ..Policies::default()
    };
    policies.charge(&pods(), None, &pod("{requests: {cpu: 300m}}")).unwrap();
    let change = policies.write(Change::new("u", "m")).unwrap();
    assert_eq!(change.writes.len(), 1);
    assert_eq!(change.preconditions.len(), 1);
    assert_eq!(change.preconditions[0].expect, Expect::ModRevision(7));
    let used = policies.quotas[0].object.status.as_ref().unwrap().used.as_ref().unwrap();
    assert_eq!((used["pods"].0.as_str(), used["requests.cpu"].0.as_str()), ("2", "800m"));
    let refused = policies.charge(&pods(), None, &pod("{requests: {cpu: 300m}}")).unwrap_err();
    assert_eq!(
        refused.message,
        "pods \"a\" is forbidden: exceeded quota: q, requested: pods=1,requests.cpu=300m, used: pods=2,requests.cpu=800m, \
         limited: pods=2,requests.cpu=1"
    );
}

#[test]
fn what_a_quota_limits_must_be_said_and_be_known() {
    let with = |status: Value| Policies { quotas: vec![quota(status)], ..Policies::default() };
    let mut silent = with(json!({"hard": {"limits.cpu": "1"}, "used": {"limits.cpu": "0"}}));
    let refused = silent.charge(&pods(), None, &pod("{}")).unwrap_err();
    assert_eq!(refused.message, "pods \"a\" is forbidden: failed quota: q: must specify limits.cpu for: c");
    let mut unknown = with(json!({"hard": {"configmaps": "1"}}));
    let map = json!({"metadata": {"name": "m"}});
    let refused = unknown.charge(&GroupResource::new("", "configmaps"), None, &map).unwrap_err();
    assert_eq!(refused.message, "configmaps \"m\" is forbidden: status unknown for quota: q, resources: configmaps");
    let mut counted = with(json!({"hard": {"count/deployments.apps": "1"}, "used": {"count/deployments.apps": "1"}}));
    let refused = counted.charge(&GroupResource::new("apps", "deployments"), None, &map).unwrap_err();
    assert!(refused.message.contains("exceeded quota: q, requested: count/deployments.apps=1"), "{refused}");
    counted.charge(&GroupResource::new("apps", "replicasets"), None, &map).unwrap();
    assert!(!counted.quotas[0].charged);
}

#[test]
fn a_service_that_opens_ports_on_nodes_is_charged_for_them() {
    let mut policies = Policies {
        quotas: vec![quota(json!({"hard": {"services.nodeports": "1"}, "used": {"services.nodeports": "0"}}))],
        ..Policies::default()
    };
    let service = |type_: &str| json!({"metadata": {"name": "s"}, "spec": {"type": type_, "ports": [{"port": 80}, {"port": 81}]}});
    let services = GroupResource::new("", "services");
    policies.charge(&services, None, &service("ClusterIP")).unwrap();
    let refused = policies.charge(&services, Some(&service("ClusterIP")), &service("NodePort")).unwrap_err();
    assert!(refused.message.contains("requested: services.nodeports=2, used: services.nodeports=0"), "{refused}");
}
