//! openraft's calls, carried by the transport.
//!
//! Heartbeats, votes and the like are calls of their own, so that they never wait behind entries.
//! Entries go through one ordered stream a follower, many requests at a time.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use futures::stream::{BoxStream, StreamExt};
use futures::{Stream, stream};
use openraft::errors::{NetworkError, RPCError, ReplicationClosed, StreamingError, Timeout, Unreachable};
use openraft::network::RPCOption;
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, SnapshotResponse, StreamAppendError, StreamAppendResult,
    TransferLeaderRequest, TransferLeaderResponse, VoteRequest, VoteResponse,
};
use openraft::{OptionalSend, RPCTypes, RaftNetworkFactory, RaftNetworkV2};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::codec::{self, LogIdForm, VoteForm};
use crate::courier;
use crate::epoch::Epoch;
use crate::frame::{self, FrameError, within};
use crate::snapshot::SnapshotData;
use crate::transport::{Reader, Transport, TransportError, Writer};
use crate::types::{LogId, NodeId, Types, Vote};
use crate::versions::Versions;
use crate::wire::{
    Addressed, Append, AppendResult, Opening, Refusal, Reply, Request, SnapshotHeader, SnapshotReply, Transfer, VoteAsk,
};

type Snapshot = openraft::alias::SnapshotOf<Types, SnapshotData>;
type Rpc<T> = Result<T, RPCError<Types>>;

/// Requests that are under way to one follower.
const PIPELINE_REQUESTS: usize = 16;
/// An entry's way to a follower's disk and back; beyond it the stream is opened anew.
const ENTRY_TIMEOUT: Duration = Duration::from_secs(5);
const CALL_TIMEOUT: Duration = Duration::from_millis(600);
/// A receiver opens and checks a snapshot in this time.
const INSTALL_TIMEOUT: Duration = Duration::from_secs(120);

/// Whoever said so longer ago may be gone, and must not hold up those that are there. Followers say it with each heartbeat.
const LOW_SPACE_HOLDS: Duration = Duration::from_secs(5);

/// Which followers say that their disk is nearly full, and when they last did.
#[derive(Default)]
pub(crate) struct LowSpace(Mutex<HashMap<NodeId, Instant>>);

impl LowSpace {
    pub fn set(&self, node: NodeId, low: bool) {
        let mut nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match low {
            true => nodes.insert(node, Instant::now()),
            false => nodes.remove(&node),
        };
    }

    pub fn contains(&self, node: NodeId) -> bool {
        let nodes = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        nodes.get(&node).is_some_and(|said| said.elapsed() < LOW_SPACE_HOLDS)
    }
}

#[derive(Clone)]
pub(crate) struct Network {
    pub id: NodeId,
    pub transport: Arc<dyn Transport>,
    pub low_space: Arc<LowSpace>,
    pub epoch: Arc<Epoch>,
    pub versions: Arc<Versions>,
}

impl RaftNetworkFactory<Types> for Network {
    type Network = Peer;

    async fn new_client(&mut self, target: NodeId, (): &()) -> Peer {
        Peer { network: self.clone(), target, pipelined: true }
    }

    async fn new_heartbeat_client(&mut self, target: NodeId, (): &()) -> Peer {
        Peer { network: self.clone(), target, pipelined: false }
    }
}

/// One peer, as openraft sees it.
pub(crate) struct Peer {
    network: Network,
    target: NodeId,
    pipelined: bool,
}

fn transport_error(id: NodeId, target: NodeId, bound: Duration) -> impl FnOnce(TransportError) -> RPCError<Types> {
    move |error| match error {
        TransportError::Unreachable(_) => RPCError::Unreachable(Unreachable::new(&error)),
        TransportError::Timeout => {
            RPCError::Timeout(Timeout { action: RPCTypes::AppendEntries, id, target, timeout: bound })
        }
    }
}

fn broken(error: impl std::error::Error + 'static) -> RPCError<Types> {
    RPCError::Network(NetworkError::new(&error))
}

fn off_topic() -> RPCError<Types> {
    RPCError::Network(NetworkError::from_string("the peer's reply does not fit the request"))
}

pub(crate) fn append_form(request: &AppendEntriesRequest<Types>) -> Append {
    Append {
        vote: (&request.vote).into(),
        previous: request.prev_log_id.as_ref().map(LogIdForm::from),
        entries: request.entries.iter().map(Into::into).collect(),
        committed: request.leader_commit.as_ref().map(LogIdForm::from),
    }
}

