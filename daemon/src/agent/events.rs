//! What the agent tells people about a pod.
//!
//! Invariant: the same words about the same pod within [`QUIET`] are one Event that counts, as upstream's are, and telling
//! never holds up a pod.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_api::admit::Subresource;
use flotilla_api::k8s_openapi::api::core::v1::{Event, Pod};
use flotilla_api::{Builtin, Reason, Status};
use flotilla_control::event::{Severity, event, reference};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::debug;

use super::local::Local;
use crate::gate::{Gate, User, WriteOptions};

const QUIET: Duration = Duration::from_secs(300);
/// Words remembered for a pod.
const MAX_REMEMBERED: usize = 64;
const MANAGER: &str = "flotilla-agent";

#[derive(Default)]
pub struct Teller {
    told: HashMap<(String, String), Told>,
}

/// An Event that stands for all times that its words were told.
struct Told {
    event: Event,
    last: Instant,
}

impl Teller {
    /// Tells it, or counts it once more. The caller runs the returned future beside its work.
    pub fn tell(
        &mut self,
        local: &Local,
        pod: &Pod,
        severity: Severity,
        reason: &str,
        message: &str,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.told.retain(|_, told| told.last.elapsed() < QUIET);
        let words = (reason.to_owned(), message.to_owned());
        let now = jiff::Timestamp::now();
        let mut new = event(reference(pod), MANAGER, severity, reason, message, now, &mut rand::rng());
        new.source.get_or_insert_default().host = Some(local.node().to_owned());
        if self.told.len() >= MAX_REMEMBERED && !self.told.contains_key(&words) {
            return None;
        }
        let now = Instant::now();
        let unheard = Told { event: Event { count: Some(0), ..new.clone() }, last: now };
        let told = self.told.entry(words).or_insert(unheard);
        told.last = now;
        told.event.count = told.event.count.map(|count| count.saturating_add(1));
        told.event.last_timestamp = new.last_timestamp;
        let event = told.event.clone();
        let (gate, user) = (local.sources().gate.clone(), local.sources().user.clone());
        Some(async move {
            if let Err(status) = store(&gate, &user, &event).await {
                debug!(error = status.message, "an event is not told");
            }
        })
    }
}

/// Creates the Event when it is told for the first time, or again if it has aged out of the store since.
async fn store(gate: &Gate, user: &User, event: &Event) -> Result<(), Status> {
    let kind = gate.built_in(Builtin::Event)?;
    let object = serde_json::to_value(event).map_err(Status::internal)?;
    let options = WriteOptions::by(MANAGER);
    if event.count > Some(1) {
        let (namespace, name) = (event.metadata.namespace.as_deref(), event.metadata.name.as_deref());
        let at = (namespace.unwrap_or_default(), name.unwrap_or_default());
        let count = |stored: &mut Value| {
            stored["count"] = json!(event.count);
            stored["lastTimestamp"] = object["lastTimestamp"].clone();
            Ok(())
        };
        match gate.update(user, &kind, at, Subresource::None, &options, count).await {
            Err(status) if status.reason == Reason::NotFound => {}
            counted => return counted.map(drop),
        }
    }
    gate.create(user, &kind, object, &options).await.map(drop)
}
