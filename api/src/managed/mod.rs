//! Who manages which fields of an object: server-side apply, and what every other write leaves behind for it.
//!
//! Defined by the Kubernetes documentation, "Server-Side Apply", and the structured-merge-diff specification. Everything here
//! is a function of objects, their schema and the time.
//!
//! Invariant: an applier owns exactly the fields of its last configuration; whoever writes otherwise owns what it changed.
//! Invariant: a field that an apply removes is one that nobody owns any more.

mod fields;
mod lastapplied;
mod typed;

use jiff::Timestamp;
use serde_json::{Map, Value, json};

use crate::error::{Cause, Reason, Status};
use crate::schema::Schema;

pub use fields::Fields;
use typed::{Changes, compare, fields_of, merge, prune};

/// Managers that did not apply, beyond which the oldest are counted as one.
const MAX_UPDATERS: usize = 10;
const ANCIENT: &str = "ancient-changes";
/// Who owns what was there before anybody applied.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// What nobody owns: the server says it, or it names the object.
const UNMANAGED: &[&[&str]] = &[
    &["apiVersion"],
    &["kind"],
    &["metadata", "name"],
    &["metadata", "namespace"],
    &["metadata", "uid"],
    &["metadata", "resourceVersion"],
    &["metadata", "creationTimestamp"],
    &["metadata", "deletionTimestamp"],
    &["metadata", "deletionGracePeriodSeconds"],
    &["metadata", "generation"],
    &["metadata", "selfLink"],
    &["metadata", "managedFields"],
];

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Operation {
    Apply,
    Update,
}

/// One manager, and what it owns.
#[derive(Clone, Debug, PartialEq)]
struct Manager {
    name: String,
    operation: Operation,
    api_version: String,
    subresource: String,
    time: Option<String>,
    fields: Fields,
}

impl Manager {
    fn is(&self, other: &Manager) -> bool {
        // An applier is the same in every version.
        self.name == other.name
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    fn read(value: &Value) -> Result<Self, String> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match text("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            other => return Err(format!("operation: Invalid value: {other:?}: must be `Apply` or `Update`")),
        };
        if !matches!(text("fieldsType").as_str(), "" | "FieldsV1") {
            return Err(format!("fieldsType: Invalid value: {:?}: must be `FieldsV1`", text("fieldsType")));
        }
        let fields = value.get("fieldsV1").map_or_else(|| Ok(Fields::default()), Fields::parse)?;
        Ok(Self {
            name: text("manager"),
            operation,
            api_version: text("apiVersion"),
            subresource: text("subresource"),
            time: Some(text("time")).filter(|time| !time.is_empty()),
            fields,
        })
    }

    fn to_value(&self) -> Value {
        let mut entry = json!({
            "manager": self.name,
            "operation": if self.operation == Operation::Apply { "Apply" } else { "Update" },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_value(),
        });
        if let Some(time) = &self.time {
            entry["time"] = time.clone().into();
        }
        if !self.subresource.is_empty() {
            entry["subresource"] = self.subresource.clone().into();
        }
        entry
    }
}

/// Who writes, and how.
#[derive(Clone, Copy, Debug)]
pub struct Writer<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// `status`, `scale`; empty for the object itself.
    pub subresource: &'a str,
    /// Whether the status is written through a subresource of its own, and nothing else through that.
    pub status_apart: bool,
    pub now: Timestamp,
}

impl Writer<'_> {
    /// Whether this write says nothing of the status.
    fn leaves_status(&self) -> bool {
        self.status_apart && self.subresource != "status"
    }

    fn with(&self, operation: Operation, fields: Fields) -> Manager {
        Manager {
            name: self.manager.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            subresource: self.subresource.to_owned(),
            time: Some(self.now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()),
            fields,
        }
    }
}

