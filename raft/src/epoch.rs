//! The cluster epoch: which life of the cluster a replica belongs to.
//!
//! A cluster is born in epoch 1. Restoring a backup and recovering from a lost quorum begin the next one, without
//! those who belong to the epoch before. Every message names its sender's epoch.
//!
//! Invariant: no two restored or recovered replicas begin the same epoch, though they know nothing of each other.
//! Invariant: a request of another epoch is refused before anything in it is looked at.
//! Invariant: a replica answers in an epoch only after the epoch is on its disk. An empty one takes that of the first
//! leader that speaks to it, and then keeps it for ever.

use std::fmt;
use std::sync::{Arc, PoisonError};

use serde::{Deserialize, Serialize};

use crate::runtime::watch;

use crate::disk::DiskError;
use crate::log::Log;
use crate::machine::Machine;
use crate::runtime;
use crate::types::NodeId;
use crate::wire::Refusal;

/// The bits of an epoch's mark.
const MARK_BITS: u32 = 32;

/// Which life of a cluster something belongs to: the how manieth it is, and from the second on a mark by chance, which
/// tells apart those that were begun in different places. One number holds both, `life << 32 | mark`; one below 2^32 is a
/// life without a mark, as it was before there were marks.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct EpochId(u64);

impl EpochId {
    /// Of what belongs to no cluster yet.
    pub const NONE: Self = Self(0);
    /// In which a cluster is founded.
    pub const FIRST: Self = Self(1);

    pub fn is_none(self) -> bool {
        self == Self::NONE
    }

    /// The how manieth life of the cluster it is: how often that was restored or recovered, plus one.
    pub fn life(self) -> u64 {
        match self.0 >> MARK_BITS {
            0 => self.0,
            life => life,
        }
    }

    /// One that follows this and that nobody else begins. `None` if there is none.
    pub(crate) fn next(self) -> Option<Self> {
        let life = u32::try_from(self.life()).ok()?.checked_add(1)?;
        let mark = runtime::random() & u64::from(u32::MAX);
        Some(Self(u64::from(life) << MARK_BITS | mark))
    }

    /// Whether this is a later life than the other. Of two in the same life neither is.
    pub fn is_after(self, other: Self) -> bool {
        self.life() > other.life()
    }

    /// Whether the two were begun apart, by who knew nothing of each other.
    pub fn is_beside(self, other: Self) -> bool {
        self != other && self.life() == other.life()
    }
}

impl From<u64> for EpochId {
    fn from(number: u64) -> Self {
        Self(number)
    }
}

impl From<EpochId> for u64 {
    fn from(epoch: EpochId) -> Self {
        epoch.0
    }
}

impl fmt::Display for EpochId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 >> MARK_BITS {
            0 => write!(f, "{}", self.0),
            life => write!(f, "{life}-{:08x}", self.0 & u64::from(u32::MAX)),
        }
    }
}

/// Between the last revision of an epoch and the first of the next: more than could have been taken since the
/// state that the next one begins with, so that none is taken twice.
pub(crate) const REVISION_JUMP: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// None until the replica belongs to a cluster.
    pub own: EpochId,
    /// A member has said that the cluster is in this epoch by now.
    pub superseded_by: Option<EpochId>,
    /// A member has said that it is in this epoch, which was begun apart from this replica's.
    pub beside: Option<EpochId>,
}

/// A replica's epoch, and what it has heard of others.
#[derive(Debug)]
pub(crate) struct Epoch {
    standing: watch::Sender<Standing>,
    /// Held while an epoch is taken.
    adopting: std::sync::Mutex<()>,
}

impl Epoch {
    /// The epoch of both databases. One that was taken in one of them only is taken in the other too.
    pub fn open(log: &Log, machine: &Machine) -> Result<Self, DiskError> {
        let state = machine.state();
        let own = match (log.epoch(), state.epoch()) {
            (log, state) if log == state => log,
            (EpochId::NONE, own) => {
                log.set_epoch(own)?;
                own
            }
            (own, EpochId::NONE) => {
                state.set_epoch(own)?;
                own
            }
            (other, own) => {
                return Err(DiskError::damaged(
                    machine.root(),
                    format!("the log is of epoch {other}, the state of {own}"),
                ));
            }
        };
        let (standing, _) = watch::channel(Standing { own, ..Standing::default() });
        Ok(Self { standing, adopting: std::sync::Mutex::default() })
    }

    pub fn own(&self) -> EpochId {
        self.standing.borrow().own
    }

    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Makes an empty replica belong to an epoch, durably.
    pub fn adopt(&self, epoch: EpochId, log: &Log, machine: &Machine) -> Result<(), DiskError> {
        let _alone = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.own().is_none() {
            log.set_epoch(epoch)?;
            machine.state().set_epoch(epoch)?;
            self.standing.send_modify(|standing| standing.own = epoch);
        }
        Ok(())
    }

    /// Whether a request of `epoch` may be looked at.
    pub fn check(&self, from: NodeId, epoch: EpochId) -> Result<(), Refusal> {
        let own = self.own();
        if own == epoch && !own.is_none() {
            return Ok(());
        }
        self.heard(from, epoch);
        Err(Refusal::Epoch(own))
    }

