//! Get, list and watch.

use std::fmt;

use bytes::Bytes;
use flotilla_api::selector::{Fields, Labels};
use flotilla_api::{Kind, Reason, Status};
use flotilla_raft::{Event, KeyValue, Pages, Range, ReadError, Watch, WatchItem};
use serde_json::Value;
use tokio::task::yield_now;

use super::authorize::Attempt;
use super::{Gate, User, Verb, object, read_status, splice};

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
    pub at: At,
}

/// As of when to list.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum At {
    /// Everything that was acknowledged before the request.
    #[default]
    Latest,
    /// Whatever this replica has, at this revision or later.
    NotOlderThan(u64),
    /// Just this revision.
    Exactly(u64),
}

impl ListQuery {
    /// # Errors
    /// `BadRequest` if a selector cannot be parsed.
    pub fn parse(namespace: Option<String>, labels: &str, fields: &str) -> Result<Self, Status> {
        let labels = Labels::parse(labels).map_err(|error| Status::bad_request(error.to_string()))?;
        let fields = Fields::parse(fields).map_err(|error| Status::bad_request(error.to_string()))?;
        Ok(Self { namespace, labels, fields, ..Self::default() })
    }

    fn matches(&self, object: &Value) -> bool {
        self.labels.matches_value(object) && self.fields.matches(object)
    }

    /// Everything matches: nothing has to be decoded to find out.
    fn takes_all(&self) -> bool {
        self.labels.is_empty() && self.fields.is_empty()
    }

