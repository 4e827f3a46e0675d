//! The replica's side: one look at what is applied, for all nodes that follow a slice.
//!
//! Invariant: a node is sent what concerns it and, beside that, only how far its replica has come.
//! Invariant: a node that does not read is cut off once its queue is full, and begins anew.
//! Invariant: a slice begins no earlier than what was acknowledged when the node asked for it, and than what it had.
//! Invariant: a node has one stream; another takes its place.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use flotilla_api::{Builtin, Key};
use flotilla_control::concern::{self, Concerns};
use flotilla_net::{Handler, PeerInfo, RecvStream, SendStream, codec, read_frame, read_frame_or_end, write_frame};
use flotilla_raft::{EpochId, Event, KeyValue, NodeId, Range, ReadError, Store, Watch, WatchItem};
use tokio::sync::{Semaphore, mpsc, oneshot, watch};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::{Ask, MAX_ASK_BYTES, MAX_FRAME_BYTES, Object, Tell, Update, Write, may_feed};
use crate::members::Members;

/// Frames that wait for a node that reads slowly, and their bytes.
const MAX_QUEUED: usize = 256;
const MAX_QUEUED_BYTES: usize = 32 << 20;
/// Nodes that wait to be fed.
const MAX_WAITING: usize = 256;
/// Slices that are listed at once.
const MAX_LISTINGS: usize = 8;
/// A frame of a listing holds objects until it holds this many bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// How often nodes that nothing concerned are told how far their replica has come.
const MARK: Duration = Duration::from_secs(1);
/// How long a node may take to say what it wants.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a node may take to read a frame.
const WRITE_TIMEOUT: Duration = Duration::from_secs(30);
/// Before the pods are read anew after that failed.
const RETRY: Duration = Duration::from_secs(1);

/// A node that wants to be fed.
struct Wish {
    node: String,
    /// The slice begins with this revision, or later.
    at_least: u64,
    answer: oneshot::Sender<Fed>,
}

/// What a node gets: its slice, then what changes in it.
struct Fed {
    listing: Vec<Bytes>,
    changes: mpsc::Receiver<Bytes>,
    answers: Answers,
    position: watch::Receiver<u64>,
}

/// What waits for one node.
struct Queue {
    frames: mpsc::Sender<Bytes>,
    bytes: Arc<AtomicUsize>,
}

impl Queue {
    /// Whether there was room for it.
    fn push(&self, frame: Bytes) -> bool {
        let size = frame.len();
        if self.bytes.load(Ordering::Relaxed) + size > MAX_QUEUED_BYTES {
            return false;
        }
        self.bytes.fetch_add(size, Ordering::Relaxed);
        self.frames.try_send(frame).is_ok()
    }

    fn answers(&self) -> Answers {
        Answers { frames: self.frames.downgrade(), bytes: self.bytes.clone() }
    }
}

/// A queue in the hands of the stream that empties it, which is not to outlive its place among those who are fed.
struct Answers {
    frames: mpsc::WeakSender<Bytes>,
    bytes: Arc<AtomicUsize>,
}

impl Answers {
    fn push(&self, frame: Bytes) -> bool {
        let queue = self.frames.upgrade().map(|frames| Queue { frames, bytes: self.bytes.clone() });
        queue.is_some_and(|queue| queue.push(frame))
    }

    fn popped(&self, frame: &Bytes) {
        self.bytes.fetch_sub(frame.len(), Ordering::Relaxed);
    }
}

/// The way to the one who feeds.
#[derive(Clone)]
pub struct Feeds {
    wishes: mpsc::Sender<Wish>,
}

/// Makes the handle, and the future that feeds until `stop`.
pub fn feed(store: Store, stop: CancellationToken) -> (Feeds, impl Future<Output = ()> + Send) {
    let (wishes, wished) = mpsc::channel(MAX_WAITING);
    let feeding = async move { stop.run_until_cancelled(run(store, wished)).await.unwrap_or_default() };
    (Feeds { wishes }, feeding)
}

async fn run(store: Store, mut wishes: mpsc::Receiver<Wish>) {
    while let Some(first) = wishes.recv().await {
        if let Err(error) = serve(&store, first, &mut wishes).await {
            warn!(error = &error as &dyn std::error::Error, "nodes without a replica are not told what changes");
            tokio::time::sleep(RETRY).await;
        }
    }
}

