//! A damaged replica is made anew from the others, under the id that it had.
//!
//! Raft counts on what a replica has promised: entries that it holds, votes that it gave. One whose disk is damaged may
//! have forgotten that, so it must not speak again before nobody counts on it. It leaves the group, forgets everything,
//! and is added again as an empty one.
//!
//! Invariant: a replica with a mark does not open. The mark is on disk before anybody is asked for anything.
//! Invariant: a replica is emptied only after a leader has said, asked while the replica stood still, that a membership
//! without it is committed. A majority of the members before holds that membership then, the replica not counted, and
//! elects nobody who lacks it: what the replica promised decides nothing any more.
//! Invariant: a replica that was emptied stands for no election before it has applied what was committed when it was.
//! On its way there it goes by memberships of long ago, and in some of them it may be a voter, even the only one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::codec;
use crate::disk::{Disk, DiskError};
use crate::epoch::EpochId;
use crate::machine::Machine;
use crate::options::Options;
use crate::runtime::{self, watch};
use crate::transport::Transport;
use crate::types::{NodeId, Raft};
use crate::wire::{Addressed, Refusal, Reply, Request};

const MARK: &str = "damaged";
/// Beside the store, since it is there before the empty one is.
const BEHIND: &str = "behind";
const MAX_MARK_BYTES: u64 = 64 * 1024;
const MAX_BEHIND_BYTES: u64 = 1024;
/// Longer than a leader takes to answer, which may have to change the voters first.
const ASK_TIMEOUT: Duration = Duration::from_secs(6);

/// What is known of the damage.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub detail: String,
    /// The epoch of the replica; none if that cannot be read any more.
    pub epoch: EpochId,
}

/// How far an emptied replica has to come before it is like any other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Behind {
    /// The replica that was emptied. Another one in its place never promised anything.
    id: NodeId,
    /// The log index that was committed when the replica was let go.
    index: u64,
}

/// A damaged replica was not made anew. It is as it was, and still does not open.
#[derive(Debug, thiserror::Error)]
pub enum RefillError {
    #[error(transparent)]
    Disk(#[from] DiskError),
    /// The cluster has gone on in this epoch, without this replica.
    #[error("the cluster is in epoch {0} by now, and this replica is not of it")]
    Superseded(EpochId),
    #[error("no leader has taken the damaged replica out of the group: {0}")]
    Refused(String),
}

/// Makes a damaged replica, which no process may have open, an empty one that waits to be added, as soon as the leader
/// that one of `peers` knows of has taken it out of the group. To be tried again when it fails.
///
/// # Errors
/// See [`RefillError`].
pub async fn refill(options: &Options, peers: &[NodeId], transport: &Arc<dyn Transport>) -> Result<(), RefillError> {
    let (dir, disk) = (options.dir.clone(), Disk::default());
    let Some(mark) = read(&dir, &disk)? else { return Ok(()) };
    let id = options.id;
    let index = leave(id, mark.epoch, peers, transport).await?;
    let emptied = runtime::blocking(move || {
        note(&dir.with_extension(BEHIND), &Behind { id, index }, &disk)?;
        empty(&dir, &disk)
    })
    .await;
    Ok(emptied.map_err(DiskError::io(&options.dir))??)
}

/// Whether nothing is left in the directory of a replica, and not because it was emptied to be made anew.
#[must_use]
pub fn is_gone(dir: &Path) -> bool {
    let is_empty = match dir.read_dir() {
        Ok(mut items) => items.next().is_none(),
        Err(error) => error.kind() == std::io::ErrorKind::NotFound,
    };
    is_empty && !dir.with_extension(BEHIND).exists()
}

/// Notes durably that a replica is damaged, unless that is known.
pub(crate) fn mark(dir: &Path, mark: &Mark, disk: &Disk) -> Result<(), DiskError> {
    let path = dir.join(MARK);
    if disk.read(&path, MAX_MARK_BYTES).map_err(DiskError::io(&path))?.is_some() {
        return Ok(());
    }
    note(&path, mark, disk)
}

/// Makes a small file durable, whole or not at all.
fn note(path: &Path, what: &impl Serialize, disk: &Disk) -> Result<(), DiskError> {
    let mut next = path.as_os_str().to_owned();
    next.push(".next");
    let next = PathBuf::from(next);
    let bytes = codec::encode(what).map_err(|e| DiskError::damaged(path, e))?;
    let mut file = disk.writer(&next).map_err(DiskError::io(&next))?;
    file.write_all(&bytes).and_then(|()| file.flush()).map_err(DiskError::io(&next))?;
    disk.sync(&next).map_err(DiskError::io(&next))?;
    disk.rename(&next, path).map_err(DiskError::io(path))?;
    match path.parent() {
        Some(dir) => disk.sync(dir).map_err(DiskError::io(dir)),
        None => Ok(()),
    }
}

/// The log index that this replica, if it was emptied, has to have applied before it stands for election. What is left
/// over of another replica is removed.
///
/// # Errors
/// `Damaged` if it cannot be read any more: the replica has to be made anew once more.
pub(crate) fn behind(dir: &Path, id: NodeId, disk: &Disk) -> Result<Option<u64>, DiskError> {
    let path = dir.with_extension(BEHIND);
    let Some(bytes) = disk.read(&path, MAX_BEHIND_BYTES).map_err(DiskError::io(&path))? else { return Ok(None) };
    let behind: Behind = codec::decode(&bytes).map_err(|e| DiskError::damaged(&path, e))?;
    if behind.id == id {
        return Ok(Some(behind.index));
    }
    forget(dir, disk)?;
    Ok(None)
}

/// Lets the replica be like any other: it has caught up, or there is nobody left whom it could mislead.
pub(crate) fn forget(dir: &Path, disk: &Disk) -> Result<(), DiskError> {
    let path = dir.with_extension(BEHIND);
    match disk.remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DiskError::io(&path)(error)),
        _ => Ok(()),
    }
}

