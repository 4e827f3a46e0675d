//! The kinds and the one list of them.
//!
//! A built-in kind is one file here and one line in [`kinds!`]. The list only seeds a [`crate::registry::Registry`];
//! kinds that are added while the cluster runs are the same [`Kind`] with another [`Behaviour`].
//!
//! Invariant: whatever passes a kind's `create` or `update` without a complaint decodes into the kind's type.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::Metadata;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::field::{Errors, Path};
use crate::key::GroupResource;
use crate::names;
use crate::schema::{self, Schema};
use crate::selector::{Fields, SelectorError};
use crate::structural::Structure;
use crate::versions::StoredAs;
use crate::warn::Warnings;

pub use crate::columns::Column;

/// The API group of Flotilla's own kinds.
pub const FLOTILLA_GROUP: &str = "flotilla.dev";

/// Lets a type of Flotilla's own group be used like those of `k8s-openapi`.
macro_rules! resource {
    ($type:ty, $kind:literal, $plural:literal, $scope:ty) => {
        impl k8s_openapi::Resource for $type {
            const API_VERSION: &'static str = "flotilla.dev/v1";
            const GROUP: &'static str = super::FLOTILLA_GROUP;
            const KIND: &'static str = $kind;
            const VERSION: &'static str = "v1";
            const URL_PATH_SEGMENT: &'static str = $plural;
            type Scope = $scope;
        }

        impl k8s_openapi::Metadata for $type {
            type Ty = ObjectMeta;

            fn metadata(&self) -> &ObjectMeta {
                &self.metadata
            }

            fn metadata_mut(&mut self) -> &mut ObjectMeta {
                &mut self.metadata
            }
        }
    };
}
use resource;

/// Lists the built-in kinds: a module of this folder, and the marker type in it that implements [`BuiltIn`].
macro_rules! kinds {
    ($($module:ident::$kind:ident),* $(,)?) => {
        $(pub mod $module;)*

        /// Every built-in kind, for matches that the compiler keeps complete.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum Builtin {
            $($kind),*
        }

        impl Builtin {
            pub const ALL: &'static [Builtin] = &[$(Builtin::$kind),*];

            /// The fixed facts of the kind.
            pub fn info(self) -> &'static Info {
                match self {
                    $(Builtin::$kind => &<$module::$kind as BuiltIn>::INFO),*
                }
            }

            /// The collection that objects of the kind are kept in.
            pub fn collection(self) -> GroupResource {
                GroupResource::new(self.info().group, self.info().plural)
            }
        }

        pub(crate) fn builtin_kinds() -> Vec<Kind> {
            vec![$(Kind::built_in::<$module::$kind>(Builtin::$kind)),*]
        }
    };
}

kinds! {
    namespace::Namespace,
    node::Node,
    pod::Pod,
    replicaset::ReplicaSet,
    deployment::Deployment,
    job::Job,
    configmap::ConfigMap,
    secret::Secret,
    event::Event,
    lease::Lease,
    service::Service,
    endpoints::Endpoints,
    serviceaccount::ServiceAccount,
    resourcequota::ResourceQuota,
    limitrange::LimitRange,
    endpointslice::EndpointSlice,
    poddisruptionbudget::PodDisruptionBudget,
    priorityclass::PriorityClass,
    role::Role,
    rolebinding::RoleBinding,
    clusterrole::ClusterRole,
    clusterrolebinding::ClusterRoleBinding,
    certificatesigningrequest::CertificateSigningRequest,
    clustertrustbundle::ClusterTrustBundle,
    podcertificaterequest::PodCertificateRequest,
    replicationcontroller::ReplicationController,
    persistentvolume::PersistentVolume,
    persistentvolumeclaim::PersistentVolumeClaim,
    podtemplate::PodTemplate,
    daemonset::DaemonSet,
    statefulset::StatefulSet,
    controllerrevision::ControllerRevision,
    cronjob::CronJob,
    horizontalpodautoscaler::HorizontalPodAutoscaler,
    ingress::Ingress,
    ingressclass::IngressClass,
    networkpolicy::NetworkPolicy,
    ipaddress::IPAddress,
    servicecidr::ServiceCIDR,
    runtimeclass::RuntimeClass,
    storageclass::StorageClass,
    volumeattachment::VolumeAttachment,
    volumeattributesclass::VolumeAttributesClass,
    csidriver::CSIDriver,
    csinode::CSINode,
    csistoragecapacity::CSIStorageCapacity,
    customresourcedefinition::CustomResourceDefinition,
    jointoken::JoinToken,
    cluster::Cluster,
    keyring::Keyring,
}

/// Whether objects of a kind live in namespaces.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    Namespaced,
    Cluster,
}

