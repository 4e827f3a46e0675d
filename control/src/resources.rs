//! What pods ask for and what nodes have, in numbers.
//!
//! Invariant: a text that is not a quantity counts as nothing asked for and nothing offered; sums saturate.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use flotilla_api::kinds::pod::{is_of_whole_pods, resources_of_whole};
use flotilla_api::quantity;

/// Amounts of what a node offers or a pod asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources {
    pub cpu_millis: i64,
    pub memory_bytes: i64,
    pub pods: i64,
    /// Any other resource by its name, in whole units.
    pub others: BTreeMap<String, i64>,
}

impl Resources {
    pub fn from_quantities(quantities: Option<&BTreeMap<String, Quantity>>) -> Self {
        let mut resources = Self::default();
        quantities.into_iter().flatten().for_each(|(name, amount)| resources.set(name, amount));
        resources
    }

    fn set(&mut self, name: &str, amount: &Quantity) {
        match name {
            "cpu" => self.cpu_millis = quantity::cpu_millis(amount).unwrap_or(0).max(0),
            "memory" => self.memory_bytes = units(amount),
            "pods" => self.pods = units(amount),
            _ => _ = self.others.insert(name.to_owned(), units(amount)),
        }
    }

    pub fn add(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_add);
    }

    pub fn subtract(&mut self, other: &Resources) {
        self.combine(other, i64::saturating_sub);
    }

    fn raise_to(&mut self, other: &Resources) {
        self.combine(other, i64::max);
    }

    fn combine(&mut self, other: &Resources, with: impl Fn(i64, i64) -> i64) {
        self.cpu_millis = with(self.cpu_millis, other.cpu_millis);
        self.memory_bytes = with(self.memory_bytes, other.memory_bytes);
        self.pods = with(self.pods, other.pods);
        for (name, amount) in &other.others {
            let mine = self.others.entry(name.clone()).or_default();
            *mine = with(*mine, *amount);
        }
    }
}

fn units(amount: &Quantity) -> i64 {
    quantity::bytes(amount).unwrap_or(0).max(0)
}

/// What a pod asks of its node, as upstream counts it: the containers that run together, or the init
/// container that asks for more while it runs, or what the pod says of them all; and the overhead.
pub fn requests(spec: &PodSpec) -> Resources {
    let mut together = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            together.add(&own);
            peak.raise_to(&together);
        } else {
            let mut now = together.clone();
            now.add(&own);
            peak.raise_to(&now);
        }
    }
    for container in &spec.containers {
        together.add(&of(container));
    }
    together.raise_to(&peak);
    let whole = asked(resources_of_whole(spec));
    let whole = whole.iter().filter(|(name, _)| is_of_whole_pods(name));
    whole.for_each(|(name, amount)| together.set(name, amount));
    together.add(&Resources::from_quantities(spec.overhead.as_ref()));
    together.pods = 1;
    together
}

/// What is asked for by name. A limit without a request is a request, as upstream defaults it.
fn asked(resources: Option<&ResourceRequirements>) -> BTreeMap<String, Quantity> {
    let limits = resources.and_then(|resources| resources.limits.clone());
    let requests = resources.and_then(|resources| resources.requests.clone());
    let mut asked = limits.unwrap_or_default();
    asked.extend(requests.unwrap_or_default());
    asked.remove("pods");
    asked
}

fn of(container: &Container) -> Resources {
    Resources::from_quantities(Some(&asked(container.resources.as_ref())))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn spec(value: serde_json::Value) -> PodSpec {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn containers_add_up_and_init_containers_peak() {
        let spec = spec(json!({
            "initContainers": [
                {"name": "big", "resources": {"requests": {"cpu": "2", "memory": "10Mi"}}},
                {"name": "side", "restartPolicy": "Always", "resources": {"requests": {"cpu": "100m"}}},
            ],
            "containers": [
                {"name": "a", "resources": {"requests": {"cpu": "500m", "memory": "64Mi"}}},
                {"name": "b", "resources": {"limits": {"cpu": "1", "memory": "1Mi", "example.com/gpu": "2"}}},
            ],
            "overhead": {"cpu": "10m"},
        }));
        let requests = requests(&spec);
        assert_eq!(requests.cpu_millis, 2010);
        assert_eq!(requests.memory_bytes, 65 << 20);
        assert_eq!(requests.pods, 1);
        assert_eq!(requests.others["example.com/gpu"], 2);
    }

    #[test]
    fn a_pod_speaks_for_its_containers() {
        let spec = spec(json!({
            "resources": {"requests": {"memory": "100Mi"}, "limits": {"cpu": "1"}},
            "containers": [{"name": "a", "resources": {"requests": {"cpu": "4", "example.com/gpu": "1"}}}],
            "overhead": {"memory": "1Mi"},
        }));
        let requests = requests(&spec);
        assert_eq!((requests.cpu_millis, requests.memory_bytes), (1_000, 101 << 20));
        assert_eq!(requests.others["example.com/gpu"], 1);
    }

    #[test]
    fn nonsense_counts_as_nothing() {
        let spec =
            spec(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "x", "memory": "-5"}}}]}));
        assert_eq!(requests(&spec), Resources { pods: 1, ..Resources::default() });
    }
}