    fn takes(&self, kv: &KeyValue) -> Result<bool, Status> {
        Ok(self.takes_all() || self.matches(&object(kv)?))
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
pub struct List<T> {
    pub items: Vec<T>,
    pub revision: u64,
    /// Empty on the last page.
    pub continue_token: String,
    /// How many come after this page, if nothing selects among them and they are not too many to count.
    pub remaining: Option<usize>,
}

impl<T> List<T> {
    fn last(items: Vec<T>, revision: u64) -> Self {
        Self { items, revision, continue_token: String::new(), remaining: None }
    }
}

/// Everything that matches a query, all as of one revision, read as it is needed.
pub struct Found {
    gate: Gate,
    kind: Kind,
    query: ListQuery,
    pages: Pages,
    page: std::vec::IntoIter<KeyValue>,
}

impl Found {
    pub fn revision(&self) -> u64 {
        self.pages.revision()
    }

    /// Puts the next object behind what is in `out`, as JSON; says whether there was one.
    ///
    /// # Errors
    /// `Expired` if what is yet to be read is compacted by now, or why the store cannot be read. It is the end then.
    pub async fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, Status> {
        loop {
            for kv in self.page.by_ref() {
                if self.query.takes(&kv)? {
                    return self.gate.write_json(&self.kind, &kv, out).map(|()| true);
                }
            }
            breathe(&self.pages).await;
            match self.pages.next() {
                Some(page) => self.page = page.map_err(|error| too_old(error, &self.query))?.into_iter(),
                None => return Ok(false),
            }
        }
    }
}

/// What a stored object becomes longer by when its revision is put in, at most.
const REVISION_FIELD_BYTES: usize = 48;
/// What comes after the first page is counted as far as this.
const MAX_COUNTED: usize = 10_000;

impl Gate {
    /// # Errors
    /// `Forbidden`, `NotFound`, or why the store cannot be read.
    pub async fn get(&self, user: &User, kind: &Kind, namespace: &str, name: &str) -> Result<Value, Status> {
        self.value(kind, &self.find(user, kind, (namespace, name), None).await?)
    }

    /// As [`Gate::get`], for those who may read this subresource.
    ///
    /// # Errors
    /// As [`Gate::get`].
    pub async fn get_for(&self, user: &User, kind: &Kind, at: (&str, &str), part: &str) -> Result<Value, Status> {
        self.value(kind, &self.find(user, kind, at, Some(part)).await?)
    }

    /// As [`Gate::get`], as JSON.
    ///
    /// # Errors
    /// As [`Gate::get`].
    pub async fn get_json(&self, user: &User, kind: &Kind, namespace: &str, name: &str) -> Result<Vec<u8>, Status> {
        self.json(kind, &self.find(user, kind, (namespace, name), None).await?)
    }

    async fn find(
        &self,
        user: &User,
        kind: &Kind,
        (namespace, name): (&str, &str),
        subresource: Option<&str>,
    ) -> Result<KeyValue, Status> {
        self.barrier().await?;
        let found = self.load(&Self::key(kind, namespace, name)?)?;
        // Only those who may not do everything are judged by what the object says.
        let seen = found.as_ref().filter(|_| !user.is_master()).map(object).transpose()?;
        self.permit(&Attempt {
            user,
            verb: Verb::Get,
            kind,
            subresource,
            namespace: Self::namespace(kind, namespace),
            name,
            object: seen.as_ref(),
        })
        .await?;
        found.ok_or_else(|| Status::not_found(kind.collection(), name))
    }

    /// # Errors
    /// `Forbidden`, `Expired` if the continue token is too old, or why the store cannot be read.
    pub async fn list(&self, user: &User, kind: &Kind, query: &ListQuery) -> Result<List<Value>, Status> {
        self.list_for(user, Verb::List, kind, query, |kv| self.value(kind, kv)).await
    }

    /// As [`Gate::list`], each as JSON.
    ///
    /// # Errors
    /// As [`Gate::list`].
    pub async fn list_json(&self, user: &User, kind: &Kind, query: &ListQuery) -> Result<List<Vec<u8>>, Status> {
        self.list_for(user, Verb::List, kind, query, |kv| self.json(kind, kv)).await
    }

    /// A stored object, with its resourceVersion and its sealed parts readable.
    fn value(&self, kind: &Kind, kv: &KeyValue) -> Result<Value, Status> {
        Ok(kind.present(self.open(kind, &kv.key, object(kv)?)?))
    }

    /// The same as JSON, without decoding it if nothing of it is sealed.
    fn json(&self, kind: &Kind, kv: &KeyValue) -> Result<Vec<u8>, Status> {
        let mut json = Vec::with_capacity(kv.value.len() + REVISION_FIELD_BYTES);
        self.write_json(kind, kv, &mut json)?;
        Ok(json)
    }

    fn write_json(&self, kind: &Kind, kv: &KeyValue, out: &mut Vec<u8>) -> Result<(), Status> {
        match is_plain(kind) {
            true => splice(kv, out),
            false => serde_json::to_writer(out, &self.value(kind, kv)?).map_err(Status::internal),
        }
    }

    /// What matches, for a request with this verb.
    pub(super) async fn list_for<T>(
        &self,
        user: &User,
        verb: Verb,
        kind: &Kind,
        query: &ListQuery,
        item: impl Fn(&KeyValue) -> Result<T, Status>,
    ) -> Result<List<T>, Status> {
        let (query, token, mut pages) = self.pages(user, verb, kind, query).await?;
        let mut items = Vec::new();
        while let Some(page) = pages.next() {
            let page = page.map_err(|error| too_old(error, &query))?;
            let last = page.last().map(|kv| kv.key.clone());
            for kv in &page {
                if query.takes(kv)? {
                    items.push(item(kv)?);
                }
                if query.limit > 0 && items.len() == query.limit {
                    let is_last = pages.is_over() && last.as_ref() == Some(&kv.key);
                    let list = List::last(items, pages.revision());
                    return match is_last {
                        true => Ok(list),
                        false => Ok(self.to_be_continued(list, query.prefix(kind), &query, token, kv)),
                    };
                }
            }
            breathe(&pages).await;
        }
        Ok(List::last(items, pages.revision()))
    }

    /// Everything that matches, for a request with this verb, read as it is needed. There is no limit to it.
    ///
    /// # Errors
    /// As [`Gate::list`].
    pub async fn all(&self, user: &User, verb: Verb, kind: &Kind, query: &ListQuery) -> Result<Found, Status> {
        let (query, _, mut pages) = self.pages(user, verb, kind, query).await?;
        // What cannot be had at all is said at once.
        let first = pages.next().transpose().map_err(|error| too_old(error, &query))?;
        let page = first.unwrap_or_default().into_iter();
        Ok(Found { gate: self.clone(), kind: kind.clone(), query, pages, page })
    }

    /// What there is to list for a request with this verb, once it may and can be read; the query in the words of the stored
    /// kind, and its continue token.
    async fn pages(
        &self,
        user: &User,
        verb: Verb,
        kind: &Kind,
        query: &ListQuery,
    ) -> Result<(ListQuery, Option<Continue>, Pages), Status> {
        self.authorize_collection(user, verb, kind, query).await?;
        let query = Self::check_fields(kind, query)?;
        let token = Some(query.continue_token.as_str()).filter(|token| !token.is_empty()).map(Continue::parse);
        let token = token.transpose()?;
        let revision = match &token {
            None => self.reach(query.at).await?,
            Some(Continue { revision: None, .. }) => self.reach(At::Latest).await?,
            Some(Continue { revision, .. }) => *revision,
        };
        if let Some(revision) = revision {
            self.store.reach(revision).await.map_err(read_status)?;
        }
        let after = token.as_ref().map(|token| token.after.clone());
        // No more than is asked for, if nothing is passed over.
        let limit = if query.takes_all() { query.limit } else { 0 };
        let pages = self.store.pages(Range { after, revision, limit, ..Range::prefix(query.prefix(kind)) });
        Ok((query, token, pages))
    }

    /// A page that more follow, after `last`. What follows is counted once; the pages after the first take away from that.
    fn to_be_continued<T>(
        &self,
        page: List<T>,
        prefix: String,
        query: &ListQuery,
        token: Option<Continue>,
        last: &KeyValue,
    ) -> List<T> {
        let (revision, after) = (Some(page.revision), last.key.to_string());
        let remaining = match token {
            _ if !query.takes_all() => None,
            Some(Continue { revision: Some(_), remaining, .. }) => {
                remaining.and_then(|before| before.checked_sub(page.items.len()))
            }
            _ => {
                let rest = Range { after: Some(after.clone()), revision, ..Range::prefix(prefix) };
                self.store.count(&rest, MAX_COUNTED).ok().flatten()
            }
        };
        List { continue_token: Continue { revision, after, remaining }.to_string(), remaining, ..page }
    }

    /// The revision now, behind everything that was acknowledged before.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn now(&self) -> Result<u64, Status> {
        self.barrier().await
    }

    /// Waits until this replica can list as asked; the revision to list at, unless any that it has will do.
    ///
    /// # Errors
    /// `Timeout` for a revision that is not reached in time, or why the store cannot be read.
    pub async fn reach(&self, at: At) -> Result<Option<u64>, Status> {
        match at {
            At::Latest => self.barrier().await.map(|_| None),
            At::NotOlderThan(revision) => self.store.reach(revision).await.map_err(read_status).map(|_| None),
            At::Exactly(revision) => Ok(Some(revision)),
        }
    }

    /// Follows matching objects after `revision`.
    ///
    /// # Errors
    /// `Forbidden`, `Expired` if that is compacted, or why the store cannot be read.
    pub async fn watch(&self, user: &User, kind: &Kind, query: ListQuery, revision: u64) -> Result<Observer, Status> {
        self.authorize_collection(user, Verb::Watch, kind, &query).await?;
        let query = Self::check_fields(kind, &query)?;
        let feeder = self.store.fed_by();
        let watch = self.store.watch(&query.prefix(kind), revision + 1).await.map_err(read_status)?;
        if self.store.fed_by() != feeder {
            let why = "this node has just begun to read from elsewhere; try again";
            return Err(Status { retry_after_seconds: Some(1), ..Status::new(Reason::ServiceUnavailable, why) });
        }
        Ok(Observer { watch, query, gate: self.clone(), kind: kind.clone(), ready: Default::default() })
    }

    /// The pod whose log is to be read or in which a command is to run.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, or why the store cannot be read.
    pub async fn connect(&self, user: &User, subresource: &str, namespace: &str, name: &str) -> Result<Value, Status> {
        let kind = self.kind("pods")?;
        let verb = if subresource == "log" { Verb::Get } else { Verb::Create };
        self.permit(&Attempt {
            user,
            verb,
            kind: &kind,
            subresource: Some(subresource),
            namespace: Self::namespace(&kind, namespace),
            name,
            object: None,
        })
        .await?;
        self.barrier().await?;
        let stored = self.load(&Self::key(&kind, namespace, name)?)?;
        stored.map(|kv| object(&kv)).transpose()?.ok_or_else(|| Status::not_found("pods", name))
    }

    /// What a request is to go on to, named `name` within the `id` that it is asked for by.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, or why the store cannot be read.
    pub async fn connect_through(
        &self,
        user: &User,
        verb: Verb,
        kind: &Kind,
        subresource: &str,
        (namespace, id): (&str, &str),
        name: &str,
    ) -> Result<Value, Status> {
        let namespace = Self::namespace(kind, namespace);
        let subresource = Some(subresource);
        self.permit(&Attempt { user, verb, kind, subresource, namespace, name: id, object: None }).await?;
        self.barrier().await?;
        let stored = self.load(&Self::key(kind, namespace, name)?)?;
        stored.map(|kv| object(&kv)).transpose()?.ok_or_else(|| Status::not_found(kind.collection(), name))
    }

    /// The query in the words of the stored kind. Refuses what the kind's objects cannot be selected by.
    fn check_fields(kind: &Kind, query: &ListQuery) -> Result<ListQuery, Status> {
        kind.check_fields(&query.fields).map_err(Status::bad_request)?;
        Ok(ListQuery { fields: kind.stored_fields(&query.fields), ..query.clone() })
    }

    /// A selector that lets one name through asks for that object only.
    async fn authorize_collection(
        &self,
        user: &User,
        verb: Verb,
        kind: &Kind,
        query: &ListQuery,
    ) -> Result<(), Status> {
        let namespace = query.namespace.as_deref().unwrap_or_default();
        let name = query.fields.exact("metadata.name").unwrap_or_default();
        self.permit(&Attempt { user, verb, kind, subresource: None, namespace, name, object: None }).await
    }
}

/// Lets others get on before another page: to look through much takes long.
async fn breathe(pages: &Pages) {
    if !pages.is_over() {
        yield_now().await;
    }
}

/// Whether objects of the kind are shown as they are stored.
fn is_plain(kind: &Kind) -> bool {
    kind.sealed.is_empty() && !kind.shared && kind.stored_as.is_none() && kind.structure.is_none()
}

/// What happened to the set of objects that match.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Happened {
    Added,
    Modified,
    Deleted,
    /// Nothing up to the revision is missing.
    Bookmark,
}