/// Feeds until nobody is left, or the store's history does not reach back to where it was.
async fn serve(store: &Store, first: Wish, wishes: &mut mpsc::Receiver<Wish>) -> Result<(), ReadError> {
    // Taken first: it ends when something else is read from, be it only for a while.
    let mut watch = store.watch("", 0).await?;
    let (own, reader, begin) = (Own::new(store, &watch), store.clone(), watch.next_revision() - 1);
    let filled = tokio::task::spawn_blocking(move || Fan::fill(&reader, begin)).await;
    let mut fan = filled.map_err(|_| ReadError::Closed)??;
    let (mut waiting, listings) = (VecDeque::from([first]), Arc::new(Semaphore::new(MAX_LISTINGS)));
    let mut marks = tokio::time::interval(MARK);
    while own.is_read() && !(fan.nodes.is_empty() && waiting.is_empty()) {
        // Who has gone meanwhile is not listed anything.
        waiting.retain(|wish| !wish.answer.is_closed());
        let next = waiting.iter().position(|wish| wish.at_least <= fan.at());
        tokio::select! {
            item = watch.next() => match item {
                Some(WatchItem::Events(events, upto)) => fan.deliver(&events, upto, |key| {
                    let found = store.get_at(key, upto)?;
                    if own.is_read() { Ok(found) } else { Err(ReadError::Closed) }
                })?,
                Some(WatchItem::Progress(upto)) => fan.reach(upto),
                Some(WatchItem::Compacted(_)) | None => return Ok(()),
            },
            Ok(place) = listings.clone().acquire_owned(), if next.is_some() => {
                if let Some((answer, list)) = next.and_then(|at| waiting.remove(at)).map(|wish| fan.take(store, wish)) {
                    let own = own.clone();
                    tokio::task::spawn_blocking(move || {
                        match list() {
                            // What was read of a slice lacks most of what there is.
                            Ok(_) if !own.is_read() => debug!("this node has lost its replica; it feeds nobody"),
                            // Who has gone is dropped when the next frame finds nobody.
                            Ok(fed) => _ = answer.send(fed),
                            Err(error) => debug!(%error, "a slice cannot be listed now"),
                        }
                        drop(place);
                    });
                }
            }
            Some(wish) = wishes.recv(), if waiting.len() < MAX_WAITING => waiting.push_back(wish),
            _ = marks.tick() => fan.mark(),
        }
    }
    Ok(())
}

/// Tells whether this node has read from its own replica all the while.
#[derive(Clone)]
struct Own {
    store: Store,
    over: CancellationToken,
}

impl Own {
    fn new(store: &Store, watch: &Watch) -> Self {
        Self { store: store.clone(), over: watch.over() }
    }

    fn is_read(&self) -> bool {
        !self.over.is_cancelled() && self.store.fed_by().is_none()
    }
}

/// What one node is told of some events.
#[derive(Default)]
struct Part {
    writes: Vec<Write>,
    gained: Vec<Key>,
    lost: Vec<Key>,
}

/// One stream of events to many nodes.
struct Fan {
    concerns: Concerns,
    /// Every Node as others know it, and the same in frames, once somebody needs them.
    members: BTreeMap<String, Object>,
    member_frames: Option<Arc<[Bytes]>>,
    position: watch::Sender<u64>,
    nodes: HashMap<String, Queue>,
    /// Who has been sent something since the last mark.
    told: HashSet<String>,
}

impl Fan {
    fn new(concerns: Concerns, members: BTreeMap<String, Object>, revision: u64) -> Self {
        let position = watch::Sender::new(revision);
        Self { concerns, members, member_frames: None, position, nodes: HashMap::new(), told: HashSet::new() }
    }

    /// Reads whom everything concerns, as of a revision.
    fn fill(store: &Store, revision: u64) -> Result<Self, ReadError> {
        let (mut concerns, mut members) = (Concerns::default(), BTreeMap::new());
        for collection in concern::telling() {
            pages(store, &collection.prefix(), revision, |kv| _ = concerns.apply(&kv.key, None, Some(&kv.value)))?;
        }
        pages(store, &Builtin::Node.collection().prefix(), revision, |kv| {
            members.extend(cut(&kv).map(|member| (kv.key.name().to_owned(), Object::from(&member))));
        })?;
        Ok(Self::new(concerns, members, revision))
    }