/// What clients are told who use a version that is to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Deprecation {
    /// In upstream's words.
    pub warning: String,
    /// The release of Kubernetes that no longer has it, such as `1.16`; empty if that is not decided.
    pub removed_release: String,
}

/// What a name of the kind must be like.
pub type NameRule = fn(&str) -> Vec<String>;

/// The facts of a built-in kind.
#[derive(Clone, Copy, Debug)]
pub struct Info {
    /// `""` is core.
    pub group: &'static str,
    pub version: &'static str,
    pub kind: &'static str,
    pub plural: &'static str,
    pub singular: &'static str,
    pub short_names: &'static [&'static str],
    pub scope: Scope,
    pub categories: &'static [&'static str],
    /// `status`, `log`, …
    pub subresources: &'static [&'static str],
    /// Fields beside name and namespace that objects may be selected by.
    pub selectable: &'static [&'static str],
    /// What the store keeps sealed, as JSON pointers; see [`crate::sealing`].
    pub sealed: &'static [&'static str],
    /// Whether `metadata.generation` counts the changes of the spec.
    pub generation: bool,
    /// The type's name in the schema.
    pub schema: &'static str,
    pub name_rule: NameRule,
    /// The warning that users of the kind are given, if it is to go one day.
    pub deprecation: Option<&'static str>,
    /// Whether an update that names no revision overwrites whatever there is.
    pub unconditional_update: bool,
    /// Whether an update of what is not there makes it.
    pub create_on_update: bool,
    /// Whether a delete is answered with the object rather than with what it was called.
    pub shows_deleted: bool,
    /// Whether a delete that says nothing of what the object owns leaves that alone.
    pub orphans: bool,
}

impl Info {
    pub(crate) const DEFAULT: Info = Info {
        group: "",
        version: "v1",
        kind: "",
        plural: "",
        singular: "",
        short_names: &[],
        scope: Scope::Namespaced,
        categories: &[],
        subresources: &[],
        selectable: &[],
        sealed: &[],
        generation: false,
        schema: "",
        name_rule: names::dns_subdomain,
        deprecation: None,
        unconditional_update: true,
        create_on_update: false,
        shows_deleted: false,
        orphans: false,
    };
}

/// What a built-in kind defines. Everything has upstream's meaning and words.
pub trait BuiltIn: Send + Sync + 'static {
    type Object: Clone + PartialEq + Serialize + DeserializeOwned + Metadata<Ty = ObjectMeta>;
    const INFO: Info;
    const COLUMNS: &'static [Column];

    /// Fills in what the writer left out.
    fn default(_object: &mut Self::Object) {}

    /// What a create sets or clears whatever the writer said. Name, uid and times have been minted.
    fn create(_object: &mut Self::Object) {}

    /// What an update keeps from the old object whatever the writer said, beside the status.
    fn update(_old: &Self::Object, _new: &mut Self::Object) {}

    /// Complaints about what the object's type cannot tell: what is not there from what is empty.
    fn validate_json(_object: &Value, _errors: &mut Errors) {}

    /// Complaints about the object itself, its metadata apart.
    fn validate(object: &Self::Object, errors: &mut Errors);

    /// Complaints about a new object that one which is stored already is spared.
    fn validate_create(_new: &Self::Object, _errors: &mut Errors) {}

    /// Complaints about the change from `old`.
    fn validate_update(_old: &Self::Object, _new: &Self::Object, _errors: &mut Errors) {}

    /// Complaints about a new status.
    fn validate_status(_new: &Self::Object, _errors: &mut Errors) {}

    /// What is to be said to the writer of an object that is taken, as a change of `old` if there was one.
    fn warn(_old: Option<&Self::Object>, _new: &Self::Object, _warnings: &mut Warnings) {}

    /// Whether an update counts as a new generation; asked only if `INFO.generation`.
    fn changed(old: &Value, new: &Value) -> bool {
        old.get("spec") != new.get("spec")
    }

    /// One cell for each of `COLUMNS`.
    fn row(object: &Self::Object, now: Timestamp) -> Vec<String>;
}

/// What a kind does to an object on its way in and out. Objects have passed strict decoding.
pub trait Behaviour: Send + Sync {
    /// Defaults, prepares and validates a new object.
    fn create(&self, object: &mut Value, errors: &mut Errors);

    /// Defaults, prepares and validates `new`, which is to replace `old`.
    fn update(&self, old: &Value, new: &mut Value, errors: &mut Errors);

    /// Validates `new`, which is `old` with another status.
    fn update_status(&self, old: &Value, new: &mut Value, errors: &mut Errors);

    /// What is to be said to the writer of an object that is taken, as a change of `old` if there was one.
    fn warn(&self, _old: Option<&Value>, _new: &Value, _warnings: &mut Warnings) {}

    /// Whether `new` is a new generation.
    fn changed(&self, old: &Value, new: &Value) -> bool;

