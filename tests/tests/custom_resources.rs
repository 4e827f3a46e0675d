//! A kind that a user brings along, with kubectl on three nodes: what is defined on one is there on all.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::thread::JoinHandle;
use std::time::Duration;

use flotilla_tests::{Cluster, Kubectl, eventually};
use serde_json::Value;

const LIMIT: Duration = Duration::from_secs(30);

const DEFINITION: &str = r#"
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata:
  name: crontabs.stable.example.com
spec:
  group: stable.example.com
  scope: Namespaced
  names: {plural: crontabs, singular: crontab, kind: CronTab, shortNames: [ct], categories: [all]}
  versions:
  - name: v1
    served: true
    storage: true
    schema:
      openAPIV3Schema:
        type: object
        description: A CronTab runs something now and then.
        properties:
          spec:
            type: object
            description: What is wanted.
            required: [cronSpec]
            x-kubernetes-validations:
            - rule: self.minReplicas <= self.replicas && self.replicas <= self.maxReplicas
              messageExpression: "'replicas must be within ' + string(self.minReplicas) + ' and ' + string(self.maxReplicas)"
            properties:
              cronSpec:
                type: string
                description: When it runs.
                pattern: '^(\d+|\*)(/\d+)?(\s+(\d+|\*)(/\d+)?){4}$'
                x-kubernetes-validations:
                - {rule: self == oldSelf, message: cronSpec is immutable}
              image: {type: string}
              replicas: {type: integer, default: 1}
              minReplicas: {type: integer, default: 1}
              maxReplicas: {type: integer, default: 10}
              containers:
                type: array
                x-kubernetes-list-type: map
                x-kubernetes-list-map-keys: [name]
                items:
                  type: object
                  required: [name]
                  properties:
                    name: {type: string}
                    port: {type: integer, default: 80}
          status:
            type: object
            properties:
              replicas: {type: integer}
              labelSelector: {type: string}
    selectableFields: [{jsonPath: .spec.image}]
    additionalPrinterColumns:
    - {name: Spec, type: string, description: When it runs, jsonPath: .spec.cronSpec}
    - {name: Replicas, type: integer, jsonPath: .spec.replicas}
    - {name: Port, type: integer, priority: 1, jsonPath: '.spec.containers[?(@.name=="main")].port'}
    - {name: Age, type: date, jsonPath: .metadata.creationTimestamp}
    subresources:
      status: {}
      scale: {specReplicasPath: .spec.replicas, statusReplicasPath: .status.replicas, labelSelectorPath: .status.labelSelector}
  - name: v1beta1
    served: true
    storage: false
    schema:
      openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}
"#;

const OBJECT: &str = r#"
apiVersion: stable.example.com/v1
kind: CronTab
metadata: {name: nightly}
spec:
  cronSpec: "0 3 * * */5"
  image: backup
  containers:
  - {name: main, port: 8080}
  - {name: side}
"#;