/// Lets a replica stand for election once it has applied this log index.
pub(crate) async fn catch_up(index: u64, raft: Raft, machine: Arc<Machine>, behind: watch::Sender<bool>) {
    let applied = raft.wait(None);
    let reached = applied.applied_index_at_least(Some(index), "an emptied replica catches up");
    match machine.closing().run_until_cancelled(reached).await {
        Some(Ok(_)) => {}
        // It ends, or Raft has.
        Some(Err(_)) | None => return,
    }
    raft.runtime_config().elect(true);
    behind.send_replace(false);
    // From here on the note only makes the next start more careful than it need be.
    let caught_up = machine.clone();
    let removed = runtime::blocking(move || {
        // What was applied is read back from the state, which must outlive what says that it is needed.
        caught_up.state().flush().map_err(DiskError::db(caught_up.root()))?;
        forget(caught_up.root(), caught_up.disk())
    });
    if let Err(error) = removed.await.map_err(DiskError::io(machine.root())).flatten() {
        tracing::error!(error = &error as &dyn std::error::Error, "that a replica has caught up cannot be noted");
    }
}

/// The mark of a replica that is damaged.
pub(crate) fn read(dir: &Path, disk: &Disk) -> Result<Option<Mark>, DiskError> {
    let path = dir.join(MARK);
    let bytes = disk.read(&path, MAX_MARK_BYTES).map_err(DiskError::io(&path))?;
    // That it is there is what counts.
    let unread = |_| Mark { detail: "the mark of the damage is damaged too".into(), epoch: EpochId::NONE };
    Ok(bytes.map(|bytes| codec::decode(&bytes).unwrap_or_else(unread)))
}

/// Removes what an earlier refill did not get around to.
pub(crate) fn tidy(dir: &Path, disk: &Disk) -> Result<(), DiskError> {
    let aside = aside(dir);
    match disk.remove_dir(&aside) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(DiskError::io(&aside)(error)),
        _ => Ok(()),
    }
}

/// Puts everything aside in one step, the mark included, and then removes it.
fn empty(dir: &Path, disk: &Disk) -> Result<(), DiskError> {
    tidy(dir, disk)?;
    disk.rename(dir, &aside(dir)).map_err(DiskError::io(dir))?;
    if let Some(parent) = dir.parent() {
        disk.sync(parent).map_err(DiskError::io(parent))?;
    }
    tidy(dir, disk)
}

fn aside(dir: &Path) -> PathBuf {
    dir.with_extension("damaged")
}