    /// Takes note of the epoch that a member says it is in.
    pub fn heard(&self, from: NodeId, epoch: EpochId) {
        self.standing.send_if_modified(|standing| {
            let news = standing.hear(epoch);
            if let Some(news) = news {
                let from = format!("{from:016x}");
                tracing::error!(from, own = %standing.own, theirs = %epoch, "{news}");
            }
            news.is_some()
        });
    }
}

impl Standing {
    /// Returns what is to be said of it, if it is new.
    fn hear(&mut self, epoch: EpochId) -> Option<&'static str> {
        if self.own.is_none() {
            return None;
        }
        if epoch.is_after(self.superseded_by.unwrap_or(self.own)) {
            self.superseded_by = Some(epoch);
            return Some("the cluster has begun another epoch without this replica");
        }
        if epoch.is_beside(self.own) && self.beside.is_none() {
            self.beside = Some(epoch);
            return Some(
                "another replica was restored or recovered apart from this one: there are two clusters with one name",
            );
        }
        None
    }
}

/// Takes an epoch on a thread that may wait for the disk.
pub(crate) async fn adopt(epoch: &Arc<Epoch>, to: EpochId, log: &Log, machine: &Arc<Machine>) -> Result<(), DiskError> {
    let (epoch, log, root) = (epoch.clone(), log.clone(), machine.root().to_owned());
    let machine = machine.clone();
    let adopted = runtime::blocking(move || epoch.adopt(to, &log, &machine)).await;
    adopted.map_err(DiskError::io(&root))?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nobody_begins_the_epoch_of_another_and_each_comes_after_the_one_before() {
        let first = EpochId::FIRST;
        let (one, other) = (first.next().unwrap(), first.next().unwrap());
        assert!(one.is_after(first) && !first.is_after(one));
        assert!(one.is_beside(other) && other.is_beside(one), "{one} {other}");
        assert!(!one.is_after(other) && !other.is_after(one) && !one.is_beside(one));
        assert_eq!((first.life(), one.life(), one.next().unwrap().life()), (1, 2, 3));
        assert!(u64::from(one) > u64::from(first), "who compares the numbers comes to the same");
    }

    #[test]
    fn an_epoch_without_a_mark_is_the_number_that_it_was() {
        assert_eq!(EpochId::FIRST.to_string(), "1");
        assert_eq!(EpochId::from(3).to_string(), "3");
        assert_eq!(EpochId::from(2 << 32 | 0xab).to_string(), "2-000000ab");
        let next = EpochId::from(3).next().unwrap();
        assert!(next.is_after(EpochId::from(3)) && next.to_string().starts_with("4-"), "{next}");
        for last in [u64::from(u32::MAX), u64::MAX] {
            assert_eq!(EpochId::from(last).next(), None);
        }
    }

    #[test]
    fn who_is_refused_is_told_in_which_epoch_the_other_is() {
        let own = EpochId::from(2 << 32 | 0xab);
        let (standing, watched) = watch::channel(Standing { own, ..Standing::default() });
        let epoch = Epoch { standing, adopting: std::sync::Mutex::default() };
        assert_eq!(epoch.check(7, own), Ok(()));
        for other in [EpochId::NONE, EpochId::FIRST, EpochId::from(2 << 32 | 0xac), EpochId::from(3 << 32)] {
            assert_eq!(epoch.check(7, other), Err(Refusal::Epoch(own)), "{other}");
        }
        let said = crate::Error::from(Refusal::Epoch(own)).to_string();
        assert_eq!(said, "the leader is of another epoch, 2-000000ab");
        assert_eq!(watched.borrow().superseded_by, Some(EpochId::from(3 << 32)));
        let (standing, _) = watch::channel(Standing::default());
        let empty = Epoch { standing, adopting: std::sync::Mutex::default() };
        assert_eq!(empty.check(7, EpochId::NONE), Err(Refusal::Epoch(EpochId::NONE)), "nobody is of none");
    }

    #[test]
    fn what_is_new_of_other_epochs_is_said_once() {
        let (own, later) = (EpochId::from(2 << 32 | 7), EpochId::from(3 << 32 | 1));
        let mut standing = Standing { own, ..Standing::default() };
        for old in [EpochId::NONE, EpochId::FIRST, own] {
            assert_eq!(standing.hear(old), None);
        }
        // A smaller mark as well as a greater one: neither of the two is the cluster's.
        for mark in [6, 8] {
            let beside = EpochId::from(2 << 32 | mark);
            let mut standing = standing;
            assert!(standing.hear(beside).unwrap().contains("apart from this one"));
            assert_eq!((standing.beside, standing.superseded_by, standing.hear(beside)), (Some(beside), None, None));
        }
        assert!(standing.hear(later).unwrap().contains("without this replica"));
        assert_eq!((standing.superseded_by, standing.hear(later)), (Some(later), None));
        let mut empty = Standing::default();
        assert_eq!((empty.hear(later), empty.superseded_by), (None, None), "one that is of none takes what there is");
    }
}
