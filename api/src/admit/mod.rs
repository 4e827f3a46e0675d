//! The way in: from bytes that anyone may send to an object that may be stored.
//!
//! Parsing, strict decoding, defaults, validation and the rules of change, the same for every kind. What is particular to
//! a kind is behind its [`crate::kinds::Behaviour`].
//!
//! Invariant: an object that was let in decodes into its kind's type, and every complaint about one that was not names
//! its field. Time and randomness are handed in.

use std::collections::BTreeSet;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use rand::RngCore;
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::error::{Cause, Reason, Status};
use crate::field::{Errors, Path};
use crate::key::Key;
use crate::kinds::Kind;
use crate::warn::Warnings;
use crate::{names, structural, validate};

mod limits;
mod parse;
mod parts;
mod policies;
mod priority;
pub mod quota;
pub mod repeated;
mod runtime_class;
mod storage_class;
pub(crate) mod strict;
pub mod usage;

pub use parse::{MAX_INPUT_BYTES, MAX_OBJECTS, Parsed, documents, parse};
pub use policies::{Policies, Quota};

/// What becomes of fields that a kind does not have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum UnknownFields {
    /// The object is refused.
    #[default]
    Refuse,
    /// They are dropped, with a warning for each.
    Warn,
    /// They are dropped.
    Drop,
}

/// Which part of an object an update may change.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Subresource {
    /// All but the status.
    #[default]
    None,
    /// Only the status.
    Status,
    /// Only which node a Pod is on.
    Binding,
    /// Only a Pod's ephemeral containers.
    EphemeralContainers,
    /// Only the resources of a Pod's containers.
    Resize,
    /// Only what keeps a Namespace until its content is gone.
    Finalize,
}

impl Subresource {
    /// As paths and roles name it.
    pub fn name(self) -> Option<&'static str> {
        match self {
            Self::None => None,
            Self::Status => Some("status"),
            Self::Binding => Some("binding"),
            Self::EphemeralContainers => Some("ephemeralcontainers"),
            Self::Resize => Some("resize"),
            Self::Finalize => Some("finalize"),
        }
    }
}

/// What a create is given beside the object.
pub struct Create<'a> {
    /// Where an object that names no namespace goes; empty means `default`.
    pub namespace: &'a str,
    pub now: Timestamp,
    /// Names and uids are drawn from this.
    pub rng: &'a mut dyn RngCore,
    pub unknown_fields: UnknownFields,
}

/// An object that may be created.
#[derive(Clone, Debug)]
pub struct Prepared {
    pub key: Key,
    pub object: Value,
    /// For the client, a sentence each.
    pub warnings: Vec<String>,
}

/// An object that may replace another.
#[derive(Clone, Debug)]
pub struct Updated {
    pub object: Value,
    /// False if nothing but the resource version differs.
    pub changed: bool,
    pub warnings: Vec<String>,
}

/// Makes a new object ready for the store: decoded strictly, named, defaulted and validated.
///
/// # Errors
/// `BadRequest` for what does not decode, `Invalid` for what breaks the kind's rules; all causes at once.
pub fn prepare_create(kind: &Kind, object: Value, request: Create<'_>) -> Result<Prepared, Status> {
    let mut decoded = decode(kind, object, request.unknown_fields)?;
    let mut errors = Errors::new();
    mint(kind, &mut decoded.object, request)?;
    let metadata = metadata(&decoded.object);
    validate::metadata::object(&metadata, kind, &mut errors);
    kind.behaviour.create(&mut decoded.object, &mut errors);
    if let Some(stored) = &kind.stored_as {
        stored.check(&decoded.object, &mut errors);
    }
    decoded.finish(kind, errors)?;
    decoded.warn(kind, None);
    let name = metadata.name.unwrap_or_default();
    let key = Key::new(&kind.collection(), metadata.namespace.as_deref().unwrap_or_default(), &name);
    Ok(Prepared { key, object: decoded.object, warnings: decoded.warnings })
}

