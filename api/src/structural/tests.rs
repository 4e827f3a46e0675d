//! A schema in all its parts, in upstream's words; and what holds for any schema and any object.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::JSONSchemaProps;
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::admit::strict::Findings;

fn built(schema: Value) -> (Schema, Vec<String>) {
    let props: JSONSchemaProps = serde_json::from_value(schema).unwrap();
    let mut errors = Errors::new();
    let schema = build(&props, &Path::root(), &mut errors);
    (schema, words(errors))
}

fn words(errors: Errors) -> Vec<String> {
    errors.into_causes().iter().map(|cause| format!("{}: {}", cause.field, cause.message)).collect()
}

fn structure(schema: Value) -> Structure {
    let (root, complaints) = built(schema.clone());
    assert_eq!(complaints, [""; 0]);
    Structure::new(root, &schema)
}

fn complaints(structure: &Structure, object: &Value, old: Option<&Value>) -> Vec<String> {
    let mut errors = Errors::new();
    structure.validate(object, old, &mut errors);
    words(errors)
}

fn cron_tab() -> Structure {
    structure(json!({
        "type": "object",
        "required": ["spec"],
        "properties": {"spec": {
            "type": "object",
            "required": ["schedule"],
            "x-kubernetes-validations": [
                {"rule": "self.min <= self.replicas && self.replicas <= self.max", "message": "replicas must be within bounds"},
                {"rule": "!has(oldSelf.image) || self.image == oldSelf.image", "message": "image is immutable"},
                {"rule": "self.replicas != 13", "messageExpression": "'not ' + string(self.replicas)", "fieldPath": ".replicas", "reason": "FieldValueForbidden"},
            ],
            "properties": {
                "schedule": {"type": "string", "pattern": "^(\\d+|\\*)(/\\d+)?(\\s+(\\d+|\\*)(/\\d+)?){4}$", "maxLength": 20},
                "image": {"type": "string"},
                "min": {"type": "integer", "default": 1},
                "max": {"type": "integer", "default": 20, "maximum": 100},
                "replicas": {"type": "integer", "default": 3, "minimum": 1},
                "mode": {"type": "string", "enum": ["Fast", "Slow"], "default": "Fast"},
                "port": {"x-kubernetes-int-or-string": true},
                "maybe": {"type": "string", "nullable": true},
                "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                "labels": {"type": "object", "additionalProperties": {"type": "string", "minLength": 1}},
                "set": {"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string"}},
                "ports": {
                    "type": "array", "maxItems": 3,
                    "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"],
                    "items": {"type": "object", "required": ["name"], "properties": {
                        "name": {"type": "string"},
                        "number": {"type": "integer", "default": 80},
                    }},
                },
                "template": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                "either": {
                    "type": "object",
                    "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                    "oneOf": [{"required": ["a"]}, {"required": ["b"]}],
                },
            },
        }},
    }))
}

fn object(spec: Value) -> Value {
    json!({"apiVersion": "stable.example.com/v1", "kind": "CronTab", "metadata": {"name": "a", "labels": {"x": "y"}}, "spec": spec})
}

#[test]
fn objects_are_pruned_and_defaulted() {
    let structure = cron_tab();
    let mut value = object(json!({
        "schedule": "* * * * */5", "nothing": 1, "min": null, "maybe": null,
        "free": {"any": {"thing": 1}}, "labels": {"a": "b"},
        "ports": [{"name": "x", "other": 1}, {"name": "y", "number": 8080}],
        "template": {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "q"}, "more": true},
    }));
    value["other"] = json!(true);
    let mut findings = Findings::default();
    prune(&mut value, &structure.root, &mut findings);
    assert_eq!(
        words(findings.unknown),
        ["other: unknown field", "spec.nothing: unknown field", "spec.ports[0].other: unknown field"]
    );
    default(&mut value, &structure.root);
    assert_eq!(
        value,
        object(json!({
            "schedule": "* * * * */5", "min": 1, "max": 20, "replicas": 3, "mode": "Fast", "maybe": null,
            "free": {"any": {"thing": 1}}, "labels": {"a": "b"},
            "ports": [{"name": "x", "number": 80}, {"name": "y", "number": 8080}],
            "template": {"kind": "Pod", "apiVersion": "v1", "metadata": {"name": "q"}, "more": true},
        }))
    );
    assert_eq!(complaints(&structure, &value, None), [""; 0]);
}

