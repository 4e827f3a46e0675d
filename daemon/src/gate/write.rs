//! Create and update.

use flotilla_api::admit::{self, Create, Subresource, UnknownFields};
use flotilla_api::managed::{self, Writer};
use flotilla_api::{Builtin, Cause, Change, Expect, Key, Kind, Reason, Status};
use serde_json::Value;

use super::authorize::Attempt;
use super::known::Known;
use super::node::{restrict_identity, restrict_new, restrict_node};
use super::settle::{Decision, Reads};
use super::{Gate, User, Verb, object};

#[derive(Clone, Debug)]
pub struct WriteOptions {
    /// Check everything, store nothing.
    pub dry_run: bool,
    pub manager: String,
    pub unknown_fields: UnknownFields,
    pub ownership: Ownership,
}

/// How it comes into `managedFields` what a write changes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Ownership {
    /// The manager owns what it changed.
    #[default]
    Changed,
    /// The object says already who owns what.
    Declared,
}

impl WriteOptions {
    pub fn by(manager: impl Into<String>) -> Self {
        Self {
            dry_run: false,
            manager: manager.into(),
            unknown_fields: UnknownFields::Refuse,
            ownership: Ownership::Changed,
        }
    }
}

/// What a request that changes an object is called, and what it may change.
#[derive(Clone, Copy, Debug)]
pub struct How<'a> {
    pub verb: Verb,
    pub subresource: Option<&'a str>,
    pub part: Subresource,
}

impl How<'_> {
    /// A plain update of an object, or of its status.
    pub fn update(part: Subresource) -> Self {
        Self { verb: Verb::Update, subresource: part.name(), part }
    }
}

impl<'a> How<'a> {
    /// Through a subresource that changes fields of the object itself.
    pub fn through(verb: Verb, subresource: &'a str) -> Self {
        Self { verb, subresource: Some(subresource), part: Subresource::None }
    }
}

/// An object as it is stored now, or would be.
#[derive(Clone, Debug, PartialEq)]
pub struct Written {
    pub object: Value,
    /// For the client, a sentence each.
    pub warnings: Vec<String>,
}

impl Written {
    /// In the version of this kind.
    fn into_kind(mut self, kind: &Kind) -> Self {
        self.object = kind.present(self.object);
        self
    }

    /// With what there was to say before.
    pub fn after(mut self, mut warnings: Vec<String>) -> Self {
        warnings.append(&mut self.warnings);
        self.warnings = warnings;
        self
    }

    fn at(mut self, revision: Option<u64>) -> Self {
        self.object = with_revision(self.object, revision);
        self
    }
}

/// What new objects depend on, as it was read.
#[derive(Default)]
pub(super) struct Parents {
    namespaces: Known<Option<Parent>>,
    definitions: Known<Option<Parent>>,
}

#[derive(Clone, Copy)]
struct Parent {
    revision: u64,
    /// It was told to go, and takes nothing new.
    is_ending: bool,
}

impl Gate {
    /// Stores a new object and returns it as stored.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid` with every cause, `AlreadyExists`, `NotFound` for a namespace that is not there,
    /// or why the store cannot be written.
    pub async fn create(
        &self,
        user: &User,
        kind: &Kind,
        new: Value,
        options: &WriteOptions,
    ) -> Result<Written, Status> {
        let decide = || self.decide_create(user, kind, &new, options);
        let (written, revision) = self.settle(&mut Reads::default(), kind, decide).await?;
        Ok(written.at(revision))
    }

    /// What creating an object comes to. A name that is generated is drawn anew each time.
    pub(super) fn decide_create(
        &self,
        user: &User,
        kind: &Kind,
        new: &Value,
        options: &WriteOptions,
    ) -> Result<Decision<Written>, Status> {
        let allowed = self.authorize(&Attempt {
            user,
            verb: Verb::Create,
            kind,
            subresource: None,
            namespace: Self::namespace(kind, text(new, "/metadata/namespace")),
            name: "",
            object: None,
        });
        if let Err(status) = allowed {
            return Ok(Decision::Refuse(status));
        }
        let (key, written) = prepare(kind, new.clone(), options.unknown_fields)?;
        let is_named = !text(new, "/metadata/name").is_empty();
        let admitted = self.admit_new(user, kind, (&key, is_named), written, options);
        Ok(admitted.unwrap_or_else(Decision::Refuse))
    }

