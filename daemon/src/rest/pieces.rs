//! Lists as JSON that are sent while they are read, or read to their end.
//!
//! Invariant: whoever gets to the end of a list got all of it, as of one revision. What cannot be read to the end, or is not
//! taken in time, breaks off.
//! Invariant: of a list that is sent, no more is in memory than a page, a few frames, and the names of what has changed meanwhile.

use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use flate2::write::GzEncoder;
use flotilla_api::{Reason, Status};
use http::header::{self, HeaderValue};
use http::{HeaderMap, Response, StatusCode};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde_json::json;
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::answer::{self, COMPRESSION, Reading};
use super::indent::Indenter;
use super::shown::{END, Shown};
use super::{Answer, BoxError, Call, Layout, Rest};
use crate::gate::Found;

/// A list that is no longer than this is sent whole. A frame is sent once it is this long.
const FRAME_BYTES: usize = 128 * 1024;
/// Frames that wait for the client.
const FRAMES_AHEAD: usize = 2;
/// A client that takes nothing for so long has its list broken off.
const MAX_STALL: Duration = Duration::from_secs(60);

impl Rest {
    /// Answers with everything that was found.
    pub(super) async fn pieces(&self, call: &Call, mut list: Pieces) -> Answer {
        let mut first = Vec::new();
        if !list.read(&mut first).await? {
            return Ok(answer::json(StatusCode::OK, &call.head.headers, first).await);
        }
        let (form, reading) = (Form::new(call.layout, &call.head.headers), Reading::default());
        let is_compressed = form.gzip.is_some();
        let (send, frames) = mpsc::channel(FRAMES_AHEAD);
        let guard = reading.guard();
        let sending = async move {
            send_all(list, first, form, send).await;
            drop(guard);
        };
        self.node.tasks.spawn(self.node.stop.clone().run_until_cancelled_owned(sending));
        let mut response = Response::new(StreamBody::new(frames_of(frames)).boxed_unsync());
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(answer::JSON));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
        if is_compressed {
            answer::mark_compressed(headers);
        }
        response.extensions_mut().insert(reading);
        Ok(response)
    }
}

/// A list as it is read.
pub(super) struct Pieces {
    shown: Shown,
    found: Found,
    is_begun: bool,
}

impl Pieces {
    pub fn new(shown: Shown, found: Found) -> Self {
        Self { shown, found, is_begun: false }
    }

    /// All of it at once.
    pub async fn whole(mut self) -> Result<Vec<u8>, Status> {
        let mut json = Vec::new();
        while self.read(&mut json).await? {}
        Ok(json)
    }

    /// Puts what comes next behind what is in `out`, about a frame; says whether there is more.
    async fn read(&mut self, out: &mut Vec<u8>) -> Result<bool, Status> {
        let enough = out.len() + FRAME_BYTES;
        let mut is_first = !std::mem::replace(&mut self.is_begun, true);
        if is_first {
            let metadata = json!({"resourceVersion": self.found.revision().to_string()});
            out.extend(self.shown.head(&metadata));
        }
        while out.len() < enough {
            let length = out.len();
            if !is_first {
                out.push(b',');
            }
            if !self.next(out).await? {
                out.truncate(length);
                out.extend_from_slice(END);
                return Ok(false);
            }
            is_first = false;
        }
        Ok(true)
    }

    async fn next(&mut self, out: &mut Vec<u8>) -> Result<bool, Status> {
        if self.shown.is_whole() {
            return self.found.next(out).await;
        }
        let mut json = Vec::new();
        if !self.found.next(&mut json).await? {
            return Ok(false);
        }
        self.shown.item(&json, out)?;
        Ok(true)
    }
}

/// What becomes of the JSON on its way.
struct Form {
    indenter: Option<Indenter>,
    gzip: Option<GzEncoder<Vec<u8>>>,
}