#[tokio::test(flavor = "multi_thread")]
async fn a_kind_that_a_user_brings_is_like_any_other() {
    let cluster = Cluster::start(3).await;
    let [one, two, three] = ["node-1", "node-2", "node-3"].map(|node| Kubectl::new(&cluster, node));

    let definition = one.file("crd.yaml", DEFINITION);
    one.ok(&["apply", "-f", &definition]);
    one.ok(&["wait", "--for=condition=Established", "--timeout=10s", "crd/crontabs.stable.example.com"]);
    // Within a second on every node: discovery, then the documents.
    for kubectl in [&two, &three] {
        let known = || async {
            let listed = kubectl.run(&["get", "--raw", "/apis/stable.example.com/v1"]);
            if listed.code == Some(0) { Ok(()) } else { Err(listed.err) }
        };
        eventually(Duration::from_secs(1), "the kind is known on another node", known).await;
    }

    let seen = watch(&three);
    let object = two.file("object.yaml", OBJECT);
    assert_eq!(two.ok(&["create", "-f", &object]), "crontab.stable.example.com/nightly created\n");
    let table = three.ok(&["get", "ct", "-o", "wide"]);
    let cells: Vec<Vec<&str>> =
        table.lines().map(|line| line.split("  ").map(str::trim).filter(|c| !c.is_empty()).collect()).collect();
    assert_eq!(cells[0], ["NAME", "SPEC", "REPLICAS", "PORT", "AGE"], "{table}");
    assert_eq!(cells[1][..4], ["nightly", "0 3 * * */5", "1", "8080"], "{table}");
    assert!(three.ok(&["get", "all"]).contains("crontab.stable.example.com/nightly"));
    let read: Value = serde_json::from_str(&three.ok(&["get", "crontab", "nightly", "-o", "json"])).unwrap();
    assert_eq!(read["spec"]["containers"][1]["port"], 80);
    let beta = three.ok(&[
        "get",
        "crontabs.v1beta1.stable.example.com",
        "nightly",
        "-o",
        "jsonpath={.apiVersion} {.spec.image}",
    ]);
    assert_eq!(beta, "stable.example.com/v1beta1 backup");
    assert!(three.ok(&["explain", "crontab.spec.cronSpec"]).contains("When it runs."));
    assert!(three.ok(&["api-resources", "--api-group=stable.example.com"]).contains("ct"));
    let selected = three.ok(&["get", "ct", "--field-selector=spec.image=backup", "-o", "name"]);
    assert_eq!(selected, "crontab.stable.example.com/nightly\n");
    assert_eq!(three.ok(&["get", "ct", "--field-selector=spec.image=none", "-o", "name"]), "");

    changes(&one, &two, &three);
    let events = seen.join().expect("the watch is read to its end");
    assert_eq!(events, ["ADDED 1", "MODIFIED 3"]);
    refusals(&one);
    patches(&one, &two, &three);

    // Its objects go with it, wherever they are; then nobody knows of it any more.
    one.ok(&["delete", "-f", &definition, "--timeout=30s"]);
    let unknown = || async {
        let said = three.run(&["get", "ct"]);
        if said.code == Some(0) { Err(said.out) } else { Ok(()) }
    };
    eventually(LIMIT, "the kind is gone on every node", unknown).await;
    two.ok(&["apply", "-f", &definition]);
    two.ok(&["wait", "--for=condition=Established", "--timeout=10s", "crd/crontabs.stable.example.com"]);
    let empty = || async {
        let said = three.run(&["get", "ct", "-o", "name"]);
        if said.code == Some(0) && said.out.is_empty() { Ok(()) } else { Err(format!("{said:?}")) }
    };
    eventually(LIMIT, "nothing is left of what was", empty).await;
}

/// Follows the kind's objects until the first of them was changed: what happened, and the replicas then.
fn watch(kubectl: &Kubectl) -> JoinHandle<Vec<String>> {
    let arguments =
        ["get", "ct", "--watch", "--output-watch-events", "-o", "jsonpath={.type} {.object.spec.replicas}{\"\\n\"}"];
    let mut command = kubectl.command(&arguments);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().expect("kubectl can be started");
    let out = BufReader::new(child.stdout.take().expect("standard output is a pipe"));
    std::thread::spawn(move || {
        let events = out.lines().map_while(Result::ok).take(2).collect();
        _ = child.kill();
        _ = child.wait();
        events
    })
}

fn changes(one: &Kubectl, two: &Kubectl, three: &Kubectl) {
    let field =
        |kubectl: &Kubectl, path: &str| kubectl.ok(&["get", "ct", "nightly", "-o", &format!("jsonpath={{{path}}}")]);
    one.ok(&["scale", "ct/nightly", "--current-replicas=1", "--replicas=3"]);
    assert_eq!(field(two, ".spec.replicas"), "3");
    assert_eq!(field(two, ".metadata.generation"), "2");
    let changed = OBJECT.replace("image: backup", "image: copy\n  replicas: 3");
    two.ok_with(&["replace", "-f", "-"], &changed);
    assert_eq!(field(three, ".spec.image"), "copy");
    assert_eq!(field(three, ".metadata.generation"), "3");
    // The status is written through its subresource, and nothing else is.
    let status = format!("{}status: {{replicas: 2, labelSelector: a=b}}\n", changed.replace("copy", "no"));
    three.ok_with(&["replace", "--subresource=status", "-f", "-"], &status);
    assert_eq!(field(one, ".status.replicas"), "2");
    assert_eq!(field(one, ".spec.image"), "copy");
    assert_eq!(field(one, ".metadata.generation"), "3");
    let scale = one.ok(&["get", "--raw", "/apis/stable.example.com/v1/namespaces/default/crontabs/nightly/scale"]);
    let scale: Value = serde_json::from_str(&scale).unwrap();
    assert_eq!((&scale["spec"]["replicas"], &scale["status"]["replicas"]), (&3.into(), &2.into()));
    assert_eq!(scale["status"]["selector"], "a=b");
}