    fn columns(&self) -> Vec<Column>;

    /// One cell for each of `columns`.
    fn row(&self, object: &Value, now: Timestamp) -> Vec<String>;
}

/// Where an object keeps how many replicas it wants and has, as the fields that lead there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ScalePaths {
    pub spec_replicas: Vec<String>,
    pub status_replicas: Vec<String>,
    /// A selector as text.
    pub selector: Option<Vec<String>>,
}

/// A kind of object: what it is called and how it behaves.
#[derive(Clone)]
pub struct Kind {
    /// `""` is core.
    pub group: String,
    pub version: String,
    /// `Deployment`
    pub kind: String,
    /// `deployments`
    pub plural: String,
    /// `deployment`
    pub singular: String,
    pub short_names: Vec<String>,
    pub scope: Scope,
    pub categories: Vec<String>,
    pub subresources: Vec<String>,
    /// Fields beside name and namespace that objects may be selected by; see [`crate::selector::Fields::check`].
    pub selectable: Vec<String>,
    /// What the store keeps sealed, as JSON pointers; see [`crate::sealing`].
    pub sealed: Vec<String>,
    pub generation: bool,
    /// The type's name in [`crate::schema`]; `None` if any fields are welcome.
    pub schema: Option<String>,
    /// The schema of a custom kind.
    pub structure: Option<Arc<Structure>>,
    /// Whether several versions of the kind keep their objects in one collection, so that an object may say that it is of
    /// another version than it is asked for in.
    pub shared: bool,
    /// Where a custom kind's objects keep what `scale` is about.
    pub scale: Option<ScalePaths>,
    /// Set if this version is to go.
    pub deprecation: Option<Deprecation>,
    /// Whether an update that names no revision overwrites whatever there is.
    pub unconditional_update: bool,
    /// Whether an update of what is not there makes it.
    pub create_on_update: bool,
    /// Whether a delete is answered with the object rather than with what it was called.
    pub shows_deleted: bool,
    /// Whether a delete that says nothing of what the object owns leaves that alone.
    pub orphans: bool,
    pub name_rule: NameRule,
    /// Which built-in kind this is, if any.
    pub builtin: Option<Builtin>,
    /// How objects are stored, if not in this version; everything behind the gate sees them as they are stored.
    pub stored_as: Option<Arc<StoredAs>>,
    pub behaviour: Arc<dyn Behaviour>,
}

impl Kind {
    fn built_in<B: BuiltIn>(builtin: Builtin) -> Self {
        let owned = |texts: &[&str]| texts.iter().map(|&text| text.to_owned()).collect();
        let info = B::INFO;
        Self {
            group: info.group.to_owned(),
            version: info.version.to_owned(),
            kind: info.kind.to_owned(),
            plural: info.plural.to_owned(),
            singular: info.singular.to_owned(),
            short_names: owned(info.short_names),
            scope: info.scope,
            categories: owned(info.categories),
            subresources: owned(info.subresources),
            selectable: owned(info.selectable),
            sealed: owned(info.sealed),
            generation: info.generation,
            schema: Some(info.schema.to_owned()),
            structure: None,
            shared: false,
            scale: None,
            deprecation: info
                .deprecation
                .map(|warning| Deprecation { warning: warning.to_owned(), removed_release: String::new() }),
            unconditional_update: info.unconditional_update,
            create_on_update: info.create_on_update,
            shows_deleted: info.shows_deleted,
            orphans: info.orphans,
            name_rule: info.name_rule,
            builtin: Some(builtin),
            stored_as: None,
            behaviour: Arc::new(Typed::<B>(std::marker::PhantomData)),
        }
    }

    /// `v1`, `apps/v1`.
    pub fn api_version(&self) -> String {
        if self.group.is_empty() { self.version.clone() } else { format!("{}/{}", self.group, self.version) }
    }

    /// What the kind's objects look like.
    pub fn facts(&self) -> Option<&Schema> {
        match &self.structure {
            Some(structure) => Some(&structure.root),
            None => self.schema.as_deref().and_then(schema::get),
        }
    }

    /// Where objects of the kind are kept.
    pub fn collection(&self) -> GroupResource {
        let stored = self.stored();
        GroupResource::new(&stored.group, &stored.plural)
    }

    /// The kind that objects of this one are stored as.
    pub fn stored(&self) -> &Kind {
        self.stored_as.as_ref().map_or(self, |stored| &stored.kind)
    }

    /// Makes a stored object one of this version.
    pub fn present(&self, mut object: Value) -> Value {
        if let Some(stored) = &self.stored_as {
            stored.present(&mut object, self);
        }
        object
    }

    /// Makes an object of this version what is stored.
    pub fn to_stored(&self, object: &mut Value) {
        if let Some(stored) = &self.stored_as {
            stored.to_stored(object);
        }
    }

