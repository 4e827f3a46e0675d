//! Certificate requests: the cluster's authority signs those that were approved, and the old ones go.
//!
//! What is decided about one stands in [`decide`]; here is the way to and from the store, on the leader.
//!
//! Invariant: nothing is signed that was not approved, and no certificate says more than its request.

mod decide;

use std::sync::Arc;
use std::time::Duration;

use flotilla_api::k8s_openapi::ByteString;
use flotilla_api::k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestCondition};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::{Builtin, Change, Status, object};
use flotilla_net::ServingNames;
use flotilla_raft::{KeyValue, Range, Store, WatchItem};
use jiff::Timestamp;
use serde_json::Value;
use tracing::{debug, info};

use crate::gate;
use crate::trust::Trust;
use decide::{Decision, Grant, Serving, decide};

pub use decide::{CLIENT_SIGNER, changes_refused, read, unreadable};

const MANAGER: &str = "flotilla-requests";
/// How often the requests are looked at besides when they change: old ones have to go.
const LOOK: Duration = Duration::from_secs(60);
const RETRY: Duration = Duration::from_secs(1);

/// Signs and removes requests for as long as this node leads.
pub async fn keep(store: &Store, trust: &Arc<Trust>, term: u64) {
    loop {
        if let Err(status) = follow(store, trust, term).await {
            debug!(error = status.message, "certificate requests stay as they are for now");
        }
        tokio::time::sleep(RETRY).await;
    }
}

async fn follow(store: &Store, trust: &Trust, term: u64) -> Result<(), Status> {
    let prefix = Builtin::CertificateSigningRequest.collection().prefix();
    store.barrier().await.map_err(gate::read_status)?;
    loop {
        let revision = look(store, trust, term, &prefix).await?;
        let mut watch = store.watch(&prefix, revision + 1).await.map_err(gate::read_status)?;
        let changed = async { while matches!(watch.next().await, Some(WatchItem::Progress(_))) {} };
        _ = tokio::time::timeout(LOOK, changed).await;
    }
}

/// Looks at every request once; as of which revision.
async fn look(store: &Store, trust: &Trust, term: u64, prefix: &str) -> Result<u64, Status> {
    let mut pages = store.pages(Range::prefix(prefix));
    for page in pages.by_ref() {
        for kv in page.map_err(gate::read_status)? {
            if let Some(change) = act(trust, &kv) {
                // One that somebody wrote meanwhile comes back with the watch.
                if let Err(error) = store.propose(Change { term: Some(term), ..change }).await {
                    debug!(error = &error as &dyn std::error::Error, request = %kv.key, "a request stays as it is");
                }
            }
        }
    }
    Ok(pages.revision())
}

fn act(trust: &Trust, kv: &KeyValue) -> Option<Change> {
    let value: Value = object::decode_value(&kv.value, kv.mod_revision).ok()?;
    let mut request: CertificateSigningRequest = serde_json::from_value(value.clone()).ok()?;
    let change = Change::new("system:flotilla", MANAGER);
    let now = Timestamp::now();
    let outcome = match decide(&request, &value, now) {
        Decision::Wait => return None,
        Decision::Remove => return Some(change.remove(kv.key.clone(), kv.mod_revision)),
        Decision::Refuse(why) => Err(why),
        Decision::Sign(grant) => sign(trust, &grant),
        Decision::SignServing(serving) => sign_serving(trust, &serving),
    };
    let status = request.status.get_or_insert_default();
    match outcome {
        Ok(certificate) => {
            info!(request = kv.key.name(), user = request.spec.username, "a certificate was signed");
            status.certificate = Some(ByteString(certificate.into_bytes()));
        }
        Err(why) => status.conditions.get_or_insert_default().push(CertificateSigningRequestCondition {
            type_: "Failed".into(),
            status: "True".into(),
            reason: Some("SignerValidationFailure".into()),
            message: Some(why),
            last_update_time: Some(Time(now)),
            last_transition_time: Some(Time(now)),
        }),
    }
    Some(change.update(kv.key.clone(), kv.mod_revision, object::encode(&request).ok()?))
}

fn sign(trust: &Trust, grant: &Grant) -> Result<String, String> {
    let issued = trust.issue(&grant.der, &grant.user, &grant.groups, grant.lifetime);
    issued.map(|issued| issued.certificate).map_err(|status| status.message)
}

fn sign_serving(trust: &Trust, serving: &Serving) -> Result<String, String> {
    let names = ServingNames { dns: &serving.names.dns, addresses: &serving.names.addresses };
    trust.issue_serving(&serving.der, &serving.node, &names, serving.lifetime).map_err(|status| status.message)
}