fn refusals(kubectl: &Kubectl) {
    let refused = |from: &str, to: &str| {
        let said =
            kubectl.pipe(&["create", "-f", "-"], &OBJECT.replace("name: nightly", "name: wrong").replace(from, to));
        assert_ne!(said.code, Some(0), "{said:?}");
        said.err
    };
    let unknown = refused("image: backup", "imagee: backup");
    assert!(unknown.contains("strict decoding error: unknown field \"spec.imagee\""), "{unknown}");
    let pattern = refused("0 3 * * */5", "tomorrow");
    assert!(
        pattern.contains("spec.cronSpec: Invalid value: \"tomorrow\": spec.cronSpec in body should match"),
        "{pattern}"
    );
    let type_ = refused("image: backup", "replicas: many");
    assert!(type_.contains("spec.replicas in body must be of type integer: \"string\""), "{type_}");
    let rule = refused("image: backup", "replicas: 11");
    assert!(rule.contains("spec: Invalid value: \"object\": replicas must be within 1 and 10"), "{rule}");
    let twice = refused("name: side", "name: main");
    assert!(twice.contains("spec.containers[1]: Duplicate value: {\"name\":\"main\"}"), "{twice}");
    let immutable =
        kubectl.fails(&["patch", "ct", "nightly", "--type=merge", "-p", r#"{"spec":{"cronSpec":"1 1 1 1 1"}}"#]);
    assert!(immutable.contains("spec.cronSpec: Invalid value: \"string\": cronSpec is immutable"), "{immutable}");
    let broken =
        DEFINITION.replace("self.replicas <= self.maxReplicas", "self.nothing <= 1").replace("stable.", "broken.");
    let said = kubectl.pipe(&["create", "-f", "-"], &broken);
    assert!(said.err.contains("undefined field 'nothing'"), "{said:?}");
    let loose = DEFINITION.replace("image: {type: string}", "image: {}").replace("stable.", "loose.");
    let said = kubectl.pipe(&["create", "-f", "-"], &loose);
    assert!(
        said.err.contains("properties[image].type: Required value: must not be empty for specified object fields"),
        "{said:?}"
    );
}

fn patches(one: &Kubectl, two: &Kubectl, three: &Kubectl) {
    let field =
        |kubectl: &Kubectl, path: &str| kubectl.ok(&["get", "ct", "nightly", "-o", &format!("jsonpath={{{path}}}")]);
    one.ok(&["scale", "ct/nightly", "--replicas=4"]);
    assert_eq!(field(two, ".spec.replicas"), "4");
    two.ok(&["patch", "ct", "nightly", "--type=merge", "-p", r#"{"spec":{"image":"other"}}"#]);
    assert_eq!(field(three, ".spec.image"), "other");
    let status = r#"{"status":{"replicas":4},"spec":{"image":"no"}}"#;
    three.ok(&["patch", "ct", "nightly", "--subresource=status", "--type=merge", "-p", status]);
    assert_eq!((field(one, ".status.replicas"), field(one, ".spec.image")), ("4".to_owned(), "other".to_owned()));
    let strategic = one.fails(&["patch", "ct", "nightly", "--type=strategic", "-p", "{}"]);
    assert!(
        strategic.contains("media types") || strategic.contains("strategic merge patch is not supported"),
        "{strategic}"
    );
    one.ok(&["label", "ct", "nightly", "when=night"]);
    assert_eq!(two.ok(&["get", "ct", "-l", "when=night", "-o", "name"]), "crontab.stable.example.com/nightly\n");
    // An entry of a list is told apart by its key, so that two managers share the list.
    let applied = "apiVersion: stable.example.com/v1\nkind: CronTab\nmetadata: {name: nightly}\nspec:\n  containers:\n  - {name: third, port: 7}\n";
    one.ok_with(&["apply", "--server-side", "--field-manager=other", "-f", "-"], applied);
    let names = field(two, ".spec.containers[*].name");
    let mut names: Vec<&str> = names.split(' ').collect();
    names.sort_unstable();
    assert_eq!(names, ["main", "side", "third"]);
    let conflict = two
        .pipe(&["apply", "--server-side", "--field-manager=more", "-f", "-"], &applied.replace("port: 7", "port: 8"));
    assert!(conflict.err.contains("conflict with \"other\""), "{conflict:?}");
    let rule = one.fails(&[
        "patch",
        "ct",
        "nightly",
        "--type=json",
        "-p",
        r#"[{"op":"replace","path":"/spec/replicas","value":50}]"#,
    ]);
    assert!(rule.contains("replicas must be within 1 and 10"), "{rule}");
}
