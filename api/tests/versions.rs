//! Old versions: what a manifest of one comes to, and how what is stored reads in it.

mod common;

use std::sync::Arc;

use common::{create, request, rng};
use flotilla_api::admit::{self, Subresource, UnknownFields};
use flotilla_api::{Kind, Registry};
use serde_json::{Value, json};

const NGINX: &str = "
apiVersion: extensions/v1beta1
kind: Deployment
metadata:
  name: my-nginx
spec:
  replicas: 6
  template:
    metadata:
      labels:
        run: my-nginx
    spec:
      containers:
      - name: my-nginx
        image: nginx
        ports:
        - containerPort: 80
";

fn kind(api_version: &str, kind: &str) -> Arc<Kind> {
    Registry::builtin().of_object(api_version, kind).unwrap()
}

/// What a manifest is stored as.
fn stored(manifest: &str) -> Value {
    create(manifest).unwrap_or_else(|status| panic!("{status}")).object
}

#[test]
fn the_first_deployment_that_everybody_wrote() {
    let prepared = create(NGINX).unwrap();
    assert_eq!(prepared.key.to_string(), "apps/deployments/default/my-nginx");
    let object = prepared.object;
    assert_eq!(object["apiVersion"], "apps/v1");
    assert_eq!(object["spec"]["selector"], json!({"matchLabels": {"run": "my-nginx"}}));
    assert_eq!(object["metadata"]["labels"], json!({"run": "my-nginx"}));
    assert_eq!(object["spec"]["strategy"]["rollingUpdate"], json!({"maxSurge": 1, "maxUnavailable": 1}));
    assert_eq!(object["spec"]["progressDeadlineSeconds"], i32::MAX);
    let old = kind("extensions/v1beta1", "Deployment");
    assert_eq!(old.present(object.clone())["apiVersion"], "extensions/v1beta1");
    assert_eq!(old.row(&old.present(object.clone()), common::NOW.parse().unwrap())[..2], ["my-nginx", "0/6"]);
    // Written back as it was read, nothing changes.
    let again =
        admit::prepare_update(&old, &object, old.present(object.clone()), Subresource::None, UnknownFields::Refuse);
    assert!(!again.unwrap().changed);
}

#[test]
fn a_version_that_defaults_no_selector_demands_one() {
    let words = common::refusal(&NGINX.replace("extensions/v1beta1", "apps/v1beta2"));
    assert!(words.contains("spec.selector: Required value"), "{words}");
}

#[test]
fn ingresses_of_old_have_services_in_other_words() {
    let object = stored(
        "
apiVersion: extensions/v1beta1
kind: Ingress
metadata: {name: a}
spec:
  backend: {serviceName: other, servicePort: http}
  rules:
  - host: example.com
    http: {paths: [{path: /x, backend: {serviceName: web, servicePort: 80}}]}
",
    );
    assert_eq!(object["apiVersion"], "networking.k8s.io/v1");
    assert_eq!(object["spec"]["defaultBackend"], json!({"service": {"name": "other", "port": {"name": "http"}}}));
    let path = &object["spec"]["rules"][0]["http"]["paths"][0];
    assert_eq!(path["backend"], json!({"service": {"name": "web", "port": {"number": 80}}}));
    assert_eq!(path["pathType"], "ImplementationSpecific");
    let old = kind("networking.k8s.io/v1beta1", "Ingress").present(object);
    assert_eq!(old["spec"]["backend"], json!({"serviceName": "other", "servicePort": "http"}));
    let path = &old["spec"]["rules"][0]["http"]["paths"][0];
    assert_eq!(path["backend"], json!({"serviceName": "web", "servicePort": 80}));
}