impl Form {
    fn new(layout: Layout, headers: &HeaderMap) -> Self {
        let (indenter, zipped) = match layout {
            Layout::AsMade => (None, answer::accepts_gzip(headers)),
            Layout::Indented { zipped } => (Some(Indenter::default()), zipped),
        };
        Self { indenter, gzip: zipped.then(|| GzEncoder::new(Vec::new(), COMPRESSION)) }
    }

    /// What there is to send when this was added; nothing, if that is yet to be compressed.
    fn add(&mut self, mut json: Vec<u8>) -> std::io::Result<Vec<u8>> {
        if let Some(indenter) = &mut self.indenter {
            match indenter.indent(&json) {
                Some(indented) => json = indented,
                // What comes after it stays as it is, too.
                None => self.indenter = None,
            }
        }
        let Some(gzip) = &mut self.gzip else { return Ok(json) };
        gzip.write_all(&json)?;
        Ok(std::mem::take(gzip.get_mut()))
    }

    fn end(self) -> std::io::Result<Vec<u8>> {
        self.gzip.map_or_else(|| Ok(Vec::new()), GzEncoder::finish)
    }
}

enum Piece {
    More(Bytes),
    Last(Bytes),
}

type Sent = Result<Piece, BoxError>;

/// Reads a list to its end and sends it, for as long as it is taken.
async fn send_all(list: Pieces, first: Vec<u8>, form: Form, send: mpsc::Sender<Sent>) {
    let sent = tokio::select! {
        sent = send_pieces(list, first, form, &send) => sent,
        // The client has gone.
        () = send.closed() => return,
    };
    if let Err(status) = sent {
        match status.reason {
            Reason::Expired => debug!(error = status.message, "a list breaks off"),
            _ => warn!(error = status.message, "a list breaks off: it cannot be read to its end"),
        }
        take(&send, Err(status.message.into())).await;
    }
}

async fn send_pieces(
    mut list: Pieces,
    first: Vec<u8>,
    mut form: Form,
    send: &mpsc::Sender<Sent>,
) -> Result<(), Status> {
    let (mut json, mut more) = (first, true);
    loop {
        let piece = form.add(json).map_err(Status::internal)?;
        if !piece.is_empty() && !take(send, Ok(Piece::More(piece.into()))).await {
            return Ok(());
        }
        if !more {
            break;
        }
        json = Vec::with_capacity(2 * FRAME_BYTES);
        more = list.read(&mut json).await?;
    }
    let last = form.end().map_err(Status::internal)?;
    take(send, Ok(Piece::Last(last.into()))).await;
    Ok(())
}

/// Whether the client takes it.
async fn take(send: &mpsc::Sender<Sent>, piece: Sent) -> bool {
    send.send_timeout(piece, MAX_STALL).await.is_ok()
}

