//! The gate: the one way in for every request, whatever face it came through.
//!
//! It asks whether the user may do this, fills in defaults, validates, mints what must not be minted later (uid, name,
//! time), and proposes a [`Change`]. Behaviour is that of a Kubernetes API server for the same verb.
//!
//! Invariant: nothing reaches the store that did not pass authorization and validation here, but for what planners
//! decide on the leader.
//! Invariant: what a kind declares as sealed is encrypted before it is proposed, and readable again only for those who
//! may read the object.

mod account;
mod addresses;
#[cfg(test)]
pub(crate) mod alone;
mod apply;
mod authorize;
mod delete;
mod escalate;
mod evict;
mod known;
mod node;
mod node_ports;
mod own;
mod policies;
mod read;
mod renderings;
mod requests;
mod roles;
mod seal;
mod settle;
mod write;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use flotilla_api::{Builtin, Cause, Key, Kind, Reason, Registry, Status};
use flotilla_raft::{KeyValue, ProposeError, ReadError, Store};
use prometheus::Histogram;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::metrics;
use policies::Policies;
use renderings::Renderings;
use roles::Roles;
use write::Parents;

pub use apply::Outcome;
pub use authorize::{HEALTH_PATHS, resource_action};
pub use delete::{DeleteOptions, Propagation};
#[cfg(any(test, fuzzing))]
pub(crate) use read::Continue;
pub use read::{At, Found, Happened, List, ListQuery, ObjectEvent, Observer};
pub use seal::{Ring, Sealer, keyring_key};
pub(crate) use write::prepare;
pub use write::{How, Ownership, WriteOptions, Written, take_over};

/// How often a read-modify-write that somebody else overtook is begun anew.
const MAX_ATTEMPTS: usize = 16;

/// Who asks.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct User {
    pub name: String,
    /// Tells one bearer of a name from an earlier one; empty if nobody does.
    pub uid: String,
    pub groups: Vec<String>,
    /// What whoever authenticated the user said besides.
    pub extra: BTreeMap<String, Vec<String>>,
}

impl User {
    /// The group that may do everything.
    pub const MASTERS: &'static str = "system:masters";
    /// The group of node identities.
    pub const NODES: &'static str = "system:nodes";
    /// The group of everyone who showed who they are.
    pub const AUTHENTICATED: &'static str = "system:authenticated";
    /// The group of everyone who did not.
    pub const UNAUTHENTICATED: &'static str = "system:unauthenticated";
    /// Who did not say who they are.
    pub const ANONYMOUS: &'static str = "system:anonymous";

    /// A name with groups, as a certificate or a token gives them.
    pub fn new(name: impl Into<String>, groups: Vec<String>) -> Self {
        Self { name: name.into(), groups, ..Self::default() }
    }

    /// Somebody who did not say who they are.
    pub fn anonymous() -> Self {
        Self::new(Self::ANONYMOUS, vec![Self::UNAUTHENTICATED.into()])
    }

    pub fn is_anonymous(&self) -> bool {
        self.groups.iter().any(|group| group == Self::UNAUTHENTICATED)
    }

    /// Root on this machine, through the Unix socket.
    pub fn root() -> Self {
        Self::new("root", vec![Self::MASTERS.into()])
    }

    /// A node, by its certificate.
    pub fn node(name: &str) -> Self {
        Self::new(format!("system:node:{name}"), vec![Self::NODES.into()])
    }

    /// Who this is, as Kubernetes' `UserInfo` has it.
    pub fn info(&self) -> Value {
        let mut info = json!({"username": self.name, "groups": self.groups});
        if !self.uid.is_empty() {
            info["uid"] = self.uid.as_str().into();
        }
        if !self.extra.is_empty() {
            info["extra"] = json!(self.extra);
        }
        info
    }

    /// Whether this user may do everything.
    pub fn is_master(&self) -> bool {
        self.groups.iter().any(|group| group == Self::MASTERS)
    }

    /// The name of the node that this user is.
    pub fn as_node(&self) -> Option<&str> {
        self.groups.iter().any(|group| group == Self::NODES).then(|| self.name.strip_prefix("system:node:")).flatten()
    }
}

/// What is asked, in the words of RBAC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verb {
    Get,
    List,
    Watch,
    Create,
    Update,
    Patch,
    Delete,
    DeleteCollection,
}

impl Verb {
    pub fn as_str(self) -> &'static str {
        match self {
            Verb::Get => "get",
            Verb::List => "list",
            Verb::Watch => "watch",
            Verb::Create => "create",
            Verb::Update => "update",
            Verb::Patch => "patch",
            Verb::Delete => "delete",
            Verb::DeleteCollection => "deletecollection",
        }
    }
}

