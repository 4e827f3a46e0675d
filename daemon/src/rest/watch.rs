//! Watch: the changes of what a list shows, one JSON event a line, for as long as the client listens.
//!
//! Invariant: a client that does not read holds up its own watch only; what it misses is read from history when it reads
//! again, or it is told that it is gone.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flotilla_api::field::{Errors, Path};
use flotilla_api::{Kind, Reason, Status};
use futures::StreamExt;
use http::header::{self, HeaderValue};
use http::{Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use rand::Rng;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::DropGuard;

use super::body::refuse;
use super::query::Query;
use super::read::{LIST_OPTIONS, revision, selection};
use super::route::Target;
use super::shown::Shown;
use super::{Answer, BoxError, Call, Reading, Rest, answer};
use crate::gate::{At, Found, Gate, Happened, ListQuery, ObjectEvent, Observer, User, Verb};

/// A watch that says nothing of its length ends after this, and up to twice as long, so that not all come back at once.
const DEFAULT_TIMEOUT: Duration = Duration::from_secs(30 * 60);
/// How often a quiet watch tells how far it is, if the client wants to know.
const BOOKMARK_INTERVAL: Duration = Duration::from_secs(60);
/// Events that one frame carries at most, if they are ready.
const FRAME_BYTES: usize = 64 * 1024;

/// Longer than any watch lasts; a time that far away can still be told.
const MAX_TIMEOUT: Duration = Duration::from_secs(366 * 24 * 60 * 60);

const INITIAL_EVENTS_END: &str = "k8s.io/initial-events-end";

impl Rest {
    pub(super) async fn watch(&self, call: &Call, kind: &Arc<Kind>, target: &Target) -> Answer {
        let start = Start::parse(&call.query)?;
        let query = ListQuery { at: start.at(), ..selection(call, kind, target)? };
        let timeout = match call.query.number("timeoutSeconds")?.filter(|seconds| *seconds > 0) {
            Some(seconds) => Duration::from_secs(seconds.unsigned_abs()).min(MAX_TIMEOUT),
            None => DEFAULT_TIMEOUT.mul_f64(1.0 + rand::rng().random::<f64>()),
        };
        let form = EventForm { shown: Shown::of(call, kind)?, is_headed: false };
        let mut state = Watching {
            lines: VecDeque::new(),
            found: None,
            reading: None,
            marked: false,
            observer: None,
            form,
            bookmarks: call.query.flag("allowWatchBookmarks"),
            seen: 0,
            told: 0,
            bookmark_at: Instant::now() + BOOKMARK_INTERVAL,
            until: Instant::now() + timeout,
            ended: false,
        };
        match state.begin(self.gate(), &call.user, query, start).await {
            // As upstream: whoever was away for too long is told so in the watch.
            Err(status) if status.reason == Reason::Expired => state.fail(&status),
            begun => begun?,
        }
        // Most have all that there is in their first frame.
        state.tell().await;
        let reading = state.found.is_some().then(Reading::default);
        state.reading = reading.as_ref().map(Reading::guard);
        let frames = futures::stream::unfold(state, |mut state| async move {
            let frame = state.next_frame().await?;
            Some((Ok::<_, BoxError>(Frame::data(frame)), state))
        });
        let frames = frames.take_until(self.node.stop.clone().cancelled_owned());
        let mut response = Response::new(StreamBody::new(frames).boxed_unsync());
        *response.status_mut() = StatusCode::OK;
        if let Some(reading) = reading {
            response.extensions_mut().insert(reading);
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer::JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }
}

/// Where a watch begins. Defined by the API concepts, "Semantics for watch".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Start {
    /// With what there is, told as added, as of this revision at least; a bookmark after it if `marked`.
    State { at: At, marked: bool },
    /// With what happens after this revision.
    After(u64),
}

impl Start {
    fn parse(query: &Query) -> Result<Self, Status> {
        let version = revision(query.get("resourceVersion"))?;
        let matching = query.get("resourceVersionMatch");
        refuse(LIST_OPTIONS, errors(query, matching))?;
        let at = match version {
            None => At::Latest,
            Some(version) => At::NotOlderThan(version),
        };
        Ok(match (query.has("sendInitialEvents"), query.flag("sendInitialEvents"), version) {
            (true, true, _) => Start::State { at, marked: query.flag("allowWatchBookmarks") },
            (true, false, Some(version)) if version > 0 => Start::After(version),
            (true, false, _) => Start::After(0),
            (false, _, None | Some(0)) => Start::State { at, marked: false },
            (false, _, Some(version)) => Start::After(version),
        })
    }

    fn at(self) -> At {
        match self {
            Start::State { at, .. } => at,
            Start::After(_) => At::Latest,
        }
    }
}

/// What upstream's validation of `ListOptions` says of a watch.
fn errors(query: &Query, matching: &str) -> Errors {
    let (mut errors, field) = (Errors::new(), Path::new("resourceVersionMatch"));
    let initial = query.has("sendInitialEvents");
    if initial && matching != "NotOlderThan" {
        errors.forbidden(&field, "sendInitialEvents requires setting resourceVersionMatch to NotOlderThan");
    }
    if matching.is_empty() {
        return errors;
    }
    if !initial {
        errors.forbidden(&field, "resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided");
    }
    if matching != "NotOlderThan" {
        errors.not_supported(&field, matching, &["NotOlderThan"]);
    }
    if !query.get("continue").is_empty() {
        errors.forbidden(&field, "resourceVersionMatch is forbidden when continue is provided");
    }
    errors
}

/// A watch under way.
struct Watching {
    /// Made and not yet sent.
    lines: VecDeque<Bytes>,
    /// What there was at the beginning, as far as it is yet to be told; a bookmark after it if `marked`.
    found: Option<Found>,
    /// Held until that is told.
    reading: Option<DropGuard>,
    marked: bool,
    observer: Option<Observer>,
    form: EventForm,
    bookmarks: bool,
    /// Everything up to this revision was looked at.
    seen: u64,
    /// The client knows that nothing up to this revision is missing.
    told: u64,
    bookmark_at: Instant,
    until: Instant,
    ended: bool,
}

impl Watching {
    async fn begin(&mut self, gate: &Gate, user: &User, query: ListQuery, start: Start) -> Result<(), Status> {
        let after = match start {
            Start::State { marked, .. } => {
                let found = gate.all(user, Verb::Watch, &self.form.shown.kind, &query).await?;
                let revision = found.revision();
                (self.found, self.marked) = (Some(found), marked);
                revision
            }
            Start::After(0) => gate.now().await?,
            Start::After(revision) => revision,
        };
        (self.seen, self.told) = (after, after);
        self.observer = Some(gate.watch(user, &self.form.shown.kind, query, after).await?);
        Ok(())
    }

    /// What to send next; `None` at the end.
    async fn next_frame(&mut self) -> Option<Bytes> {
        while self.lines.is_empty() && !self.ended {
            match self.found {
                None => self.wait().await,
                Some(_) if Instant::now() < self.until => self.tell().await,
                // Without a bookmark: not everything was told.
                Some(_) => self.ended = true,
            }
        }
        let first = self.lines.pop_front()?;
        if self.lines.is_empty() {
            return Some(first);
        }
        let mut frame = first.to_vec();
        while let Some(next) = self.lines.pop_front_if(|next| frame.len() + next.len() <= FRAME_BYTES) {
            frame.extend_from_slice(&next);
        }
        Some(frame.into())
    }

    /// Tells a frame of what there was at the beginning, if anything is left of it.
    async fn tell(&mut self) {
        let Some(mut found) = self.found.take() else { return };
        match self.tell_of(&mut found).await {
            Ok(true) => self.found = Some(found),
            Ok(false) => self.reading = None,
            Err(status) => self.fail(&status),
        }
    }

    /// Whether there may be more.
    async fn tell_of(&mut self, found: &mut Found) -> Result<bool, Status> {
        let mut told_bytes = 0;
        while told_bytes < FRAME_BYTES {
            let mut json = Vec::new();
            if !found.next(&mut json).await? {
                if self.marked {
                    let line = self.form.bookmark(found.revision(), true);
                    self.lines.push_back(line);
                }
                return Ok(false);
            }
            let line = self.form.event("ADDED", json.into())?;
            told_bytes += line.len();
            self.lines.push_back(line);
        }
        Ok(true)
    }

    async fn wait(&mut self) {
        let Some(observer) = &mut self.observer else {
            self.ended = true;
            return;
        };
        let due = self.until.min(if self.bookmarks { self.bookmark_at } else { self.until });
        let happened = tokio::select! {
            happened = observer.next() => happened,
            () = tokio::time::sleep_until(due) => return self.on_time(),
        };
        match happened {
            Ok(None) => self.ended = true,
            Ok(Some(event)) => self.on_event(event),
            Err(status) => self.fail(&status),
        }
    }

    fn on_event(&mut self, event: ObjectEvent) {
        self.seen = self.seen.max(event.revision);
        let type_ = match event.happened {
            Happened::Added => "ADDED",
            Happened::Modified => "MODIFIED",
            Happened::Deleted => "DELETED",
            Happened::Bookmark => return,
        };
        self.told = self.seen;
        match self.form.event(type_, event.json) {
            Ok(line) => self.lines.push_back(line),
            Err(status) => self.fail(&status),
        }
    }

    fn on_time(&mut self) {
        let now = Instant::now();
        self.ended = now >= self.until;
        let seen = self.observer.as_mut().and_then(Observer::seen);
        self.seen = self.seen.max(seen.unwrap_or_default());
        if self.bookmarks && self.seen > self.told {
            let line = self.form.bookmark(self.seen, false);
            self.lines.push_back(line);
            self.told = self.seen;
        }
        self.bookmark_at = now + BOOKMARK_INTERVAL;
    }

    fn fail(&mut self, status: &Status) {
        let status = match status.reason {
            Reason::Expired => Status { message: status.message.clone(), ..Status::new(Reason::Expired, "") },
            _ => status.clone(),
        };
        let object = answer::failure_json(&status, &answer::Details::default());
        self.lines.push_back(line("ERROR", object.to_string().as_bytes()));
        self.ended = true;
        (self.observer, self.reading) = (None, None);
    }
}

/// How events are written.
struct EventForm {
    shown: Shown,
    /// The headers of a table were sent.
    is_headed: bool,
}

impl EventForm {
    fn event(&mut self, type_: &str, json: Bytes) -> Result<Bytes, Status> {
        if self.shown.is_whole() {
            return Ok(line(type_, &json));
        }
        let object: Value = serde_json::from_slice(&json).map_err(Status::internal)?;
        let headed = !std::mem::replace(&mut self.is_headed, true);
        Ok(line(type_, self.shown.told(&object, headed).to_string().as_bytes()))
    }

    fn bookmark(&self, revision: u64, initial: bool) -> Bytes {
        let mut object = json!({
            "kind": self.shown.kind.kind,
            "apiVersion": self.shown.kind.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if initial {
            object["metadata"]["annotations"] = json!({INITIAL_EVENTS_END: "true"});
        }
        line("BOOKMARK", self.shown.bookmark(&object).to_string().as_bytes())
    }
}

fn line(type_: &str, object: &[u8]) -> Bytes {
    let mut line = Vec::with_capacity(object.len() + 32);
    line.extend_from_slice(b"{\"type\":\"");
    line.extend_from_slice(type_.as_bytes());
    line.extend_from_slice(b"\",\"object\":");
    line.extend_from_slice(object);
    line.extend_from_slice(b"}\n");
    line.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_begins_where_the_api_concepts_say() {
        let state = |at, marked| Ok(Start::State { at, marked });
        let table = [
            ("", state(At::Latest, false)),
            ("resourceVersion=0", state(At::NotOlderThan(0), false)),
            ("resourceVersion=7", Ok(Start::After(7))),
            ("sendInitialEvents=true&resourceVersionMatch=NotOlderThan", state(At::Latest, false)),
            (
                "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion=7",
                state(At::NotOlderThan(7), true),
            ),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan&resourceVersion=7", Ok(Start::After(7))),
            ("sendInitialEvents=false&resourceVersionMatch=NotOlderThan", Ok(Start::After(0))),
            ("sendInitialEvents=true", Err("resourceVersionMatch")),
            ("sendInitialEvents=true&resourceVersionMatch=Exact", Err("resourceVersionMatch")),
            ("resourceVersionMatch=NotOlderThan", Err("resourceVersionMatch")),
            ("resourceVersion=x", Err("resourceVersion")),
        ];
        for (query, wanted) in table {
            let start = Start::parse(&Query::parse(query));
            let field = start.as_ref().err().map(|status| status.causes[0].field.clone());
            assert_eq!((start.ok(), field.as_deref()), (wanted.ok(), wanted.err()), "{query}");
        }
    }
}
