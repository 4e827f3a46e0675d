//! The keys of the kinds that planners know.

use flotilla_api::{GroupResource, Key};

macro_rules! namespaced {
    ($($name:ident: $group:literal $resource:literal;)*) => {
        $(
            pub fn $name(namespace: &str, name: &str) -> Key {
                Key::new(&GroupResource::new($group, $resource), namespace, name)
            }
        )*
    };
}

namespaced! {
    pod: "" "pods";
    event: "" "events";
    service_account: "" "serviceaccounts";
    config_map: "" "configmaps";
    replica_set: "apps" "replicasets";
    deployment: "apps" "deployments";
    job: "batch" "jobs";
    replication_controller: "" "replicationcontrollers";
    budget: "policy" "poddisruptionbudgets";
    quota: "" "resourcequotas";
    service: "" "services";
    limit_range: "" "limitranges";
}

pub fn node(name: &str) -> Key {
    Key::new(&GroupResource::new("", "nodes"), "", name)
}

pub fn priority_class(name: &str) -> Key {
    Key::new(&GroupResource::new("scheduling.k8s.io", "priorityclasses"), "", name)
}

pub fn service_cidr(name: &str) -> Key {
    Key::new(&GroupResource::new("networking.k8s.io", "servicecidrs"), "", name)
}

pub fn ip_address(address: &str) -> Key {
    Key::new(&GroupResource::new("networking.k8s.io", "ipaddresses"), "", address)
}

pub fn namespace(name: &str) -> Key {
    Key::new(&GroupResource::new("", "namespaces"), "", name)
}

pub const EXTENSIONS: &str = "apiextensions.k8s.io";
pub const DEFINITIONS: &str = "customresourcedefinitions";

pub fn definition(name: &str) -> Key {
    Key::new(&GroupResource::new(EXTENSIONS, DEFINITIONS), "", name)
}