    fn at(&self) -> u64 {
        *self.position.borrow()
    }

    /// Takes a node in, from now on, and says how to list what it has until then. A node that comes again takes its own
    /// place.
    fn take(
        &mut self,
        store: &Store,
        wish: Wish,
    ) -> (oneshot::Sender<Fed>, impl FnOnce() -> Result<Fed, ReadError> + Send + use<>) {
        let at = self.at();
        let status = store.status().borrow().clone();
        let replicas = status.voters.union(&status.learners).copied().collect();
        let members = self.member_frames.get_or_insert_with(|| chunks(self.members.values().cloned()).into()).clone();
        let mut keys = self.concerns.keys_of(&wish.node);
        keys.insert(Key::new(&Builtin::Node.collection(), "", &wish.node));
        let (answers, changes) = self.enter(&wish.node);
        let (store, position) = (store.clone(), self.position.subscribe());
        let list = move || {
            let mut own = Vec::new();
            for key in keys {
                own.extend(store.get_at(&key, at)?.as_ref().map(Object::from));
            }
            for collection in concern::everybodys() {
                pages(&store, &collection.prefix(), at, |kv| own.push(Object::from(&kv)))?;
            }
            let begin = frame(&Tell::Begin { epoch: status.epoch, revision: at, replicas });
            let parts = members.iter().cloned().chain(chunks(own)).map(Some);
            let listing = [begin].into_iter().chain(parts).chain([frame(&Tell::Begun)]).flatten().collect();
            Ok(Fed { listing, changes, answers, position })
        };
        (wish.answer, list)
    }

    fn enter(&mut self, node: &str) -> (Answers, mpsc::Receiver<Bytes>) {
        let (frames, changes) = mpsc::channel(MAX_QUEUED);
        let queue = Queue { frames, bytes: Arc::default() };
        let answers = queue.answers();
        self.nodes.insert(node.to_owned(), queue);
        (answers, changes)
    }

    fn deliver(
        &mut self,
        events: &[Event],
        upto: u64,
        read: impl Fn(&Key) -> Result<Option<KeyValue>, ReadError>,
    ) -> Result<(), ReadError> {
        let (mut everybodys, mut parts) = (Vec::new(), BTreeMap::<String, Part>::new());
        for event in events {
            let new = match event {
                Event::Put { kv, .. } => Some(kv),
                Event::Delete { .. } => None,
            };
            let old = event.prev().map(|kv| &*kv.value);
            let concerned = self.concerns.apply(event.key(), old, new.map(|kv| &*kv.value));
            let whole = || new.map_or_else(|| gone(event), |kv| Write::Put(kv.into()));
            for node in concerned.nodes.iter().filter(|node| self.nodes.contains_key(*node)) {
                parts.entry(node.clone()).or_default().writes.push(whole());
            }
            if concerned.all {
                let is_node = event.key().collection() == Builtin::Node.collection();
                let write = if is_node { self.member(event, new) } else { whole() };
                everybodys.push((is_node.then(|| event.key().name().to_owned()), write));
            }
            for (node, key) in concerned.gained.into_iter().filter(|(node, _)| self.nodes.contains_key(node)) {
                parts.entry(node).or_default().gained.push(key);
            }
            for (node, key) in concerned.lost.into_iter().filter(|(node, _)| self.nodes.contains_key(node)) {
                parts.entry(node).or_default().lost.push(key);
            }
        }
        self.send(everybodys, parts, upto, read)
    }

    /// What others are told of a Node that has become another machine, has come, or has gone.
    fn member(&mut self, event: &Event, new: Option<&KeyValue>) -> Write {
        self.member_frames = None;
        let name = event.key().name();
        match new.and_then(cut).map(|member| Object::from(&member)) {
            Some(member) => {
                self.members.insert(name.to_owned(), member.clone());
                Write::Put(member)
            }
            None => {
                self.members.remove(name);
                gone(event)
            }
        }
    }