#[test]
fn an_autoscaler_of_one_metric() {
    let object = stored(
        "
apiVersion: autoscaling/v1
kind: HorizontalPodAutoscaler
metadata: {name: a}
spec: {scaleTargetRef: {apiVersion: apps/v1, kind: Deployment, name: web}, maxReplicas: 5, targetCPUUtilizationPercentage: 50}
",
    );
    let metric = json!({"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 50}}});
    assert_eq!(object["spec"]["metrics"], json!([metric]));
    let old = kind("autoscaling/v1", "HorizontalPodAutoscaler");
    assert_eq!(old.present(object.clone())["spec"]["targetCPUUtilizationPercentage"], 50);
    // What the version has no field for survives in annotations.
    let mut more = object;
    more["spec"]["behavior"] = json!({"scaleDown": {"stabilizationWindowSeconds": 5}});
    more["spec"]["metrics"] =
        json!([metric, {"type": "Pods", "pods": {"metric": {"name": "x"}, "target": {"type": "Value"}}}]);
    let mut there_and_back = old.present(more.clone());
    assert!(there_and_back["spec"].get("metrics").is_none());
    old.to_stored(&mut there_and_back);
    assert_eq!(there_and_back, more);
}

#[test]
fn an_empty_selector_of_an_old_budget_chooses_nobody() {
    let manifest = "apiVersion: policy/v1beta1\nkind: PodDisruptionBudget\nmetadata: {name: a}\nspec: {minAvailable: 1, selector: {}}";
    let object = stored(manifest);
    let none = "pdb.kubernetes.io/deprecated-v1beta1-empty-selector-match";
    assert_eq!(object["spec"]["selector"], json!({"matchExpressions": [{"key": none, "operator": "Exists"}]}));
    let old = kind("policy/v1beta1", "PodDisruptionBudget");
    assert_eq!(old.present(object)["spec"]["selector"], json!({}));
    let all = stored(&manifest.replace("v1beta1", "v1"));
    let shown = json!({"matchExpressions": [{"key": none, "operator": "DoesNotExist"}]});
    assert_eq!(old.present(all)["spec"]["selector"], shown);
}

#[test]
fn events_are_the_same_under_both_groups() {
    let object = stored(
        "
apiVersion: events.k8s.io/v1
kind: Event
metadata: {name: a}
regarding: {kind: Pod, name: web, namespace: default}
eventTime: 2026-01-02T03:04:05.000000Z
note: it works
reason: Started
action: Start
type: Normal
reportingController: example.com/x
reportingInstance: x-1
",
    );
    assert_eq!((&object["apiVersion"], &object["message"]), (&json!("v1"), &json!("it works")));
    assert_eq!(object["involvedObject"]["name"], "web");
    let new = kind("events.k8s.io/v1", "Event");
    let shown = new.present(object.clone());
    assert_eq!((&shown["note"], &shown["regarding"]["name"]), (&json!("it works"), &json!("web")));
    assert!(shown.get("message").is_none() && shown.get("involvedObject").is_none());
    assert_eq!(new.row(&shown, common::NOW.parse().unwrap())[3], "pod/web");
    let fields = flotilla_api::selector::Fields::parse("regarding.name=web").unwrap();
    assert!(new.stored_fields(&fields).matches(&object));
}

#[test]
fn an_old_daemon_set_waits_for_deletion_and_counts_its_templates() {
    let manifest = NGINX.replace("kind: Deployment", "kind: DaemonSet").replace("  replicas: 6\n", "");
    let object = stored(&manifest);
    assert_eq!(object["spec"]["updateStrategy"], json!({"type": "OnDelete"}));
    let old = kind("extensions/v1beta1", "DaemonSet");
    let mut shown = old.present(object.clone());
    assert_eq!(shown["spec"]["templateGeneration"], 1);
    shown["spec"]["template"]["metadata"]["labels"]["more"] = json!("x");
    let updated = admit::prepare_update(&old, &object, shown, Subresource::None, UnknownFields::Refuse).unwrap();
    assert_eq!(old.present(updated.object)["spec"]["templateGeneration"], 2);
}

#[test]
fn no_conversion_panics_on_what_anyone_may_send() {
    let odd = [json!(null), json!(5), json!("x"), json!([]), json!({})];
    let fields =
        ["spec", "status", "metadata", "rules", "backend", "selector", "strategy", "updateStrategy", "template"];
    for kind in Registry::builtin().iter().filter(|kind| kind.stored_as.is_some()) {
        for value in &odd {
            let mut object = json!({"apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "a"}});
            for field in fields {
                object[field] = value.clone();
                let mut inner = object.clone();
                inner["spec"] = json!({});
                for field in fields {
                    inner["spec"][field] = value.clone();
                }
                for object in [&object, &inner] {
                    let mut converted = object.clone();
                    kind.to_stored(&mut converted);
                    _ = kind.present(converted);
                    _ = kind.present(object.clone());
                    _ = admit::prepare_create(kind, object.clone(), request(&mut rng()));
                }
            }
        }
    }
}
