//! Which member keeps track of a blob: the one whose hash with the blob is the highest. All members that know the same
//! members agree without talking, and when one goes, only its own blobs move.

use aws_lc_rs::digest::{Context, SHA256};
use serde::{Deserialize, Serialize};

use super::BlobDigest;
use crate::names::NodeId;

const MARK_DOMAIN: &[u8] = b"flotilla/blob-mark/1";
const ORDER_DOMAIN: &[u8] = b"flotilla/blob-tracker/1";

/// What a tracker knows a blob by: a hash of its digest, which does not give the digest away.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Mark([u8; 32]);

impl Mark {
    pub fn of(digest: &BlobDigest) -> Self {
        Self(hash(&[MARK_DOMAIN, digest]))
    }
}

/// The members in the order in which they are the blob's tracker: the first is, the next one if that is gone.
pub fn order(mark: Mark, members: &[NodeId]) -> Vec<NodeId> {
    let mut ranked: Vec<_> =
        members.iter().map(|node| (hash(&[ORDER_DOMAIN, &mark.0, &node.to_be_bytes()]), *node)).collect();
    ranked.sort_unstable_by(|a, b| b.cmp(a));
    ranked.into_iter().map(|(_, node)| node).collect()
}

fn hash(parts: &[&[u8]]) -> [u8; 32] {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut bytes = [0; 32];
    bytes.copy_from_slice(context.finish().as_ref());
    bytes
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn all_agree_whatever_order_they_know_each_other_in() {
        let mark = Mark::of(&[7; 32]);
        assert_eq!(order(mark, &[1, 2, 3, 4]), order(mark, &[4, 2, 1, 3]));
    }

    #[test]
    fn when_a_tracker_goes_the_next_takes_over_and_other_blobs_stay() {
        for blob in 0..=255 {
            let mark = Mark::of(&[blob; 32]);
            let all = order(mark, &[1, 2, 3, 4, 5]);
            let fewer: Vec<_> = (1..=5).filter(|node| *node != 3).collect();
            let expected: Vec<_> = all.into_iter().filter(|node| *node != 3).collect();
            assert_eq!(order(mark, &fewer), expected);
        }
    }

    #[test]
    fn the_work_is_spread() {
        let first: BTreeSet<_> = (0..=255).map(|blob| order(Mark::of(&[blob; 32]), &[1, 2, 3, 4, 5])[0]).collect();
        assert_eq!(first.len(), 5);
    }
}
