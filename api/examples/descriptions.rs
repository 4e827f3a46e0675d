//! Writes what Kubernetes says of its types, for `kubectl explain`, to `api/data/descriptions.jsonl.gz`.
//!
//! Run it when `k8s-openapi` moves to another version of Kubernetes:
//! `cargo run -p flotilla-api --features descriptions --example descriptions`.
//!
//! The descriptions are data of their own, so that the daemon links neither the schema generator nor a second copy of
//! every text. One type a line, sorted by name: `"NAME":{"":"of the type","FIELD":"of the field",…}`.

use std::collections::BTreeMap;
use std::io::Write as _;

use flate2::Compression;
use flate2::write::GzEncoder;
use k8s_openapi::apimachinery;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value};

macro_rules! describe {
    ($generator:ident: $($($module:ident)::+ { $($type:ident),* })*) => {
        $(describe!(@each $generator [$($module)::+] $($type)*);)*
    };
    (@each $generator:ident [$($module:ident)::+]) => {};
    (@each $generator:ident [$($module:ident)::+] $type:ident $($rest:ident)*) => {
        _ = $generator.subschema_for::<k8s_openapi::$($module)::+::$type>();
        describe!(@each $generator [$($module)::+] $($rest)*);
    };
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut generator: SchemaGenerator = SchemaSettings::openapi3().into_generator();
    describe! { generator:
        api::admissionregistration::v1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding, MutatingWebhookConfiguration, ValidatingAdmissionPolicy, ValidatingAdmissionPolicyBinding, ValidatingWebhookConfiguration }
        api::admissionregistration::v1alpha1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding }
        api::admissionregistration::v1beta1 { MutatingAdmissionPolicy, MutatingAdmissionPolicyBinding }
        api::apiserverinternal::v1alpha1 { StorageVersion }
        api::apps::v1 { ControllerRevision, DaemonSet, Deployment, ReplicaSet, StatefulSet }
        api::authentication::v1 { SelfSubjectReview, TokenRequest, TokenReview }
        api::authorization::v1 { LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview }
        api::autoscaling::v1 { HorizontalPodAutoscaler, Scale }
        api::autoscaling::v2 { HorizontalPodAutoscaler }
        api::batch::v1 { CronJob, Job }
        api::certificates::v1 { CertificateSigningRequest, ClusterTrustBundle, PodCertificateRequest }
        api::certificates::v1beta1 { ClusterTrustBundle, PodCertificateRequest }
        api::coordination::v1 { Lease }
        api::coordination::v1alpha2 { LeaseCandidate }
        api::coordination::v1beta1 { LeaseCandidate }
        api::core::v1 { Binding, ComponentStatus, ConfigMap, Endpoints, Event, LimitRange, Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, PodTemplate, ReplicationController, ResourceQuota, Secret, Service, ServiceAccount }
        api::discovery::v1 { EndpointSlice }
        api::events::v1 { Event }
        api::flowcontrol::v1 { FlowSchema, PriorityLevelConfiguration }
        api::lifecycle::v1alpha1 { Eviction, EvictionRequest }
        api::networking::v1 { IPAddress, Ingress, IngressClass, NetworkPolicy, ServiceCIDR }
        api::node::v1 { RuntimeClass }
        api::policy::v1 { Eviction, PodDisruptionBudget }
        api::rbac::v1 { ClusterRole, ClusterRoleBinding, Role, RoleBinding }
        api::resource::v1 { DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        api::resource::v1alpha3 { DeviceTaintRule, ResourcePoolStatusRequest }
        api::resource::v1beta1 { DeviceClass, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        api::resource::v1beta2 { DeviceClass, DeviceTaintRule, ResourceClaim, ResourceClaimTemplate, ResourceSlice }
        api::scheduling::v1 { PriorityClass }
        api::scheduling::v1alpha3 { CompositePodGroup, PodGroup, Workload }
        api::scheduling::v1beta1 { PodGroup, Workload }
        api::storage::v1 { CSIDriver, CSINode, CSIStorageCapacity, StorageClass, VolumeAttachment, VolumeAttributesClass }
        api::storagemigration::v1 { StorageVersionMigration }
        api::storagemigration::v1beta1 { StorageVersionMigration }
        apiextensions_apiserver::pkg::apis::apiextensions::v1 { CustomResourceDefinition }
        apimachinery::pkg::apis::meta::v1 { APIGroup, APIGroupList, APIResourceList, APIVersions, DeleteOptions, Patch, Status }
        apimachinery::pkg::version { Info }
        kube_aggregator::pkg::apis::apiregistration::v1 { APIService }
    }
    _ = generator
        .subschema_for::<apimachinery::pkg::apis::meta::v1::WatchEvent<apimachinery::pkg::runtime::RawExtension>>();
    // Lists are generic in the crate; the documents describe them themselves.
    let types: BTreeMap<String, Value> = generator.take_definitions(true).into_iter().collect();
    let mut file = GzEncoder::new(Vec::new(), Compression::best());
    for (name, schema) in &types {
        let texts = texts(schema);
        if !texts.is_empty() {
            writeln!(file, "{}:{}", Value::from(name.as_str()), Value::Object(texts))?;
        }
    }
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/data/descriptions.jsonl.gz");
    std::fs::write(path, file.finish()?)?;
    println!("{} types", types.len());
    Ok(())
}

fn texts(schema: &Value) -> Map<String, Value> {
    let mut texts = Map::new();
    let mut add = |name: &str, schema: &Value| {
        if let Some(text) = schema.get("description") {
            texts.insert(name.to_owned(), text.clone());
        }
    };
    add("", schema);
    for (name, field) in schema.get("properties").and_then(Value::as_object).into_iter().flatten() {
        add(name, field);
    }
    texts
}
