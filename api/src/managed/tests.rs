//! The specification's rules, one by one, and over generated objects.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::schema;

fn deployment() -> Option<&'static Schema> {
    schema::get("io.k8s.api.apps.v1.Deployment")
}

fn writer(manager: &str, second: i64) -> Writer<'_> {
    let now = Timestamp::from_second(second).unwrap();
    Writer { manager, api_version: "apps/v1", subresource: "", status_apart: true, now }
}

fn config(spec: Value) -> Value {
    json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": spec})
}

fn applied(live: Option<&Value>, spec: Value, manager: &str) -> Value {
    apply(live, &config(spec), deployment(), writer(manager, 1), false).unwrap().object
}

fn owned(object: &Value, manager: &str) -> Vec<String> {
    managers(object).into_iter().find(|one| one.name == manager).map(|one| one.fields.paths()).unwrap_or_default()
}

#[test]
fn an_applier_owns_what_it_applied() {
    let object = applied(None, json!({"replicas": 3, "paused": true}), "a");
    assert_eq!(owned(&object, "a"), [".spec.paused", ".spec.replicas"]);
    let entry = &object["metadata"]["managedFields"][0];
    assert_eq!((&entry["operation"], &entry["apiVersion"]), (&json!("Apply"), &json!("apps/v1")));
    assert_eq!(entry["time"], "1970-01-01T00:00:01Z");
}

#[test]
fn a_field_that_is_left_out_goes_unless_somebody_else_owns_it() {
    let object = applied(None, json!({"replicas": 3, "paused": true, "minReadySeconds": 1}), "a");
    let object = applied(Some(&object), json!({"minReadySeconds": 1}), "b");
    let object = applied(Some(&object), json!({"replicas": 3}), "a");
    assert_eq!(object["spec"], json!({"replicas": 3, "minReadySeconds": 1}));
    assert_eq!(owned(&object, "a"), [".spec.replicas"]);
    let object = applied(Some(&object), json!({}), "b");
    assert_eq!(object["spec"], json!({"replicas": 3}));
}

#[test]
fn another_value_for_a_field_of_others_is_a_conflict_unless_forced() {
    let object = applied(None, json!({"replicas": 3, "paused": true}), "a");
    let wanted = config(json!({"replicas": 5}));
    let refused = apply(Some(&object), &wanted, deployment(), writer("b", 2), false).unwrap_err();
    assert_eq!(refused.reason, Reason::Conflict);
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"a\": .spec.replicas");
    assert_eq!((&*refused.causes[0].reason, &*refused.causes[0].field), ("FieldManagerConflict", ".spec.replicas"));
    let forced = apply(Some(&object), &wanted, deployment(), writer("b", 2), true).unwrap().object;
    assert_eq!(forced["spec"], json!({"replicas": 5, "paused": true}));
    assert_eq!(
        (owned(&forced, "a"), owned(&forced, "b")),
        (vec![".spec.paused".into()], vec![".spec.replicas".into()])
    );
}

#[test]
fn what_is_applied_through_the_status_owns_the_status_alone() {
    let by = |second| Writer { subresource: "status", ..writer("c", second) };
    let object = applied(None, json!({"replicas": 3}), "a");
    let whole = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "labels": {"a": "b"}},
        "spec": {"replicas": 7}, "status": {"replicas": 3, "readyReplicas": 2}});
    let object = apply(Some(&object), &whole, deployment(), by(2), false).unwrap().object;
    assert_eq!((&object["spec"]["replicas"], &object["metadata"].get("labels")), (&json!(3), &None));
    assert_eq!(owned(&object, "c"), [".status.readyReplicas", ".status.replicas"]);
    let fewer =
        json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "status": {"replicas": 3}});
    let object = apply(Some(&object), &fewer, deployment(), by(3), false).unwrap().object;
    assert_eq!(
        (&object["status"], owned(&object, "c")),
        (&json!({"replicas": 3}), vec![".status.replicas".to_owned()])
    );
}

#[test]
fn a_kind_whose_status_is_like_any_other_field_keeps_it() {
    let by = Writer { status_apart: false, ..writer("a", 1) };
    let cup = |phase: &str| json!({"apiVersion": "x/v1", "kind": "Cup", "metadata": {"name": "c"}, "status": {"phase": phase}});
    let object = apply(None, &cup("full"), None, by, false).unwrap().object;
    assert_eq!((&object["status"]["phase"], owned(&object, "a")), (&json!("full"), vec![".status.phase".to_owned()]));
    let object = apply(Some(&object), &cup("empty"), None, by, false).unwrap().object;
    assert_eq!(object["status"]["phase"], "empty");
    let mut made = cup("full");
    track(None, &mut made, None, by);
    assert_eq!(owned(&made, "a"), [".status", ".status.phase"]);
}