impl fmt::Display for Verb {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// The gate of one node. Cheap to clone.
#[derive(Clone)]
pub struct Gate {
    store: Store,
    registry: Arc<RwLock<Arc<Registry>>>,
    sealer: Sealer,
    renderings: Arc<Renderings>,
    roles: Roles,
    parents: Arc<Parents>,
    policies: Arc<Policies>,
    /// How long what was decided here took to commit.
    commits: Histogram,
}

impl Gate {
    pub fn new(store: Store, registry: Arc<Registry>, sealer: Sealer) -> Self {
        Self {
            store,
            registry: Arc::new(RwLock::new(registry)),
            sealer,
            renderings: Arc::default(),
            roles: Roles::default(),
            parents: Arc::default(),
            policies: Arc::default(),
            commits: metrics::commits(),
        }
    }

    pub fn commits(&self) -> &Histogram {
        &self.commits
    }

    pub fn store(&self) -> &Store {
        &self.store
    }

    /// Keeps what this node knows of roles and bindings until `stop`; until then only masters and nodes may do anything.
    pub async fn follow_roles(&self, stop: CancellationToken) {
        self.roles.clone().follow(self.store.clone(), stop).await;
    }

    /// The kinds as they are now.
    pub fn registry(&self) -> Arc<Registry> {
        self.registry.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// From now on these are the kinds; requests under way keep those that they began with.
    pub fn set_registry(&self, registry: Registry) {
        *self.registry.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(registry);
    }

    /// The kind of any name a person may use for it.
    ///
    /// # Errors
    /// `NotFound`, naming what was asked for.
    pub fn kind(&self, name: &str) -> Result<Arc<Kind>, Status> {
        self.registry().by_name(name)
    }

    /// A kind that the daemon itself works with.
    ///
    /// # Errors
    /// `NotFound` if it was taken out of the registry.
    pub fn built_in(&self, builtin: Builtin) -> Result<Arc<Kind>, Status> {
        self.registry().built_in(builtin).ok_or_else(|| Status::not_found("kinds", builtin.info().kind))
    }

    /// The key of an object; a namespaced kind without namespace is in `default`.
    ///
    /// # Errors
    /// `NotFound` if no object can have that name, or be in a namespace of that name.
    fn key(kind: &Kind, namespace: &str, name: &str) -> Result<Key, Status> {
        if name.contains('/') || namespace.contains('/') {
            return Err(Status::not_found(kind.collection(), name));
        }
        Ok(Key::new(&kind.collection(), Self::namespace(kind, namespace), name))
    }

    fn namespace<'a>(kind: &Kind, namespace: &'a str) -> &'a str {
        match (kind.is_namespaced(), namespace) {
            (false, _) => "",
            (true, "") => "default",
            (true, namespace) => namespace,
        }
    }

    /// Waits until local reads are linearizable.
    async fn barrier(&self) -> Result<u64, Status> {
        self.store.barrier().await.map_err(read_status)
    }

    fn load(&self, key: &Key) -> Result<Option<KeyValue>, Status> {
        self.store.get(key).map_err(read_status)
    }
}

/// The object of a stored pair, with its resourceVersion, as sealed as it is stored.
fn object(kv: &KeyValue) -> Result<Value, Status> {
    flotilla_api::object::decode_value(&kv.value, kv.mod_revision)
        .map_err(|error| Status::internal(format!("{} is stored as something that is not JSON: {error}", kv.key)))
}

/// The JSON of a stored pair, with its resourceVersion, as sealed as it is stored.
fn splice(kv: &KeyValue, out: &mut Vec<u8>) -> Result<(), Status> {
    flotilla_api::object::splice(&kv.value, kv.mod_revision, out)
        .ok_or_else(|| Status::internal(format!("{} is stored without metadata", kv.key)))
}

pub(crate) fn read_status(error: ReadError) -> Status {
    match error {
        // Both in upstream's words: clients look for them.
        ReadError::Compacted { wanted, oldest } => {
            Status::new(Reason::Expired, format!("too old resource version: {wanted} ({oldest})"))
        }
        ReadError::Future { wanted, current } => {
            let message = format!("Timeout: Too large resource version: {wanted}, current: {current}");
            let cause = Cause {
                reason: "ResourceVersionTooLarge".into(),
                message: "Too large resource version".into(),
                field: String::new(),
            };
            let status = Status::new(Reason::Timeout, message);
            Status { causes: vec![cause], retry_after_seconds: Some(1), ..status }
        }
        ReadError::Damaged(_) => Status::internal(error),
        _ => Status { retry_after_seconds: Some(1), ..Status::new(Reason::ServiceUnavailable, error) },
    }
}

pub(crate) fn propose_status(error: ProposeError) -> Status {
    match &error {
        ProposeError::Conflict(_) | ProposeError::StaleTerm { .. } => Status::new(Reason::Conflict, error),
        ProposeError::Invalid(_) => Status::new(Reason::RequestEntityTooLarge, error),
        ProposeError::NoSpace => Status::new(Reason::ServiceUnavailable, error),
        _ => Status { retry_after_seconds: Some(1), ..Status::new(Reason::ServiceUnavailable, error) },
    }
}

/// A pause before an overtaken write is begun anew, a little longer each time.
async fn pause(attempt: usize) {
    tokio::time::sleep(Duration::from_millis(2 * attempt as u64)).await;
}
