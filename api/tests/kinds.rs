//! Every kind: what a short manifest of it becomes, how it reads in a table, and what is refused in which words.

mod common;

use common::{create, object};
use flotilla_api::admit::{self, Subresource, UnknownFields};
use flotilla_api::selector::Fields;
use flotilla_api::{Builtin, Reason, Registry};
use serde_json::{Value, json};

/// A template with one container, and what becomes of it.
const TEMPLATE: &str = "{metadata: {labels: {app: a}}, spec: {containers: [{name: c, image: \"x:1\"}]}}";

fn template() -> Value {
    json!({"metadata": {"labels": {"app": "a"}}, "spec": {
        "containers": [{"name": "c", "image": "x:1", "imagePullPolicy": "IfNotPresent", "resources": {},
            "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File"}],
        "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
        "securityContext": {}, "terminationGracePeriodSeconds": 30}})
}

/// A manifest of this kind, with these fields beside the name `a`.
fn manifest(kind: &str, fields: &str) -> String {
    let kind = Registry::builtin().by_name(kind).unwrap();
    format!("{{apiVersion: {}, kind: {}, metadata: {{name: a}}, {fields}}}", kind.api_version(), kind.kind)
}

fn stored(kind: &str, fields: &str) -> Value {
    create(&manifest(kind, fields)).unwrap_or_else(|status| panic!("{kind}: {status}")).object
}

/// All but what every object has.
fn body(mut object: Value) -> Value {
    let map = object.as_object_mut().unwrap();
    for field in ["apiVersion", "kind", "metadata"] {
        map.remove(field);
    }
    object
}

/// A manifest of each kind that is as short as can be.
fn shortest(kind: Builtin) -> Option<(&'static str, String)> {
    let workload = format!("selector: {{matchLabels: {{app: a}}}}, template: {TEMPLATE}");
    let fields = match kind {
        Builtin::Service => ("services", "spec: {ports: [{port: 80}]}".into()),
        Builtin::Endpoints => ("endpoints", "subsets: [{addresses: [{ip: 10.0.0.1}], ports: [{port: 80}]}]".into()),
        Builtin::ServiceAccount => ("serviceaccounts", String::new()),
        Builtin::ResourceQuota => ("resourcequotas", "spec: {hard: {pods: 2, limits.cpu: 1}}".into()),
        Builtin::LimitRange => ("limitranges", "spec: {limits: [{type: Container, max: {cpu: 1}, min: {memory: 1Mi}}]}".into()),
        Builtin::EndpointSlice => {
            ("endpointslices", "addressType: IPv4, endpoints: [{addresses: [10.0.0.1]}], ports: [{port: 80}]".into())
        }
        Builtin::PodDisruptionBudget => ("poddisruptionbudgets", "spec: {minAvailable: 1}".into()),
        Builtin::PriorityClass => ("priorityclasses", "value: 5".into()),
        Builtin::Role => ("roles", "rules: [{apiGroups: [\"\"], resources: [pods], verbs: [get]}]".into()),
        Builtin::RoleBinding => (
            "rolebindings",
            "roleRef: {kind: ClusterRole, name: view}, subjects: [{kind: User, name: u}, {kind: ServiceAccount, name: s, namespace: n}]".into(),
        ),
        Builtin::ClusterRole => ("clusterroles", "rules: [{nonResourceURLs: [/x], verbs: [get]}]".into()),
        Builtin::ClusterRoleBinding => {
            ("clusterrolebindings", "roleRef: {kind: ClusterRole, name: view}, subjects: [{kind: Group, name: g}]".into())
        }
        Builtin::ReplicationController => ("replicationcontrollers", format!("spec: {{template: {TEMPLATE}}}")),
        Builtin::PersistentVolume => {
            ("persistentvolumes", "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], hostPath: {path: /x}}".into())
        }
        Builtin::PersistentVolumeClaim => {
            ("persistentvolumeclaims", "spec: {accessModes: [ReadWriteOnce], resources: {requests: {storage: 1Gi}}}".into())
        }
        Builtin::PodTemplate => ("podtemplates", format!("template: {TEMPLATE}")),
        Builtin::DaemonSet => ("daemonsets", format!("spec: {{{workload}}}")),
        Builtin::StatefulSet => ("statefulsets", format!("spec: {{{workload}}}")),
        Builtin::ControllerRevision => ("controllerrevisions", "revision: 3, data: {spec: {}}".into()),
        Builtin::CronJob => (
            "cronjobs",
            "spec: {schedule: '@daily', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: \"x:1\"}]}}}}}".into(),
        ),
        Builtin::HorizontalPodAutoscaler => {
            ("horizontalpodautoscalers", "spec: {maxReplicas: 3, scaleTargetRef: {kind: Deployment, name: web}}".into())
        }
        Builtin::Ingress => (
            "ingresses",
            "spec: {rules: [{host: x.org, http: {paths: [{path: /, pathType: Prefix, backend: {service: {name: s, port: {number: 80}}}}]}}]}".into(),
        ),
        Builtin::IngressClass => ("ingressclasses", "spec: {controller: example.com/x}".into()),
        Builtin::NetworkPolicy => ("networkpolicies", "spec: {podSelector: {}, egress: [{ports: [{port: 53}]}]}".into()),
        Builtin::ServiceCIDR => ("servicecidrs", "spec: {cidrs: [10.96.0.0/16]}".into()),
        Builtin::RuntimeClass => ("runtimeclasses", "handler: runc".into()),
        Builtin::StorageClass => ("storageclasses", "provisioner: example.com/x".into()),
        Builtin::VolumeAttachment => {
            ("volumeattachments", "spec: {attacher: x.org, nodeName: n, source: {persistentVolumeName: v}}".into())
        }
        Builtin::VolumeAttributesClass => ("volumeattributesclasses", "driverName: x.org, parameters: {a: b}".into()),
        Builtin::CSIDriver => ("csidrivers", "spec: {}".into()),
        Builtin::CSINode => ("csinodes", "spec: {drivers: [{name: x.org, nodeID: n}]}".into()),
        Builtin::CSIStorageCapacity => ("csistoragecapacities", "storageClassName: s, capacity: 1Gi".into()),
        // Those below need another name, a key, or are tested where they are made.
        _ => return None,
    };
    Some(fields)
}