#[test]
fn an_element_goes_by_the_default_of_a_key_that_it_leaves_out() {
    let schema = json!({"type": "object", "properties": {"ports": {
        "type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["port", "family"],
        "items": {"type": "object", "required": ["port"], "properties": {
            "port": {"type": "integer"}, "family": {"type": "string", "default": "v4"}, "name": {"type": "string"},
        }},
    }}});
    let mut errors = crate::field::Errors::new();
    let props = serde_json::from_value(schema).unwrap();
    let schema = crate::structural::build(&props, &crate::field::Path::root(), &mut errors);
    assert!(errors.is_empty());
    let wanted = json!({"ports": [{"port": 80, "name": "web"}]});
    let mut object = apply(None, &wanted, Some(&schema), writer("a", 1), false).unwrap().object;
    object["ports"][0]["family"] = "v4".into();
    let again = apply(Some(&object), &wanted, Some(&schema), writer("a", 2), false).unwrap();
    assert_eq!(again.object["ports"], json!([{"port": 80, "name": "web", "family": "v4"}]));
}

#[test]
fn the_same_value_is_shared() {
    let object = applied(None, json!({"replicas": 3}), "a");
    let object = applied(Some(&object), json!({"replicas": 3}), "b");
    assert_eq!((owned(&object, "a").len(), owned(&object, "b").len()), (1, 1));
    let refused = apply(Some(&object), &config(json!({"replicas": 4})), deployment(), writer("a", 2), false);
    assert!(refused.unwrap_err().message.contains("conflict with \"b\""));
}

#[test]
fn an_update_takes_what_it_changes() {
    let object = applied(None, json!({"replicas": 3, "paused": true}), "a");
    let mut updated = object.clone();
    updated["spec"]["replicas"] = json!(7);
    track(Some(&object), &mut updated, deployment(), writer("edit", 5));
    assert_eq!(owned(&updated, "edit"), [".spec.replicas"]);
    assert_eq!(owned(&updated, "a"), [".spec.paused"]);
    let refused =
        apply(Some(&updated), &config(json!({"replicas": 3})), deployment(), writer("a", 6), false).unwrap_err();
    assert_eq!(refused.message, "Apply failed with 1 conflict: conflict with \"edit\" using apps/v1: .spec.replicas");
    // What is not named any more and belongs to another now, stays.
    let given_up = applied(Some(&updated), json!({}), "a");
    assert_eq!(given_up["spec"], json!({"replicas": 7}));
}

#[test]
fn elements_are_owned_one_by_one() {
    let containers = |list: Value| json!({"template": {"spec": {"containers": list}}});
    let object = applied(None, containers(json!([{"name": "a", "image": "1"}])), "a");
    let object = applied(Some(&object), containers(json!([{"name": "b", "image": "1"}])), "b");
    let list = &object["spec"]["template"]["spec"]["containers"];
    assert_eq!(list.as_array().unwrap().len(), 2);
    let object = applied(Some(&object), containers(json!([])), "b");
    assert_eq!(object["spec"]["template"]["spec"]["containers"], json!([{"name": "a", "image": "1"}]));
    // An element in which another owns a field stays with that field.
    let object = applied(Some(&object), containers(json!([{"name": "a", "tty": true}])), "c");
    let object = applied(Some(&object), json!({}), "a");
    assert_eq!(object["spec"]["template"]["spec"]["containers"], json!([{"name": "a", "tty": true}]));
}

#[test]
fn an_atomic_list_is_one_field() {
    let command = |list: Value| json!({"template": {"spec": {"containers": [{"name": "a", "command": list}]}}});
    let object = applied(None, command(json!(["x", "y"])), "a");
    let refused = apply(Some(&object), &config(command(json!(["x"]))), deployment(), writer("b", 2), false);
    assert!(refused.unwrap_err().message.contains("containers[name=\"a\"].command"));
}

#[test]
fn applying_the_same_again_changes_nothing() {
    let object = applied(None, json!({"replicas": 3}), "a");
    let again = apply(Some(&object), &config(json!({"replicas": 3})), deployment(), writer("a", 9), false).unwrap();
    assert!(!again.changed);
    assert_eq!(again.object, object);
}

