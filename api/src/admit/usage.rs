//! What objects take of what a ResourceQuota limits.
//!
//! Defined by the Kubernetes concepts page "Resource Quotas".

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{Container, PersistentVolumeClaim, Pod, PodSpec, ResourceRequirements, Service};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde::Deserialize;
use serde_json::Value;

use crate::key::GroupResource;
use crate::kinds::pod::{is_of_whole_pods, resources_of_whole};
use crate::quantity::{Amount, Notation};

/// Amounts by resource name.
pub type Amounts = BTreeMap<String, Amount>;

/// What cannot be read counts as nothing; it was validated.
pub(super) fn amounts(map: Option<&BTreeMap<String, Quantity>>) -> Amounts {
    let pairs = map.into_iter().flatten();
    pairs.filter_map(|(name, quantity)| Some((name.clone(), Amount::parse(&quantity.0).ok()?))).collect()
}

/// Adds amounts to those of others.
pub fn add(to: &mut Amounts, more: &Amounts) {
    for (name, amount) in more {
        to.entry(name.clone()).and_modify(|sum| *sum = sum.plus(*amount)).or_insert(*amount);
    }
}

/// As [`add`], but for what was counted otherwise.
pub fn add_new(to: &mut Amounts, more: &Amounts, but: &str) {
    let mut more = more.clone();
    more.remove(but);
    add(to, &more);
}

/// So many objects.
pub fn count(objects: usize) -> Amount {
    Amount::units(i64::try_from(objects).unwrap_or(i64::MAX), Notation::Decimal)
}

fn raise(to: &mut Amounts, least: &Amounts) {
    for (name, amount) in least {
        to.entry(name.clone()).and_modify(|most| *most = (*most).max(*amount)).or_insert(*amount);
    }
}

fn one() -> Amount {
    Amount::units(1, Notation::Decimal)
}

/// What a pod asks for in all: its containers together, or the init container that asks for most; or what the pod says.
pub(super) fn requests(spec: &PodSpec) -> Amounts {
    total(spec, |resources| amounts(resources.and_then(|resources| resources.requests.as_ref())))
}

/// What a pod may take in all.
pub(super) fn limits(spec: &PodSpec) -> Amounts {
    total(spec, |resources| amounts(resources.and_then(|resources| resources.limits.as_ref())))
}

fn total(spec: &PodSpec, read: impl Fn(Option<&ResourceRequirements>) -> Amounts) -> Amounts {
    let mut sum = together(spec, &read);
    sum.extend(read(resources_of_whole(spec)).into_iter().filter(|(name, _)| is_of_whole_pods(name)));
    add(&mut sum, &amounts(spec.overhead.as_ref()));
    sum
}

/// What the containers of a pod ask for together, whatever the pod says.
pub(crate) fn requests_of_containers(spec: &PodSpec) -> Amounts {
    together(spec, |resources| amounts(resources.and_then(|resources| resources.requests.as_ref())))
}

fn together(spec: &PodSpec, read: impl Fn(Option<&ResourceRequirements>) -> Amounts) -> Amounts {
    let of = |container: &Container| read(container.resources.as_ref());
    let mut sum = Amounts::new();
    spec.containers.iter().for_each(|container| add(&mut sum, &of(container)));
    let (mut sidecars, mut starting) = (Amounts::new(), Amounts::new());
    for container in spec.init_containers.iter().flatten() {
        let own = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            add(&mut sidecars, &own);
            raise(&mut starting, &sidecars);
        } else {
            let mut with_sidecars = sidecars.clone();
            add(&mut with_sidecars, &own);
            raise(&mut starting, &with_sidecars);
        }
    }
    add(&mut sum, &sidecars);
    raise(&mut sum, &starting);
    sum
}

/// What an object of a collection takes.
pub fn of(collection: &GroupResource, object: &Value) -> Amounts {
    let mut used = Amounts::from([(count_name(collection), one())]);
    match (collection.group.as_str(), collection.resource.as_str()) {
        ("", "pods") => {
            if let Ok(pod) = Pod::deserialize(object) {
                add(&mut used, &of_pod(&pod));
            }
        }
        ("", "services") => {
            if let Ok(service) = Service::deserialize(object) {
                add(&mut used, &of_service(&service));
            }
        }
        ("", "persistentvolumeclaims") => {
            if let Ok(claim) = PersistentVolumeClaim::deserialize(object) {
                add(&mut used, &of_claim(&claim));
            }
        }
        ("", plain @ ("configmaps" | "secrets" | "replicationcontrollers" | "resourcequotas")) => {
            used.insert(plain.to_owned(), one());
        }
        _ => {}
    }
    used
}

/// `count/deployments.apps`
pub fn count_name(collection: &GroupResource) -> String {
    format!("count/{collection}")
}

/// What a pod takes beside being counted: nothing once it has ended.
pub fn of_pod(pod: &Pod) -> Amounts {
    let ended = pod.status.as_ref().is_some_and(|s| matches!(s.phase.as_deref(), Some("Succeeded" | "Failed")));
    let Some(spec) = pod.spec.as_ref().filter(|_| !ended) else { return Amounts::new() };
    let mut used = Amounts::from([("pods".to_owned(), one())]);
    for (resource, amount) in requests(spec) {
        if matches!(resource.as_str(), "cpu" | "memory" | "ephemeral-storage") || resource.starts_with("hugepages-") {
            used.insert(resource.clone(), amount);
        }
        used.insert(format!("requests.{resource}"), amount);
    }
    for (resource, amount) in limits(spec) {
        used.insert(format!("limits.{resource}"), amount);
    }
    used
}

fn of_service(service: &Service) -> Amounts {
    let mut used = Amounts::from([("services".to_owned(), one())]);
    let spec = service.spec.clone().unwrap_or_default();
    let ports = i64::try_from(spec.ports.map_or(0, |ports| ports.len())).unwrap_or(i64::MAX);
    let ports = Amount::units(ports, Notation::Decimal);
    match spec.type_.as_deref() {
        Some("NodePort") => _ = used.insert("services.nodeports".into(), ports),
        Some("LoadBalancer") => {
            used.insert("services.loadbalancers".into(), one());
            if spec.allocate_load_balancer_node_ports != Some(false) {
                used.insert("services.nodeports".into(), ports);
            }
        }
        _ => {}
    }
    used
}

fn of_claim(claim: &PersistentVolumeClaim) -> Amounts {
    let mut used = Amounts::from([("persistentvolumeclaims".to_owned(), one())]);
    let spec = claim.spec.clone().unwrap_or_default();
    let requests = amounts(spec.resources.and_then(|resources| resources.requests).as_ref());
    let class = spec.storage_class_name.filter(|class| !class.is_empty());
    if let Some(class) = &class {
        used.insert(format!("{class}.storageclass.storage.k8s.io/persistentvolumeclaims"), one());
    }
    if let Some(storage) = requests.get("storage") {
        used.insert("requests.storage".into(), *storage);
        if let Some(class) = &class {
            used.insert(format!("{class}.storageclass.storage.k8s.io/requests.storage"), *storage);
        }
    }
    used
}
