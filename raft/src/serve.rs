//! Answering peers: calls and streams that the transport has received.
//!
//! Invariant: a peer speaks of votes and entries only in its own name.

use std::time::Duration;

use bytes::Bytes;
use futures::{Stream, StreamExt, stream};
use openraft::ReadPolicy;
use openraft::raft::{
    AppendEntriesRequest, StreamAppendError, StreamAppendResult, TransferLeaderRequest, VoteRequest, VoteResponse,
};

use crate::codec::{self, LogIdForm, VoteForm};
use crate::courier::{self, CourierError};
use crate::epoch::{self, EpochId};
use crate::error::HandleError;
use crate::frame::{self, FrameError, within};
use crate::inner::Inner;
use crate::snapshot::SnapshotData;
use crate::transport::{Reader, Writer};
use crate::types::{Entry, LogId, NodeId, Types, Vote};
use crate::wire::{
    Addressed, Append, AppendResult, Opening, Refusal, Reply, Request, SnapshotHeader, SnapshotReply, Transfer,
    VoteAnswer, VoteAsk,
};

/// A stream that does not say what it is for within this time is closed.
const OPENING_TIMEOUT: Duration = Duration::from_secs(2);
const REPLY_TIMEOUT: Duration = Duration::from_secs(5);

impl Inner {
    pub async fn handle(&self, from: NodeId, message: &[u8]) -> Result<Bytes, HandleError> {
        let malformed = |e: codec::CodecError| HandleError::Malformed { from, detail: e.to_string() };
        let request: Addressed<Request> = codec::decode(message).map_err(malformed)?;
        let answer = async {
            self.admit(from, request.epoch, request.body.is_leaders()).await?;
            self.answer(from, request.body).await
        };
        let answered = tokio::time::timeout(self.options.request_timeout, answer).await;
        let reply = answered.unwrap_or_else(|_| Err(Refusal::Unknown("no answer in time".into())));
        let reply = reply.unwrap_or_else(Reply::Refused);
        codec::encode(&reply).map(Bytes::from).map_err(malformed)
    }

    /// Refuses another epoch; an empty replica takes that of its first leader.
    async fn admit(&self, from: NodeId, epoch: EpochId, is_leaders: bool) -> Result<(), Refusal> {
        if self.epoch.own().is_none() && !epoch.is_none() && is_leaders {
            epoch::adopt(&self.epoch, epoch, &self.log, &self.machine).await.map_err(fatal)?;
        }
        self.epoch.check(from, epoch)
    }

    pub async fn answer(&self, from: NodeId, request: Request) -> Result<Reply, Refusal> {
        match request {
            Request::Append(append) => {
                in_own_name(from, append.vote)?;
                self.append(append).await
            }
            Request::Vote(ask) => {
                in_own_name(from, ask.vote)?;
                Ok(vote_reply(self.raft.vote(vote_request(ask)).await.map_err(fatal)?))
            }
            Request::PreVote(ask) => {
                in_own_name(from, ask.vote)?;
                Ok(vote_reply(self.raft.pre_vote(vote_request(ask)).await.map_err(fatal)?))
            }
            Request::Transfer(transfer) => {
                in_own_name(from, transfer.from)?;
                self.take_leadership(transfer).await
            }
            Request::Propose(change) => Ok(Reply::Propose(self.propose_here(change).await?)),
            Request::ReadIndex => Ok(Reply::ReadIndex(self.read_index().await?)),
            Request::AddReplica(id) => self.add_replica_here(id).await.map(|()| Reply::Done),
            Request::RemoveReplica(id) => self.remove_replica_here(id).await.map(|()| Reply::Done),
            Request::TransferLeader(to) => self.transfer_leader_here(to).await.map(|()| Reply::Done),
        }
    }

    async fn append(&self, append: Append) -> Result<Reply, Refusal> {
        if !consecutive(&append) {
            return Err(Refusal::Invalid("entries that do not follow each other".into()));
        }
        let results = self.raft.stream_append(stream::iter([append_request(append)]));
        futures::pin_mut!(results);
        match results.next().await {
            Some(Ok(result)) => Ok(self.append_reply(result)),
            Some(Err(error)) => Err(fatal(error)),
            None => Err(Refusal::Failed("Raft has stopped".into())),
        }
    }

    fn append_reply(&self, result: StreamAppendResult<Types>) -> Reply {
        let result = match result {
            Ok(id) => AppendResult::Flushed(id.as_ref().map(LogIdForm::from)),
            Err(StreamAppendError::Conflict(id)) => AppendResult::Conflict((&id).into()),
            Err(StreamAppendError::HigherVote(vote)) => AppendResult::HigherVote((&vote).into()),
        };
        Reply::Append { result, low_space: self.space.is_low(), understands: self.versions.own() }
    }

    async fn take_leadership(&self, transfer: Transfer) -> Result<Reply, Refusal> {
        let last = transfer.last.map(LogId::from);
        let request = TransferLeaderRequest::new(transfer.from.into(), transfer.to, last);
        let accepted = self.raft.handle_transfer_leader(request).await.map_err(fatal)?;
        if let Err(error) = &accepted {
            tracing::info!(%error, "the leadership was offered but not taken");
        }
        Ok(Reply::Transfer { accepted: accepted.is_ok() })
    }