/// An object's managers. What cannot be read is as if it were not there: it says nothing that could be kept.
fn managers(object: &Value) -> Vec<Manager> {
    let entries = object.pointer("/metadata/managedFields").and_then(Value::as_array);
    let read = entries.into_iter().flatten().map(Manager::read).collect::<Result<Vec<_>, _>>();
    read.unwrap_or_default()
}

fn set_managers(object: &mut Value, mut managers: Vec<Manager>) {
    managers.retain(|manager| !manager.fields.is_empty());
    fold_ancient(&mut managers);
    managers.sort_by(|a, b| {
        let of =
            |m: &Manager| (m.operation, m.time.clone(), m.name.clone(), m.api_version.clone(), m.subresource.clone());
        of(a).cmp(&of(b))
    });
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    match managers.is_empty() {
        true => _ = metadata.remove("managedFields"),
        false => {
            let entries = managers.iter().map(Manager::to_value).collect();
            metadata.insert("managedFields".into(), Value::Array(entries));
        }
    }
}

/// Counts the oldest of too many updaters as one.
fn fold_ancient(managers: &mut Vec<Manager>) {
    let is_updater = |manager: &Manager| manager.operation == Operation::Update && manager.name != ANCIENT;
    let count = managers.iter().filter(|manager| is_updater(manager)).count();
    if count <= MAX_UPDATERS {
        return;
    }
    let mut updaters: Vec<Manager> = managers.extract_if(.., |manager| is_updater(manager)).collect();
    updaters.sort_by(|a, b| a.time.cmp(&b.time));
    let recent = updaters.split_off(count + 1 - MAX_UPDATERS);
    for old in updaters {
        let same = |other: &&mut Manager| other.name == ANCIENT && other.api_version == old.api_version;
        match managers.iter_mut().find(same) {
            Some(ancient) => {
                ancient.fields = ancient.fields.union(&old.fields);
                ancient.time = ancient.time.take().max(old.time);
            }
            None => managers.push(Manager { name: ANCIENT.into(), subresource: String::new(), ..old }),
        }
    }
    managers.extend(recent);
}

fn without_unmanaged(mut fields: Fields) -> Fields {
    for path in UNMANAGED {
        fields.remove(path);
    }
    fields
}

/// Whether a writer asked for the managers to be forgotten: a list of one empty entry. An empty list says nothing.
fn is_reset(new: &Value) -> bool {
    match new.pointer("/metadata/managedFields") {
        Some(Value::Array(entries)) => match entries.as_slice() {
            [one] => one.as_object().is_some_and(|entry| entry.values().all(Value::is_null)),
            _ => false,
        },
        _ => false,
    }
}

/// What a writer's own `managedFields` are worth: those that can be read count, as upstream has it.
fn claimed(old: Option<&Value>, new: &Value, subresource: &str) -> Vec<Manager> {
    if !subresource.is_empty() {
        return old.map(managers).unwrap_or_default();
    }
    let sent = new.pointer("/metadata/managedFields").and_then(Value::as_array);
    match sent {
        Some(entries) if !entries.is_empty() => match entries.iter().map(Manager::read).collect() {
            Ok(managers) => managers,
            Err(_) => old.map(managers).unwrap_or_default(),
        },
        _ => old.map(managers).unwrap_or_default(),
    }
}

/// Notes in `new` who changed what, when it replaces `old` by another way than apply. `new` is as it is to be stored.
pub fn track(old: Option<&Value>, new: &mut Value, schema: Option<&Schema>, writer: Writer<'_>) {
    if writer.subresource.is_empty() && is_reset(new) {
        set_managers(new, Vec::new());
        return;
    }
    let mut managers = claimed(old, new, writer.subresource);
    if old.is_some() && managers.is_empty() {
        // All that is there counts as one when somebody applies for the first time; a part of it must not stand alone.
        set_managers(new, managers);
        return;
    }
    let mut changes = changes(old, new, schema);
    if old.is_none() && writer.leaves_status() {
        // What a new object says of its status is the server's word.
        changes.set.remove(&["status"]);
    }
    if changes == Changes::default() {
        set_managers(new, managers);
        return;
    }
    let own = writer.with(Operation::Update, Fields::default());
    give_up(&mut managers, &own, &changes);
    let at = managers.iter().position(|manager| manager.is(&own)).unwrap_or_else(|| {
        managers.push(own.clone());
        managers.len() - 1
    });
    let fields = managers[at].fields.union(&changes.set).difference(&changes.removed);
    if fields != managers[at].fields {
        managers[at].fields = fields;
        managers[at].time = own.time;
    }
    set_managers(new, managers);
}