#[test]
fn what_was_there_before_anybody_applied_is_owned_all_the_same() {
    let object = config(json!({"replicas": 3}));
    let refused = apply(Some(&object), &config(json!({"replicas": 5})), deployment(), writer("a", 2), false);
    assert!(refused.unwrap_err().message.contains("\"before-first-apply\" using apps/v1"));
}

#[test]
fn managers_are_forgotten_when_asked_and_few_are_kept() {
    let mut object = applied(None, json!({"replicas": 3}), "a");
    let before = object.clone();
    object["metadata"]["managedFields"] = json!([{}]);
    track(Some(&before), &mut object, deployment(), writer("x", 2));
    assert!(object["metadata"].get("managedFields").is_none());
    // What nobody is known to own is noted again when it is first applied to.
    let untracked = object.clone();
    object["spec"]["paused"] = json!(true);
    track(Some(&untracked), &mut object, deployment(), writer("x", 2));
    assert!(object["metadata"].get("managedFields").is_none());
    let mut object = applied(Some(&object), json!({"replicas": 3}), "a");
    let before = object.clone();
    object["metadata"]["managedFields"] = json!([]);
    track(Some(&before), &mut object, deployment(), writer("x", 2));
    assert_eq!(object["metadata"]["managedFields"], before["metadata"]["managedFields"]);
    for number in 0..30 {
        let before = object.clone();
        object["metadata"]["labels"][format!("l{number}")] = json!("x");
        track(Some(&before), &mut object, deployment(), writer(&format!("m{number}"), number));
    }
    let managers = managers(&object);
    assert!(managers.len() <= MAX_UPDATERS + 1, "{}", managers.len());
    assert!(owned(&object, ANCIENT).contains(&".metadata.labels.l0".to_owned()));
    assert!(owned(&object, "m29").contains(&".metadata.labels.l29".to_owned()));
}

#[test]
fn what_cannot_be_applied_is_refused() {
    let twice = config(json!({"template": {"spec": {"containers": [{"name": "a"}, {"name": "a"}]}}}));
    let refused = apply(None, &twice, deployment(), writer("a", 1), false).unwrap_err();
    assert_eq!(refused.reason, Reason::Invalid);
    let mut managed = config(json!({}));
    for said in [json!([{"manager": "x"}]), json!([])] {
        managed["metadata"]["managedFields"] = said;
        let refused = apply(None, &managed, deployment(), writer("a", 1), false).unwrap_err();
        assert_eq!(
            (refused.reason, refused.message.as_str()),
            (Reason::BadRequest, "metadata.managedFields must be nil")
        );
    }
}

#[test]
fn many_conflicts_are_told_by_manager() {
    let object = applied(None, json!({"replicas": 3, "paused": true}), "b");
    let object = applied(Some(&object), json!({"minReadySeconds": 1}), "a");
    let wanted = config(json!({"replicas": 5, "paused": false, "minReadySeconds": 2}));
    let refused = apply(Some(&object), &wanted, deployment(), writer("c", 2), false).unwrap_err();
    assert_eq!(
        refused.message,
        "Apply failed with 3 conflicts: conflicts with \"a\":\n- .spec.minReadySeconds\nconflicts with \"b\":\n\
         - .spec.paused\n- .spec.replicas"
    );
}

