//! Get, list and watch.

use flotilla_api::selector::{Fields, Labels};
use flotilla_api::{Kind, Reason, Status};
use flotilla_raft::{Event, KeyValue, Range, Watch, WatchItem};
use serde_json::Value;

use super::authorize::Attempt;
use super::{Gate, User, Verb, object, read_status};

/// What to list or watch.
#[derive(Clone, Debug, Default)]
pub struct ListQuery {
    /// `None`: all namespaces.
    pub namespace: Option<String>,
    pub labels: Labels,
    pub fields: Fields,
    /// 0: no limit.
    pub limit: usize,
    /// What the last page gave.
    pub continue_token: String,
}

impl ListQuery {
    /// # Errors
    /// `BadRequest` if a selector cannot be parsed.
    pub fn parse(namespace: Option<String>, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels =
            Labels::parse(labels).map_err(|e| Status::bad_request(format!("label selector {labels:?}: {e}")))?;
        let fields =
            Fields::parse(fields).map_err(|e| Status::bad_request(format!("field selector {fields:?}: {e}")))?;
        Ok(Self { namespace, labels, fields, ..Self::default() })
    }

    fn matches(&self, object: &Value) -> bool {
        self.labels.matches_value(object) && self.fields.matches(object)
    }

    fn prefix(&self, kind: &Kind) -> String {
        match &self.namespace {
            Some(namespace) if kind.is_namespaced() => kind.collection().namespace_prefix(namespace),
            _ => kind.collection().prefix(),
        }
    }
}

/// Objects at one revision.
#[derive(Debug)]
pub struct List {
    pub items: Vec<Value>,
    pub revision: u64,
    /// Empty on the last page.
    pub continue_token: String,
}

/// A page in the store, however few of its objects match a selector.
const PAGE: usize = 500;