#[test]
fn every_short_manifest_is_taken_and_taking_it_again_changes_nothing() {
    for builtin in Builtin::ALL {
        let Some((name, fields)) = shortest(*builtin) else { continue };
        let (kind, _) = object(&manifest(name, &fields));
        let first = stored(name, &fields);
        let again = admit::prepare_update(&kind, &first, first.clone(), Subresource::None, UnknownFields::Refuse);
        assert!(!again.unwrap_or_else(|status| panic!("{name}: {status}")).changed, "{name} changes by itself");
        let row = kind.row(&first, common::NOW.parse().unwrap());
        assert_eq!(row.len(), kind.columns().len(), "{name}");
        let (_, bare) = object(&manifest(name, &fields));
        let replaced = admit::prepare_update(&kind, &first, bare, Subresource::None, UnknownFields::Refuse);
        assert!(replaced.is_ok(), "{name}: {}", replaced.unwrap_err());
    }
}

#[test]
fn what_upstream_fills_in() {
    let binding = |subjects: Value| json!({"roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "view"}, "subjects": subjects});
    let counted = json!({"replicas": 0});
    let set = |more: Value| {
        let mut spec =
            json!({"selector": {"matchLabels": {"app": "a"}}, "template": template(), "revisionHistoryLimit": 10});
        spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        spec
    };
    let table = [
        (
            Builtin::Service,
            json!({"spec": {"type": "ClusterIP", "sessionAffinity": "None", "internalTrafficPolicy": "Cluster",
                "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
                "ports": [{"port": 80, "protocol": "TCP", "targetPort": 80}]}, "status": {"loadBalancer": {}}}),
        ),
        (
            Builtin::Endpoints,
            json!({"subsets": [{"addresses": [{"ip": "10.0.0.1"}], "ports": [{"port": 80, "protocol": "TCP"}]}]}),
        ),
        (Builtin::ServiceAccount, json!({})),
        (Builtin::ResourceQuota, json!({"spec": {"hard": {"pods": "2", "limits.cpu": "1"}}, "status": {}})),
        (
            Builtin::LimitRange,
            json!({"spec": {"limits": [{"type": "Container", "max": {"cpu": "1"}, "min": {"memory": "1Mi"},
                "default": {"cpu": "1"}, "defaultRequest": {"cpu": "1", "memory": "1Mi"}}]}}),
        ),
        (
            Builtin::EndpointSlice,
            json!({"addressType": "IPv4", "endpoints": [{"addresses": ["10.0.0.1"]}], "ports": [{"name": "", "port": 80, "protocol": "TCP"}]}),
        ),
        (
            Builtin::PodDisruptionBudget,
            json!({"spec": {"minAvailable": 1},
                "status": {"currentHealthy": 0, "desiredHealthy": 0, "disruptionsAllowed": 0, "expectedPods": 0}}),
        ),
        (Builtin::PriorityClass, json!({"value": 5, "preemptionPolicy": "PreemptLowerPriority"})),
        (
            Builtin::RoleBinding,
            binding(json!([{"kind": "User", "name": "u", "apiGroup": "rbac.authorization.k8s.io"},
                {"kind": "ServiceAccount", "name": "s", "namespace": "n"}])),
        ),
        (
            Builtin::ClusterRoleBinding,
            binding(json!([{"kind": "Group", "name": "g", "apiGroup": "rbac.authorization.k8s.io"}])),
        ),
        (
            Builtin::ReplicationController,
            json!({"spec": {"replicas": 1, "selector": {"app": "a"}, "template": template()}, "status": counted}),
        ),
        (
            Builtin::PersistentVolume,
            json!({"spec": {"capacity": {"storage": "1Gi"}, "accessModes": ["ReadWriteOnce"], "hostPath": {"path": "/x", "type": ""},
                "persistentVolumeReclaimPolicy": "Retain", "volumeMode": "Filesystem"}, "status": {"phase": "Pending"}}),
        ),
        (
            Builtin::PersistentVolumeClaim,
            json!({"spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}, "volumeMode": "Filesystem"},
                "status": {"phase": "Pending"}}),
        ),
        (Builtin::PodTemplate, json!({"template": template()})),
        (
            Builtin::DaemonSet,
            json!({"spec": set(json!({"updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"maxSurge": 0, "maxUnavailable": 1}}})),
                "status": {"currentNumberScheduled": 0, "desiredNumberScheduled": 0, "numberMisscheduled": 0, "numberReady": 0}}),
        ),
        (
            Builtin::StatefulSet,
            json!({"spec": set(json!({"replicas": 1, "podManagementPolicy": "OrderedReady",
                "persistentVolumeClaimRetentionPolicy": {"whenDeleted": "Retain", "whenScaled": "Retain"},
                "updateStrategy": {"type": "RollingUpdate", "rollingUpdate": {"partition": 0}}})),
                "status": {"replicas": 0, "availableReplicas": 0}}),
        ),
        (
            Builtin::HorizontalPodAutoscaler,
            json!({"spec": {"maxReplicas": 3, "minReplicas": 1, "scaleTargetRef": {"kind": "Deployment", "name": "web"},
                "metrics": [{"type": "Resource", "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}}}]},
                "status": {"desiredReplicas": 0}}),
        ),
        (
            Builtin::NetworkPolicy,
            json!({"spec": {"podSelector": {}, "policyTypes": ["Ingress", "Egress"], "egress": [{"ports": [{"port": 53, "protocol": "TCP"}]}]}}),
        ),
        (
            Builtin::StorageClass,
            json!({"provisioner": "example.com/x", "reclaimPolicy": "Delete", "volumeBindingMode": "Immediate"}),
        ),
        (
            Builtin::CSIDriver,
            json!({"spec": {"attachRequired": true, "fsGroupPolicy": "ReadWriteOnceWithFSType", "podInfoOnMount": false,
                "requiresRepublish": false, "seLinuxMount": false, "storageCapacity": false, "volumeLifecycleModes": ["Persistent"]}}),
        ),
    ];
    for (builtin, expected) in table {
        let (name, fields) = shortest(builtin).unwrap();
        assert_eq!(body(stored(name, &fields)), expected, "{name}");
    }
    let job = body(stored("cronjobs", &shortest(Builtin::CronJob).unwrap().1));
    let spec = &job["spec"];
    assert_eq!((&spec["concurrencyPolicy"], &spec["suspend"]), (&json!("Allow"), &json!(false)));
    assert_eq!((&spec["successfulJobsHistoryLimit"], &spec["failedJobsHistoryLimit"]), (&json!(3), &json!(1)));
    assert_eq!(
        stored("daemonsets", &shortest(Builtin::DaemonSet).unwrap().1)["metadata"]["annotations"],
        json!({"deprecated.daemonset.template.generation": "1"})
    );
}

#[test]
fn what_upstream_refuses() {
    let table = [
        ("services", "spec: {}", "spec.ports: Required value"),
        (
            "services",
            "spec: {ports: [{port: 0}]}",
            "[spec.ports[0].port: Invalid value: 0: must be between 1 and 65535, inclusive, spec.ports[0].targetPort: Invalid value: 0: must be between 1 and 65535, inclusive]",
        ),
        (
            "services",
            "spec: {type: Odd, ports: [{port: 80}]}",
            "spec.type: Unsupported value: \"Odd\": supported values: \"ClusterIP\", \"ExternalName\", \"LoadBalancer\", \"NodePort\"",
        ),
        (
            "services",
            "spec: {ports: [{port: 80}, {port: 81}]}",
            "[spec.ports[0].name: Required value, spec.ports[1].name: Required value]",
        ),
        (
            "services",
            "spec: {ports: [{port: 80, nodePort: 30080}]}",
            "spec.ports[0].nodePort: Forbidden: may not be used when `type` is 'ClusterIP'",
        ),
        (
            "services",
            "spec: {type: NodePort, ports: [{port: 80, nodePort: 80}]}",
            "spec.ports[0].nodePort: Invalid value: 80: provided port is not in the valid range. The range of valid ports is 30000-32767",
        ),
        (
            "services",
            "spec: {type: LoadBalancer, healthCheckNodePort: 5, ports: [{port: 80}]}",
            "spec.healthCheckNodePort: Invalid value: 5: may only be set when `type` is 'LoadBalancer' and `externalTrafficPolicy` is 'Local'",
        ),
        (
            "services",
            "spec: {ipFamilies: [IPv6], ports: [{port: 80}]}",
            "spec.ipFamilies[0]: Invalid value: \"IPv6\": not configured on this cluster",
        ),
        (
            "services",
            "spec: {ipFamilyPolicy: RequireDualStack, ports: [{port: 80}]}",
            "spec.ipFamilyPolicy: Invalid value: \"RequireDualStack\": this cluster is not configured for dual-stack services",
        ),
        ("services", "spec: {type: ExternalName}", "spec.externalName: Required value"),
        ("endpoints", "subsets: [{}]", "subsets[0]: Required value: must specify `addresses` or `notReadyAddresses`"),
        (
            "endpoints",
            "subsets: [{addresses: [{ip: 127.0.0.1}]}]",
            "subsets[0].addresses[0].ip: Invalid value: \"127.0.0.1\": may not be in the loopback range (127.0.0.0/8, ::1/128)",
        ),
        (
            "resourcequotas",
            "spec: {hard: {gold: 1}}",
            "spec.hard[gold]: Invalid value: \"gold\": must be a standard resource for quotas",
        ),
        (
            "resourcequotas",
            "spec: {hard: {pods: 500m}}",
            "spec.hard[pods]: Invalid value: \"500m\": must be an integer",
        ),
        (
            "limitranges",
            "spec: {limits: [{type: Pod, default: {cpu: 1}}]}",
            "spec.limits[0].default: Forbidden: may not be specified when `type` is 'Pod'",
        ),
        (
            "limitranges",
            "spec: {limits: [{type: Container, min: {cpu: 2}, max: {cpu: 2}, default: {cpu: 1}, defaultRequest: {cpu: 2}}]}",
            "[spec.limits[0].defaultRequest[cpu]: Invalid value: \"2\": default request value 2 is greater than default limit value 1, spec.limits[0].default[cpu]: Invalid value: \"2\": min value 2 is greater than default value 1]",
        ),
        (
            "endpointslices",
            "addressType: Odd, endpoints: []",
            "addressType: Unsupported value: \"Odd\": supported values: \"FQDN\", \"IPv4\", \"IPv6\"",
        ),
        (
            "poddisruptionbudgets",
            "spec: {minAvailable: 1, maxUnavailable: 1}",
            "spec: Invalid value: {\"maxUnavailable\":1,\"minAvailable\":1}: minAvailable and maxUnavailable cannot be both set",
        ),
        (
            "poddisruptionbudgets",
            "spec: {minAvailable: 150%}",
            "spec.minAvailable: Invalid value: \"150%\": must not be greater than 100%",
        ),
        (
            "priorityclasses",
            "value: 2000000000",
            "value: Forbidden: maximum allowed value of a user defined priority is 1000000000",
        ),
        (
            "roles",
            "rules: [{nonResourceURLs: [/x], verbs: [get]}]",
            "rules[0].nonResourceURLs: Invalid value: [\"/x\"]: namespaced rules cannot apply to non-resource URLs",
        ),
        (
            "roles",
            "rules: [{apiGroups: [\"\"], resources: [pods], verbs: []}]",
            "rules[0].verbs: Required value: verbs must contain at least one value",
        ),
        (
            "rolebindings",
            "roleRef: {kind: Odd, name: x}",
            "roleRef.kind: Unsupported value: \"Odd\": supported values: \"Role\", \"ClusterRole\"",
        ),
        (
            "clusterrolebindings",
            "roleRef: {kind: ClusterRole, name: x}, subjects: [{kind: ServiceAccount, name: s}]",
            "subjects[0].namespace: Required value",
        ),
        (
            "clusterroles",
            "aggregationRule: {clusterRoleSelectors: []}",
            "aggregationRule.clusterRoleSelectors: Required value: at least one clusterRoleSelector required if aggregationRule is non-nil",
        ),
        ("replicationcontrollers", "spec: {}", "spec.template: Required value"),
        (
            "replicationcontrollers",
            "spec: {template: {spec: {containers: [{name: c, image: x}]}}}",
            "spec.selector: Required value",
        ),
        (
            "daemonsets",
            "spec: {selector: {}, template: {metadata: {labels: {app: a}}, spec: {activeDeadlineSeconds: 5, containers: [{name: c, image: x}]}}}",
            "[spec.selector: Invalid value: {}: empty selector is invalid for daemonset, \
             spec.template.spec.activeDeadlineSeconds: Forbidden: activeDeadlineSeconds in DaemonSet is not Supported]",
        ),
        (
            "statefulsets",
            "spec: {selector: {}, template: {spec: {containers: [{name: c, image: x}]}}}",
            "spec.selector: Invalid value: {}: empty selector is invalid for statefulset",
        ),
        (
            "pods",
            "spec: {nodeName: n, schedulingGates: [{name: x/a}], containers: [{name: c, image: x}]}",
            "spec.nodeName: Forbidden: cannot be set until all schedulingGates have been cleared",
        ),
        (
            "nodes",
            "spec: {podCIDR: '10.1'}",
            "spec.podCIDRs[0]: Invalid value: \"10.1\": must be a valid CIDR value, (e.g. 10.9.8.0/24 or 2001:db8::/64)",
        ),
        (
            "nodes",
            "spec: {podCIDRs: [10.1.0.0/24, 10.2.0.0/24]}",
            "spec.podCIDRs: Invalid value: [\"10.1.0.0/24\",\"10.2.0.0/24\"]: may specify no more than one CIDR for each IP family",
        ),
        (
            "persistentvolumes",
            "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce]}",
            "spec: Required value: must specify a volume type",
        ),
        (
            "persistentvolumes",
            "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], nfs: {server: s, path: /}, hostPath: {path: /a/../b}}",
            "[spec.hostPath.path: Invalid value: \"/a/../b\": must not contain '..', spec.nfs: Forbidden: may not specify more than 1 volume type]",
        ),
        (
            "persistentvolumes",
            "spec: {capacity: {storage: 1Gi}, accessModes: [ReadWriteOnce], persistentVolumeReclaimPolicy: Recycle, hostPath: {path: /}}",
            "spec.persistentVolumeReclaimPolicy: Forbidden: may not be 'recycle' for a hostPath mount of '/'",
        ),
        (
            "persistentvolumeclaims",
            "spec: {accessModes: [Odd], resources: {requests: {storage: 1Gi}}}",
            "spec.accessModes: Unsupported value: \"Odd\": supported values: \"ReadOnlyMany\", \"ReadWriteMany\", \"ReadWriteOnce\", \"ReadWriteOncePod\"",
        ),
        ("persistentvolumeclaims", "spec: {accessModes: [ReadWriteOnce]}", "spec.resources[storage]: Required value"),
        (
            "cronjobs",
            "spec: {schedule: '* * *', jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: x}]}}}}}",
            "spec.schedule: Invalid value: \"* * *\": expected exactly 5 fields, found 3: [* * *]",
        ),
        (
            "cronjobs",
            "spec: {schedule: '@daily', timeZone: Mars/Base, jobTemplate: {spec: {template: {spec: {restartPolicy: Never, containers: [{name: c, image: x}]}}}}}",
            "spec.timeZone: Invalid value: \"Mars/Base\": unknown time zone Mars/Base",
        ),
        (
            "horizontalpodautoscalers",
            "spec: {maxReplicas: 1, minReplicas: 2, scaleTargetRef: {kind: Deployment, name: web}}",
            "spec.maxReplicas: Invalid value: 1: must be greater than or equal to `minReplicas`",
        ),
        ("ingresses", "spec: {}", "spec: Invalid value: []: either `defaultBackend` or `rules` must be specified"),
        (
            "ingresses",
            "spec: {defaultBackend: {service: {name: s}}}",
            "spec.defaultBackend.service.port: Required value: port name or number is required",
        ),
        (
            "ingressclasses",
            "spec: {controller: x}",
            "spec.controller: Invalid value: \"x\": must be a domain-prefixed path (such as \"acme.io/foo\")",
        ),
        (
            "networkpolicies",
            "spec: {podSelector: {}, ingress: [{from: [{}]}]}",
            "spec.ingress[0].from[0]: Required value: must specify a peer",
        ),
        (
            "networkpolicies",
            "spec: {podSelector: {}, ingress: [{from: [{ipBlock: {cidr: 10.0.0.0/16, except: [10.1.0.0/24]}}]}]}",
            "spec.ingress[0].from[0].ipBlock.except[0]: Invalid value: \"10.1.0.0/24\": must be a strict subset of `cidr`",
        ),
        ("storageclasses", "provisioner: ''", "provisioner: Required value"),
        (
            "storageclasses",
            "provisioner: x, reclaimPolicy: Odd",
            "reclaimPolicy: Unsupported value: \"Odd\": supported values: \"Delete\", \"Retain\"",
        ),
        (
            "volumeattachments",
            "spec: {attacher: x, nodeName: n, source: {}}",
            "spec.source: Required value: must specify exactly one of inlineVolumeSpec and persistentVolumeName",
        ),
        (
            "csinodes",
            "spec: {drivers: [{name: x, nodeID: n}, {name: x, nodeID: n}]}",
            "spec.drivers[1].name: Duplicate value: \"x\"",
        ),
        (
            "certificatesigningrequests",
            "spec: {request: '', signerName: x, usages: [odd]}",
            "[spec.request: Invalid value: \"<certificate request>\": PEM block type must be CERTIFICATE REQUEST, ",
        ),
    ];
    for (kind, fields, expected) in table {
        let status = create(&manifest(kind, fields)).map(|p| p.object).expect_err(fields);
        assert_eq!(status.reason, Reason::Invalid, "{kind} {fields}: {status}");
        let words = status.message.split_once(" is invalid: ").unwrap().1;
        match expected.ends_with(", ") {
            true => assert!(words.starts_with(expected), "{kind} {fields}: {words}"),
            false => assert_eq!(words, expected, "{kind} {fields}"),
        }
    }
}

#[test]
fn what_may_not_change() {
    let rename =
        |pointer: &'static str, value: Value| move |object: &mut Value| *object.pointer_mut(pointer).unwrap() = value;
    type Edit = Box<dyn FnOnce(&mut Value)>;
    let table: Vec<(Builtin, Edit, &str)> = vec![
        (Builtin::RoleBinding, Box::new(rename("/roleRef/name", json!("edit"))), "cannot change roleRef"),
        (
            Builtin::PriorityClass,
            Box::new(rename("/value", json!(6))),
            "value: Forbidden: may not be changed in an update.",
        ),
        (
            Builtin::EndpointSlice,
            Box::new(rename("/addressType", json!("FQDN"))),
            "addressType: Invalid value: \"FQDN\": field is immutable",
        ),
        (
            Builtin::StatefulSet,
            Box::new(rename("/spec/podManagementPolicy", json!("Parallel"))),
            "spec: Forbidden: updates to statefulset spec for fields other than",
        ),
        (
            Builtin::DaemonSet,
            Box::new(rename("/spec/selector/matchLabels", json!({"app": "b"}))),
            "spec.selector: Invalid value",
        ),
        (Builtin::ControllerRevision, Box::new(rename("/data/spec", json!({"x": 1}))), "data: Invalid value"),
        (
            Builtin::StorageClass,
            Box::new(rename("/provisioner", json!("example.com/y"))),
            "provisioner: Forbidden: updates to provisioner are forbidden.",
        ),
        (
            Builtin::IngressClass,
            Box::new(rename("/spec/controller", json!("example.com/y"))),
            "spec.controller: Invalid value: \"example.com/y\": field is immutable",
        ),
        (
            Builtin::RuntimeClass,
            Box::new(rename("/handler", json!("other"))),
            "handler: Invalid value: \"other\": field is immutable",
        ),
        (
            Builtin::PersistentVolumeClaim,
            Box::new(rename("/spec/accessModes/0", json!("ReadOnlyMany"))),
            "spec: Forbidden: spec is immutable after creation",
        ),
        (
            Builtin::PersistentVolume,
            Box::new(rename("/spec/hostPath/path", json!("/y"))),
            "spec.persistentvolumesource: Forbidden",
        ),
        (Builtin::VolumeAttachment, Box::new(rename("/spec/nodeName", json!("m"))), "spec: Invalid value"),
    ];
    for (builtin, edit, expected) in table {
        let (name, fields) = shortest(builtin).unwrap();
        let (kind, _) = object(&manifest(name, &fields));
        let old = stored(name, &fields);
        let mut new = old.clone();
        edit(&mut new);
        let status = admit::prepare_update(&kind, &old, new, Subresource::None, UnknownFields::Refuse).unwrap_err();
        assert!(status.message.contains(expected), "{name}: {status}");
    }
}

#[test]
fn a_stored_time_zone_that_is_not_known_any_more_stands_until_it_is_changed() {
    let (name, fields) = shortest(Builtin::CronJob).unwrap();
    let (kind, _) = object(&manifest(name, &fields));
    let mut old = stored(name, &fields);
    old["spec"]["timeZone"] = json!("Mars/Base");
    let update = |pointer: &str, value: Value| {
        let mut new = old.clone();
        let (parent, field) = pointer.rsplit_once('/').unwrap();
        new.pointer_mut(parent).unwrap()[field] = value;
        admit::prepare_update(&kind, &old, new, Subresource::None, UnknownFields::Refuse)
    };
    let suspended = update("/spec/suspend", json!(true)).unwrap().object;
    assert_eq!((&suspended["spec"]["suspend"], &suspended["spec"]["timeZone"]), (&json!(true), &json!("Mars/Base")));
    assert!(update("/metadata/finalizers", json!(["example.com/x"])).unwrap().changed);
    for known in [json!("Europe/Paris"), json!(null)] {
        update("/spec/timeZone", known).unwrap();
    }
    let refused = update("/spec/timeZone", json!("Mars/Port")).unwrap_err().message;
    assert!(refused.ends_with("spec.timeZone: Invalid value: \"Mars/Port\": unknown time zone Mars/Port"), "{refused}");
}

#[test]
fn fields_that_no_object_is_selected_by() {
    let fields = Fields::parse("metadata.name=x,spec.foo=1").unwrap();
    let table = [
        ("pods", "field label not supported: spec.foo"),
        ("secrets", "field label not supported: spec.foo"),
        ("jobs", "field label \"spec.foo\" not supported for Job"),
        ("deployments", "\"spec.foo\" is not a known field selector: only \"metadata.name\", \"metadata.namespace\""),
    ];
    for (name, words) in table {
        let kind = Registry::builtin().by_name(name).unwrap();
        assert_eq!(kind.check_fields(&fields).unwrap_err().to_string(), words, "{name}");
        kind.check_fields(&Fields::parse("metadata.name=x").unwrap()).unwrap();
    }
}

#[test]
fn what_says_nothing_is_not_kept() {
    let fields = "spec: {type: LoadBalancer, healthCheckNodePort: 0, ports: [{port: 80, nodePort: 0}]}";
    let service = stored("services", fields);
    assert_eq!(service["spec"].get("healthCheckNodePort"), None);
    assert_eq!(service["spec"]["ports"][0].get("nodePort"), None);
    let (kind, mut map) = object(&manifest("configmaps", "data: {a: b}"));
    map["metadata"]["labels"] = json!({});
    map["metadata"]["annotations"] = json!({});
    let map = create(&map.to_string()).unwrap().object;
    let kept = |object: &Value| ["labels", "annotations"].map(|field| object["metadata"].get(field).is_some());
    assert_eq!(kept(&map), [false, false]);
    let mut marked = map.clone();
    marked["metadata"]["labels"] = json!({"a": "b"});
    let marked = admit::prepare_update(&kind, &map, marked, Subresource::None, UnknownFields::Refuse).unwrap().object;
    let mut bare = marked.clone();
    bare["metadata"]["labels"] = json!({});
    let bare = admit::prepare_update(&kind, &marked, bare, Subresource::None, UnknownFields::Refuse).unwrap().object;
    assert_eq!((kept(&marked), kept(&bare)), ([true, false], [false, false]));
}

#[test]
fn what_an_autoscaler_measures() {
    let path = "spec.metrics[0]";
    let table = [
        ("{}", "type: Required value: must specify a metric source type"),
        ("{type: Pods}", "pods: Required value: must populate information for the given metric source"),
        (
            "{type: Resource, resource: {name: cpu, target: {type: Utilization}}}",
            "resource.target.averageUtilization: Required value: must set either a target raw value or a target utilization",
        ),
        (
            "{type: Resource, resource: {name: cpu, target: {type: Utilization, averageUtilization: 5, averageValue: 1}}}",
            "resource.target.averageValue: Forbidden: may not set both a target raw value and a target utilization",
        ),
        (
            "{type: Pods, pods: {metric: {name: ''}, target: {type: AverageValue, averageValue: 1}}}",
            "pods.metric.name: Required value: must specify a metric name",
        ),
        (
            "{type: Pods, pods: {metric: {name: m}, target: {type: AverageValue}}}",
            "pods.target.averageValue: Required value: must specify a positive target averageValue",
        ),
        (
            "{type: Object, object: {describedObject: {kind: Service, name: s}, metric: {name: m}, target: {type: Value}}}",
            "object.target.averageValue: Required value: must set either a target value or averageValue",
        ),
        (
            "{type: External, external: {metric: {name: m}, target: {type: Value, value: 1, averageValue: 1}}}",
            "external.target.value: Forbidden: may not set both a target value for metric and a per-pod target",
        ),
        (
            "{type: ContainerResource, containerResource: {name: cpu, container: '', target: {type: Odd, averageValue: 0}}}",
            "containerResource.container: Required value: must specify a container",
        ),
        (
            "{type: Resource, resource: {name: cpu, target: {type: Odd, averageValue: 1}}}",
            "resource.target.type: Invalid value: \"Odd\": must be either Utilization, Value, or AverageValue",
        ),
        (
            "{type: Resource, resource: {name: cpu, target: {type: AverageValue, averageValue: 1}}, pods: {metric: {name: m}, target: {type: AverageValue, averageValue: 1}}}",
            "pods: Forbidden: must populate the given metric source only",
        ),
    ];
    for (metric, expected) in table {
        let fields =
            format!("spec: {{maxReplicas: 2, scaleTargetRef: {{kind: Deployment, name: web}}, metrics: [{metric}]}}");
        let words = create(&manifest("horizontalpodautoscalers", &fields)).unwrap_err().message;
        assert!(words.contains(&format!("{path}.{expected}")), "{metric}: {words}");
    }
}

#[test]
fn an_event_is_complete_that_comes_by_its_own_group() {
    let about = "{kind: Pod, name: p, namespace: default}";
    create(&manifest("events", &format!("involvedObject: {about}"))).unwrap();
    let event = |fields: &str| {
        format!("{{apiVersion: events.k8s.io/v1, kind: Event, metadata: {{name: a}}, regarding: {about}, {fields}}}")
    };
    let whole = "eventTime: '2026-01-02T03:04:05.000000Z', reason: r, action: x, type: Normal, reportingController: \
                 x.org/c, reportingInstance: i";
    create(&event(whole)).unwrap();
    let refused = |fields: &str| create(&event(fields)).unwrap_err().message;
    let bare = refused("reason: r");
    assert_eq!(
        bare,
        "Event.events.k8s.io \"a\" is invalid: [eventTime: Required value, type: Invalid value: \"\": has invalid value: ]"
    );
    let timed = refused("eventTime: '2026-01-02T03:04:05.000000Z', type: Normal");
    for field in ["reportingController", "reportingInstance", "action", "reason"] {
        assert!(timed.contains(&format!("{field}: Required value")), "{timed}");
    }
    let old = refused(&format!("{whole}, deprecatedCount: 2, series: {{count: 1, lastObservedTime: null}}"));
    for words in [
        "count: Invalid value: \"\": needs to be unset",
        "series.count: Invalid value: \"\": should be at least 2",
        "series.lastObservedTime: Required value",
    ] {
        assert!(old.contains(words), "{old}");
    }
}

#[test]
fn an_address_stays_with_its_service() {
    let (kind, _) = object(&manifest("services", "spec: {ports: [{port: 80}]}"));
    let old = stored("services", "spec: {clusterIP: 10.96.0.7, ports: [{port: 80}]}");
    assert_eq!(old["spec"]["clusterIPs"], json!(["10.96.0.7"]));
    let (_, silent) = object(&manifest("services", "spec: {ports: [{port: 81}]}"));
    let kept = admit::prepare_update(&kind, &old, silent, Subresource::None, UnknownFields::Refuse).unwrap();
    assert_eq!(
        (&kept.object["spec"]["clusterIP"], &kept.object["spec"]["clusterIPs"]),
        (&json!("10.96.0.7"), &json!(["10.96.0.7"]))
    );
    let (_, other) = object(&manifest("services", "spec: {clusterIP: 10.96.0.8, ports: [{port: 80}]}"));
    let status = admit::prepare_update(&kind, &old, other, Subresource::None, UnknownFields::Refuse).unwrap_err();
    let words = "is invalid: spec.clusterIPs[0]: Invalid value: [\"10.96.0.8\"]: may not change once set";
    assert!(status.message.ends_with(words), "{status}");
    let mut one_field = old.clone();
    one_field["spec"]["clusterIP"] = json!("10.96.0.8");
    let status = admit::prepare_update(&kind, &old, one_field, Subresource::None, UnknownFields::Refuse).unwrap_err();
    assert!(status.message.ends_with(words), "{status}");
}

#[test]
fn tables_read_as_upstreams() {
    let row = |builtin: Builtin| {
        let (name, fields) = shortest(builtin).unwrap();
        let (kind, _) = object(&manifest(name, &fields));
        let hour_later = "2026-01-02T04:04:05Z".parse().unwrap();
        let heads: Vec<String> = kind.columns().iter().map(|column| column.name.to_string()).collect();
        format!("{}\n{}", heads.join(" | "), kind.row(&stored(name, &fields), hour_later).join(" | "))
    };
    let table = [
        (
            Builtin::Service,
            "Name | Type | Cluster-IP | External-IP | Port(s) | Age | Selector\na | ClusterIP | <none> | <none> | 80/TCP | 60m | <none>",
        ),
        (Builtin::Endpoints, "Name | Endpoints | Age\na | 10.0.0.1:80 | 60m"),
        (Builtin::EndpointSlice, "Name | AddressType | Ports | Endpoints | Age\na | IPv4 | 80 | 10.0.0.1 | 60m"),
        (
            Builtin::PodDisruptionBudget,
            "Name | Min Available | Max Unavailable | Allowed Disruptions | Age\na | 1 | N/A | 0 | 60m",
        ),
        (Builtin::Role, "Name | Created At\na | 2026-01-02T03:04:05Z"),
        (
            Builtin::RoleBinding,
            "Name | Role | Age | Users | Groups | ServiceAccounts\na | ClusterRole/view | 60m | u |  | n/s",
        ),
        (
            Builtin::ReplicationController,
            "Name | Desired | Current | Ready | Age | Containers | Images | Selector\na | 1 | 0 | 0 | 60m | c | x:1 | app=a",
        ),
        (Builtin::StatefulSet, "Name | Ready | Age | Containers | Images\na | 0/1 | 60m | c | x:1"),
        (
            Builtin::CronJob,
            "Name | Schedule | Timezone | Suspend | Active | Last Schedule | Age | Containers | Images | Selector\na | @daily | <none> | False | 0 | <none> | 60m | c | x:1 | <none>",
        ),
        (
            Builtin::HorizontalPodAutoscaler,
            "Name | Reference | Targets | MinPods | MaxPods | Replicas | Age\na | Deployment/web | cpu: <unknown>/80% | 1 | 3 | 0 | 60m",
        ),
        (Builtin::Ingress, "Name | Class | Hosts | Address | Ports | Age\na | <none> | x.org |  | 80 | 60m"),
        (
            Builtin::PersistentVolumeClaim,
            "Name | Status | Volume | Capacity | Access Modes | StorageClass | VolumeAttributesClass | Age | VolumeMode\na | Pending |  |  |  |  | <unset> | 60m | Filesystem",
        ),
        (
            Builtin::StorageClass,
            "Name | Provisioner | ReclaimPolicy | VolumeBindingMode | AllowVolumeExpansion | Age\na | example.com/x | Delete | Immediate | false | 60m",
        ),
    ];
    for (builtin, expected) in table {
        assert_eq!(row(builtin), expected);
    }
}

#[test]
fn only_the_finalizers_of_a_namespace_are_finalized() {
    let (kind, manifest) = object("{apiVersion: v1, kind: Namespace, metadata: {name: a}}");
    let old = create("{apiVersion: v1, kind: Namespace, metadata: {name: a}}").unwrap().object;
    assert_eq!(old["spec"]["finalizers"], json!(["kubernetes"]));
    let mut new = old.clone();
    new["spec"]["finalizers"] = json!([]);
    new["metadata"]["labels"]["more"] = json!("x");
    let done = admit::prepare_update(&kind, &old, new.clone(), Subresource::Finalize, UnknownFields::Refuse).unwrap();
    assert_eq!(done.object["spec"]["finalizers"], json!([]));
    assert!(done.object["metadata"]["labels"].get("more").is_none());
    // A plain update does not touch them.
    let kept = admit::prepare_update(&kind, &old, manifest, Subresource::None, UnknownFields::Refuse).unwrap();
    assert_eq!(kept.object["spec"]["finalizers"], json!(["kubernetes"]));
}

#[test]
fn no_kind_panics_on_what_anyone_may_send() {
    let odd = [json!(null), json!(-1), json!(""), json!("é:/"), json!([]), json!({}), json!([{}]), json!(["x"])];
    for builtin in Builtin::ALL {
        let Some((name, fields)) = shortest(*builtin) else { continue };
        let (kind, whole) = object(&manifest(name, &fields));
        let before = stored(name, &fields);
        for pointer in pointers(&whole, "") {
            for value in &odd {
                let mut spoiled = whole.clone();
                *spoiled.pointer_mut(&pointer).unwrap() = value.clone();
                _ = admit::prepare_create(&kind, spoiled.clone(), common::request(&mut common::rng()));
                for part in [Subresource::None, Subresource::Status] {
                    _ = admit::prepare_update(&kind, &before, spoiled.clone(), part, UnknownFields::Drop);
                }
                _ = kind.row(&spoiled, common::NOW.parse().unwrap());
            }
        }
    }
}

/// Every place within an object.
fn pointers(value: &Value, at: &str) -> Vec<String> {
    let inner: Vec<(String, &Value)> = match value {
        Value::Object(map) => {
            map.iter().map(|(field, value)| (format!("{at}/{}", field.replace('/', "~1")), value)).collect()
        }
        Value::Array(items) => {
            items.iter().enumerate().map(|(index, value)| (format!("{at}/{index}"), value)).collect()
        }
        _ => Vec::new(),
    };
    inner.into_iter().flat_map(|(at, value)| std::iter::once(at.clone()).chain(pointers(value, &at))).collect()
}