    fn send(
        &mut self,
        everybodys: Vec<(Option<String>, Write)>,
        parts: BTreeMap<String, Part>,
        upto: u64,
        read: impl Fn(&Key) -> Result<Option<KeyValue>, ReadError>,
    ) -> Result<(), ReadError> {
        let mut frames: HashMap<String, Option<Bytes>> = HashMap::new();
        for (node, mut part) in parts {
            // A Node gets itself whole, and not cut as well.
            let others = everybodys.iter().filter(|(own, _)| own.as_deref() != Some(&*node));
            part.writes.extend(others.map(|(_, write)| write.clone()));
            part.writes.sort_by_key(Write::revision);
            part.gained.retain(|key| self.concerns.wants(&node, key));
            part.lost.retain(|key| !self.concerns.wants(&node, key));
            let mut gained = Vec::new();
            for key in part.gained {
                match read(&key)? {
                    Some(kv) => gained.push(Object::from(&kv)),
                    // Deleted while it was not the node's: the node may still have it.
                    None => part.lost.push(key),
                }
            }
            let update = Update { upto, gained, writes: part.writes, lost: part.lost };
            frames.insert(node, frame(&Tell::Update(update)));
        }
        if !everybodys.is_empty() {
            let writes = everybodys.into_iter().map(|(_, write)| write).collect();
            let shared = frame(&Tell::Update(Update { upto, writes, ..Update::default() }));
            for node in self.nodes.keys() {
                frames.entry(node.clone()).or_insert_with(|| shared.clone());
            }
        }
        for (node, frame) in frames {
            self.push(&node, frame);
        }
        self.reach(upto);
        Ok(())
    }

    /// Says that everything up to a revision is on its way to whom it concerns.
    fn reach(&self, upto: u64) {
        self.position.send_if_modified(|at| std::mem::replace(at, upto.max(*at)) < upto);
    }

    fn mark(&mut self) {
        let told = std::mem::take(&mut self.told);
        let silent: Vec<String> = self.nodes.keys().filter(|node| !told.contains(*node)).cloned().collect();
        let mark = frame(&Tell::Update(Update { upto: self.at(), ..Update::default() }));
        for node in silent {
            self.push(&node, mark.clone());
        }
        // A mark is nothing that one is told.
        self.told.clear();
    }

    fn push(&mut self, node: &str, frame: Option<Bytes>) {
        let Some(queue) = self.nodes.get(node) else { return };
        if frame.is_some_and(|frame| queue.push(frame)) {
            self.told.insert(node.to_owned());
        } else {
            debug!(node, "a node without a replica has gone, or does not keep up; it is cut off");
            self.nodes.remove(node);
        }
    }
}

/// Reads a range as of a revision, in pages.
fn pages(store: &Store, prefix: &str, revision: u64, mut each: impl FnMut(KeyValue)) -> Result<(), ReadError> {
    for page in store.pages(Range { revision: Some(revision), ..Range::prefix(prefix) }) {
        page?.into_iter().for_each(&mut each);
    }
    Ok(())
}

/// A Node as others know it.
fn cut(kv: &KeyValue) -> Option<KeyValue> {
    concern::member(&kv.value).map(|value| KeyValue { value, ..kv.clone() })
}

fn gone(event: &Event) -> Write {
    Write::Delete { key: event.key().clone(), revision: event.revision() }
}

/// Objects of a listing, in frames.
fn chunks(objects: impl IntoIterator<Item = Object>) -> Vec<Bytes> {
    let (mut frames, mut chunk, mut size_bytes) = (Vec::new(), Vec::new(), 0);
    for object in objects {
        size_bytes += object.value.len();
        chunk.push(object);
        if size_bytes >= CHUNK_BYTES {
            frames.extend(frame(&Tell::Objects(std::mem::take(&mut chunk))));
            size_bytes = 0;
        }
    }
    frames.extend(frame(&Tell::Objects(chunk)));
    frames
}

/// `None` if it is larger than a frame may be: the node lists anew, in pieces.
fn frame(tell: &Tell) -> Option<Bytes> {
    codec::encode(tell).ok().filter(|bytes| bytes.len() <= MAX_FRAME_BYTES).map(Bytes::from)
}

/// The stream that each node has.
#[derive(Default)]
pub struct Streams(Mutex<HashMap<NodeId, CancellationToken>>);