fn append_result(result: AppendResult) -> StreamAppendResult<Types> {
    match result {
        AppendResult::Flushed(id) => Ok(id.map(LogId::from)),
        AppendResult::Conflict(id) => Err(StreamAppendError::Conflict(id.into())),
        AppendResult::HigherVote(vote) => Err(StreamAppendError::HigherVote(vote.into())),
    }
}

impl Peer {
    async fn call(&self, request: &Request, bound: Duration) -> Rpc<Reply> {
        let message = codec::encode(&Addressed { epoch: self.network.epoch.own(), body: request }).map_err(broken)?;
        let called = self.network.transport.call(self.target, message.into(), bound).await;
        let reply = called.map_err(transport_error(self.network.id, self.target, bound))?;
        let reply = codec::decode(&reply).map_err(broken)?;
        if let Reply::Refused(Refusal::Epoch(epoch)) = reply {
            self.network.epoch.heard(self.target, epoch);
            let error = std::io::Error::other(format!("the peer is of epoch {epoch}"));
            return Err(RPCError::Unreachable(Unreachable::new(&error)));
        }
        Ok(reply)
    }

    async fn append(&self, request: &AppendEntriesRequest<Types>) -> Rpc<StreamAppendResult<Types>> {
        match self.call(&Request::Append(append_form(request)), CALL_TIMEOUT).await? {
            Reply::Append { result, low_space, understands } => {
                self.network.low_space.set(self.target, low_space);
                self.network.versions.heard(self.target, understands);
                Ok(append_result(result))
            }
            _ => Err(off_topic()),
        }
    }

    async fn ask_vote(&self, request: Request) -> Rpc<VoteResponse<Types>> {
        match self.call(&request, CALL_TIMEOUT).await? {
            Reply::Vote(answer) => {
                Ok(VoteResponse::new(Vote::from(answer.vote), answer.last.map(LogId::from), answer.granted))
            }
            _ => Err(off_topic()),
        }
    }

    async fn open(&self, opening: &Opening) -> Rpc<(Reader, Writer)> {
        let opened = tokio::time::timeout(CALL_TIMEOUT, self.network.transport.open_stream(self.target)).await;
        let opened = opened.unwrap_or(Err(TransportError::Timeout));
        let (reader, mut writer) = opened.map_err(transport_error(self.network.id, self.target, CALL_TIMEOUT))?;
        let opening = Addressed { epoch: self.network.epoch.own(), body: opening };
        within(CALL_TIMEOUT, frame::write_message(&mut writer, &opening)).await.map_err(broken)?;
        Ok((reader, writer))
    }

    async fn send_snapshot(&self, vote: &Vote, snapshot: &Snapshot) -> Result<Vote, StreamingError<Types>> {
        let SnapshotData::Copied(dir) = &snapshot.snapshot else {
            return Err(NetworkError::from_string("only a copied snapshot can be sent").into());
        };
        let files = courier::list(dir).map_err(|e| NetworkError::new(&e))?;
        let header = SnapshotHeader {
            vote: vote.into(),
            last: snapshot.meta.last_log_id.as_ref().map(LogIdForm::from),
            membership: (&snapshot.meta.last_membership).into(),
            files: files.clone(),
        };
        let (mut reader, mut writer) = self.open(&Opening::Snapshot(header)).await?;
        courier::send(&mut writer, dir, &files).await.map_err(|e| NetworkError::new(&e))?;
        let reply = within(INSTALL_TIMEOUT, frame::read_message(&mut reader)).await;
        match reply.map_err(|e| NetworkError::new(&e))? {
            Some(SnapshotReply::Vote(vote)) => Ok(vote.into()),
            Some(SnapshotReply::Failed(why)) => Err(NetworkError::from_string(why).into()),
            None => Err(NetworkError::from_string("the peer closed the stream").into()),
        }
    }
}

impl RaftNetworkV2<Types> for Peer {
    type SnapshotData = SnapshotData;

    async fn append_entries(
        &mut self,
        request: AppendEntriesRequest<Types>,
        _option: RPCOption,
    ) -> Rpc<AppendEntriesResponse<Types>> {
        Ok(self.append(&request).await?.into())
    }

