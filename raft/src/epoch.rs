//! The cluster epoch: which life of the cluster a replica belongs to.
//!
//! A cluster is born in epoch 1. Restoring a backup and recovering from a lost quorum begin the next one, without
//! those who belong to the epoch before. Every message names its sender's epoch.
//!
//! Invariant: a request of another epoch is refused before anything in it is looked at.
//! Invariant: a replica answers in an epoch only after the epoch is on its disk. An empty one takes that of the first
//! leader that speaks to it, and then keeps it for ever.

use std::sync::{Arc, PoisonError};

use crate::runtime::watch;

use crate::disk::DiskError;
use crate::log::Log;
use crate::machine::Machine;
use crate::runtime;
use crate::types::NodeId;
use crate::wire::Refusal;

/// The epoch in which a cluster is founded.
pub(crate) const FIRST_EPOCH: u64 = 1;

/// Between the last revision of an epoch and the first of the next: more than could have been taken since the
/// state that the next one begins with, so that none is taken twice.
pub(crate) const REVISION_JUMP: u64 = 1 << 40;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Standing {
    /// 0 until the replica belongs to a cluster.
    pub own: u64,
    /// A member has said that the cluster is in this epoch by now.
    pub superseded_by: Option<u64>,
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
            (0, own) => {
                log.set_epoch(own)?;
                own
            }
            (own, 0) => {
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
        let (standing, _) = watch::channel(Standing { own, superseded_by: None });
        Ok(Self { standing, adopting: std::sync::Mutex::default() })
    }

    pub fn own(&self) -> u64 {
        self.standing.borrow().own
    }

    pub fn standing(&self) -> watch::Receiver<Standing> {
        self.standing.subscribe()
    }

    /// Makes an empty replica belong to an epoch, durably.
    pub fn adopt(&self, epoch: u64, log: &Log, machine: &Machine) -> Result<(), DiskError> {
        let _alone = self.adopting.lock().unwrap_or_else(PoisonError::into_inner);
        if self.own() == 0 {
            log.set_epoch(epoch)?;
            machine.state().set_epoch(epoch)?;
            self.standing.send_modify(|standing| standing.own = epoch);
        }
        Ok(())
    }

    /// Whether a request of `epoch` may be looked at.
    pub fn check(&self, from: NodeId, epoch: u64) -> Result<(), Refusal> {
        let own = self.own();
        if own == epoch && own != 0 {
            return Ok(());
        }
        self.heard(from, epoch);
        Err(Refusal::Epoch(own))
    }

    /// Takes note of the epoch that a member says it is in.
    pub fn heard(&self, from: NodeId, epoch: u64) {
        self.standing.send_if_modified(|standing| {
            if standing.own == 0 || epoch <= standing.superseded_by.unwrap_or(standing.own) {
                return false;
            }
            tracing::error!(
                from = format!("{from:016x}"),
                own = standing.own,
                theirs = epoch,
                "the cluster has begun another epoch without this replica"
            );
            standing.superseded_by = Some(epoch);
            true
        });
    }
}

/// Takes an epoch on a thread that may wait for the disk.
pub(crate) async fn adopt(epoch: &Arc<Epoch>, to: u64, log: &Log, machine: &Arc<Machine>) -> Result<(), DiskError> {
    let (epoch, log, root) = (epoch.clone(), log.clone(), machine.root().to_owned());
    let machine = machine.clone();
    let adopted = runtime::blocking(move || epoch.adopt(to, &log, &machine)).await;
    adopted.map_err(DiskError::io(&root))?
}