#[test]
fn values_are_refused_in_upstreams_words() {
    let structure = cron_tab();
    let not_checked = "<nil>: Invalid value: null: some validation rules were not checked because the object was invalid; \
                       correct the existing errors to complete validation";
    let table = [
        (json!({}), vec!["spec.schedule: Required value", not_checked]),
        (
            json!({"schedule": 5}),
            vec![
                "spec.schedule: Invalid value: \"integer\": spec.schedule in body must be of type string: \"integer\"",
                not_checked,
            ],
        ),
        (
            json!({"schedule": "x"}),
            vec![
                "spec.schedule: Invalid value: \"x\": spec.schedule in body should match '^(\\\\d+|\\\\*)(/\\\\d+)?(\\\\s+(\\\\d+|\\\\*)(/\\\\d+)?){4}$'",
            ],
        ),
        (
            json!({"schedule": "1 1 1 1 1 1 1 1 1 1 1 1 1"}),
            vec![
                "spec.schedule: Too long: may not be more than 20 bytes",
                "spec.schedule: Invalid value: \"1 1 1 1 1 1 1 1 1 1 1 1 1\": spec.schedule in body should match '^(\\\\d+|\\\\*)(/\\\\d+)?(\\\\s+(\\\\d+|\\\\*)(/\\\\d+)?){4}$'",
                not_checked,
            ],
        ),
        (json!({"mode": "Odd"}), vec!["spec.mode: Unsupported value: \"Odd\": supported values: \"Fast\", \"Slow\""]),
        (
            json!({"replicas": 0, "min": 0}),
            vec!["spec.replicas: Invalid value: 0: spec.replicas in body should be greater than or equal to 1"],
        ),
        (
            json!({"max": 101}),
            vec!["spec.max: Invalid value: 101: spec.max in body should be less than or equal to 100"],
        ),
        (
            json!({"port": true}),
            vec![
                "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
                not_checked,
            ],
        ),
        (
            json!({"labels": {"a": ""}}),
            vec!["spec.labels[a]: Invalid value: \"\": spec.labels[a] in body should be at least 1 chars long"],
        ),
        (json!({"set": ["a", "a"]}), vec!["spec.set[1]: Duplicate value: \"a\""]),
        (json!({"ports": [{"name": "x"}, {"name": "x"}]}), vec!["spec.ports[1]: Duplicate value: {\"name\":\"x\"}"]),
        (
            json!({"ports": [{"name": "a"}, {"name": "b"}, {"name": "c"}, {"name": "d"}]}),
            vec!["spec.ports: Too many: 4: must have at most 3 items", not_checked],
        ),
        (
            json!({"either": {}}),
            vec![
                "spec.either: Invalid value: {}: \"spec.either\" must validate one and only one schema (oneOf). Found none valid",
            ],
        ),
        (json!({"replicas": 50}), vec!["spec: Invalid value: \"object\": replicas must be within bounds"]),
        (json!({"replicas": 13}), vec!["spec.replicas: Forbidden: not 13"]),
    ];
    for (spec, expected) in table {
        let mut value = object(json!({"schedule": "* * * * *"}));
        let spec_map = value["spec"].as_object_mut().unwrap();
        if spec.as_object().unwrap().is_empty() {
            spec_map.clear();
        }
        spec_map.extend(spec.as_object().unwrap().clone());
        default(&mut value, &structure.root);
        let found = complaints(&structure, &value, None);
        let expected: Vec<String> = expected.iter().map(|words| words.replace("\\\\", "\\")).collect();
        assert_eq!(found, expected, "{spec}");
    }
}