    fn stream_append<'s, S>(
        &'s mut self,
        mut input: S,
        _option: RPCOption,
    ) -> BoxFuture<'s, Rpc<BoxStream<'s, Rpc<StreamAppendResult<Types>>>>>
    where
        S: Stream<Item = AppendEntriesRequest<Types>> + OptionalSend + Unpin + 'static,
    {
        let peer = &*self;
        Box::pin(async move {
            if !peer.pipelined {
                return Ok(input.then(move |request| async move { peer.append(&request).await }).boxed());
            }
            // Whoever asks waits in its requests before it tries again: without this wait, a peer that refuses at
            // once would be asked without pause.
            let Some(first) = input.next().await else { return Ok(stream::empty().boxed()) };
            match peer.open(&Opening::Log).await {
                Ok((reader, writer)) => Ok(pipeline(peer, stream::iter([first]).chain(input), reader, writer)),
                Err(error) => Ok(stream::iter([Err(error)]).boxed()),
            }
        })
    }

    async fn vote(&mut self, request: VoteRequest<Types>, _option: RPCOption) -> Rpc<VoteResponse<Types>> {
        self.ask_vote(Request::Vote(vote_ask(&request))).await
    }

    async fn pre_vote(&mut self, request: VoteRequest<Types>, _option: RPCOption) -> Rpc<VoteResponse<Types>> {
        self.ask_vote(Request::PreVote(vote_ask(&request))).await
    }

    async fn full_snapshot(
        &mut self,
        vote: Vote,
        snapshot: Snapshot,
        cancel: impl Future<Output = ReplicationClosed> + OptionalSend + 'static,
        _option: RPCOption,
    ) -> Result<SnapshotResponse<Types>, StreamingError<Types>> {
        tokio::select! {
            biased;
            sent = self.send_snapshot(&vote, &snapshot) => Ok(SnapshotResponse::new(sent?)),
            closed = cancel => Err(closed.into()),
        }
    }

    async fn transfer_leader(
        &mut self,
        request: TransferLeaderRequest<Types>,
        _option: RPCOption,
    ) -> Rpc<TransferLeaderResponse<Types>> {
        let transfer = Transfer {
            from: VoteForm::from(request.from_leader()),
            to: *request.to_node_id(),
            last: request.last_log_id().map(LogIdForm::from),
        };
        match self.call(&Request::Transfer(transfer), CALL_TIMEOUT).await? {
            Reply::Transfer { accepted: true } => Ok(Ok(())),
            Reply::Transfer { accepted: false } => {
                Err(RPCError::Network(NetworkError::from_string("the peer does not take the leadership")))
            }
            _ => Err(off_topic()),
        }
    }
}

fn vote_ask(request: &VoteRequest<Types>) -> VoteAsk {
    VoteAsk {
        vote: (&request.vote).into(),
        last: request.last_log_id.as_ref().map(LogIdForm::from),
        transfer: request.leadership_transfer,
    }
}

/// Sends requests as they come while replies are read; replies come in the order of the requests.
fn pipeline<'s, S>(
    peer: &'s Peer,
    input: S,
    reader: Reader,
    writer: Writer,
) -> BoxStream<'s, Rpc<StreamAppendResult<Types>>>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Send + Unpin + 'static,
{
    let (sent, awaited) = mpsc::channel(PIPELINE_REQUESTS);
    let sending = stream::once(send_all(input, writer, sent)).filter_map(|result| async { result.err().map(Err) });
    let replies = stream::unfold(Some((reader, awaited)), move |open| async move {
        let (mut reader, mut awaited) = open?;
        awaited.recv().await?;
        match read_reply(peer, &mut reader).await {
            Ok(Ok(flushed)) => Some((Ok(Ok(flushed)), Some((reader, awaited)))),
            last => Some((last, None)),
        }
    });
    stream::select(replies, sending).boxed()
}

async fn send_all<S>(mut input: S, mut writer: Writer, sent: mpsc::Sender<()>) -> Rpc<()>
where
    S: Stream<Item = AppendEntriesRequest<Types>> + Unpin,
{
    while let Some(request) = input.next().await {
        let message = codec::encode(&append_form(&request)).map_err(broken)?;
        if sent.send(()).await.is_err() {
            return Ok(());
        }
        within(ENTRY_TIMEOUT, frame::write(&mut writer, &message)).await.map_err(broken)?;
    }
    Ok(())
}

async fn read_reply(peer: &Peer, reader: &mut Reader) -> Rpc<StreamAppendResult<Types>> {
    match within(ENTRY_TIMEOUT, frame::read_message(reader)).await.map_err(broken)? {
        Some(Reply::Append { result, low_space, understands }) => {
            peer.network.low_space.set(peer.target, low_space);
            peer.network.versions.heard(peer.target, understands);
            Ok(append_result(result))
        }
        Some(_) => Err(off_topic()),
        None => Err(broken(FrameError::Io(std::io::ErrorKind::UnexpectedEof.into()))),
    }
}