/// Makes `new` ready to replace `old`: decoded strictly, defaulted, validated by itself and as a change. The status is
/// kept, unless it alone is updated. `metadata.resourceVersion` is for the caller to compare.
///
/// # Errors
/// As [`prepare_create`].
pub fn prepare_update(
    kind: &Kind,
    old: &Value,
    new: Value,
    subresource: Subresource,
    unknown_fields: UnknownFields,
) -> Result<Updated, Status> {
    let mut decoded = decode(kind, new, unknown_fields)?;
    let mut errors = Errors::new();
    match subresource {
        Subresource::None => update_object(kind, old, &mut decoded.object, &mut errors),
        Subresource::Status => update_status(kind, old, &mut decoded.object, &mut errors),
        Subresource::Binding => update_binding(old, &mut decoded.object),
        Subresource::EphemeralContainers => {
            update_part(old, &mut decoded.object, &mut errors, parts::ephemeral_containers)
        }
        Subresource::Resize => update_part(old, &mut decoded.object, &mut errors, parts::resources),
        Subresource::Finalize => update_finalizers(old, &mut decoded.object, &mut errors),
    }
    decoded.finish(kind, errors)?;
    if subresource == Subresource::None {
        decoded.warn(kind, Some(old));
    }
    let changed = without_revision(old) != without_revision(&decoded.object);
    Ok(Updated { object: decoded.object, changed, warnings: decoded.warnings })
}

/// Decodes an object that is asked and not kept, and says what there was to warn of.
///
/// # Errors
/// `BadRequest` for what does not decode.
pub fn prepare_question(
    kind: &Kind,
    object: Value,
    unknown_fields: UnknownFields,
) -> Result<(Value, Vec<String>), Status> {
    let mut decoded = decode(kind, object, unknown_fields)?;
    decoded.finish(kind, Errors::new())?;
    Ok((decoded.object, decoded.warnings))
}

fn update_object(kind: &Kind, old: &Value, new: &mut Value, errors: &mut Errors) {
    keep_metadata(old, new);
    if !kind.is_namespaced() {
        new.get_mut("metadata").and_then(Value::as_object_mut).map(|metadata| metadata.remove("namespace"));
    }
    if kind.has_status() {
        keep(old, new, "status");
    }
    kind.behaviour.update(old, new, errors);
    let (before, after) = (metadata(old), metadata(new));
    validate::metadata::object(&after, kind, errors);
    validate::metadata::update(&before, &after, errors);
    if kind.generation && kind.behaviour.changed(old, new) {
        let generation = before.generation.unwrap_or_default() + 1;
        set(new, "generation", generation.into());
    }
}

fn update_status(kind: &Kind, old: &Value, new: &mut Value, errors: &mut Errors) {
    let status = new.as_object_mut().and_then(|map| map.remove("status"));
    let mut result = old.clone();
    if let Some(map) = result.as_object_mut() {
        match status {
            Some(status) => map.insert("status".to_owned(), status),
            None => map.remove("status"),
        };
    }
    *new = result;
    kind.behaviour.update_status(old, new, errors);
}

/// A part of the spec that counts as a new generation when it changes.
fn update_part(old: &Value, new: &mut Value, errors: &mut Errors, take: fn(&Value, &mut Value, &mut Errors)) {
    let asked = new.pointer("/metadata/resourceVersion").cloned();
    take(old, new, errors);
    if new.get("spec") != old.get("spec") {
        let generation = metadata(old).generation.unwrap_or_default() + 1;
        set(new, "generation", generation.into());
    }
    if let Some(version) = asked {
        set(new, "resourceVersion", version);
    }
}

