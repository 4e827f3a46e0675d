//! The stored formats and the messages, pinned: a change here breaks every existing data directory
//! or every cluster of two versions, and needs a new format version and a way from the old one.

use std::fmt::Write as _;

use bytes::Bytes;
use flotilla_api::{Change, Expect, GroupResource, Key};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::backup::{BackupHeader, Piece};
use crate::codec::{self, EntryForm, LogIdForm, MembershipForm, PayloadForm, StoredMembershipForm, VoteForm};
use crate::command::{Batch, EventBounds};
use crate::disk::StoreMeta;
use crate::outcome::{Applied, Outcome};
use crate::state::Record;
use crate::wire::{
    Addressed, Append, AppendResult, Opening, Refusal, Reply, Request, SnapshotFile, SnapshotHeader, SnapshotReply,
    Transfer, VoteAnswer, VoteAsk,
};

const GOLDEN: &str = include_str!("../tests/golden.txt");

pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn pinned<T: Serialize + DeserializeOwned + PartialEq + std::fmt::Debug>(lines: &mut String, name: &str, value: &T) {
    let bytes = codec::encode(value).unwrap();
    assert_eq!(&codec::decode::<T>(&bytes).unwrap(), value);
    for end in 0..bytes.len() {
        assert!(codec::decode::<T>(&bytes[..end]).is_err(), "{name} cut at {end}");
    }
    let _ = writeln!(lines, "{name} {}", hex(&bytes));
}

fn change() -> Change {
    let key = |name: &str| Key::new(&GroupResource::new("apps", "deployments"), "default", name);
    Change { term: Some(7), ..Change::new("root", "cli") }
        .create(key("a"), "{}".into())
        .remove(key("b"), 5)
        .require(key("c"), Expect::Exists)
        .require(key("d"), Expect::CreateRevision(300))
}