/// One change of the set of objects that match.
#[derive(Clone, Debug, PartialEq)]
pub struct ObjectEvent {
    pub happened: Happened,
    /// The object, a deleted one as it last matched, at the revision of the event. All watchers share these bytes.
    pub json: Bytes,
    pub revision: u64,
}

impl ObjectEvent {
    pub fn bookmark(revision: u64) -> Self {
        Self { happened: Happened::Bookmark, json: Bytes::new(), revision }
    }
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
                Some(WatchItem::Progress(revision)) => return Ok(Some(ObjectEvent::bookmark(revision))),
                Some(WatchItem::Compacted(revision)) => {
                    return Err(Status::new(
                        Reason::Expired,
                        format!("too old resource version: {revision} is compacted"),
                    ));
                }
                Some(WatchItem::Events(events, upto)) => {
                    for event in &events {
                        self.ready.extend(self.select(event)?);
                    }
                    // What the selectors hold back was looked at as well.
                    if self.ready.back().is_none_or(|last| last.revision < upto) {
                        self.ready.push_back(ObjectEvent::bookmark(upto));
                    }
                }
            }
        }
    }

    /// The revision up to which all that matches has been told; `None` if something waits to be told.
    pub fn seen(&mut self) -> Option<u64> {
        self.ready.is_empty().then(|| self.watch.seen())
    }

    fn select(&self, event: &Event) -> Result<Option<ObjectEvent>, Status> {
        let (now, before) = match event {
            Event::Put { kv, prev } => (Some(kv), prev.as_ref()),
            Event::Delete { prev, .. } => (None, Some(prev)),
        };
        let taken = |kv: Option<&KeyValue>| kv.map_or(Ok(false), |kv| self.query.takes(kv));
        let (happened, kv) = match (taken(before)?, taken(now)?) {
            (false, true) => (Happened::Added, now),
            (true, true) => (Happened::Modified, now),
            (true, false) => (Happened::Deleted, before),
            (false, false) => return Ok(None),
        };
        let revision = event.revision();
        let Some(kv) = kv.map(|kv| KeyValue { mod_revision: revision, ..kv.clone() }) else { return Ok(None) };
        let json = || self.gate.json(&self.kind, &kv).map(Bytes::from);
        // Who watches through other selectors may be told something else of what leaves these.
        let same_for_all = now.is_none() || happened != Happened::Deleted;
        let json = match same_for_all && is_plain(&self.kind) {
            true => self.gate.renderings.share(revision, json)?,
            false => json()?,
        };
        Ok(Some(ObjectEvent { happened, json, revision }))
    }
}