/// Has the leader commit a membership without this replica. Returns a log index that was committed then.
async fn leave(
    id: NodeId,
    epoch: EpochId,
    peers: &[NodeId],
    transport: &Arc<dyn Transport>,
) -> Result<u64, RefillError> {
    let mut refused = String::from("no other replica is known");
    for peer in peers.iter().filter(|peer| **peer != id) {
        match ask(*peer, id, epoch, transport).await {
            Ok(committed) => return Ok(committed),
            Err(Asked::Superseded(epoch)) => return Err(RefillError::Superseded(epoch)),
            // Who leads is among the peers too.
            Err(Asked::Refused(why)) => refused = format!("{peer:016x}: {why}"),
        }
    }
    Err(RefillError::Refused(refused))
}

enum Asked {
    Superseded(EpochId),
    Refused(String),
}

/// Has this peer, if it leads, remove the replica, and then say what is committed.
async fn ask(peer: NodeId, id: NodeId, known_epoch: EpochId, transport: &Arc<dyn Transport>) -> Result<u64, Asked> {
    let (mut epoch, mut removed) = (known_epoch, false);
    loop {
        let body = if removed { Request::ReadIndex } else { Request::RemoveReplica(id) };
        match put(peer, Addressed { epoch, body }, transport).await? {
            Reply::Done if !removed => removed = true,
            Reply::ReadIndex(committed) if removed => return Ok(committed),
            // What cannot be read any more is asked for.
            Reply::Refused(Refusal::Epoch(theirs)) if epoch.is_none() && !theirs.is_none() => epoch = theirs,
            Reply::Refused(Refusal::Epoch(theirs)) if theirs.is_after(epoch) => return Err(Asked::Superseded(theirs)),
            Reply::Refused(Refusal::Epoch(theirs)) => {
                return Err(Asked::Refused(format!("it is of epoch {theirs}, and the damaged replica of {epoch}")));
            }
            Reply::Refused(Refusal::NotLeader(_)) => return Err(Asked::Refused("does not lead".into())),
            Reply::Refused(Refusal::Unknown(why) | Refusal::Failed(why) | Refusal::Invalid(why)) => {
                return Err(Asked::Refused(why));
            }
            other => return Err(Asked::Refused(format!("{other:?}"))),
        }
    }
}

async fn put(peer: NodeId, request: Addressed<Request>, transport: &Arc<dyn Transport>) -> Result<Reply, Asked> {
    let refused = |why: &dyn std::fmt::Display| Asked::Refused(why.to_string());
    let message = codec::encode(&request).map_err(|e| refused(&e))?;
    let reply = transport.call(peer, message.into(), ASK_TIMEOUT).await.map_err(|e| refused(&e))?;
    codec::decode(&reply).map_err(|e| refused(&e))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_stays_as_it_was_made_and_goes_with_everything_else() {
        let parent = tempfile::TempDir::new().unwrap();
        let (dir, disk) = (parent.path().join("store"), Disk::default());
        disk.create_dir(&dir.join("log")).unwrap();
        assert_eq!(read(&dir, &disk).unwrap(), None);
        let first = Mark { detail: "a bit".into(), epoch: 3.into() };
        mark(&dir, &first, &disk).unwrap();
        mark(&dir, &Mark { detail: "another".into(), epoch: EpochId::NONE }, &disk).unwrap();
        assert_eq!(read(&dir, &disk).unwrap(), Some(first));
        std::fs::write(dir.join(MARK), b"").unwrap();
        assert_eq!(read(&dir, &disk).unwrap().unwrap().epoch, EpochId::NONE, "a mark that cannot be read is one");
        empty(&dir, &disk).unwrap();
        assert_eq!(std::fs::read_dir(parent.path()).unwrap().count(), 0);
    }

    #[test]
    fn how_far_an_emptied_replica_has_to_come_is_no_other_replicas_concern() {
        let parent = tempfile::TempDir::new().unwrap();
        let (dir, disk) = (parent.path().join("store"), Disk::default());
        forget(&dir, &disk).unwrap();
        note(&dir.with_extension(BEHIND), &Behind { id: 1, index: 7 }, &disk).unwrap();
        assert_eq!(behind(&dir, 1, &disk).unwrap(), Some(7));
        assert_eq!(behind(&dir, 2, &disk).unwrap(), None);
        assert_eq!(behind(&dir, 1, &disk).unwrap(), None, "it was removed");
        std::fs::write(dir.with_extension(BEHIND), b"").unwrap();
        assert!(behind(&dir, 1, &disk).unwrap_err().is_damage());
    }
}