#[test]
fn kubectl_takes_over_what_it_applied_on_the_clients_side() {
    let last = config(json!({"replicas": 3, "paused": true})).to_string();
    let mut object = config(json!({"replicas": 3, "paused": false}));
    object["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    track(None, &mut object, deployment(), writer("kubectl-client-side-apply", 1));
    let change =
        |spec: Value, manager: &str| apply(Some(&object), &config(spec), deployment(), writer(manager, 2), false);
    // The replicas are as it last applied them; somebody unpaused since.
    let done = change(json!({"replicas": 5}), "kubectl").unwrap().object;
    assert_eq!(done["spec"]["replicas"], 5);
    let annotation = done["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].as_str();
    assert!(annotation.unwrap().contains("\"replicas\":5"), "{annotation:?}");
    assert!(change(json!({"replicas": 5, "paused": true}), "kubectl").unwrap_err().message.contains(".spec.paused"));
    assert!(change(json!({"replicas": 5}), "other").is_err());
}

/// A ConfigMap's data under appliers, as simply as it can be said: each key has a value and the managers that want it.
#[derive(Default)]
struct Model {
    data: BTreeMap<String, (String, BTreeSet<String>)>,
}

impl Model {
    /// What an apply comes to; the conflicting keys if it is refused.
    fn apply(&mut self, manager: &str, wanted: &BTreeMap<String, String>, force: bool) -> Result<(), BTreeSet<String>> {
        let others = |owners: &BTreeSet<String>| owners.iter().any(|owner| owner != manager);
        let conflicts: BTreeSet<String> = wanted
            .iter()
            .filter(|(key, value)| self.data.get(*key).is_some_and(|(has, owners)| has != *value && others(owners)))
            .map(|(key, _)| key.clone())
            .collect();
        if !conflicts.is_empty() && !force {
            return Err(conflicts);
        }
        self.data.retain(|key, (_, owners)| {
            let gone = !wanted.contains_key(key) && owners.remove(manager) && owners.is_empty();
            !gone
        });
        for (key, value) in wanted {
            let (has, owners) = self.data.entry(key.clone()).or_insert_with(|| (value.clone(), BTreeSet::new()));
            if has != value {
                *has = value.clone();
                owners.clear();
            }
            owners.insert(manager.to_owned());
        }
        Ok(())
    }
}

fn any_step() -> impl Strategy<Value = (String, BTreeMap<String, String>, bool)> {
    ("[abc]", prop::collection::btree_map("[klmn]", "[xy]", 0..4), any::<bool>())
}

proptest! {
    #[test]
    fn appliers_share_an_object_as_the_model_says(steps in prop::collection::vec(any_step(), 1..24)) {
        let schema = schema::get("io.k8s.api.core.v1.ConfigMap");
        let (mut model, mut live) = (Model::default(), None::<Value>);
        for (second, (manager, wanted, force)) in steps.into_iter().enumerate() {
            let config = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "m"}, "data": wanted});
            let writer = Writer { api_version: "v1", ..writer(&manager, second as i64) };
            let expected = model.apply(&manager, &wanted, force);
            match (apply(live.as_ref(), &config, schema, writer, force), expected) {
                (Ok(done), Ok(())) => live = Some(done.object),
                (Err(refused), Err(keys)) => {
                    prop_assert_eq!(refused.reason, Reason::Conflict);
                    let told: BTreeSet<String> =
                        refused.causes.iter().map(|cause| cause.field.trim_start_matches(".data.").to_owned()).collect();
                    prop_assert_eq!(told, keys);
                }
                (ours, theirs) => prop_assert!(false, "{:?} where the model says {:?}", ours, theirs),
            }
            let Some(live) = &live else { continue };
            let data: BTreeMap<String, String> =
                serde_json::from_value(live["data"].clone()).unwrap_or_default();
            let wanted: BTreeMap<String, String> =
                model.data.iter().map(|(key, (value, _))| (key.clone(), value.clone())).collect();
            prop_assert_eq!(data, wanted);
            for (key, (_, owners)) in &model.data {
                for owner in owners {
                    prop_assert!(owned(live, owner).contains(&format!(".data.{key}")), "{owner} lost {key}");
                }
            }
        }
    }
}

/// What some manager wants of a Deployment: few names, so that managers meet.
fn any_spec() -> impl Strategy<Value = Value> {
    let port = (80..82_u16, prop::option::of("[ab]")).prop_map(|(port, name)| match name {
        Some(name) => json!({"containerPort": port, "name": name}),
        None => json!({"containerPort": port}),
    });
    let ports = prop::collection::vec(port, 0..3).prop_map(|mut ports| {
        ports.dedup_by_key(|port| port["containerPort"].clone());
        ports.sort_by_key(|port| port["containerPort"].as_u64());
        ports.dedup_by_key(|port| port["containerPort"].clone());
        ports
    });
    let container = (prop::option::of("[12]"), prop::option::of(prop::collection::vec("[xy]", 1..3)), ports).prop_map(
        |(image, command, ports)| {
            let mut container = json!({});
            if let Some(image) = image {
                container["image"] = json!(image);
            }
            if let Some(command) = command {
                container["command"] = json!(command);
            }
            if !ports.is_empty() {
                container["ports"] = json!(ports);
            }
            container
        },
    );
    let containers = prop::collection::btree_map("[pqr]", container, 0..3);
    let labels = prop::collection::btree_map("[klm]", "[12]", 0..3);
    (prop::option::of(1..4), containers, labels).prop_map(|(replicas, containers, labels)| {
        let mut spec = json!({});
        if let Some(replicas) = replicas {
            spec["replicas"] = json!(replicas);
        }
        if !containers.is_empty() {
            let named = containers.into_iter().map(|(name, mut container)| {
                container["name"] = json!(name);
                container
            });
            spec["template"] = json!({"spec": {"containers": named.collect::<Vec<_>>()}});
        }
        if !labels.is_empty() {
            // Atomic: whoever sets one label of a selector sets all.
            spec["selector"] = json!({"matchLabels": labels});
        }
        spec
    })
}

