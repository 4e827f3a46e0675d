//! How urgent a pod is, by its PriorityClass.

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::scheduling::v1::PriorityClass;

use crate::kinds::priorityclass::SYSTEM;

/// Writes into a pod what its class says, or the default class, or that it is like any other.
///
/// # Errors
/// If there is no such class, or the pod contradicts it.
pub(super) fn apply(pod: &mut Pod, classes: &[PriorityClass]) -> Result<(), String> {
    let spec = pod.spec.get_or_insert_default();
    let named = spec.priority_class_name.clone().filter(|name| !name.is_empty());
    let (name, value, policy) = match &named {
        Some(name) => class(name, classes).ok_or_else(|| format!("no PriorityClass with name {name} was found"))?,
        None => default_class(classes),
    };
    if let Some(priority) = spec.priority.filter(|priority| *priority != value) {
        return Err(format!(
            "the integer value of priority ({priority}) must not be provided in pod spec; priority admission controller \
             computed {value} from the given PriorityClass name"
        ));
    }
    if let Some(own) = spec.preemption_policy.as_deref().filter(|own| *own != policy) {
        return Err(format!(
            "the string value of PreemptionPolicy ({own}) must not be provided in pod spec; priority admission controller \
             computed {policy} from the given PriorityClass name"
        ));
    }
    spec.priority = Some(value);
    spec.preemption_policy = Some(policy);
    spec.priority_class_name = Some(name).filter(|name| !name.is_empty());
    Ok(())
}

fn facts(class: &PriorityClass) -> (String, i32, String) {
    let policy = class.preemption_policy.clone().unwrap_or_else(|| "PreemptLowerPriority".into());
    (class.metadata.name.clone().unwrap_or_default(), class.value.unwrap_or_default(), policy)
}

fn class(name: &str, classes: &[PriorityClass]) -> Option<(String, i32, String)> {
    let found = classes.iter().find(|class| class.metadata.name.as_deref() == Some(name)).map(facts);
    // The system's own are known before they are stored.
    let system = || SYSTEM.iter().find(|(known, _, _)| *known == name);
    found.or_else(|| system().map(|(name, value, _)| ((*name).into(), *value, "PreemptLowerPriority".into())))
}

/// Of several defaults the least urgent counts.
fn default_class(classes: &[PriorityClass]) -> (String, i32, String) {
    let defaults = classes.iter().filter(|class| class.global_default == Some(true));
    defaults.min_by_key(|class| class.value).map_or_else(|| (String::new(), 0, "PreemptLowerPriority".into()), facts)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(json!({"metadata": {"name": "a"}, "spec": spec})).unwrap()
    }

    fn classes() -> Vec<PriorityClass> {
        serde_json::from_value(json!([
            {"metadata": {"name": "high"}, "value": 1000, "preemptionPolicy": "Never"},
            {"metadata": {"name": "usual"}, "value": 10, "globalDefault": true},
            {"metadata": {"name": "better"}, "value": 20, "globalDefault": true},
        ]))
        .unwrap()
    }

    #[test]
    fn classes_and_what_they_give() {
        let table = [
            (json!({}), Ok(("usual", 10, "PreemptLowerPriority"))),
            (json!({"priorityClassName": "high"}), Ok(("high", 1000, "Never"))),
            (
                json!({"priorityClassName": "system-node-critical"}),
                Ok(("system-node-critical", 2_000_001_000, "PreemptLowerPriority")),
            ),
            (json!({"priorityClassName": "x"}), Err("no PriorityClass with name x was found")),
            (
                json!({"priorityClassName": "high", "priority": 5}),
                Err(
                    "the integer value of priority (5) must not be provided in pod spec; priority admission controller \
                     computed 1000 from the given PriorityClass name",
                ),
            ),
        ];
        for (spec, expected) in table {
            let mut pod = pod(spec.clone());
            let applied = apply(&mut pod, &classes());
            let spec_after = pod.spec.unwrap();
            let given = applied.map(|()| {
                (
                    spec_after.priority_class_name.unwrap(),
                    spec_after.priority.unwrap(),
                    spec_after.preemption_policy.unwrap(),
                )
            });
            let expected = expected.map(|(n, v, p)| (n.to_owned(), v, p.to_owned())).map_err(str::to_owned);
            assert_eq!(given, expected, "{spec}");
        }
        let mut plain = pod(json!({}));
        apply(&mut plain, &[]).unwrap();
        assert_eq!((plain.spec.as_ref().unwrap().priority, &plain.spec.unwrap().priority_class_name), (Some(0), &None));
    }
}