    /// What creating an object that is well formed comes to; whatever goes wrong rests on what this replica has.
    fn admit_new(
        &self,
        user: &User,
        kind: &Kind,
        (key, is_named): (&Key, bool),
        mut written: Written,
        options: &WriteOptions,
    ) -> Result<Decision<Written>, Status> {
        // The writer owns what they wrote and what it defaults to, not what is added from here on.
        track(kind, None, &mut written.object, "", options);
        self.admit_account(kind, key, &mut written.object)?;
        self.admit_request(user, kind, &mut written.object)?;
        restrict_new(user, kind, key)?;
        restrict_identity(kind, key, &written.object)?;
        self.check_escalation(user, kind, None, &written.object)?;
        if is_named && self.load(key)?.is_some() {
            return Err(Status::already_exists(key.collection(), key.name()));
        }
        let change = Change::new(&user.name, &options.manager);
        let change = self.in_namespace(change, key)?;
        let change = self.of_definition(change, kind)?;
        let change = self.apply_policies(kind, key, &mut written.object, change)?;
        let change = self.take_address(kind, key, (None, &mut written.object), change)?;
        let change = self.take_node_ports(kind, key, (None, &mut written.object), change)?;
        let decision = match options.dry_run {
            true => Decision::Keep(written),
            false => {
                let (change, bytes) = self.encode(kind, key, &written.object, change)?;
                Decision::Write(change.create(key.clone(), bytes), written)
            }
        };
        Ok(decision.map(|written| written.into_kind(kind)))
    }

    /// Reads an object, lets `edit` change it, and stores it, as often as somebody else overtakes it.
    ///
    /// An `edit` that keeps `metadata.resourceVersion` is redone on the newest object; one that sets another one is
    /// refused with `Conflict`. An edit that changes nothing stores nothing.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid` with every cause, `Conflict`, what `edit` returns, or why the store cannot
    /// be written.
    pub async fn update(
        &self,
        user: &User,
        kind: &Kind,
        (namespace, name): (&str, &str),
        subresource: Subresource,
        options: &WriteOptions,
        edit: impl FnMut(&mut Value) -> Result<(), Status>,
    ) -> Result<Written, Status> {
        self.edit(user, kind, (namespace, name), How::update(subresource), options, edit).await
    }

    /// As [`Gate::update`], for a request that is called something else.
    ///
    /// # Errors
    /// As [`Gate::update`].
    pub async fn edit(
        &self,
        user: &User,
        kind: &Kind,
        (namespace, name): (&str, &str),
        how: How<'_>,
        options: &WriteOptions,
        mut edit: impl FnMut(&mut Value) -> Result<(), Status>,
    ) -> Result<Written, Status> {
        let key = Self::key(kind, namespace, name)?;
        let decide = || Ok(self.decide_update(user, kind, &key, how, options, &mut edit));
        let (written, revision) = self.settle(&mut Reads::default(), kind, decide).await?;
        Ok(written.at(revision))
    }

    /// What editing an object comes to; whatever goes wrong may be otherwise with a newer one.
    pub(super) fn decide_update(
        &self,
        user: &User,
        kind: &Kind,
        key: &Key,
        how: How<'_>,
        options: &WriteOptions,
        edit: &mut dyn FnMut(&mut Value) -> Result<(), Status>,
    ) -> Decision<Written> {
        self.try_update(user, kind, key, how, options, edit).unwrap_or_else(Decision::Refuse)
    }

