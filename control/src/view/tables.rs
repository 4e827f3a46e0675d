//! The kinds of which the View keeps nothing but the objects: one line each.

use flotilla_api::Key;
use flotilla_api::k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use flotilla_api::k8s_openapi::api::batch::v1::Job;
use flotilla_api::k8s_openapi::api::core::v1::{
    LimitRange, Namespace, ReplicationController, ResourceQuota, ServiceAccount,
};
use flotilla_api::k8s_openapi::api::networking::v1::{IPAddress, ServiceCIDR};
use flotilla_api::k8s_openapi::api::node::v1::RuntimeClass;
use flotilla_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use flotilla_api::k8s_openapi::api::scheduling::v1::PriorityClass;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::Value;

use super::entry::Stored;
use super::table::Table;

macro_rules! tables {
    ($($group:literal $plural:literal: $table:ident of $type:ty;)*) => {
        #[derive(Default)]
        pub(super) struct Tables {
            $(pub $table: Table<Stored<$type>>,)*
        }

        impl Tables {
            /// Takes an object in, if it is of one of these kinds.
            pub fn insert(&mut self, key: &Key, bytes: &[u8], revision: u64) -> Option<Result<(), serde_json::Error>> {
                match (key.group(), key.resource()) {
                    $(($group, $plural) => Some(serde_json::from_slice(bytes).map(|object| {
                        self.$table.insert(key.clone(), Stored { key: key.clone(), revision, object });
                    })),)*
                    _ => None,
                }
            }

            pub fn remove(&mut self, key: &Key) {
                match (key.group(), key.resource()) {
                    $(($group, $plural) => drop(self.$table.remove(key)),)*
                    _ => {}
                }
            }

            pub fn meta(&self, key: &Key) -> Option<(&ObjectMeta, u64)> {
                match (key.group(), key.resource()) {
                    $(($group, $plural) => self.$table.get(key).map(|found| (&found.object.metadata, found.revision)),)*
                    _ => None,
                }
            }

            pub fn value(&self, key: &Key) -> Option<Value> {
                match (key.group(), key.resource()) {
                    $(($group, $plural) => {
                        self.$table.get(key).and_then(|found| serde_json::to_value(&found.object).ok())
                    })*
                    _ => None,
                }
            }

            pub fn keys(&self) -> impl Iterator<Item = &Key> {
                std::iter::empty()$(.chain(self.$table.keys()))*
            }
        }
    };
}

tables! {
    "" "namespaces": namespaces of Namespace;
    "apps" "replicasets": replica_sets of ReplicaSet;
    "apps" "deployments": deployments of Deployment;
    "batch" "jobs": jobs of Job;
    "" "serviceaccounts": service_accounts of ServiceAccount;
    "" "replicationcontrollers": replication_controllers of ReplicationController;
    "" "resourcequotas": quotas of ResourceQuota;
    "" "limitranges": limit_ranges of LimitRange;
    "networking.k8s.io" "servicecidrs": service_cidrs of ServiceCIDR;
    "networking.k8s.io" "ipaddresses": ip_addresses of IPAddress;
    "policy" "poddisruptionbudgets": budgets of PodDisruptionBudget;
    "scheduling.k8s.io" "priorityclasses": priority_classes of PriorityClass;
    "node.k8s.io" "runtimeclasses": runtime_classes of RuntimeClass;
}