#[test]
fn resources_inside_of_resources_say_what_they_are() {
    let structure = structure(json!({"type": "object", "properties": {"emb": {
        "type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true,
    }}}));
    let judged = |emb: Value| {
        let mut value = json!({"apiVersion": "a.example.com/v1", "kind": "Foo", "metadata": {}, "emb": emb});
        let mut findings = Findings::default();
        prune(&mut value, &structure.root, &mut findings);
        let mut found = words(findings.unknown);
        found.extend(words(findings.wrong));
        found.extend(complaints(&structure, &value, None));
        (value["emb"].clone(), found)
    };
    let (_, found) = judged(json!({"foo": 1}));
    let required = ["emb.apiVersion: Required value: must not be empty", "emb.kind: Required value: must not be empty"];
    assert_eq!(found, required);
    let pod = |metadata: Value| json!({"apiVersion": "v1", "kind": "Pod", "metadata": metadata});
    let table = [
        (
            json!({"apiVersion": "a/b/c", "kind": "P_d"}),
            vec![
                "emb.apiVersion: Invalid value: \"a/b/c\": unexpected GroupVersion string: a/b/c",
                "emb.kind: Invalid value: \"P_d\": may have mixed case, but should otherwise match: a DNS-1035 label",
            ],
        ),
        (
            pod(json!({"labels": {"a": 5}})),
            vec!["emb.metadata.labels[a]: Invalid value: \"integer\": must be of type string"],
        ),
        (pod(json!({"odd": 5})), vec!["emb.metadata.odd: unknown field"]),
        (pod(json!({"name": "a/b"})), vec!["emb.metadata.name: Invalid value: \"a/b\": may not contain '/'"]),
        (pod(json!({"finalizers": ["x"]})), vec!["emb.metadata.finalizers[0]: Invalid value: \"x\": name is neither"]),
    ];
    for (emb, expected) in table {
        let (_, found) = judged(emb.clone());
        let same = found.len() == expected.len() && found.iter().zip(&expected).all(|(a, b)| a.starts_with(b));
        assert!(same, "{emb}: {found:#?}");
    }
    assert_eq!(judged(pod(Value::Null)), (pod(json!({})), vec![]));
}