    /// A field selector in the words of the stored kind.
    pub fn stored_fields(&self, fields: &Fields) -> Fields {
        let names = self.stored_as.as_ref().map_or(&[][..], |stored| stored.conversion.fields);
        fields.renamed(names)
    }

    /// Refuses fields that the kind's objects cannot be selected by, in the words that upstream has for the kind.
    ///
    /// # Errors
    /// Names the first field that is not known.
    pub fn check_fields(&self, fields: &Fields) -> Result<(), SelectorError> {
        match fields.unknown(&self.selectable) {
            Some(field) if self.builtin == Some(Builtin::Job) => {
                Err(SelectorError::UnsupportedByJobs(field.to_owned()))
            }
            Some(field) if self.builtin.is_none() => Err(SelectorError::UnsupportedField(field.to_owned())),
            _ => fields.check(&self.selectable),
        }
    }

    /// `Pod`, `Deployment.apps`: how upstream names a kind in errors.
    pub fn qualified(&self) -> String {
        qualify(&self.kind, &self.group)
    }

    /// `pod`, `deployment.apps`: how upstream's command line names the kind of one object.
    pub fn qualified_singular(&self) -> String {
        qualify(&self.singular, &self.group)
    }

    pub fn is_namespaced(&self) -> bool {
        self.scope == Scope::Namespaced
    }

    pub fn has_status(&self) -> bool {
        self.subresources.iter().any(|s| s == "status")
    }

    pub fn columns(&self) -> Vec<Column> {
        self.behaviour.columns()
    }

    /// One cell for each of [`Kind::columns`].
    pub fn row(&self, object: &Value, now: Timestamp) -> Vec<String> {
        if self.stored_as.is_none() {
            return self.behaviour.row(object, now);
        }
        let mut stored = object.clone();
        self.to_stored(&mut stored);
        self.behaviour.row(&stored, now)
    }
}

fn qualify(name: &str, group: &str) -> String {
    if group.is_empty() { name.to_owned() } else { format!("{name}.{group}") }
}

impl fmt::Debug for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Kind({}, {})", self.api_version(), self.kind)
    }
}

/// The behaviour of a built-in kind: its functions over types, behind JSON.
struct Typed<B>(std::marker::PhantomData<fn() -> B>);

impl<B: BuiltIn> Typed<B> {
    fn decode(value: &Value, errors: &mut Errors) -> Option<B::Object> {
        B::Object::deserialize(value).map_err(|e| errors.invalid(&Path::root(), B::INFO.kind, e)).ok()
    }

    fn encode(object: &B::Object, into: &mut Value, errors: &mut Errors) {
        match serde_json::to_value(object) {
            Ok(value) => *into = value,
            Err(e) => errors.invalid(&Path::root(), B::INFO.kind, e),
        }
    }
}

impl<B: BuiltIn> Behaviour for Typed<B> {
    fn create(&self, value: &mut Value, errors: &mut Errors) {
        B::validate_json(value, errors);
        let Some(mut object) = Self::decode(value, errors) else { return };
        B::default(&mut object);
        B::create(&mut object);
        B::validate(&object, errors);
        B::validate_create(&object, errors);
        Self::encode(&object, value, errors);
    }

    fn update(&self, old: &Value, new: &mut Value, errors: &mut Errors) {
        B::validate_json(new, errors);
        let (Some(mut old), Some(mut object)) = (Self::decode(old, errors), Self::decode(new, errors)) else { return };
        // What was stored before a default was known is no other for it.
        B::default(&mut old);
        B::default(&mut object);
        B::update(&old, &mut object);
        B::validate(&object, errors);
        B::validate_update(&old, &object, errors);
        Self::encode(&object, new, errors);
    }

    fn update_status(&self, _old: &Value, new: &mut Value, errors: &mut Errors) {
        let Some(object) = Self::decode(new, errors) else { return };
        B::validate_status(&object, errors);
        Self::encode(&object, new, errors);
    }

    fn warn(&self, old: Option<&Value>, new: &Value, warnings: &mut Warnings) {
        let typed = |value| B::Object::deserialize(value).ok();
        if let Some(new) = typed(new) {
            B::warn(old.and_then(typed).as_ref(), &new, warnings);
        }
    }

    fn changed(&self, old: &Value, new: &Value) -> bool {
        B::changed(old, new)
    }

    fn columns(&self) -> Vec<Column> {
        B::COLUMNS.to_vec()
    }

    fn row(&self, object: &Value, now: Timestamp) -> Vec<String> {
        match B::Object::deserialize(object) {
            Ok(object) => B::row(&object, now),
            Err(_) => crate::columns::unreadable(object, B::COLUMNS),
        }
    }
}
