//! What the agent tells people about a pod.
//!
//! Invariant: the same words about the same pod within [`QUIET`] are one Event that counts, as upstream's are, and telling
//! never holds up a pod.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_api::admit::Subresource;
use flotilla_api::k8s_openapi::api::core::v1::{Container, Event, ObjectReference, Pod};
use flotilla_api::{Builtin, Reason, Status};
use flotilla_control::event::{event, reference};
use serde_json::{Value, json};
use tokio::time::Instant;
use tracing::debug;

use super::local::Local;
use super::news::News;
use crate::gate::{Gate, User, WriteOptions};

const QUIET: Duration = Duration::from_secs(300);
/// Words remembered for a pod.
const MAX_REMEMBERED: usize = 64;
const MANAGER: &str = "flotilla-agent";

#[derive(Default)]
pub struct Teller {
    told: HashMap<News, Told>,
}

/// An Event that stands for all times that its words were told.
struct Told {
    event: Event,
    last: Instant,
}

impl Teller {
    /// Tells it, or counts it once more. The caller runs the returned future beside its work.
    pub fn tell(&mut self, local: &Local, pod: &Pod, news: News) -> Option<impl Future<Output = ()> + Send + use<>> {
        self.told.retain(|_, told| told.last.elapsed() < QUIET);
        let now = jiff::Timestamp::now();
        let field_path = news.container.as_deref().and_then(|container| field_path(pod, container));
        let about = ObjectReference { field_path, ..reference(pod) };
        let mut new = event(about, MANAGER, news.severity, news.reason, &news.message, now, &mut rand::rng());
        new.source.get_or_insert_default().host = Some(local.node().to_owned());
        if self.told.len() >= MAX_REMEMBERED && !self.told.contains_key(&news) {
            return None;
        }
        let now = Instant::now();
        let unheard = Told { event: Event { count: Some(0), ..new.clone() }, last: now };
        let told = self.told.entry(news).or_insert(unheard);
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

/// Where a pod's specification has a container.
fn field_path(pod: &Pod, container: &str) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let is_in = |containers: &[Container]| containers.iter().any(|one| one.name == container);
    let list = if is_in(&spec.containers) {
        "containers"
    } else if is_in(spec.init_containers.as_deref().unwrap_or_default()) {
        "initContainers"
    } else if spec.ephemeral_containers.iter().flatten().any(|one| one.name == container) {
        "ephemeralContainers"
    } else {
        return None;
    };
    Some(format!("spec.{list}{{{container}}}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_container_is_found_where_the_specification_has_it() {
        let pod: Pod = serde_json::from_value(json!({"spec": {
            "containers": [{"name": "c"}], "initContainers": [{"name": "i"}], "ephemeralContainers": [{"name": "e"}],
        }}))
        .unwrap();
        let path = |name| field_path(&pod, name);
        assert_eq!(path("c").as_deref(), Some("spec.containers{c}"));
        assert_eq!(path("i").as_deref(), Some("spec.initContainers{i}"));
        assert_eq!(path("e").as_deref(), Some("spec.ephemeralContainers{e}"));
        assert_eq!(path("gone"), None);
    }
}