    /// The index that a linearizable read must have applied; only a leader that still leads knows.
    pub async fn read_index(&self) -> Result<u64, Refusal> {
        match self.raft.get_read_linearizer(ReadPolicy::ReadIndex).await {
            Ok(linearizer) => Ok(linearizer.read_log_id().index()),
            Err(error) => match error.forward_to_leader() {
                Some(forward) => Err(Refusal::NotLeader(forward.leader_id)),
                None => Err(Refusal::Failed(error.to_string())),
            },
        }
    }

    pub async fn handle_stream(&self, from: NodeId, mut reader: Reader, mut writer: Writer) -> Result<(), HandleError> {
        let broken = |e: FrameError| HandleError::Broken { from, detail: e.to_string() };
        let opening = within(OPENING_TIMEOUT, frame::read_message(&mut reader)).await.map_err(broken)?;
        let Some(Addressed { epoch, body }) = opening else { return Ok(()) };
        if let Err(refusal) = self.admit(from, epoch, true).await {
            return Err(HandleError::Broken { from, detail: format!("refused: {refusal:?}") });
        }
        match body {
            Opening::Log => self.follow(from, reader, writer).await,
            Opening::Snapshot(header) => {
                let reply = match self.receive(from, &header, &mut reader).await {
                    Ok(vote) => SnapshotReply::Vote((&vote).into()),
                    Err(why) => {
                        tracing::warn!(from = format!("{from:016x}"), why, "a snapshot was not installed");
                        SnapshotReply::Failed(why)
                    }
                };
                within(REPLY_TIMEOUT, frame::write_message(&mut writer, &reply)).await.map_err(broken)
            }
        }
    }

    /// Takes a leader's entries until either side ends the stream.
    async fn follow(&self, from: NodeId, reader: Reader, mut writer: Writer) -> Result<(), HandleError> {
        let broken = |detail: String| HandleError::Broken { from, detail };
        let results = self.raft.stream_append(requests(from, reader));
        futures::pin_mut!(results);
        loop {
            let result = tokio::select! {
                biased;
                () = self.machine.closing().cancelled() => return Ok(()),
                result = results.next() => result,
            };
            let Some(result) = result else { return Ok(()) };
            let result = result.map_err(|e| broken(e.to_string()))?;
            let last = result.is_err();
            let reply = self.append_reply(result);
            let written = within(REPLY_TIMEOUT, frame::write_message(&mut writer, &reply)).await;
            written.map_err(|e| broken(e.to_string()))?;
            if last {
                return Ok(());
            }
        }
    }

    async fn receive(&self, from: NodeId, header: &SnapshotHeader, reader: &mut Reader) -> Result<Vote, String> {
        if header.vote.node != from {
            return Err("a snapshot in another's name".into());
        }
        let _one_at_a_time = self.receiving.try_lock().map_err(|_| "another snapshot is being received".to_string())?;
        let said = |e: CourierError| with_sources(&e);
        let dir = courier::receive(reader, header, &self.machine, self.space.free_bytes()).await.map_err(said)?;
        let meta = dir.meta().clone();
        if meta.last_log_id != header.last.map(LogId::from) {
            return Err("the snapshot is not the announced one".into());
        }
        let snapshot = openraft::alias::SnapshotOf::<Types, _> { meta, snapshot: SnapshotData::Copied(dir) };
        let installed = self.raft.install_full_snapshot(Vote::from(header.vote), snapshot).await;
        Ok(installed.map_err(|e| e.to_string())?.vote)
    }
}

/// An error with what caused it, for the one who sent the request.
fn with_sources(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

fn in_own_name(from: NodeId, vote: VoteForm) -> Result<(), Refusal> {
    match vote.node == from {
        true => Ok(()),
        false => Err(Refusal::Invalid("a request in another's name".into())),
    }
}

fn fatal(error: impl std::fmt::Display) -> Refusal {
    Refusal::Failed(error.to_string())
}

fn vote_request(ask: VoteAsk) -> VoteRequest<Types> {
    let mut request = VoteRequest::new(ask.vote.into(), ask.last.map(LogId::from));
    request.leadership_transfer = ask.transfer;
    request
}

fn vote_reply(response: VoteResponse<Types>) -> Reply {
    Reply::Vote(VoteAnswer {
        vote: (&response.vote).into(),
        granted: response.vote_granted,
        last: response.last_log_id.as_ref().map(LogIdForm::from),
    })
}

fn append_request(append: Append) -> AppendEntriesRequest<Types> {
    AppendEntriesRequest {
        vote: append.vote.into(),
        prev_log_id: append.previous.map(LogId::from),
        entries: append.entries.into_iter().map(Entry::from).collect(),
        leader_commit: append.committed.map(LogId::from),
    }
}

/// A leader's requests, until its stream ends or one of them is not acceptable.
fn requests(from: NodeId, reader: Reader) -> impl Stream<Item = AppendEntriesRequest<Types>> + Send + 'static {
    stream::unfold(reader, move |mut reader| async move {
        match frame::read_message::<Append>(&mut reader).await {
            Ok(Some(append)) if append.vote.node == from && consecutive(&append) => {
                Some((append_request(append), reader))
            }
            Ok(None) => None,
            Ok(Some(_)) => {
                tracing::warn!(from = format!("{from:016x}"), "entries that cannot be: the stream is closed");
                None
            }
            Err(error) => {
                tracing::debug!(from = format!("{from:016x}"), %error, "a replication stream broke");
                None
            }
        }
    })
}

/// openraft takes for granted that entries follow each other.
fn consecutive(append: &Append) -> bool {
    let first = append.previous.map_or(0, |id| id.index + 1);
    append.entries.iter().zip(first..).all(|(entry, index)| entry.id.index == index)
}