impl Streams {
    /// Ends the stream that a node had; the new one ends when the token is cancelled.
    fn begin(&self, node: NodeId) -> CancellationToken {
        let ended = CancellationToken::new();
        let before = self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(node, ended.clone());
        before.iter().for_each(CancellationToken::cancel);
        ended
    }

    fn end(&self, node: NodeId, ended: &CancellationToken) {
        // One that was ended by another has no place any more.
        if !ended.is_cancelled() {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).remove(&node);
        }
    }
}

/// Serves nodes that ask for their slices.
pub struct SliceHandler {
    pub store: Store,
    pub members: Members,
    pub feeds: Feeds,
    pub streams: Streams,
}

#[async_trait]
impl Handler for SliceHandler {
    async fn handle(&self, peer: PeerInfo, send: SendStream, recv: RecvStream) {
        let ended = self.streams.begin(peer.id);
        match ended.run_until_cancelled(self.serve(&peer, send, recv)).await {
            Some(Err(error)) => debug!(peer = peer.name, %error, "a node's slice is fed no more"),
            Some(Ok(())) => {}
            None => debug!(peer = peer.name, "the node has another stream"),
        }
        self.streams.end(peer.id, &ended);
    }
}

impl SliceHandler {
    async fn serve(&self, peer: &PeerInfo, mut send: SendStream, mut recv: RecvStream) -> io::Result<()> {
        let asked = timeout(ASK_TIMEOUT, read_frame(&mut recv, MAX_ASK_BYTES)).await?.map_err(io::Error::other)?;
        let Ok(Ask::Follow { revision, epoch }) = codec::decode_within::<Ask, MAX_ASK_BYTES>(&asked) else {
            return Err(io::Error::other("the node's first message is not understood"));
        };
        let admitted = tokio::select! {
            admitted = self.admit(peer, revision, epoch) => admitted,
            // It says nothing more before it has its slice.
            _ = read_frame_or_end(&mut recv, MAX_ASK_BYTES) => return Err(io::Error::other("the node has gone")),
        };
        let fed = match admitted {
            Ok(fed) => fed,
            Err(why) => {
                let (epoch, replicas) = (self.store.spoken_epoch(), self.replicas());
                let refusal = Tell::Refused { epoch, why: why.clone(), replicas };
                let refusal = codec::encode(&refusal).map_err(io::Error::other)?;
                write_frame(&mut send, &refusal).await.map_err(io::Error::other)?;
                _ = send.finish();
                return Err(io::Error::other(why));
            }
        };
        let Fed { listing, mut changes, answers, mut position } = fed;
        let write = async {
            for frame in listing {
                put(&mut send, &frame).await?;
            }
            while let Some(frame) = changes.recv().await {
                answers.popped(&frame);
                put(&mut send, &frame).await?;
            }
            Err(io::Error::other("the node did not keep up, or the feed ended"))
        };
        let read = async {
            loop {
                let Some(asked) = read_frame_or_end(&mut recv, MAX_ASK_BYTES).await.map_err(io::Error::other)? else {
                    return Ok(());
                };
                if !matches!(codec::decode_within::<Ask, MAX_ASK_BYTES>(&asked), Ok(Ask::Barrier)) {
                    return Err(io::Error::other("the node's message is not understood"));
                }
                let revision = self.store.barrier().await.map_err(io::Error::other)?;
                let reached = *position.wait_for(|at| *at >= revision).await.map_err(io::Error::other)?;
                let answer = codec::encode(&Tell::Answer(reached)).map_err(io::Error::other)?;
                if !answers.push(answer.into()) {
                    return Err(io::Error::other("the node does not keep up"));
                }
            }
        };
        tokio::select! {
            ended = write => ended,
            ended = read => ended,
        }
    }

    /// Who has a replica, as far as this node knows.
    fn replicas(&self) -> Vec<NodeId> {
        let status = self.store.status().borrow().clone();
        match self.store.fed_by() {
            Some(replica) => vec![replica],
            None => status.voters.union(&status.learners).copied().collect(),
        }
    }