    fn try_update(
        &self,
        user: &User,
        kind: &Kind,
        key: &Key,
        how: How<'_>,
        options: &WriteOptions,
        edit: &mut dyn FnMut(&mut Value) -> Result<(), Status>,
    ) -> Result<Decision<Written>, Status> {
        let stored = self.load(key)?;
        let old = stored.as_ref().map(object).transpose()?;
        self.authorize(&Attempt {
            user,
            verb: how.verb,
            kind,
            subresource: how.subresource,
            namespace: key.namespace(),
            name: key.name(),
            object: old.as_ref(),
        })?;
        let (Some(stored), Some(old)) = (stored, old) else {
            return Err(Status::not_found(kind.collection(), key.name()));
        };
        let old = self.open(kind, key, old)?;
        let mut new = kind.present(old.clone());
        edit(&mut new)?;
        keep_managers(&old, &mut new);
        self.restrict_membership(user, kind, key, &old, &mut new)?;
        restrict_node(user, kind, &old, &new)?;
        if text(&new, "/metadata/resourceVersion") != text(&old, "/metadata/resourceVersion") {
            return Err(overtaken(kind, key.name()));
        }
        // Parts keep the object's metadata, but who owns what in them changes with them.
        let declared = (options.ownership == Ownership::Declared).then(|| managed_fields(&new).cloned());
        let mut updated = admit::prepare_update(kind, &old, new, how.part, options.unknown_fields)?;
        if let Some(managers) = declared {
            updated.changed |= managers.as_ref() != managed_fields(&old);
            set_managed_fields(&mut updated.object, managers);
        }
        let mut new = Written { object: updated.object, warnings: updated.warnings };
        if updated.changed {
            track(kind, Some(&old), &mut new.object, how.subresource.unwrap_or_default(), options);
        }
        self.check_escalation(user, kind, Some(&old), &new.object)?;
        self.check_request(user, kind, how, &old, &new.object)?;
        if !updated.changed {
            return Ok(Decision::Keep(new.into_kind(kind)));
        }
        let change = Change::new(&user.name, &options.manager);
        let change = self.charge_update(kind, key, (&old, &new.object), change)?;
        let change = self.take_address(kind, key, (Some(&old), &mut new.object), change)?;
        let change = self.take_node_ports(kind, key, (Some(&old), &mut new.object), change)?;
        if options.dry_run {
            return Ok(Decision::Keep(new.into_kind(kind)));
        }
        let change = if is_finished(&new.object) {
            change.remove(key.clone(), stored.mod_revision)
        } else {
            let (change, bytes) = self.encode(kind, key, &new.object, change)?;
            change.update(key.clone(), stored.mod_revision, bytes)
        };
        Ok(Decision::Write(change, new.into_kind(kind)))
    }

    /// Makes a creation depend on its namespace, which must be there and not ending.
    fn in_namespace(&self, change: Change, key: &Key) -> Result<Change, Status> {
        if key.namespace().is_empty() {
            return Ok(change);
        }
        let namespace = Key::new(&Builtin::Namespace.collection(), "", key.namespace());
        let found = self.parent(&self.parents.namespaces, &namespace)?;
        let found = found.ok_or_else(|| Status::not_found("namespaces", key.namespace()))?;
        if found.is_ending {
            let message = format!(
                "{} \"{}\" is forbidden: unable to create new content in namespace {} because it is being terminated",
                key.collection(),
                key.name(),
                key.namespace()
            );
            // Upstream's controllers look for it.
            let cause = Cause {
                reason: "NamespaceTerminating".into(),
                message: format!("namespace {} is being terminated", key.namespace()),
                field: "metadata.namespace".into(),
            };
            return Err(Status { causes: vec![cause], ..Status::new(Reason::Forbidden, message) });
        }
        Ok(change.require(namespace, Expect::ModRevision(found.revision)))
    }

    /// Makes the creation of a custom object depend on its definition, which must be there and not ending.
    fn of_definition(&self, change: Change, kind: &Kind) -> Result<Change, Status> {
        if kind.builtin.is_some() {
            return Ok(change);
        }
        let definitions = Builtin::CustomResourceDefinition.collection();
        let definition = Key::new(&definitions, "", &format!("{}.{}", kind.plural, kind.group));
        let gone = || Status::new(Reason::NotFound, "the server could not find the requested resource");
        let found = self.parent(&self.parents.definitions, &definition)?.ok_or_else(gone)?;
        if found.is_ending {
            let words = "create not allowed while custom resource definition is terminating";
            return Err(Status::new(Reason::MethodNotAllowed, words));
        }
        Ok(change.require(definition, Expect::ModRevision(found.revision)))
    }

    fn parent(&self, known: &Known<Option<Parent>>, key: &Key) -> Result<Option<Parent>, Status> {
        let read = || {
            let Some(stored) = self.load(key)? else { return Ok(None) };
            let is_ending = object(&stored)?.pointer("/metadata/deletionTimestamp").is_some();
            Ok(Some(Parent { revision: stored.mod_revision, is_ending }))
        };
        known.get(&self.store, &key.collection(), key.name(), read).map(|parent| *parent)
    }
}

/// Who leaves the managers out does not mean that there are none.
fn keep_managers(old: &Value, new: &mut Value) {
    if managed_fields(new).is_none() {
        set_managed_fields(new, managed_fields(old).cloned());
    }
}

