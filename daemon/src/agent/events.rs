//! What the agent tells people about a pod.
//!
//! Invariant: the same words about the same pod are told at most once in [`QUIET`], and telling never holds up a pod.

use std::collections::HashMap;
use std::time::Duration;

use flotilla_api::Builtin;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_control::event::{Severity, event, reference};
use tokio::time::Instant;
use tracing::debug;

use super::local::Local;
use crate::gate::WriteOptions;

const QUIET: Duration = Duration::from_secs(300);
/// Words remembered for a pod.
const MAX_REMEMBERED: usize = 64;

#[derive(Default)]
pub struct Teller {
    told: HashMap<(String, String), Instant>,
}

impl Teller {
    /// Tells it, unless it was just told. The caller runs the returned future beside its work.
    pub fn tell(
        &mut self,
        local: &Local,
        pod: &Pod,
        severity: Severity,
        reason: &str,
        message: &str,
    ) -> Option<impl Future<Output = ()> + Send + use<>> {
        let now = Instant::now();
        self.told.retain(|_, at| at.elapsed() < QUIET);
        let words = (reason.to_owned(), message.to_owned());
        if self.told.len() >= MAX_REMEMBERED || self.told.contains_key(&words) {
            return None;
        }
        self.told.insert(words, now);
        let mut event = event(
            reference(pod),
            "flotilla-agent",
            severity,
            reason,
            message,
            jiff::Timestamp::now(),
            &mut rand::rng(),
        );
        event.source.get_or_insert_default().host = Some(local.node().to_owned());
        let (gate, user) = (local.sources().gate.clone(), local.sources().user.clone());
        Some(async move {
            let told = async {
                let kind = gate.built_in(Builtin::Event)?;
                let object = serde_json::to_value(&event).map_err(flotilla_api::Status::internal)?;
                gate.create(&user, &kind, object, &WriteOptions::by("flotilla-agent")).await
            };
            if let Err(status) = told.await {
                debug!(error = status.message, "an event is not told");
            }
        })
    }
}