/// Where a list goes on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Continue {
    /// `None`: whatever is newest.
    pub revision: Option<u64>,
    /// The last key that was listed.
    pub after: String,
    /// How many come after it at that revision, if they were counted.
    pub remaining: Option<usize>,
}

impl Continue {
    /// In place of a revision: none.
    const NEWEST: &str = "newest";

    /// # Errors
    /// `BadRequest` if it is none.
    pub fn parse(token: &str) -> Result<Self, Status> {
        Self::read(token).ok_or_else(|| {
            Status::bad_request(format!("continue token {token:?} is not one of ours; list from the start"))
        })
    }

    fn read(token: &str) -> Option<Self> {
        let (at, after) = token.split_once(':')?;
        let (at, remaining) = match at.split_once('.') {
            Some((at, remaining)) => (at, Some(remaining.parse().ok()?)),
            None => (at, None),
        };
        let revision = match at {
            Self::NEWEST => None,
            at => Some(at.parse().ok()?),
        };
        Some(Self { revision, after: after.to_owned(), remaining })
    }
}

impl fmt::Display for Continue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.revision {
            Some(revision) => write!(f, "{revision}")?,
            None => f.write_str(Self::NEWEST)?,
        }
        if let Some(remaining) = self.remaining {
            write!(f, ".{remaining}")?;
        }
        write!(f, ":{}", self.after)
    }
}

