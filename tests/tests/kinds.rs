//! Kinds and their policies by the real kubectl: manifests of old, quotas, limits, priorities, budgets, addresses.

use std::time::Duration;

use flotilla_tests::{Cluster, Kubectl, eventually};

const LIMIT: Duration = Duration::from_secs(60);

/// As books have it, but for an image that is here.
const OLD: &str = "
apiVersion: extensions/v1beta1
kind: Deployment
metadata:
  name: my-nginx
spec:
  replicas: 2
  template:
    metadata:
      labels:
        run: my-nginx
    spec:
      terminationGracePeriodSeconds: 1
      containers:
      - name: my-nginx
        image: flotilla.dev/hello:latest
        ports:
        - containerPort: 80
";

const DEPRECATED: &str = "Warning: extensions/v1beta1 Deployment is deprecated in v1.8+, unavailable in v1.16+; \
                          use apps/v1 Deployment\n";

const POLICIES: &str = "
apiVersion: v1
kind: ResourceQuota
metadata: {name: few, namespace: tight}
spec: {hard: {pods: 2, secrets: 1, requests.cpu: 500m}}
---
apiVersion: v1
kind: LimitRange
metadata: {name: small, namespace: tight}
spec: {limits: [{type: Container, default: {cpu: 100m}, defaultRequest: {cpu: 100m}, max: {cpu: 300m}}]}
---
apiVersion: scheduling.k8s.io/v1
kind: PriorityClass
metadata: {name: urgent}
value: 1000
";

/// A pod or controller of `tight`, whose pods have these resources.
fn controller(name: &str, replicas: u32, resources: &str) -> String {
    format!(
        "
apiVersion: v1
kind: ReplicationController
metadata: {{name: {name}, namespace: tight}}
spec:
  replicas: {replicas}
  template:
    metadata: {{labels: {{app: {name}}}}}
    spec:
      priorityClassName: urgent
      terminationGracePeriodSeconds: 1
      containers: [{{name: c, image: 'flotilla.dev/hello:latest', resources: {resources}}}]
"
    )
}