#[test]
fn changes_are_judged_against_what_was() {
    let structure = cron_tab();
    let make = |spec: Value| {
        let mut value = object(spec);
        default(&mut value, &structure.root);
        value
    };
    let old = make(json!({"schedule": "* * * * *", "image": "a"}));
    let new = make(json!({"schedule": "* * * * *", "image": "b"}));
    assert_eq!(complaints(&structure, &new, Some(&old)), ["spec: Invalid value: \"object\": image is immutable"]);
    assert_eq!(complaints(&structure, &new, None), [""; 0]);
    let image = json!({"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]});
    let atomic = self::structure(
        json!({"type": "object", "properties": {"spec": {"type": "object", "x-kubernetes-map-type": "atomic", "properties": {"image": image}}}}),
    );
    let (old, new) = (object(json!({"image": "a"})), object(json!({"image": "b"})));
    let expected = ["spec.image: Invalid value: \"string\": failed rule: self == oldSelf"];
    assert_eq!(complaints(&atomic, &new, Some(&old)), expected);
    // What was wrong before and was not touched is let be.
    let old = make(json!({"schedule": "* * * * *", "mode": "Odd"}));
    let new = make(json!({"schedule": "1 * * * *", "mode": "Odd"}));
    assert_eq!(complaints(&structure, &new, Some(&old)), [""; 0]);
}

#[test]
fn schemas_that_are_not_structural_are_refused() {
    let spec = |schema: Value| json!({"type": "object", "properties": {"spec": schema}});
    let table = [
        (json!({"properties": {}}), "type: Required value: must not be empty at the root"),
        (json!({"type": "string"}), "type: Invalid value: \"string\": must be object at the root"),
        (
            spec(json!({"properties": {"a": {"type": "string"}}})),
            "properties[spec].type: Required value: must not be empty for specified object fields",
        ),
        (spec(json!({"type": "array"})), "properties[spec].items: Required value: must be specified"),
        (
            spec(json!({"type": "array", "items": {}})),
            "properties[spec].items.type: Required value: must not be empty for specified array items",
        ),
        (
            spec(json!({"type": "object", "anyOf": [{"type": "object"}]})),
            "properties[spec].anyOf[0].type: Forbidden: must be empty to be structural",
        ),
        (
            spec(json!({"type": "string", "pattern": "("})),
            "properties[spec].pattern: Invalid value: \"(\": must be a valid regular expression, but isn't: unclosed group",
        ),
        (
            spec(json!({"type": "string", "default": 5})),
            "properties[spec].default: Invalid value: \"integer\": properties[spec].default in body must be of type string: \"integer\"",
        ),
        (
            spec(json!({"type": "object", "default": {"a": 1}})),
            "properties[spec].default: Invalid value: {\"a\":1}: must not have unknown fields",
        ),
        (
            spec(json!({"type": "array", "x-kubernetes-list-type": "map", "items": {"type": "object"}})),
            "properties[spec].x-kubernetes-list-map-keys: Required value: must not be empty if x-kubernetes-list-type is map",
        ),
        (json!({"type": "object", "nullable": true}), "nullable: Forbidden: nullable cannot be true at the root"),
        (
            spec(json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "object"}})),
            "properties[spec].items.x-kubernetes-map-type: Invalid value: null: must be atomic as item of a list with x-kubernetes-list-type=set",
        ),
        (
            spec(
                json!({"type": "array", "x-kubernetes-list-type": "set", "items": {"type": "string", "nullable": true}}),
            ),
            "properties[spec].items.nullable: Forbidden: cannot be nullable when x-kubernetes-list-type is set",
        ),
        (
            spec(
                json!({"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["a"], "items": {"type": "object", "required": ["a"], "properties": {"a": {"type": "string", "nullable": true}}}}),
            ),
            "properties[spec].items.properties[a].nullable: Forbidden: this property is in x-kubernetes-list-map-keys, so it cannot be nullable",
        ),
        (
            spec(json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self > 1", "message": " "}]})),
            "properties[spec].x-kubernetes-validations[0].message: Invalid value: \" \": message must be non-empty if specified",
        ),
        (
            spec(
                json!({"type": "array", "items": {"type": "object", "additionalProperties": {"type": "string", "x-kubernetes-validations": [{"rule": "self == oldSelf"}]}}}),
            ),
            "properties[spec].items.additionalProperties.x-kubernetes-validations[0].rule: Invalid value: \"self == oldSelf\": oldSelf cannot be used on the uncorrelatable portion of the schema within properties[spec]",
        ),
        (
            spec(json!({"type": "odd"})),
            "properties[spec].type: Unsupported value: \"odd\": supported values: \"array\", \"boolean\", \"integer\", \"number\", \"object\", \"string\"",
        ),
        (
            spec(
                json!({"type": "object", "properties": {"a": {"type": "string"}}, "additionalProperties": {"type": "string"}}),
            ),
            "properties[spec].additionalProperties: Forbidden: additionalProperties and properties are mutual exclusive",
        ),
        (
            json!({"type": "object", "properties": {"metadata": {"type": "object", "properties": {"labels": {"type": "object"}}}}}),
            "properties[metadata]: Forbidden: must not specify anything other than name and generateName, but metadata is implicitly specified",
        ),
        (
            spec(json!({"type": "object", "x-kubernetes-validations": [{"rule": "self.nothing == 1"}]})),
            "properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self.nothing == 1\": compilation failed: ERROR: <input>:1:5: undefined field 'nothing'\n | self.nothing == 1\n | ....^",
        ),
        (
            spec(json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self + 1"}]})),
            "properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self + 1\": cel expression must evaluate to a bool",
        ),
        (
            spec(json!({"type": "integer", "x-kubernetes-validations": [{"rule": "self + 'a' == 'b'"}]})),
            "properties[spec].x-kubernetes-validations[0].rule: Invalid value: \"self + 'a' == 'b'\": compilation failed: ERROR: <input>:1:6: found no matching overload for '_+_' applied to '(int, string)'\n | self + 'a' == 'b'\n | .....^",
        ),
    ];
    for (schema, expected) in table {
        let (_, found) = built(schema.clone());
        assert!(found.iter().any(|words| words == expected), "{schema}: {found:#?}");
    }
}

#[test]
fn a_rule_that_costs_too_much_is_refused_when_it_runs() {
    let structure = structure(json!({"type": "object", "properties": {"spec": {
        "type": "object",
        "properties": {"list": {"type": "array", "items": {"type": "integer"}}},
        "x-kubernetes-validations": [{"rule": "self.list.all(a, self.list.all(b, self.list.all(c, a + b + c >= 0)))"}],
    }}}));
    let value = object(json!({"list": vec![1; 1000]}));
    let found = complaints(&structure, &value, None);
    assert!(found[0].contains("no further validation rules will be run due to call cost exceeds limit"), "{found:?}");
}

#[test]
fn rules_that_spend_the_whole_budget_are_told_of_once() {
    let costly = format!("[{}].all(x, x < 5)", vec!["1"; 100].join(", "));
    let structure = structure(json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "list": {"type": "array", "items": {"type": "integer", "x-kubernetes-validations": [{"rule": costly}]}},
        "z": {"type": "string", "x-kubernetes-validations": [{"rule": "self == 'good'"}]},
    }}}}));
    let found = complaints(&structure, &object(json!({"list": vec![1; 30_000], "z": "bad"})), None);
    assert!(matches!(&*found, [one] if one.contains("no further validation rules will be run")), "{found:?}");
}