fn update_finalizers(old: &Value, new: &mut Value, errors: &mut Errors) {
    let finalizers = new.pointer("/spec/finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
    let names: Vec<String> = finalizers.iter().filter_map(Value::as_str).map(str::to_owned).collect();
    let path = Path::new("spec").child("finalizers");
    validate::metadata::finalizers_of_namespace(&names, &path, errors);
    *new = old.clone();
    new["spec"]["finalizers"] = finalizers.into();
}

fn update_binding(old: &Value, new: &mut Value) {
    let node = new.pointer("/spec/nodeName").cloned().unwrap_or_default();
    *new = old.clone();
    new["spec"]["nodeName"] = node;
}

/// An object after strict decoding, with what there was to say about it.
struct Decoded {
    object: Value,
    unknown: Vec<Cause>,
    warnings: Vec<String>,
}

impl Decoded {
    /// Adds what the kind has to say of an object that is taken.
    fn warn(&mut self, kind: &Kind, old: Option<&Value>) {
        let mut warnings = Warnings::new();
        kind.behaviour.warn(old, &self.object, &mut warnings);
        self.warnings.extend(warnings.into_vec());
    }

    /// Refuses the object if anything was wrong. Unknown fields are told alone: upstream decodes an object before it looks
    /// what is in it.
    fn finish(&mut self, kind: &Kind, errors: Errors) -> Result<(), Status> {
        let unknown = std::mem::take(&mut self.unknown);
        if !unknown.is_empty() {
            let words = unknown.iter().map(unknown_words).collect::<Vec<_>>();
            return Err(Status { causes: unknown, ..refuse_strictly(kind, &words) });
        }
        match errors.is_empty() {
            true => Ok(()),
            false => Err(Status::invalid(kind.qualified(), &name_of(&self.object), errors.into_causes())),
        }
    }
}

/// What upstream says of an object with fields that are unknown or stand there twice.
pub fn refuse_strictly(kind: &Kind, complaints: &[String]) -> Status {
    Status::bad_request(format!(
        "{0} in version \"{1}\" cannot be handled as a {0}: strict decoding error: {2}",
        kind.kind,
        kind.version,
        complaints.join(", ")
    ))
}

/// A sentence for each field of an object that its kind does not have.
pub fn unknown_fields(kind: &Kind, mut object: Value) -> Vec<String> {
    inspect(kind, &mut object).unknown.into_causes().iter().map(unknown_words).collect()
}

fn unknown_words(cause: &Cause) -> String {
    format!("unknown field \"{}\"", cause.field)
}

/// What does not fit the kind, in an object that is made to fit its stored version.
fn inspect(kind: &Kind, object: &mut Value) -> strict::Findings {
    if object.get("metadata").is_some_and(Value::is_null) {
        object["metadata"] = Value::Object(Map::new());
    }
    kind.to_stored(object);
    let mut findings = strict::check(object, kind.stored().schema.as_deref());
    if let Some(structure) = &kind.structure {
        structural::prune(object, &structure.root, &mut findings);
    }
    findings
}

fn decode(kind: &Kind, mut object: Value, unknown_fields: UnknownFields) -> Result<Decoded, Status> {
    check_type(kind, &object)?;
    let findings = inspect(kind, &mut object);
    let mut unknown = findings.unknown.into_causes();
    let mut warnings = Vec::new();
    if unknown_fields != UnknownFields::Refuse {
        if unknown_fields == UnknownFields::Warn {
            warnings = unknown.iter().map(unknown_words).collect();
        }
        unknown.clear();
    }
    if !findings.wrong.is_empty() {
        let causes = findings.wrong.into_causes();
        return Err(bad_request(Status::invalid(kind.qualified(), &name_of(&object), causes)));
    }
    Ok(Decoded { object, unknown, warnings })
}

fn bad_request(status: Status) -> Status {
    Status { reason: Reason::BadRequest, ..status }
}

/// The object must call itself what the kind is called.
fn check_type(kind: &Kind, object: &Value) -> Result<(), Status> {
    let Value::Object(map) = object else {
        return Err(Status::bad_request(format_args!("expected an object of kind {}", kind.kind)));
    };
    let says = |field: &str| map.get(field).and_then(Value::as_str).unwrap_or_default();
    if (says("apiVersion"), says("kind")) != (kind.api_version().as_str(), kind.kind.as_str()) {
        return Err(Status::bad_request(format_args!(
            "expected an object with apiVersion \"{}\" and kind \"{}\", found apiVersion \"{}\" and kind \"{}\"",
            kind.api_version(),
            kind.kind,
            says("apiVersion"),
            says("kind")
        )));
    }
    Ok(())
}

/// Fills in what only the server may say about a new object.
fn mint(kind: &Kind, object: &mut Value, request: Create<'_>) -> Result<(), Status> {
    let mut metadata = metadata(object);
    if metadata.resource_version.as_deref().is_some_and(|version| !version.is_empty()) {
        return Err(Status::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let blank = |text: &Option<String>| text.as_deref().unwrap_or_default().is_empty();
    if blank(&metadata.name)
        && let Some(base) = metadata.generate_name.as_deref().filter(|base| !base.is_empty())
    {
        metadata.name = Some(names::generate(base, request.rng));
    }
    if kind.is_namespaced() {
        if blank(&metadata.namespace) {
            let namespace = if request.namespace.is_empty() { "default" } else { request.namespace };
            metadata.namespace = Some(namespace.to_owned());
        }
    } else {
        metadata.namespace = None;
    }
    metadata.uid = Some(names::uid(request.rng));
    metadata.creation_timestamp = Some(Time(request.now));
    metadata.generation = if kind.generation { Some(1) } else { metadata.generation.filter(|count| *count != 0) };
    metadata.deletion_timestamp = None;
    metadata.deletion_grace_period_seconds = None;
    metadata.self_link = None;
    metadata.resource_version = None;
    object["metadata"] = serde_json::to_value(metadata).map_err(Status::internal)?;
    Ok(())
}

/// What a writer cannot change by leaving it out or by saying something else.
fn keep_metadata(old: &Value, new: &mut Value) {
    let fixed = ["creationTimestamp", "generation", "deletionTimestamp", "deletionGracePeriodSeconds", "selfLink"];
    let of_old = |field: &str| old.get("metadata").and_then(|metadata| metadata.get(field)).cloned();
    for field in fixed {
        match of_old(field) {
            Some(value) => set(new, field, value),
            None => {
                new.get_mut("metadata").and_then(Value::as_object_mut).map(|metadata| metadata.remove(field));
            }
        }
    }
    for field in ["uid", "name", "namespace"] {
        let said = new.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
        if said.unwrap_or_default().is_empty()
            && let Some(value) = of_old(field)
        {
            set(new, field, value);
        }
    }
}

fn keep(old: &Value, new: &mut Value, field: &str) {
    let Some(map) = new.as_object_mut() else { return };
    match old.get(field) {
        Some(value) => map.insert(field.to_owned(), value.clone()),
        None => map.remove(field),
    };
}

/// Sets a field of the metadata.
fn set(object: &mut Value, field: &str, value: Value) {
    if let Some(map) = object.as_object_mut() {
        let metadata = map.entry("metadata").or_insert_with(|| Value::Object(Map::new()));
        if let Some(metadata) = metadata.as_object_mut() {
            metadata.insert(field.to_owned(), value);
        }
    }
}

fn metadata(object: &Value) -> ObjectMeta {
    object.get("metadata").and_then(|metadata| ObjectMeta::deserialize(metadata).ok()).unwrap_or_default()
}

fn name_of(object: &Value) -> String {
    let text = |field: &str| object.pointer(&format!("/metadata/{field}")).and_then(Value::as_str);
    text("name").or_else(|| text("generateName")).unwrap_or_default().to_owned()
}

fn without_revision(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        metadata.remove("resourceVersion");
    }
    object
}

/// The entries of `new` that `old` lacks.
pub(crate) fn added<'a>(old: Option<&[String]>, new: Option<&'a [String]>) -> Vec<&'a str> {
    let old: BTreeSet<&String> = old.unwrap_or_default().iter().collect();
    new.unwrap_or_default().iter().filter(|entry| !old.contains(entry)).map(String::as_str).collect()
}