fn changes(old: Option<&Value>, new: &Value, schema: Option<&Schema>) -> Changes {
    let empty = Value::Object(Map::new());
    let Changes { set, removed } = compare(Some(old.unwrap_or(&empty)), Some(new), schema);
    let mut removed = without_unmanaged(removed);
    let mut set = without_unmanaged(set);
    // What only holds metadata is nobody's.
    for fields in [&mut set, &mut removed] {
        fields.own = false;
        if let Some(metadata) = fields.children.get_mut("f:metadata") {
            metadata.own = false;
            if metadata.children.is_empty() {
                fields.children.remove("f:metadata");
            }
        }
    }
    Changes { set, removed }
}

/// Takes from all others what somebody else changed.
fn give_up(managers: &mut [Manager], own: &Manager, changes: &Changes) {
    for other in managers.iter_mut().filter(|manager| !manager.is(own)) {
        other.fields = other.fields.difference(&changes.set).difference(&changes.removed);
    }
}

/// What an object becomes when `config` is applied to it.
#[derive(Clone, Debug, PartialEq)]
pub struct Applied {
    pub object: Value,
    pub changed: bool,
}

/// Applies a configuration to an object, or makes the object. What comes out is not yet defaulted nor validated.
///
/// # Errors
/// `Conflict` if others own fields that would change, unless `force`; `Invalid` if elements of the configuration cannot be
/// told apart; `BadRequest` for a configuration with `managedFields`.
pub fn apply(
    live: Option<&Value>,
    config: &Value,
    schema: Option<&Schema>,
    writer: Writer<'_>,
    force: bool,
) -> Result<Applied, Status> {
    if config.pointer("/metadata/managedFields").is_some_and(|fields| !fields.is_null()) {
        return Err(Status::bad_request("metadata.managedFields must be nil"));
    }
    let config = &without_nulls(config);
    let said = |path: &str| config.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let invalid = |error: String| {
        let (namespace, name) = (said("/metadata/namespace"), said("/metadata/name"));
        let (version, kind) = (said("/apiVersion"), said("/kind"));
        let about = format!("{namespace}/{name}; {version}, Kind={kind}");
        Status::new(Reason::Invalid, format!("failed to create typed patch object ({about}): {error}"))
    };
    let mut wanted = without_unmanaged(fields_of(config, schema).map_err(invalid)?);
    wanted.own = false;
    if writer.leaves_status() {
        wanted.remove(&["status"]);
    } else if writer.status_apart {
        wanted.children.retain(|name, _| name == "f:status");
    }
    wanted.children.retain(|name, fields| name != "f:metadata" || !(fields.own && fields.children.is_empty()));
    let own = writer.with(Operation::Apply, wanted);
    let Some(live) = live else {
        let mut object = config.clone();
        if let Some(map) = object.as_object_mut().filter(|_| writer.leaves_status()) {
            map.remove("status");
        }
        set_managers(&mut object, vec![own]);
        return Ok(Applied { object, changed: true });
    };
    let mut managers = managers(live);
    if managers.is_empty() {
        let mut before = without_unmanaged(fields_of(live, schema).unwrap_or_default());
        before.own = false;
        let first = Writer { manager: BEFORE_FIRST_APPLY, ..writer };
        managers.push(first.with(Operation::Update, before));
    }
    let last = managers.iter().find(|manager| manager.is(&own)).cloned();
    managers.retain(|manager| !manager.is(&own));

    let mut object = merge(live, &scoped(config, live, writer), schema).map_err(invalid)?;
    let others = managers.iter().fold(own.fields.clone(), |all, manager| all.union(&manager.fields));
    if let Some(last) = &last {
        prune(&mut object, &last.fields.difference(&own.fields), &others, schema);
    }
    let changes = changes(Some(live), &object, schema);
    if !force {
        refuse_conflicts(&managers, &changes, &lastapplied::fields(live, schema, writer))?;
    }
    give_up(&mut managers, &own, &changes);
    lastapplied::renew(&mut object, config, writer);
    let unchanged = changes == Changes::default() && last.as_ref().is_some_and(|last| last.fields == own.fields);
    if unchanged {
        return Ok(Applied { object: live.clone(), changed: false });
    }
    let time = last.as_ref().filter(|last| last.fields == own.fields && changes == Changes::default());
    let time = time.and_then(|last| last.time.clone()).or_else(|| own.time.clone());
    managers.push(Manager { time, ..own });
    set_managers(&mut object, managers);
    Ok(Applied { object, changed: true })
}