#[test]
fn an_object_that_is_too_large_for_its_schema_is_refused_wherever_that_is_noticed() {
    let structure = structure(json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "list": {"type": "array", "items": {"type": "integer", "anyOf": [{"maximum": 1}, {"maximum": 2}, {"maximum": 9}]}},
        "z": {"type": "string", "enum": ["good"]},
    }}}}));
    let value = object(json!({"list": vec![5; 500_010], "z": "bad"}));
    let found = complaints(&structure, &value, None);
    assert!(found.iter().any(|words| words.contains("too large for its schema")), "{found:?}");
}

fn schemas() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!({"type": "string"})),
        Just(json!({"type": "string", "default": "x", "minLength": 1})),
        Just(json!({"type": "string", "nullable": true, "default": "y"})),
        Just(json!({"type": "integer", "default": 4, "minimum": 0})),
        Just(json!({"type": "boolean"})),
        Just(json!({"type": "number", "nullable": true})),
        Just(json!({"x-kubernetes-int-or-string": true})),
        Just(json!({"x-kubernetes-preserve-unknown-fields": true})),
        Just(
            json!({"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true})
        ),
    ];
    leaf.prop_recursive(4, 32, 4, |inner| {
        prop_oneof![
            (proptest::collection::btree_map("[abc]", inner.clone(), 0..4), any::<bool>()).prop_map(
                |(fields, open)| {
                    let mut schema = json!({"type": "object", "properties": fields, "default": {}});
                    if open {
                        schema["x-kubernetes-preserve-unknown-fields"] = true.into();
                    }
                    schema
                }
            ),
            inner.clone().prop_map(|values| json!({"type": "object", "additionalProperties": values})),
            inner.prop_map(|items| json!({"type": "array", "items": items})),
        ]
    })
}

fn values() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-z]{0,3}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 48, 4, |inner| {
        prop_oneof![
            proptest::collection::btree_map("[abcd]", inner.clone(), 0..4).prop_map(|fields| json!(fields)),
            proptest::collection::vec(inner, 0..3).prop_map(Value::from),
        ]
    })
}

proptest! {
    #[test]
    fn what_was_pruned_and_defaulted_stays_so(fields in proptest::collection::btree_map("[abc]", schemas(), 1..4), value in proptest::collection::btree_map("[abcd]", values(), 0..4)) {
        let props: JSONSchemaProps = serde_json::from_value(json!({"type": "object", "properties": fields})).unwrap();
        let root = build(&props, &Path::root(), &mut Errors::new());
        let structure = Structure::new(root, &published(&props));
        let mut once = json!(value);
        prune(&mut once, &structure.root, &mut Findings::default());
        default(&mut once, &structure.root);
        let mut twice = once.clone();
        let mut findings = Findings::default();
        prune(&mut twice, &structure.root, &mut findings);
        prop_assert!(findings.unknown.is_empty());
        default(&mut twice, &structure.root);
        prop_assert_eq!(&once, &twice);
        // It may be valid or not, but it is judged, and by itself alike each time.
        prop_assert_eq!(complaints(&structure, &once, None), complaints(&structure, &twice, None));
        prop_assert_eq!(complaints(&structure, &once, Some(&twice)), Vec::<String>::new());
    }
}
