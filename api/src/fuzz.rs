//! Every decoder of this crate that reads bytes from outside, as functions for fuzzers and for a test on stable Rust.
//!
//! Invariant: no input panics; what is accepted once is accepted again in the form that it was given back in.

use jiff::Timestamp;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::Value;

use crate::admit::{self, Create, Subresource, UnknownFields};
use crate::patch::{Patch, PatchType};
use crate::selector::{Fields, Labels};
use crate::{Key, Registry, cel, custom, job, jsonpath, managed, names, object, openapi, quantity, schema, sealing};

/// A target and its name.
pub type Target = (&'static str, fn(&[u8]));

pub const TARGETS: &[Target] = &[
    ("manifest", manifest),
    ("job", job_form),
    ("selector", selector),
    ("quantity", quantity),
    ("names", names),
    ("stored", stored),
    ("definition", definition),
    ("cel", cel),
    ("jsonpath", jsonpath),
    ("patch", patch),
    ("fields", fields),
    ("managed", managed_fields),
];

fn registry() -> &'static Registry {
    static REGISTRY: std::sync::OnceLock<Registry> = std::sync::OnceLock::new();
    REGISTRY.get_or_init(Registry::builtin)
}

/// The same name again and again.
struct NoDice;

impl rand::RngCore for NoDice {
    fn next_u32(&mut self) -> u32 {
        7
    }

    fn next_u64(&mut self) -> u64 {
        7
    }

    fn fill_bytes(&mut self, bytes: &mut [u8]) {
        bytes.fill(7);
    }
}

fn create(rng: &mut dyn rand::RngCore) -> Create<'_> {
    Create { namespace: "", now: Timestamp::UNIX_EPOCH, rng, unknown_fields: UnknownFields::Refuse }
}

/// A manifest as people send it, through strict decoding, defaults, validation, an update and a table.
fn manifest(input: &[u8]) {
    let Ok(objects) = admit::parse(input, registry()) else { return };
    for parsed in objects {
        let Ok(prepared) = admit::prepare_create(&parsed.kind, parsed.object, create(&mut NoDice)) else { continue };
        let (kind, stored) = (parsed.kind, prepared.object);
        let again = admit::prepare_update(&kind, &stored, stored.clone(), Subresource::None, UnknownFields::Refuse)
            .expect("what was admitted is admitted again");
        assert!(!again.changed, "{kind:?} is stable after defaults: {stored} {}", again.object);
        assert_eq!(kind.row(&stored, Timestamp::UNIX_EPOCH).len(), kind.columns().len());
    }
}

/// A CustomResourceDefinition, and objects of its kinds, as the documents of one manifest.
fn definition(input: &[u8]) {
    let Ok(documents) = admit::documents(input) else { return };
    let mut documents = documents.into_iter();
    let (Some(first), Ok(kind)) = (documents.next(), registry().by_name("crd")) else { return };
    let Ok(prepared) = admit::prepare_create(&kind, first, create(&mut NoDice)) else { return };
    let mut definition: CustomResourceDefinition =
        serde_json::from_value(prepared.object).expect("what was admitted decodes");
    let accepted = serde_json::json!({
        "acceptedNames": definition.spec.names,
        "conditions": [{"type": "Established", "status": "True"}],
    });
    definition.status = serde_json::from_value(accepted).ok();
    let mut registry = Registry::new();
    registry.register_all(custom::kinds(&definition));
    for document in documents.filter(Value::is_object) {
        for kind in registry.iter() {
            let mut document = document.clone();
            document["apiVersion"] = kind.api_version().into();
            document["kind"] = kind.kind.clone().into();
            let Ok(prepared) = admit::prepare_create(kind, document, create(&mut NoDice)) else { continue };
            let stored = prepared.object;
            let again = admit::prepare_update(kind, &stored, stored.clone(), Subresource::None, UnknownFields::Refuse)
                .expect("what was admitted is admitted again");
            assert!(!again.changed, "{kind:?} is stable after defaults: {stored} {}", again.object);
            assert_eq!(kind.row(&stored, Timestamp::UNIX_EPOCH).len(), kind.columns().len());
        }
    }
    for path in openapi::index(&registry).keys() {
        openapi::v3(&registry, path);
    }
}

/// An expression, checked and evaluated.
fn cel(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(program) = cel::Program::parse(text) else { return };
    let object = serde_json::json!({"a": [1, 2, 3], "b": {"c": "text"}, "n": 1.5, "t": true, "z": null});
    let types = [("self", cel::Type::Dyn), ("oldSelf", cel::Type::Dyn)];
    _ = cel::check(&program, &types);
    let mut scope = cel::Scope::new();
    scope.bind("self", cel::Val::of(&object, None));
    scope.bind("oldSelf", cel::Val::Null);
    _ = program.run(&mut scope, &mut cel::Budget::default()).map(|value| value.to_json());
}

fn jsonpath(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(path) = jsonpath::JsonPath::parse(text) else { return };
    let object = serde_json::json!({"a": [{"b": 1, "c": "x"}, {"b": 2}], "d": {"e": null}});
    assert!(path.find(&object).len() <= jsonpath::MAX_RESULTS);
}