#[test]
fn formats_are_as_they_were() {
    let id = LogIdForm { term: 3, index: 70_000 };
    let vote = VoteForm { term: 3, node: 0xfeed_beef, committed: true };
    let membership = MembershipForm { voters: vec![[1, 2, 3].into(), [1].into()], members: [1, 2, 3, 4].into() };
    let stored = StoredMembershipForm { at: Some(id), membership: membership.clone() };
    let entry = |payload| EntryForm { id, payload };
    let batch = Batch {
        version: 1,
        now_ms: 1_700_000_000_000,
        events: EventBounds { max_count: 10_000, max_age_ms: 3_600_000 },
        compact: Some(9),
        raise: Some(2),
        changes: vec![change()],
    };
    let append = Append { vote, previous: Some(id), entries: vec![entry(PayloadForm::Blank)], committed: None };
    let ask = VoteAsk { vote, last: Some(id), transfer: true };
    let conflict =
        flotilla_api::Conflict { key: change().writes[0].key().clone(), expect: Expect::Absent, found: Some(4) };
    let header = SnapshotHeader {
        vote,
        last: Some(id),
        membership: stored.clone(),
        files: vec![SnapshotFile { name: "CURRENT".into(), length_bytes: 16 }],
    };

    let mut lines = String::new();
    let l = &mut lines;
    pinned(l, "log-meta", &StoreMeta { epoch: 3.into(), ..StoreMeta::new("c", Some(1)) });
    pinned(l, "state-meta", &StoreMeta { epoch: 3.into(), ..StoreMeta::new("c", None) });
    pinned(l, "vote", &vote);
    pinned(l, "log-id", &id);
    pinned(l, "entry-blank", &entry(PayloadForm::Blank));
    pinned(l, "entry-command", &entry(PayloadForm::Command(Bytes::from_static(b"abc"))));
    pinned(l, "entry-membership", &entry(PayloadForm::Membership(membership)));
    pinned(l, "batch", &batch);
    pinned(l, "request-append", &Request::Append(append.clone()));
    pinned(l, "request-vote", &Request::Vote(ask));
    pinned(l, "request-pre-vote", &Request::PreVote(ask));
    pinned(l, "request-transfer", &Request::Transfer(Transfer { from: vote, to: 2, last: Some(id) }));
    pinned(l, "request-propose", &Request::Propose(change()));
    pinned(l, "request-read-index", &Request::ReadIndex);
    pinned(l, "request-add", &Request::AddReplica(2));
    pinned(l, "request-remove", &Request::RemoveReplica(2));
    pinned(l, "request-transfer-leader", &Request::TransferLeader(Some(2)));
    pinned(
        l,
        "reply-append",
        &Reply::Append { result: AppendResult::Flushed(Some(id)), low_space: false, understands: 2 },
    );
    pinned(l, "reply-conflict", &Reply::Append { result: AppendResult::Conflict(id), low_space: true, understands: 2 });
    pinned(
        l,
        "reply-higher-vote",
        &Reply::Append { result: AppendResult::HigherVote(vote), low_space: true, understands: 2 },
    );
    pinned(l, "reply-vote", &Reply::Vote(VoteAnswer { vote, granted: true, last: None }));
    pinned(l, "reply-transfer", &Reply::Transfer { accepted: true });
    pinned(l, "reply-applied", &Reply::Propose(Outcome::Applied(Applied { first_revision: 1, revision: 2 })));
    pinned(l, "reply-outcome-conflict", &Reply::Propose(Outcome::Conflict(conflict)));
    pinned(l, "reply-stale-term", &Reply::Propose(Outcome::StaleTerm { wanted: 1, current: 2 }));
    pinned(l, "reply-invalid", &Reply::Propose(Outcome::Invalid("x".into())));
    pinned(l, "reply-read-index", &Reply::ReadIndex(70_000));
    pinned(l, "reply-done", &Reply::Done);
    pinned(l, "refused-not-leader", &Reply::Refused(Refusal::NotLeader(Some(2))));
    pinned(l, "refused-no-space", &Reply::Refused(Refusal::NoSpace));
    pinned(l, "refused-invalid", &Reply::Refused(Refusal::Invalid("x".into())));
    pinned(l, "refused-unknown", &Reply::Refused(Refusal::Unknown("x".into())));
    pinned(l, "refused-failed", &Reply::Refused(Refusal::Failed("x".into())));
    pinned(l, "refused-epoch", &Reply::Refused(Refusal::Epoch(2.into())));
    pinned(l, "addressed-request", &Addressed { epoch: 2.into(), body: Request::ReadIndex });
    pinned(l, "opening-log", &Addressed { epoch: 2.into(), body: Opening::Log });
    pinned(l, "opening-snapshot", &Addressed { epoch: 2.into(), body: Opening::Snapshot(header) });
    pinned(l, "append", &append);
    pinned(l, "snapshot-vote", &SnapshotReply::Vote(vote));
    pinned(l, "snapshot-failed", &SnapshotReply::Failed("x".into()));
    crate::state::pin(l, stored);
    let backup = BackupHeader {
        cluster: "c".into(),
        epoch: 2.into(),
        revision: 12,
        applied: id,
        now_ms: 1_700_000_000_000,
        taken_ms: 1_700_000_000_001,
    };
    let record = Record {
        key: change().writes[0].key().clone(),
        create_revision: 1,
        mod_revision: 12,
        time_ms: 5,
        value: "{}".into(),
    };
    pinned(l, "backup-header", &Piece::Header(backup));
    pinned(l, "backup-objects", &Piece::Objects(vec![record]));
    pinned(l, "backup-end", &Piece::End(1));
    println!("{lines}");
    for (found, golden) in lines.lines().zip(GOLDEN.lines()) {
        assert_eq!(found, golden);
    }
    assert_eq!(lines.lines().count(), GOLDEN.lines().count(), "not as many formats");
}

#[test]
fn foreign_versions_and_trailing_bytes_are_refused() {
    let mut bytes = codec::encode(&7_u64).unwrap();
    bytes.push(0);
    assert!(codec::decode::<u64>(&bytes).unwrap_err().to_string().contains("1 bytes too many"));
    assert!(codec::decode::<u64>(&[2, 7]).unwrap_err().to_string().contains("format version 2"));
    assert!(codec::decode::<u64>(&[]).is_err());
    // A length that promises more than there can be takes no memory.
    assert!(codec::decode::<Vec<u64>>(&[1, 253, 255, 255, 255, 255, 255, 255, 255, 255]).is_err());
    assert!(codec::decode::<Bytes>(&[1, 252, 255, 255, 255, 255]).is_err());
}
