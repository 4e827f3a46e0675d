//! What pods ask for and what nodes have, in numbers.
//!
//! Invariant: a text that is not a quantity counts as nothing asked for and nothing offered; sums saturate.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::core::v1::{Container, PodSpec, ResourceRequirements};
use flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
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
        for (name, amount) in quantities.into_iter().flatten() {
            match name.as_str() {
                "cpu" => resources.cpu_millis = quantity::cpu_millis(amount).unwrap_or(0).max(0),
                "memory" => resources.memory_bytes = units(amount),
                "pods" => resources.pods = units(amount),
                _ => {
                    resources.others.insert(name.clone(), units(amount));
                }
            }
        }
        resources
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
/// container that asks for more while it runs, and the overhead.
pub fn requests(spec: &PodSpec) -> Resources {
    let mut together = Resources::default();
    let mut peak = Resources::default();
    for container in spec.init_containers.iter().flatten() {
        let own = of_container(container);
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
        together.add(&of_container(container));
    }
    together.raise_to(&peak);
    together.add(&Resources::from_quantities(spec.overhead.as_ref()));
    together.pods = 1;
    together
}

/// A limit without a request is a request, as upstream defaults it.
fn of_container(container: &Container) -> Resources {
    let Some(ResourceRequirements { requests, limits, .. }) = &container.resources else {
        return Resources::default();
    };
    let mut resources = Resources::from_quantities(limits.as_ref());
    let requested = Resources::from_quantities(requests.as_ref());
    for name in requests.iter().flatten().map(|(name, _)| name.as_str()) {
        match name {
            "cpu" => resources.cpu_millis = requested.cpu_millis,
            "memory" => resources.memory_bytes = requested.memory_bytes,
            name => {
                let amount = requested.others.get(name).copied().unwrap_or(0);
                resources.others.insert(name.to_owned(), amount);
            }
        }
    }
    resources.pods = 0;
    resources.others.remove("pods");
    resources
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
    fn nonsense_counts_as_nothing() {
        let spec =
            spec(json!({"containers": [{"name": "a", "resources": {"requests": {"cpu": "x", "memory": "-5"}}}]}));
        assert_eq!(requests(&spec), Resources { pods: 1, ..Resources::default() });
    }
}
