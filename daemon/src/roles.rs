//! The leader's part in roles: it adds the default ones that are missing, and writes the rules of aggregated ones.
//!
//! Decided by [`flotilla_control::rbac`]; here is only the way to and from the store.
//!
//! Invariant: every Change carries the term in which it was decided, and the revisions that it was decided from.

use std::collections::{BTreeMap, HashMap};
use std::time::Duration;

use flotilla_api::k8s_openapi::api::rbac::v1::ClusterRole;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use flotilla_api::k8s_openapi::{Metadata, Resource};
use flotilla_api::{Change, GroupResource, Key, names, object};
use flotilla_control::rbac;
use flotilla_raft::{Event, ProposeError, Range, ReadError, Store, WatchItem};
use jiff::Timestamp;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tracing::{debug, info};

const USER: &str = "system:flotilla";
const DEFAULTS_MANAGER: &str = "flotilla-defaults";
const AGGREGATION_MANAGER: &str = "clusterrole-aggregation-controller";
/// The pause after something failed, or was overtaken.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

#[derive(Debug, thiserror::Error)]
enum RolesError {
    #[error("the store cannot be read")]
    Read(#[from] ReadError),
    #[error("the store cannot be written")]
    Propose(#[from] ProposeError),
    #[error("a role cannot be written as JSON")]
    Encode(#[from] serde_json::Error),
    #[error("the roles are no longer followed")]
    Ended,
}

/// Keeps roles as they should be while this node leads.
pub async fn keep(store: &Store, term: u64) {
    loop {
        if let Err(error) = run(store, term).await {
            debug!(error = &error as &dyn std::error::Error, "roles stay as they are for now");
        }
        tokio::time::sleep(RETRY_PAUSE).await;
    }
}

async fn run(store: &Store, term: u64) -> Result<(), RolesError> {
    store.barrier().await?;
    add_defaults(store, term).await?;
    follow_aggregated(store, term).await
}

/// A stored object and the revision that wrote it.
struct Found<T> {
    object: T,
    revision: u64,
}

/// All objects of a collection by name, and as of which revision.
fn all<T: DeserializeOwned>(
    store: &Store,
    collection: &GroupResource,
) -> Result<(HashMap<String, Found<T>>, u64), ReadError> {
    let mut found = HashMap::new();
    let mut pages = store.pages(Range::prefix(collection.prefix()));
    for page in pages.by_ref() {
        for kv in page? {
            if let Ok(object) = serde_json::from_slice(&kv.value) {
                found.insert(kv.key.name().to_owned(), Found { object, revision: kv.mod_revision });
            }
        }
    }
    Ok((found, pages.revision()))
}

fn collection<T: Resource>() -> GroupResource {
    GroupResource::new(T::GROUP, T::URL_PATH_SEGMENT)
}

/// Adds what is missing of the default roles and bindings, all of it in one Change.
async fn add_defaults(store: &Store, term: u64) -> Result<(), RolesError> {
    let mut change = Change::new(USER, DEFAULTS_MANAGER);
    change.term = Some(term);
    change = add_missing(change, store, rbac::default_roles(), rbac::reconcile_role)?;
    change = add_missing(change, store, rbac::default_bindings(), rbac::reconcile_binding)?;
    if change.writes.is_empty() {
        return Ok(());
    }
    let written = change.writes.len();
    store.propose(change).await?;
    info!(written, "default roles and bindings are in place");
    Ok(())
}

fn add_missing<T>(
    mut change: Change,
    store: &Store,
    expected: Vec<T>,
    reconcile: impl Fn(&T, &T) -> Option<T>,
) -> Result<Change, RolesError>
where
    T: Resource + Metadata<Ty = ObjectMeta> + Serialize + DeserializeOwned,
{
    let of = collection::<T>();
    let (stored, _) = all::<T>(store, &of)?;
    for mut expected in expected {
        let name = expected.metadata().name.clone().unwrap_or_default();
        let key = Key::new(&of, "", &name);
        change = match stored.get(&name) {
            None => {
                mint(expected.metadata_mut());
                change.create(key, object::encode(&expected)?)
            }
            Some(found) => match reconcile(&expected, &found.object) {
                None => change,
                Some(mut next) => {
                    if next.metadata().uid.is_none() {
                        mint(next.metadata_mut());
                    }
                    change.update(key, found.revision, object::encode(&next)?)
                }
            },
        };
    }
    Ok(change)
}

fn mint(metadata: &mut ObjectMeta) {
    metadata.uid = Some(names::uid(&mut rand::rng()));
    let now = Timestamp::now();
    // Whole seconds of a time that exists are a time that exists.
    metadata.creation_timestamp = Some(Time(Timestamp::from_second(now.as_second()).unwrap_or(now)));
}

/// Writes the rules of aggregated roles whenever some role changes.
async fn follow_aggregated(store: &Store, term: u64) -> Result<(), RolesError> {
    let of = collection::<ClusterRole>();
    let (stored, revision) = all::<ClusterRole>(store, &of)?;
    let mut revisions: HashMap<String, u64> =
        stored.iter().map(|(name, found)| (name.clone(), found.revision)).collect();
    let mut roles: BTreeMap<String, ClusterRole> =
        stored.into_iter().map(|(name, found)| (name, found.object)).collect();
    let mut watch = store.watch(&of.prefix(), revision + 1).await?;
    loop {
        write_aggregated(store, term, &roles, &revisions).await?;
        loop {
            match watch.next().await {
                Some(WatchItem::Progress(_)) => {}
                Some(WatchItem::Events(events, _)) => {
                    for event in &events {
                        take(event, &mut roles, &mut revisions);
                    }
                    break;
                }
                Some(WatchItem::Compacted(_)) | None => return Err(RolesError::Ended),
            }
        }
    }
}

fn take(event: &Event, roles: &mut BTreeMap<String, ClusterRole>, revisions: &mut HashMap<String, u64>) {
    let name = event.key().name().to_owned();
    let decoded = match event {
        Event::Put { kv, .. } => serde_json::from_slice(&kv.value).ok().map(|role| (role, kv.mod_revision)),
        Event::Delete { .. } => None,
    };
    match decoded {
        Some((role, revision)) => {
            roles.insert(name.clone(), role);
            revisions.insert(name, revision);
        }
        None => {
            roles.remove(&name);
            revisions.remove(&name);
        }
    }
}

/// What was overtaken comes back with the event that overtook it.
async fn write_aggregated(
    store: &Store,
    term: u64,
    roles: &BTreeMap<String, ClusterRole>,
    revisions: &HashMap<String, u64>,
) -> Result<(), RolesError> {
    for (name, rules) in rbac::aggregate(roles) {
        let (Some(role), Some(revision)) = (roles.get(&name), revisions.get(&name)) else { continue };
        let next = ClusterRole { rules: Some(rules), ..role.clone() };
        let key = Key::new(&collection::<ClusterRole>(), "", &name);
        let change = Change::new(USER, AGGREGATION_MANAGER).update(key, *revision, object::encode(&next)?);
        match store.propose(Change { term: Some(term), ..change }).await {
            Ok(_) => debug!(role = name, "a role was gathered"),
            Err(ProposeError::Conflict(conflict)) => debug!(role = name, %conflict, "a role changed meanwhile"),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