/// Why a page cannot be read. One whose revision is forgotten can be had as of now, if the client likes that better than
/// to begin anew; in upstream's words.
fn too_old(error: ReadError, query: &ListQuery) -> Status {
    if !matches!(error, ReadError::Compacted { .. }) {
        return read_status(error);
    }
    match Continue::parse(&query.continue_token) {
        Err(_) => Status::new(Reason::Expired, "The resourceVersion for the provided list is too old."),
        Ok(token) => Status {
            continue_token: Some(Continue { revision: None, remaining: None, ..token }.to_string()),
            ..Status::new(Reason::Expired, INCONSISTENT)
        },
    }
}

const INCONSISTENT: &str = "The provided continue parameter is too old to display a consistent list result. You can \
     start a new list without the continue parameter, or use the continue token in this response to retrieve the \
     remainder of the results. Continuing with the provided token results in an inconsistent list - objects that were \
     created, modified, or deleted between the time the first chunk was returned and now may show up in the list.";

#[cfg(test)]
mod tests {
    use flotilla_api::Builtin;
    use serde_json::json;

    use super::*;
    use crate::gate::{WriteOptions, alone};

    #[tokio::test]
    async fn a_quiet_watcher_is_past_what_is_forgotten_and_what_waits_to_be_told_is_not_seen() {
        let dir = tempfile::tempdir().unwrap();
        let gate = alone::gate(&dir).await;
        let (root, options) = (User::root(), WriteOptions::by("test"));
        let create = async |kind: Builtin, object: Value| {
            let kind = gate.built_in(kind).unwrap();
            gate.create(&root, &kind, object, &options).await.unwrap();
            gate.store().revision()
        };
        let namespace = |name: &str| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
        let map = |name: &str| json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
        create(Builtin::Namespace, namespace("default")).await;
        let told = create(Builtin::ConfigMap, map("a")).await;
        let kind = gate.built_in(Builtin::ConfigMap).unwrap();
        let watch = async |from| gate.watch(&root, &kind, ListQuery::default(), from).await;
        let mut observer = watch(told).await.unwrap();
        let last = create(Builtin::Namespace, namespace("elsewhere")).await;
        gate.store().compact(last).await.unwrap();
        assert_eq!(observer.seen(), Some(last));
        assert_eq!(watch(told).await.err().map(|status| status.reason), Some(Reason::Expired));
        assert!(watch(last).await.is_ok(), "who goes on from what was seen misses nothing");

        let (one, two) = (create(Builtin::ConfigMap, map("b")).await, create(Builtin::ConfigMap, map("c")).await);
        let mut next = async || {
            let event = observer.next().await.unwrap().unwrap();
            ((event.happened, event.revision), observer.seen())
        };
        assert_eq!(next().await, ((Happened::Added, one), None), "another waits");
        assert_eq!(next().await, ((Happened::Added, two), Some(two)));
    }

    #[test]
    fn a_page_that_is_too_old_can_be_had_as_of_now() {
        let compacted = || ReadError::Compacted { wanted: 7, oldest: 9 };
        let query = ListQuery { continue_token: "7.3:/x/a".into(), ..ListQuery::default() };
        let status = too_old(compacted(), &query);
        assert_eq!((status.reason, status.continue_token.as_deref()), (Reason::Expired, Some("newest:/x/a")));
        assert!(status.message.contains("or use the continue token in this response"), "{}", status.message);
        let newest = Continue { revision: None, after: "/x/a".into(), remaining: None };
        assert_eq!(Continue::parse("newest:/x/a").unwrap(), newest);
        let first = too_old(compacted(), &ListQuery::default());
        assert_eq!((first.reason, first.continue_token), (Reason::Expired, None));
        assert!(["older:/x", "7", "7.:/x", "7.x:/x"].iter().all(|token| Continue::parse(token).is_err()));
    }

    #[test]
    fn a_token_says_how_many_are_left() {
        let token = Continue { revision: Some(7), after: "/x/a:.".into(), remaining: Some(12) };
        assert_eq!((token.to_string().as_str(), Continue::parse(&token.to_string()).unwrap()), ("7.12:/x/a:.", token));
        assert_eq!(Continue::parse("7:/x").unwrap().remaining, None);
    }
}