/// The frames of a body. One that ends before its last piece has failed.
fn frames_of(pieces: mpsc::Receiver<Sent>) -> impl futures::Stream<Item = Result<Frame<Bytes>, BoxError>> {
    futures::stream::unfold(Some(pieces), |pieces| async move {
        let mut pieces = pieces?;
        Some(match pieces.recv().await {
            Some(Ok(Piece::More(bytes))) => (Ok(Frame::data(bytes)), Some(pieces)),
            Some(Ok(Piece::Last(bytes))) => (Ok(Frame::data(bytes)), None),
            Some(Err(error)) => (Err(error), None),
            None => (Err("the list was not taken in time, or this node is shutting down".into()), None),
        })
    })
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use flate2::read::GzDecoder;
    use flotilla_api::Builtin;
    use futures::StreamExt;
    use serde_json::Value;

    use super::super::negotiate::View;
    use super::super::table::Include;
    use super::*;
    use crate::gate::{Gate, ListQuery, User, Verb, WriteOptions, alone};

    /// A gate with this many ConfigMaps of 350 kB, even and odd ones.
    async fn gate(dir: &tempfile::TempDir, maps: usize) -> Gate {
        let gate = alone::gate(dir).await;
        let create = async |kind: Builtin, object: Value| {
            let kind = gate.built_in(kind).unwrap();
            gate.create(&User::root(), &kind, object, &WriteOptions::by("test")).await.unwrap();
        };
        let namespace = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "default"}});
        create(Builtin::Namespace, namespace).await;
        for at in 0..maps {
            let (name, parity) = (format!("map-{at:02}"), ["even", "odd"][at % 2]);
            let metadata = json!({"name": name, "labels": {"parity": parity}});
            let data = json!({"text": "\"x\" ".repeat(50_000)});
            let map = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": data});
            create(Builtin::ConfigMap, map).await;
        }
        gate
    }

    async fn list(gate: &Gate, view: View, query: &ListQuery) -> Pieces {
        let kind = gate.built_in(Builtin::ConfigMap).unwrap();
        let found = gate.all(&User::root(), Verb::List, &kind, query).await.unwrap();
        Pieces::new(Shown::new(&kind, view, Include::default()), found)
    }

    async fn read_all(mut list: Pieces) -> (usize, Vec<u8>) {
        let (mut pieces, mut json) = (1, Vec::new());
        loop {
            let mut piece = Vec::new();
            let more = list.read(&mut piece).await.unwrap();
            json.extend_from_slice(&piece);
            if !more {
                return (pieces, json);
            }
            pieces += 1;
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn a_list_in_pieces_is_the_list_whatever_happens_meanwhile() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(&dir, 8).await;
        let kind = gate.built_in(Builtin::ConfigMap).unwrap();
        let everything = ListQuery::default();
        let known = gate.list(&User::root(), &kind, &everything).await.unwrap();
        let begun = list(&gate, View::Whole, &everything).await;
        let [first, last] = [0, 7].map(|at| known.items[at]["metadata"]["name"].as_str().unwrap().to_owned());
        for name in [&first, &last] {
            let options = crate::gate::DeleteOptions::default();
            gate.delete(&User::root(), &kind, ("default", name), &options).await.unwrap();
        }
        let (pieces, json) = read_all(begun).await;
        assert!(pieces > 2, "{pieces}");
        let read: Value = serde_json::from_slice(&json).unwrap();
        let wanted = json!({
            "kind": "ConfigMapList",
            "apiVersion": "v1",
            "metadata": {"resourceVersion": known.revision.to_string()},
            "items": known.items,
        });
        assert_eq!(read, wanted);

        let left = list(&gate, View::Whole, &everything).await.whole().await.unwrap();
        let left: Value = serde_json::from_slice(&left).unwrap();
        assert_eq!(left["items"], json!(known.items[1..7]), "all at once, of several frames");

        let odd = ListQuery::parse(None, "parity=odd", "").unwrap();
        let (_, json) = read_all(list(&gate, View::Metadata("v1"), &odd).await).await;
        let read: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!(read["kind"], "PartialObjectMetadataList");
        let items = read["items"].as_array().unwrap();
        let names: Vec<&Value> = items.iter().map(|one| &one["metadata"]["name"]).collect();
        assert_eq!(names, ["map-01", "map-03", "map-05"]);
        assert!(items.iter().all(|one| one["kind"] == "PartialObjectMetadata" && one.get("data").is_none()));

        let (_, json) = read_all(list(&gate, View::Table("v1"), &odd).await).await;
        let read: Value = serde_json::from_slice(&json).unwrap();
        assert_eq!((&read["kind"], &read["columnDefinitions"][0]["name"]), (&json!("Table"), &json!("Name")));
        let rows: Vec<&Value> = read["rows"].as_array().unwrap().iter().map(|row| &row["cells"][0]).collect();
        assert_eq!(rows, ["map-01", "map-03", "map-05"]);

        let none = ListQuery::parse(None, "parity=neither", "").unwrap();
        let (pieces, json) = read_all(list(&gate, View::Whole, &none).await).await;
        assert_eq!((pieces, &serde_json::from_slice::<Value>(&json).unwrap()["items"]), (1, &json!([])));
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_sent_is_indented_and_compressed_as_one() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(&dir, 3).await;
        let everything = ListQuery::default();
        let (_, plain) = read_all(list(&gate, View::Whole, &everything).await).await;
        let value: Value = serde_json::from_slice(&plain).unwrap();
        let pretty = serde_json::to_string_pretty(&value).unwrap();
        let mut zipping = HeaderMap::new();
        zipping.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("gzip"));
        let forms = [
            (Layout::AsMade, HeaderMap::new(), false),
            (Layout::AsMade, zipping.clone(), true),
            (Layout::Indented { zipped: true }, HeaderMap::new(), true),
            (Layout::Indented { zipped: false }, zipping, false),
        ];
        for (layout, headers, zipped) in forms {
            let mut sent = list(&gate, View::Whole, &everything).await;
            let (send, pieces) = mpsc::channel(1);
            let mut first = Vec::new();
            assert!(sent.read(&mut first).await.unwrap());
            let sending = tokio::spawn(send_all(sent, first, Form::new(layout, &headers), send));
            let frames: Vec<_> = frames_of(pieces).map(|frame| frame.unwrap().into_data().unwrap()).collect().await;
            sending.await.unwrap();
            let mut body = frames.concat();
            if zipped {
                let mut unzipped = Vec::new();
                GzDecoder::new(&body[..]).read_to_end(&mut unzipped).unwrap();
                body = unzipped;
            }
            match layout {
                Layout::AsMade => assert!(body == plain, "{zipped}"),
                // Fields stay in the order in which they are stored.
                Layout::Indented { .. } => {
                    let text = String::from_utf8(body).unwrap();
                    assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), value);
                    assert_eq!(text.lines().count(), pretty.lines().count());
                }
            }
        }
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn what_is_forgotten_meanwhile_breaks_a_list_off() {
        let dir = tempfile::tempdir().unwrap();
        let gate = gate(&dir, 8).await;
        let kind = gate.built_in(Builtin::ConfigMap).unwrap();
        let mut begun = list(&gate, View::Whole, &ListQuery::default()).await;
        let options = crate::gate::DeleteOptions::default();
        gate.delete(&User::root(), &kind, ("default", "map-07"), &options).await.unwrap();
        gate.store().compact(gate.store().revision()).await.unwrap();
        let mut first = Vec::new();
        assert!(begun.read(&mut first).await.unwrap(), "the first page was read before");
        let (send, pieces) = mpsc::channel(1);
        let sending = send_all(begun, first, Form::new(Layout::AsMade, &HeaderMap::new()), send);
        let (_, frames) = tokio::join!(sending, frames_of(pieces).collect::<Vec<_>>());
        let (last, before) = frames.split_last().unwrap();
        assert!(before.iter().all(Result::is_ok));
        let why = last.as_ref().unwrap_err().to_string();
        assert!(why.contains("too old"), "{why}");
        let query = ListQuery { at: crate::gate::At::Exactly(1), ..ListQuery::default() };
        let refused = gate.all(&User::root(), Verb::List, &kind, &query).await.err().unwrap();
        assert_eq!(refused.reason, Reason::Expired, "what cannot be had at all is said at once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_takes_nothing_is_given_up() {
        let (send, pieces) = mpsc::channel(1);
        assert!(take(&send, Ok(Piece::More(Bytes::from_static(b"{")))).await);
        assert!(!take(&send, Ok(Piece::Last(Bytes::from_static(b"}")))).await);
        drop(send);
        let frames: Vec<_> = frames_of(pieces).collect().await;
        assert_eq!(frames.iter().map(Result::is_ok).collect::<Vec<_>>(), [true, false]);
    }
}