    async fn admit(&self, peer: &PeerInfo, revision: u64, epoch: EpochId) -> Result<Fed, String> {
        let without_replica = || match self.store.fed_by() {
            Some(_) => Err("this node has no replica itself".to_owned()),
            None => Ok(()),
        };
        without_replica()?;
        let own = self.store.spoken_epoch();
        if !may_feed(own, epoch) {
            return Err(format!("the node is of the cluster's epoch {epoch}, and this replica of {own}"));
        }
        let acknowledged = self.store.barrier().await.map_err(|error| error.to_string())?;
        self.store.reach(revision).await.map_err(|error| error.to_string())?;
        without_replica()?;
        if self.members.is_about_to_have_replica(&self.store, peer.id) {
            return Err("the node is about to get a replica".into());
        }
        let (answer, fed) = oneshot::channel();
        let wish = Wish { node: peer.name.to_string(), at_least: acknowledged.max(revision), answer };
        self.feeds.wishes.send(wish).await.map_err(|_| "the replica is stopping".to_owned())?;
        fed.await.map_err(|_| "the replica cannot list the slice now".to_owned())
    }
}

async fn put(send: &mut SendStream, frame: &[u8]) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, write_frame(send, frame)).await?.map_err(io::Error::other)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Instant;

    use flotilla_api::GroupResource;
    use serde_json::json;

    const NODES: usize = 5_000;

    fn kv(resource: &str, name: &str, revision: u64, value: &serde_json::Value) -> KeyValue {
        let key = Key::new(&GroupResource::new("", resource), "d", name);
        let value = serde_json::to_vec(value).unwrap().into();
        KeyValue { key, value, create_revision: revision, mod_revision: revision }
    }

    fn put_of(kv: KeyValue) -> Event {
        Event::Put { kv, prev: None }
    }

    fn queued(changes: &mut mpsc::Receiver<Bytes>) -> Vec<Bytes> {
        std::iter::from_fn(|| changes.try_recv().ok()).collect()
    }

    /// One applied stream, thousands of nodes: whoever is not concerned is sent the mark and nothing else.
    #[test]
    fn thousands_of_nodes_are_told_only_what_concerns_them() {
        let mut fan = Fan::new(Concerns::default(), BTreeMap::new(), 0);
        let mut nodes: Vec<_> = (0..NODES).map(|n| fan.enter(&format!("n{n}")).1).collect();
        let secret = kv("secrets", "s", 1, &json!({"data": {"a": "c2VjcmV0"}}));
        let read = |_: &Key| Ok(Some(secret.clone()));
        let begun = Instant::now();
        let events = 20_000;
        for n in 0..events {
            let pod =
                json!({"spec": {"nodeName": format!("n{}", n % 100), "volumes": [{"secret": {"secretName": "s"}}]}});
            let event = put_of(kv("pods", &format!("p{n}"), n + 2, &pod));
            fan.deliver(&[event], n + 2, read).unwrap();
            if n % 2_000 == 1_999 {
                nodes[..100].iter_mut().for_each(|changes| assert!(!queued(changes).is_empty()));
                // Nobody here reads from a stream, which is where what was read is counted.
                fan.nodes.values().for_each(|queue| queue.bytes.store(0, Ordering::Relaxed));
            }
        }
        let seconds = begun.elapsed().as_secs_f64();
        let unconcerned: usize = nodes[100..].iter_mut().map(|changes| queued(changes).len()).sum();
        assert_eq!(unconcerned, 0, "frames of others' pods");
        fan.told.clear();
        fan.mark();
        let marks: Vec<Bytes> = nodes[100..].iter_mut().flat_map(queued).collect();
        let mark_bytes = marks.first().map_or(0, Bytes::len);
        assert_eq!(marks.len(), NODES - 100);
        assert!(marks.iter().all(|mark| mark.len() <= 16), "{mark_bytes} bytes");
        println!(
            "{NODES} nodes, {events} events of 100 of them: {:.0} events/s, {mark_bytes} bytes a mark, nothing else to the others",
            events as f64 / seconds
        );
    }

    #[test]
    fn what_a_node_is_told_is_in_the_order_of_revisions() {
        let mut fan = Fan::new(Concerns::default(), BTreeMap::new(), 0);
        let mut changes = fan.enter("n1").1;
        let node = |id: &str| json!({"metadata": {"name": "n2", "annotations": {"flotilla.dev/node-id": id}}});
        let pod = |revision| put_of(kv("pods", "p", revision, &json!({"spec": {"nodeName": "n1"}})));
        let events =
            [put_of(kv("nodes", "n2", 1, &node("7"))), pod(2), put_of(kv("nodes", "n2", 3, &node("8"))), pod(4)];
        fan.deliver(&events, 4, |_: &Key| Ok(None)).unwrap();
        let Ok(Tell::Update(update)) = codec::decode::<Tell>(&queued(&mut changes).pop().unwrap()) else {
            panic!("no update")
        };
        assert_eq!(update.writes.iter().map(Write::revision).collect::<Vec<_>>(), [1, 2, 3, 4]);
        // Who comes now hears of the Node as it became.
        assert_eq!(fan.members.keys().collect::<Vec<_>>(), ["n2"]);
        assert_eq!(fan.members["n2"].mod_revision, 3);
    }

    #[test]
    fn another_stream_of_a_node_takes_the_place_of_the_first() {
        let streams = Streams::default();
        let (first, other) = (streams.begin(1), streams.begin(2));
        let second = streams.begin(1);
        assert!(first.is_cancelled() && !second.is_cancelled() && !other.is_cancelled());
        streams.end(1, &first);
        let third = streams.begin(1);
        assert!(second.is_cancelled(), "the first one's end is not the second's");
        streams.end(1, &third);
        assert!(!streams.0.lock().unwrap().contains_key(&1));
    }

    #[test]
    fn a_node_that_does_not_read_is_cut_off_and_nobody_else() {
        let mut fan = Fan::new(Concerns::default(), BTreeMap::new(), 0);
        let (_slow, mut quick) = (fan.enter("slow").1, fan.enter("quick").1);
        for _ in 0..=MAX_QUEUED {
            fan.mark();
            queued(&mut quick);
        }
        assert!(!fan.nodes.contains_key("slow") && fan.nodes.contains_key("quick"));
    }

    #[test]
    fn a_secret_comes_before_the_pod_that_wants_it_and_goes_with_it() {
        let mut fan = Fan::new(Concerns::default(), BTreeMap::new(), 0);
        let (mut one, mut two) = (fan.enter("n1").1, fan.enter("n2").1);
        let secret = kv("secrets", "s", 1, &json!({}));
        let pod =
            kv("pods", "p", 2, &json!({"spec": {"nodeName": "n1", "volumes": [{"secret": {"secretName": "s"}}]}}));
        let read = |key: &Key| Ok((*key == secret.key).then(|| secret.clone()));
        let update = |changes: &mut mpsc::Receiver<Bytes>| match codec::decode::<Tell>(&queued(changes).pop().unwrap())
        {
            Ok(Tell::Update(update)) => update,
            other => panic!("{other:?}"),
        };
        fan.deliver(&[put_of(pod.clone())], 2, read).unwrap();
        let told = update(&mut one);
        assert_eq!((told.upto, told.gained), (2, vec![Object::from(&secret)]));
        assert_eq!(told.writes, [Write::Put((&pod).into())]);
        fan.deliver(&[put_of(KeyValue { mod_revision: 3, ..secret.clone() })], 3, read).unwrap();
        assert_eq!(update(&mut one).writes.len(), 1);
        fan.deliver(&[Event::Delete { key: pod.key.clone(), revision: 4, prev: pod.clone() }], 4, read).unwrap();
        let told = update(&mut one);
        assert!(
            told.lost.contains(&secret.key) && told.writes == [Write::Delete { key: pod.key.clone(), revision: 4 }]
        );
        assert_eq!(queued(&mut two), Vec::<Bytes>::new());
        // Lost, deleted and wanted again at once: it is not there any more.
        fan.deliver(&[put_of(pod.clone())], 5, read).unwrap();
        assert_eq!(update(&mut one).gained.len(), 1);
        let unbound = KeyValue { value: Bytes::from_static(b"{}"), ..pod.clone() };
        let events = [
            Event::Put { kv: unbound.clone(), prev: Some(pod.clone()) },
            Event::Delete { key: secret.key.clone(), revision: 7, prev: secret.clone() },
            Event::Put { kv: pod, prev: Some(unbound) },
        ];
        fan.deliver(&events, 8, |_: &Key| Ok(None)).unwrap();
        let told = update(&mut one);
        assert!(told.gained.is_empty() && told.lost.contains(&secret.key));
    }
}
