//! Nodes without a replica: a replica tells them what of the store concerns them (`feed`), and they keep it in memory
//! (`follow`). What clients ask of them they pass on (`forward`).
//!
//! A node asks to follow from the revision that it has; the replica lists the node's slice as of a revision that is no
//! earlier, and from then on sends what changes in it. Each message is a frame.
//!
//! Invariant: a node is told what concerns it by the certificate that it showed, whatever it says.

mod feed;
mod follow;
mod forward;

pub use feed::{SliceHandler, feed};
pub use follow::follow;
pub use forward::{ApiHandler, Lane, evict, forward, is_own, receiver, refusal, tell_known};

use flotilla_api::Key;
use flotilla_raft::{EpochId, KeyValue, NodeId, SliceUpdate, SliceWrite};
use serde::{Deserialize, Serialize};

/// The largest frame of a replica.
pub(crate) const MAX_FRAME_BYTES: usize = 16 << 20;
/// The largest frame of a node.
pub(crate) const MAX_ASK_BYTES: usize = 256;

/// What a node says. Variants are only added, at the end.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Ask {
    /// The first message: send my slice, as of this revision or later. I am of this cluster epoch; none for none yet.
    Follow { revision: u64, epoch: EpochId },
    /// How far has everything come that was acknowledged by now?
    Barrier,
}

/// Whether a replica of one cluster epoch feeds a node of another; a node that is of none yet takes what there is.
pub(crate) fn may_feed(replica: EpochId, node: EpochId) -> bool {
    node.is_none() || node == replica
}

/// What a replica says. Variants are only added, at the end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Tell {
    /// The node is not fed, and why. Whoever refuses is of this cluster epoch, and these have replicas, as far as is known
    /// there.
    Refused {
        epoch: EpochId,
        why: String,
        replicas: Vec<NodeId>,
    },
    /// The slice as of a revision is the objects that follow, up to `Begun`; of two with one key, the later.
    Begin {
        epoch: EpochId,
        revision: u64,
        replicas: Vec<NodeId>,
    },
    Objects(Vec<Object>),
    Begun,
    Update(Update),
    /// To the oldest question that is open: this revision has been reached.
    Answer(u64),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Object {
    key: Key,
    value: Vec<u8>,
    create_revision: u64,
    mod_revision: u64,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Update {
    upto: u64,
    gained: Vec<Object>,
    writes: Vec<Write>,
    lost: Vec<Key>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Write {
    Put(Object),
    Delete { key: Key, revision: u64 },
}

impl Write {
    fn revision(&self) -> u64 {
        match self {
            Write::Put(object) => object.mod_revision,
            Write::Delete { revision, .. } => *revision,
        }
    }
}

/// Why what a replica said is not believed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no key")]
pub(crate) struct BadKey(String);

fn checked(key: Key) -> Result<Key, BadKey> {
    Key::parse(key.as_str()).ok_or_else(|| BadKey(key.as_str().to_owned()))
}

impl From<&KeyValue> for Object {
    fn from(kv: &KeyValue) -> Self {
        Self {
            key: kv.key.clone(),
            value: kv.value.to_vec(),
            create_revision: kv.create_revision,
            mod_revision: kv.mod_revision,
        }
    }
}

impl TryFrom<Object> for KeyValue {
    type Error = BadKey;

    fn try_from(object: Object) -> Result<Self, BadKey> {
        let Object { key, value, create_revision, mod_revision } = object;
        Ok(Self { key: checked(key)?, value: value.into(), create_revision, mod_revision })
    }
}

impl TryFrom<Update> for SliceUpdate {
    type Error = BadKey;

    fn try_from(update: Update) -> Result<Self, BadKey> {
        let write = |write| {
            Ok(match write {
                Write::Put(object) => SliceWrite::Put(object.try_into()?),
                Write::Delete { key, revision } => SliceWrite::Delete { key: checked(key)?, revision },
            })
        };
        Ok(Self {
            upto: update.upto,
            gained: update.gained.into_iter().map(KeyValue::try_from).collect::<Result<_, _>>()?,
            writes: update.writes.into_iter().map(write).collect::<Result<_, _>>()?,
            lost: update.lost.into_iter().map(checked).collect::<Result<_, _>>()?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_fed_by_replicas_of_its_own_epoch() {
        let [none, one, two, beside] = [0, 1, 2 << 32 | 7, 2 << 32 | 8].map(EpochId::from);
        assert!(may_feed(two, two) && may_feed(two, none), "one that is new is of none");
        assert!(!may_feed(two, one) && !may_feed(one, two) && !may_feed(none, one));
        assert!(!may_feed(two, beside) && !may_feed(beside, two));
    }
}

#[cfg(any(test, fuzzing))]
pub(crate) mod fuzz {
    use super::*;

    /// Whatever a peer sends is refused or understood; what was understood is written as it was read.
    pub fn messages(bytes: &[u8]) {
        let told = flotilla_net::codec::decode::<Tell>(bytes);
        if let Ok(told) = told {
            let again =
                flotilla_net::codec::encode(&told).ok().and_then(|bytes| flotilla_net::codec::decode(&bytes).ok());
            assert_eq!(again, Some(told.clone()));
            if let Tell::Update(update) = told {
                _ = SliceUpdate::try_from(update);
            }
        }
        _ = flotilla_net::codec::decode_within::<Ask, MAX_ASK_BYTES>(bytes);
    }
}