/// What of a configuration concerns the part that is applied to: the object without its status, or the status.
fn scoped(config: &Value, live: &Value, writer: Writer<'_>) -> Value {
    let mut scoped = config.clone();
    let Some(map) = scoped.as_object_mut() else { return scoped };
    if writer.subresource == "status" {
        map.retain(|field, _| field == "status");
        return scoped;
    }
    if writer.status_apart {
        map.remove("status");
    }
    if let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
        // What names the object or is the server's to say is as it was.
        for path in UNMANAGED {
            if let ["metadata", field] = path {
                metadata.remove(*field);
            }
        }
    }
    for field in ["apiVersion", "kind"] {
        if let Some(value) = live.get(field) {
            map.insert(field.to_owned(), value.clone());
        }
    }
    scoped
}

/// A field that is null in a configuration is one that it does not have.
fn without_nulls(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let fields = map.iter().filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(name, value)| (name.clone(), without_nulls(value))).collect())
        }
        Value::Array(list) => Value::Array(list.iter().map(without_nulls).collect()),
        other => other.clone(),
    }
}

fn refuse_conflicts(managers: &[Manager], changes: &Changes, allowed: &Fields) -> Result<(), Status> {
    let mut causes = Vec::new();
    let mut told: Vec<String> = Vec::new();
    let mut managers: Vec<&Manager> = managers.iter().collect();
    managers.sort_by_key(|manager| (&manager.name, manager.operation, &manager.api_version, &manager.subresource));
    for manager in managers {
        let paths = manager.fields.intersection(&changes.set).difference(allowed).paths();
        if paths.is_empty() {
            continue;
        }
        let who = worded(manager);
        for path in &paths {
            causes.push(Cause {
                reason: "FieldManagerConflict".into(),
                message: format!("conflict with {who}"),
                field: path.clone(),
            });
        }
        let list: Vec<String> = paths.iter().map(|path| format!("\n- {path}")).collect();
        told.push(format!("conflicts with {who}:{}", list.concat()));
    }
    if causes.is_empty() {
        return Ok(());
    }
    let message = match causes.as_slice() {
        [one] => format!("Apply failed with 1 conflict: {}: {}", one.message, one.field),
        many => format!("Apply failed with {} conflicts: {}", many.len(), told.join("\n")),
    };
    Err(Status { causes, ..Status::new(Reason::Conflict, message) })
}

fn worded(manager: &Manager) -> String {
    let mut words = format!("{:?}", manager.name);
    if !manager.subresource.is_empty() {
        words.push_str(&format!(" with subresource {:?}", manager.subresource));
    }
    if manager.operation == Operation::Update {
        words.push_str(&format!(" using {}", manager.api_version));
    }
    words
}

#[cfg(test)]
mod tests;