/// What is asked for is had once, and free again when its Service is gone.
fn node_ports(kubectl: &Kubectl) {
    kubectl.ok(&["create", "service", "nodeport", "fixed", "--tcp=80:8080", "--node-port=30080"]);
    let port = "jsonpath={.spec.ports[0].nodePort}";
    assert_eq!(kubectl.ok(&["get", "service", "fixed", "-o", port]), "30080");
    assert!(kubectl.ok(&["get", "service", "fixed"]).contains(" 80:30080/TCP "));
    let taken = kubectl.fails(&["create", "service", "nodeport", "other", "--tcp=80", "--node-port=30080"]);
    assert!(
        taken.contains("spec.ports[0].nodePort: Invalid value: 30080: provided port is already allocated"),
        "{taken}"
    );
    kubectl.ok(&["expose", "deployment", "my-nginx", "--name=given", "--type=NodePort", "--port=80"]);
    let given: i32 = kubectl.ok(&["get", "service", "given", "-o", port]).parse().unwrap();
    assert!((30_000..=32_767).contains(&given) && given != 30_080, "{given}");
    kubectl.ok(&["patch", "service", "given", "-p", "{\"spec\": {\"type\": \"ClusterIP\"}}"]);
    assert_eq!(kubectl.ok(&["get", "service", "given", "-o", port]), "");
    kubectl.ok(&["delete", "service", "fixed"]);
    kubectl.ok(&["create", "service", "nodeport", "other", "--tcp=80", "--node-port=30080"]);
    kubectl.ok(&["delete", "service", "other", "given"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn manifests_of_old_and_the_policies_of_a_namespace() {
    let cluster = Cluster::start(1).await;
    let kubectl = Kubectl::new(&cluster, "node-1");
    let file = kubectl.file("nginx.yaml", OLD);
    let warned = |arguments: &[&str]| {
        let said = kubectl.run(arguments);
        assert_eq!((said.code, said.err.as_str()), (Some(0), DEPRECATED), "kubectl {arguments:?}: {}", said.out);
        said.out
    };
    assert_eq!(warned(&["create", "-f", &file]), "deployment.extensions/my-nginx created\n");
    kubectl.ok(&["rollout", "status", "deployment/my-nginx", "--timeout=60s"]);
    let selector =
        kubectl.ok(&["get", "deploy", "my-nginx", "-o", "jsonpath={.apiVersion} {.spec.selector.matchLabels.run}"]);
    assert_eq!(selector, "apps/v1 my-nginx");
    let old = warned(&["get", "deployments.v1beta1.extensions", "my-nginx", "-o", "jsonpath={.apiVersion}"]);
    assert_eq!(old, "extensions/v1beta1");
    kubectl.ok(&["expose", "deployment", "my-nginx", "--port=80"]);
    let address = kubectl.ok(&["get", "service", "my-nginx", "-o", "jsonpath={.spec.clusterIP}"]);
    assert!(address.starts_with("10.96."), "{address}");
    assert!(kubectl.ok(&["get", "ipaddresses"]).contains(&address));
    node_ports(&kubectl);
    let events = kubectl.ok(&["get", "events.v1.events.k8s.io", "-o", "jsonpath={.items[*].regarding.name}"]);
    assert!(events.contains("my-nginx"), "{events}");

    kubectl.ok(&["create", "namespace", "tight"]);
    kubectl.ok_with(&["apply", "-f", "-"], POLICIES);
    let counted = || async {
        let table = kubectl.run(&["get", "quota", "few", "-n", "tight", "--no-headers"]);
        if table.out.contains("pods: 0/2") { Ok(()) } else { Err(table.out) }
    };
    eventually(LIMIT, "the quota is counted", counted).await;
    kubectl.ok_with(&["create", "-f", "-"], &controller("web", 3, "{}"));
    let two = || async {
        let table = kubectl.run(&["get", "rc", "web", "-n", "tight", "-o", "jsonpath={.status.readyReplicas}"]);
        if table.out == "2" { Ok(()) } else { Err(table.out) }
    };
    eventually(LIMIT, "as many pods run as the quota lets", two).await;
    let why = kubectl.ok(&["get", "rc", "web", "-n", "tight", "-o", "jsonpath={.status.conditions[0].message}"]);
    assert!(why.contains("exceeded quota: few, requested: pods=1, used: pods=2, limited: pods=2"), "{why}");
    let pod = "jsonpath={.items[0].spec.priority} {.items[0].spec.containers[0].resources.limits.cpu}";
    assert_eq!(kubectl.ok(&["get", "pods", "-n", "tight", "-o", pod]), "1000 100m");
    let described = kubectl.ok(&["describe", "quota", "few", "-n", "tight"]);
    assert!(described.contains("requests.cpu  200m  500m"), "{described}");

    let explained = kubectl.ok(&["explain", "pod.spec.restartPolicy"]);
    let values: Vec<&str> = explained.split_once("ENUM:").expect("its values").1.split_whitespace().take(3).collect();
    assert_eq!(values, ["Always", "Never", "OnFailure"], "{explained}");

    kubectl.ok(&["create", "secret", "generic", "one", "-n", "tight"]);
    let full = kubectl.fails(&["create", "secret", "generic", "two", "-n", "tight"]);
    assert!(full.contains("secrets \"two\" is forbidden: exceeded quota: few"), "{full}");
    let large = controller("large", 1, "{limits: {cpu: 1}}").replace("ReplicationController", "Pod");
    let large = large.split("spec:\n  replicas").next().unwrap().to_owned()
        + "spec: {containers: [{name: c, image: x, resources: {limits: {cpu: 1}}}]}";
    let refused = kubectl.pipe(&["create", "-f", "-"], &large);
    assert!(refused.err.contains("maximum cpu usage per Container is 300m, but limit is 1"), "{refused:?}");

    kubectl.ok(&["create", "pdb", "web", "-n", "tight", "--selector=app=web", "--min-available=1"]);
    let allows = || async {
        let table = kubectl.run(&["get", "pdb", "web", "-n", "tight", "--no-headers"]);
        let words: Vec<&str> = table.out.split_whitespace().collect();
        if words.get(1..4) == Some(&["1", "N/A", "1"]) { Ok(()) } else { Err(table.out) }
    };
    eventually(LIMIT, "the budget allows one disruption", allows).await;
    let pod = kubectl.ok(&["get", "pods", "-n", "tight", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    let evict_with = |pod: &str, query: &str| {
        let path = format!("/api/v1/namespaces/tight/pods/{pod}/eviction{query}");
        let body =
            format!("{{\"apiVersion\": \"policy/v1\", \"kind\": \"Eviction\", \"metadata\": {{\"name\": \"{pod}\"}}}}");
        kubectl.pipe(&["create", "--raw", &path, "-f", "-"], &body)
    };
    let evict = |pod: &str| evict_with(pod, "");
    for _ in 0..2 {
        let tried = evict_with(&pod, "?dryRun=All");
        assert_eq!(tried.code, Some(0), "a dry run spends nothing of the budget: {tried:?}");
    }
    let evicted = evict(&pod);
    assert_eq!(evicted.code, Some(0), "{evicted:?}");
    kubectl.ok(&["scale", "rc", "web", "-n", "tight", "--replicas=1"]);
    let guarded = || async {
        let table = kubectl.run(&[
            "get",
            "pdb",
            "web",
            "-n",
            "tight",
            "-o",
            "jsonpath={.status.expectedPods} {.status.disruptionsAllowed}",
        ]);
        if table.out == "1 0" { Ok(()) } else { Err(table.out) }
    };
    eventually(LIMIT, "the budget allows no more", guarded).await;
    let pod = kubectl.ok(&["get", "pods", "-n", "tight", "-l", "app=web", "-o", "jsonpath={.items[0].metadata.name}"]);
    for query in ["", "?dryRun=All"] {
        let refused = evict_with(&pod, query);
        let words = "Cannot evict pod as it would violate the pod's disruption budget.";
        assert!(refused.err.contains(words), "{query}: {refused:?}");
    }
    kubectl.ok(&["delete", "rc", "web", "-n", "tight"]);
    kubectl.ok(&["delete", "namespace", "tight", "--timeout=60s"]);
    kubectl.ok(&["delete", "service", "my-nginx"]);
    let freed = || async {
        let left = kubectl.run(&["get", "ipaddresses", "-o", "name"]);
        if left.out.contains(&address) { Err(left.out) } else { Ok(()) }
    };
    eventually(LIMIT, "the address is free again", freed).await;
}