impl Gate {
    /// # Errors
    /// `Forbidden`, `NotFound`, or why the store cannot be read.
    pub async fn get(&self, user: &User, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Status> {
        self.barrier().await?;
        let key = Self::key(kind, namespace, name);
        let found = self.load(&key)?.map(|kv| object(&kv)).transpose()?;
        self.authorize(&Attempt {
            user,
            verb: Verb::Get,
            kind,
            subresource: None,
            namespace: Self::namespace(kind, namespace),
            name,
            object: found.as_ref(),
        })?;
        self.open(kind, &key, found.ok_or_else(|| Status::not_found(kind.collection(), name))?)
    }

    /// # Errors
    /// `Forbidden`, `Expired` if the continue token is too old, or why the store cannot be read.
    pub async fn list(&self, user: &User, kind: &Kind, query: &ListQuery) -> Result<List, Status> {
        self.authorize_collection(user, Verb::List, kind, query)?;
        Self::check_fields(kind, query)?;
        self.barrier().await?;
        let (mut revision, mut after) = match query.continue_token.as_str() {
            "" => (None, None),
            token => parse_continue(token).map(|(revision, key)| (Some(revision), Some(key)))?,
        };
        let mut items = Vec::new();
        loop {
            let range = Range { prefix: query.prefix(kind), after: after.take(), revision, limit: PAGE };
            let page = self.store.range(range).map_err(read_status)?;
            revision = Some(page.revision);
            for kv in &page.items {
                let item = object(kv)?;
                if query.matches(&item) {
                    items.push(self.open(kind, &kv.key, item)?);
                }
                if query.limit > 0 && items.len() == query.limit {
                    let last = page.items.last().is_some_and(|last| last.key == kv.key) && !page.more;
                    let continue_token = if last { String::new() } else { format!("{}:{}", page.revision, kv.key) };
                    return Ok(List { items, revision: page.revision, continue_token });
                }
            }
            match page.items.last() {
                Some(last) if page.more => after = Some(last.key.as_str().to_owned()),
                _ => return Ok(List { items, revision: page.revision, continue_token: String::new() }),
            }
        }
    }

    /// Follows matching objects after `revision`.
    ///
    /// # Errors
    /// `Forbidden`, `Expired` if that is compacted, or why the store cannot be read.
    pub async fn watch(&self, user: &User, kind: &Kind, query: ListQuery, revision: u64) -> Result<Observer, Status> {
        self.authorize_collection(user, Verb::Watch, kind, &query)?;
        Self::check_fields(kind, &query)?;
        let watch = self.store.watch(&query.prefix(kind), revision + 1).await.map_err(read_status)?;
        Ok(Observer { watch, query, gate: self.clone(), kind: kind.clone(), ready: Default::default() })
    }

    /// The pod whose log is to be read or in which a command is to run.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, or why the store cannot be read.
    pub async fn connect(&self, user: &User, subresource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        let kind = self.kind("pods")?;
        let verb = if subresource == "log" { Verb::Get } else { Verb::Create };
        self.authorize(&Attempt {
            user,
            verb,
            kind: &kind,
            subresource: Some(subresource),
            namespace: Self::namespace(&kind, namespace),
            name,
            object: None,
        })?;
        self.barrier().await?;
        let stored = self.load(&Self::key(&kind, namespace, name))?;
        stored.map(|kv| object(&kv)).transpose()?.ok_or_else(|| Status::not_found("pods", name))
    }

    /// Refuses what the kind's objects cannot be selected by.
    fn check_fields(kind: &Kind, query: &ListQuery) -> Result<(), Status> {
        let known: Vec<&str> = kind.selectable.iter().map(|field| &**field).collect();
        query.fields.check(&known).map_err(Status::bad_request)
    }

    fn authorize_collection(&self, user: &User, verb: Verb, kind: &Kind, query: &ListQuery) -> Result<(), Status> {
        let namespace = query.namespace.as_deref().unwrap_or_default();
        self.authorize(&Attempt { user, verb, kind, subresource: None, namespace, name: "", object: None })
    }
}

/// One change of the set of objects that match.
#[derive(Clone, Debug, PartialEq)]
pub enum ObjectEvent {
    Added(Value),
    Modified(Value),
    /// As it last matched, at the revision of the event.
    Deleted(Value),
    /// Nothing up to this revision is missing.
    Bookmark(u64),
}

/// A watch that sees what its selectors let through, and says of an object that leaves them that it is deleted.
pub struct Observer {
    watch: Watch,
    query: ListQuery,
    gate: Gate,
    kind: Kind,
    ready: std::collections::VecDeque<ObjectEvent>,
}

impl Observer {
    /// The next event; `None` when the store shuts down.
    ///
    /// # Errors
    /// `Expired` if this watcher was too slow and what it missed is compacted.
    pub async fn next(&mut self) -> Result<Option<ObjectEvent>, Status> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(Some(event));
            }
            match self.watch.next().await {
                None => return Ok(None),
                Some(WatchItem::Progress(revision)) => return Ok(Some(ObjectEvent::Bookmark(revision))),
                Some(WatchItem::Compacted(revision)) => {
                    return Err(Status::new(
                        Reason::Expired,
                        format!("too old resource version: {revision} is compacted"),
                    ));
                }
                Some(WatchItem::Events(events, _)) => {
                    for event in &events {
                        self.ready.extend(self.select(event)?);
                    }
                }
            }
        }
    }

    fn select(&self, event: &Event) -> Result<Option<ObjectEvent>, Status> {
        let (now, prev, revision) = match event {
            Event::Put { kv, prev } => (Some(kv), prev.as_ref(), kv.mod_revision),
            Event::Delete { prev, revision, .. } => (None, Some(prev), *revision),
        };
        let matching = |kv: Option<&KeyValue>| -> Result<Option<Value>, Status> {
            let object = kv.map(|kv| at_revision(kv, revision)).transpose()?;
            Ok(object.filter(|object| self.query.matches(object)))
        };
        let (before, now) = (matching(prev)?, matching(now)?);
        let open = |object| self.gate.open(&self.kind, event.key(), object);
        Ok(match (before, now) {
            (None, Some(object)) => Some(ObjectEvent::Added(open(object)?)),
            (Some(_), Some(object)) => Some(ObjectEvent::Modified(open(object)?)),
            (Some(object), None) => Some(ObjectEvent::Deleted(open(object)?)),
            (None, None) => None,
        })
    }
}

fn at_revision(kv: &KeyValue, revision: u64) -> Result<Value, Status> {
    object(&KeyValue { mod_revision: revision, ..kv.clone() })
}

fn parse_continue(token: &str) -> Result<(u64, String), Status> {
    token
        .split_once(':')
        .and_then(|(revision, key)| Some((revision.parse().ok()?, key.to_owned())))
        .ok_or_else(|| Status::bad_request(format!("continue token {token:?} is not one of ours; list from the start")))
}