fn managed_fields(object: &Value) -> Option<&Value> {
    object.pointer("/metadata/managedFields").filter(|managers| !managers.is_null())
}

fn set_managed_fields(object: &mut Value, managers: Option<Value>) {
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match managers {
        Some(managers) => _ = metadata.insert("managedFields".into(), managers),
        None => _ = metadata.remove("managedFields"),
    }
}

/// Notes who owns what of an object that is about to be stored.
fn track(kind: &Kind, old: Option<&Value>, new: &mut Value, subresource: &str, options: &WriteOptions) {
    if options.ownership == Ownership::Declared {
        return;
    }
    let api_version = text(new, "/apiVersion").to_owned();
    let writer = Writer {
        manager: &options.manager,
        api_version: &api_version,
        subresource,
        status_apart: kind.has_status(),
        now: jiff::Timestamp::now(),
    };
    managed::track(old, new, kind.facts(), writer);
}

/// An object whose deletion waited for finalizers goes when the last of them does.
fn is_finished(object: &Value) -> bool {
    let has = |field: &str| object.pointer(field).and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    object.pointer("/metadata/deletionTimestamp").is_some()
        && object.pointer("/metadata/deletionGracePeriodSeconds").is_none_or(|grace| grace == 0)
        && !has("/metadata/finalizers")
        && !has("/spec/finalizers")
}

/// Makes a new object ready for the store. Its time, name and uid are minted here, before it is proposed.
///
/// # Errors
/// `Invalid` or `BadRequest` with every cause.
pub(crate) fn prepare(kind: &Kind, object: Value, unknown_fields: UnknownFields) -> Result<(Key, Written), Status> {
    let mut rng = rand::rng();
    let request = Create { namespace: "", now: jiff::Timestamp::now(), rng: &mut rng, unknown_fields };
    let prepared = admit::prepare_create(kind, object, request)?;
    Ok((prepared.key, Written { object: prepared.object, warnings: prepared.warnings }))
}

/// The bytes of an object whose sealed parts are sealed, or whose kind has none.
pub(super) fn encode(object: &Value) -> Result<bytes::Bytes, Status> {
    flotilla_api::object::encode_value(object).map_err(Status::internal)
}

pub(super) fn text<'a>(object: &'a Value, pointer: &str) -> &'a str {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default()
}

/// As it is stored now; unless something was written, it says so already.
pub(super) fn with_revision(mut object: Value, written: Option<u64>) -> Value {
    if let Some(revision) = written {
        object["metadata"]["resourceVersion"] = Value::String(revision.to_string());
    }
    object
}

/// Takes from the stored object what an update need not say. One that names no revision, or 0, overwrites whatever there
/// is, where the kind allows that.
///
/// # Errors
/// `Conflict` if another object is meant, `Invalid` if a revision must be named.
pub fn take_over(kind: &Kind, stored: &Value, new: &mut Value) -> Result<(), Status> {
    let name = text(stored, "/metadata/name");
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return Ok(()) };
    let said = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default();
    let (uid, found) = (said("uid"), text(stored, "/metadata/uid"));
    if !uid.is_empty() && uid != found {
        return Err(Status::new(
            Reason::Conflict,
            format!(
                "Operation cannot be fulfilled on {} \"{name}\": Precondition failed: UID in precondition: {uid}, UID in \
                 object meta: {found}",
                kind.collection()
            ),
        ));
    }
    if !matches!(said("resourceVersion"), "" | "0") {
        return Ok(());
    }
    if !kind.unconditional_update {
        let cause = Cause {
            reason: "FieldValueInvalid".into(),
            message: "Invalid value: 0x0: must be specified for an update".into(),
            field: "metadata.resourceVersion".into(),
        };
        return Err(Status::invalid(kind.collection(), name, vec![cause]));
    }
    metadata.insert("resourceVersion".into(), stored["metadata"]["resourceVersion"].clone());
    Ok(())
}

fn overtaken(kind: &Kind, name: &str) -> Status {
    Status::new(
        Reason::Conflict,
        format!(
            "Operation cannot be fulfilled on {} \"{name}\": the object has been modified; please apply your changes to the latest version and try again",
            kind.collection()
        ),
    )
}

pub(super) fn contended(kind: &Kind) -> Status {
    Status {
        retry_after_seconds: Some(1),
        ..Status::new(Reason::TooManyRequests, format!("{} change too fast here; try again", kind.collection()))
    }
}