/// Whether every node of `fields` is a field of something with the fields `all`.
fn is_within(fields: &Fields, all: &Fields) -> bool {
    fields.children.iter().all(|(name, below)| all.children.get(name).is_some_and(|there| is_within(below, there)))
}

fn fields_by(object: &Value, wanted: impl Fn(&Manager) -> bool) -> Fields {
    managers(object).iter().filter(|one| wanted(one)).fold(Fields::default(), |all, one| all.union(&one.fields))
}

proptest! {
    #[test]
    fn structured_objects_keep_the_rules_under_appliers_and_updaters(
        steps in prop::collection::vec(("[abc]", any_spec(), any::<bool>(), 0..4_u8), 1..12),
    ) {
        let schema = deployment();
        let mut live = None::<Value>;
        for (second, (manager, spec, force, kind)) in steps.into_iter().enumerate() {
            let writer = writer(&manager, second as i64);
            let wanted = config(spec);
            let Some(before) = live.clone() else {
                live = Some(apply(None, &wanted, schema, writer, force).unwrap().object);
                continue;
            };
            if kind == 0 {
                // An update puts other things into the place of what is there.
                let mut new = before.clone();
                new["spec"] = wanted["spec"].clone();
                track(Some(&before), &mut new, schema, writer);
                let all = fields_of(&new, schema).unwrap();
                for one in managers(&new) {
                    prop_assert!(is_within(&one.fields, &all), "{} owns what is not there: {new}", one.name);
                }
                if managers(&before).is_empty() {
                    // What nobody is known to own stays so until somebody applies.
                    prop_assert!(managers(&new).is_empty());
                    live = Some(new);
                    continue;
                }
                let set = changes(Some(&before), &new, schema).set;
                let is_own = |one: &Manager| one.name == manager && one.operation == Operation::Update;
                let (own, others) = (fields_by(&new, is_own), fields_by(&new, |one| !is_own(one)));
                prop_assert!(set.difference(&own).is_empty(), "{manager} does not own all that it set");
                prop_assert!(set.intersection(&others).is_empty(), "others own what {manager} set");
                live = Some(new);
                continue;
            }
            let is_own = |one: &Manager| one.name == manager && one.operation == Operation::Apply;
            // An updater may own no more than a field in an element, which goes with the element.
            let others = fields_by(&before, |one| !is_own(one) && one.operation == Operation::Apply);
            match apply(Some(&before), &wanted, schema, writer, force) {
                Err(refused) => {
                    prop_assert!(!force && refused.reason == Reason::Conflict, "{refused:?}");
                    prop_assert!(!refused.causes.is_empty());
                    prop_assert!(apply(Some(&before), &wanted, schema, writer, true).is_ok());
                }
                Ok(done) => {
                    let new = done.object;
                    let intent = without_unmanaged(fields_of(&wanted, schema).unwrap());
                    let missed = compare(Some(&wanted), Some(&new), schema);
                    prop_assert!(missed.removed.is_empty(), "wanted and not there: {:?}", missed.removed.paths());
                    prop_assert!(missed.set.intersection(&intent).is_empty(), "not as wanted: {:?}", missed.set.paths());
                    let own = fields_by(&new, is_own);
                    prop_assert_eq!(own.paths(), intent.paths(), "an applier owns what it applied");
                    let since = changes(Some(&before), &new, schema);
                    let lost = since.removed.intersection(&others);
                    prop_assert!(lost.is_empty(), "removed though others own it: {:?}", lost.paths());
                    let all = fields_of(&new, schema).unwrap();
                    for one in managers(&new) {
                        prop_assert!(is_within(&one.fields, &all), "{} owns what is not there", one.name);
                    }
                    let again = apply(Some(&new), &wanted, schema, writer, false).unwrap();
                    prop_assert!(!again.changed, "the same again changes something");
                    live = Some(new);
                }
            }
        }
    }
}
