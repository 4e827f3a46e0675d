//! What the faces of a node reach: the gate, the other nodes, and what runs here.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use flotilla_net::Net;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accounts::Accounts;
use crate::agent::Local;
use crate::audit::Audit;
use crate::blobs::BlobPeers;
use crate::config::Config;
use crate::gate::Gate;
use crate::members::Members;
use crate::metrics::Metrics;
use crate::streams::Streams;
use crate::trust::Trust;
use crate::turnstile::Turnstile;

/// Handles of everything that runs in this daemon. Cheap to clone.
#[derive(Clone)]
pub struct Node {
    pub config: Arc<Config>,
    pub gate: Gate,
    pub turnstile: Turnstile,
    pub audit: Audit,
    pub metrics: Arc<Metrics>,
    pub accounts: Accounts,
    pub net: Net,
    pub members: Members,
    pub streams: Streams,
    pub local: Arc<Local>,
    pub trust: Arc<Trust>,
    /// `None`: layers come from registries only.
    pub blobs: Option<BlobPeers>,
    /// What must end before the daemon does.
    pub tasks: TaskTracker,
    /// It leaves by itself, and ends the daemon when it has.
    pub is_leaving: Arc<AtomicBool>,
    /// Ends the daemon.
    pub stop: CancellationToken,
}
