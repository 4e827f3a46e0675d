//! What is wrong with a manifest is said with its place, and nothing of it is stored.

use flotilla_tests::{Cluster, cli, object};
use tonic::Code;

/// Each: what it is called, the manifest, and what the refusal must say.
fn bad() -> Vec<(&'static str, String, Vec<&'static str>)> {
    let deployment = |spec: &str| {
        format!(
            "apiVersion: apps/v1\nkind: Deployment\nmetadata: {{name: bad}}\nspec:\n  selector: {{matchLabels: {{a: b}}}}\n{spec}"
        )
    };
    let template = |container: &str| {
        format!("  template:\n    metadata: {{labels: {{a: b}}}}\n    spec:\n      containers:\n      - {container}\n")
    };
    let good = template("{name: c, image: i}");
    vec![
        ("unknown kind", "apiVersion: v1\nkind: Pood\nmetadata: {name: bad}\n".into(), vec!["Pood"]),
        ("unknown version", "apiVersion: apps/v9\nkind: Deployment\nmetadata: {name: bad}\n".into(), vec!["apps/v9"]),
        (
            "unknown field",
            deployment(&template("{name: c, imagee: i}")),
            vec!["spec.template.spec.containers[0].imagee", "unknown field"],
        ),
        ("no image", deployment(&template("{name: c}")), vec!["spec.template.spec.containers[0].image", "equired"]),
        ("negative replicas", deployment(&format!("  replicas: -1\n{good}")), vec!["spec.replicas", "-1"]),
        ("wrong type", deployment(&format!("  replicas: many\n{good}")), vec!["spec.replicas"]),
        ("no name", "apiVersion: v1\nkind: ConfigMap\nmetadata: {}\n".into(), vec!["metadata.name"]),
        (
            "bad name",
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: Bad_Name}\n".into(),
            vec!["metadata.name", "Bad_Name"],
        ),
        ("not YAML", "{ this is: [ not yaml".into(), vec!["line"]),
        ("no object", "just words\n".into(), vec![]),
        ("a bomb", bomb(), vec![]),
        (
            "two documents, the second bad",
            format!(
                "apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: innocent}}\n---\n{}",
                deployment(&template("{name: c}"))
            ),
            vec!["containers[0].image"],
        ),
    ]
}

/// Ten levels of ten aliases each.
fn bomb() -> String {
    let mut text = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
    for level in 1..10 {
        let aliases = vec![format!("*a{}", level - 1); 10].join(",");
        text.push_str(&format!("a{level}: &a{level} [{aliases}]\n"));
    }
    text + "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: bad}\n"
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_manifest_is_refused_with_path_and_reason_and_nothing_is_stored() {
    let cluster = Cluster::start(1).await;
    for (what, manifest, words) in bad() {
        let refusal = object::apply(&cluster, "node-1", manifest.as_bytes()).await;
        let Err(status) = refusal else { panic!("{what} is taken: {refusal:?}") };
        assert!(matches!(status.code(), Code::InvalidArgument | Code::NotFound), "{what}: {status:?}");
        assert!(words.iter().all(|word| status.message().contains(word)), "{what}: {}", status.message());
    }
    let huge =
        format!("apiVersion: v1\nkind: ConfigMap\nmetadata: {{name: huge}}\ndata: {{a: {}}}\n", "x".repeat(2 << 20));
    let refusal = object::apply(&cluster, "node-1", huge.as_bytes()).await.unwrap_err();
    assert!(refusal.message().contains("too large") || refusal.message().contains("bytes"), "{refusal:?}");

    for kind in ["configmaps", "deployments", "replicasets", "pods"] {
        assert_eq!(object::names(&cluster, "node-1", kind).await.unwrap(), Vec::<String>::new(), "{kind}");
    }
    the_command_line_says_it_too(&cluster);
}

fn the_command_line_says_it_too(cluster: &Cluster) {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.yaml");
    let bad = [
        ("name: web\ncontainers:\n- name: a\n", "containers[0].image"),
        ("name: web\nimage: a\ncount: -1\n", "count"),
        ("name: web\nimage: a\nreplica: 1\n", "replica"),
    ];
    for (manifest, word) in bad {
        std::fs::write(&file, manifest).unwrap();
        let said = cli::flotilla(cluster, "node-1", &["submit", &file.display().to_string()]);
        assert!(said.code == Some(1) && said.err.contains(word), "{word}: {said:?}");
    }
    let said = cli::flotilla(cluster, "node-1", &["apply", "-f", "/no/such/file.yaml"]);
    assert!(said.code == Some(1) && said.err.contains("/no/such/file.yaml"), "{said:?}");
}