fn job_form(input: &[u8]) {
    let Ok(jobs) = job::from_yaml(input) else { return };
    for job in jobs {
        let Ok(prepared) = job::prepare(&job, registry(), create(&mut NoDice)) else { continue };
        job::raise(&prepared.object).expect("what came from a job is one");
    }
}

fn selector(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let object = serde_json::json!({"metadata": {"name": "a", "labels": {"app": "web"}}, "spec": {"nodeName": "n"}});
    if let Ok(labels) = Labels::parse(text) {
        labels.matches_value(&object);
    }
    if let Ok(fields) = Fields::parse(text) {
        fields.matches(&object);
        _ = fields.check(&["spec.nodeName"]);
    }
}

fn quantity(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let Ok(canonical) = quantity::canonical(text) else { return };
    assert_eq!(quantity::canonical(&canonical).as_deref(), Ok(canonical.as_str()), "{text}");
    let parsed = k8s_openapi::apimachinery::pkg::api::resource::Quantity(text.to_owned());
    _ = (quantity::bytes(&parsed), quantity::cpu_millis(&parsed));
}

fn names(input: &[u8]) {
    let Ok(text) = std::str::from_utf8(input) else { return };
    let rules = [
        names::dns_label,
        names::dns_subdomain,
        names::dns_1035_label,
        names::qualified_name,
        names::label_value,
        names::config_key,
        names::env_name,
        names::port_name,
        names::path_segment,
    ];
    for rule in rules {
        _ = rule(text);
    }
    if let Some(key) = Key::parse(text) {
        assert_eq!(key.as_str(), text);
        assert!(text.ends_with(key.name()));
    }
}

/// What a store or a backup gives back.
fn stored(input: &[u8]) {
    let Ok(mut object) = object::decode_value(input, 7) else { return };
    let pointers = ["/data".to_owned(), sealing::LAST_APPLIED.to_owned()];
    let before = object.clone();
    let parts = sealing::take(&mut object, &pointers);
    sealing::put_back(&mut object, parts, &pointers);
    assert_eq!(object, before);
    sealing::take_envelope(&mut object);
    for kind in registry().iter() {
        if object.get("kind").and_then(Value::as_str) == Some(&kind.kind) {
            _ = kind.row(&object, Timestamp::UNIX_EPOCH);
        }
    }
}

/// A patch of any type; the first byte says which.
fn patch(input: &[u8]) {
    let Some((type_, body)) = input.split_first() else { return };
    let type_ = match type_ {
        b'j' => PatchType::Json,
        b'm' => PatchType::Merge,
        _ => PatchType::Strategic,
    };
    let Ok((patch, _)) = Patch::parse(type_, body) else { return };
    let pod = serde_json::json!({
        "metadata": {"name": "a", "labels": {"app": "web"}, "finalizers": ["x", "y"]},
        "spec": {
            "containers": [{"name": "a", "image": "1", "command": ["sh"]}, {"name": "b", "ports": [{"containerPort": 80}]}],
            "nodeSelector": {"k": "v"},
        },
    });
    let before = pod.clone();
    if let Ok(new) = patch.apply(schema::get("io.k8s.api.core.v1.Pod"), &pod) {
        _ = patch.apply(None, &new);
    }
    assert_eq!(pod, before);
}

/// FieldsV1, as clients may send them.
fn fields(input: &[u8]) {
    let Ok(value) = serde_json::from_slice::<Value>(input) else { return };
    let Ok(fields) = managed::Fields::parse(&value) else { return };
    fields.paths();
    assert_eq!(managed::Fields::parse(&fields.to_value()), Ok(fields));
}

/// A list of a live object and a configuration: `managedFields` that anybody may have written, and an apply to them.
fn managed_fields(input: &[u8]) {
    let Ok([live, config]) = serde_json::from_slice::<[Value; 2]>(input) else { return };
    let schema = schema::get("io.k8s.api.apps.v1.Deployment");
    let writer = managed::Writer {
        manager: "kubectl",
        api_version: "apps/v1",
        subresource: "",
        status_apart: true,
        now: Timestamp::UNIX_EPOCH,
    };
    let mut tracked = config.clone();
    managed::track(Some(&live), &mut tracked, schema, writer);
    for force in [false, true] {
        _ = managed::apply(Some(&live), &config, schema, writer, force);
    }
    if !config["metadata"].is_object() {
        return;
    }
    if let Ok(made) = managed::apply(None, &config, schema, writer, false) {
        let again = managed::apply(Some(&made.object), &config, schema, writer, false).expect("nobody else owns it");
        assert!(!again.changed, "{config}");
    }
}

#[cfg(test)]
#[path = "../../fuzz/stable.rs"]
mod stable;

#[cfg(test)]
mod tests {
    #[test]
    fn seeds_and_their_mutations_are_taken_or_refused() {
        super::stable::run("api", super::TARGETS);
    }
}
