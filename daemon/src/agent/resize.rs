//! Resources of running containers follow their Pod, without a restart.
//!
//! What a container was given is not kept: after a restart of the daemon a pod that was ever changed is given its limits
//! again, which changes nothing that is right already.
//!
//! Invariant: one change of a pod's limits at a time.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_runtime::cgroup::Limits;
use tokio::task::JoinSet;
use tracing::debug;

use super::local::Local;
use super::lower;

/// How a change went: the container's key, what it was to be given, and why it was not.
type Done = (String, Limits, Result<(), String>);

#[derive(Default)]
pub struct Resizes {
    /// By the container's key.
    given: BTreeMap<String, Limits>,
    /// What the kernel refused: tried again when something else is wanted, or after a while.
    refused: BTreeMap<String, Limits>,
    running: JoinSet<Done>,
    failures: Vec<String>,
}

impl Resizes {
    /// Waits until a change is done; for ever when there is none.
    pub async fn next(&mut self) {
        match self.running.join_next().await {
            Some(Ok((key, limits, Ok(())))) => {
                self.refused.remove(&key);
                self.given.insert(key, limits);
            }
            Some(Ok((key, limits, Err(error)))) => {
                if self.refused.insert(key.clone(), limits.clone()) != Some(limits) {
                    self.failures.push(format!("cannot resize container {key}: {error}"));
                }
            }
            Some(Err(error)) => debug!(%error, "a resize failed"),
            None => std::future::pending().await,
        }
    }

    /// Begins the next change that is needed; what could not be done before, in words.
    pub fn follow(&mut self, local: &Local, uid: &str, pod: &Pod) -> Vec<String> {
        if self.running.is_empty()
            && let Some((key, limits, of_pod)) = self.wanted(local, uid, pod)
            && let Some(pods) = local.pods().cloned()
        {
            let uid = uid.to_owned();
            self.running.spawn(async move {
                let set = pods.set_limits(&uid, &key, limits.clone(), of_pod).await;
                (key, limits, set.map_err(|error| chain(&error)))
            });
        }
        std::mem::take(&mut self.failures)
    }

    fn wanted(&mut self, local: &Local, uid: &str, pod: &Pod) -> Option<(String, Limits, Limits)> {
        let spec = pod.spec.as_ref()?;
        let sandbox = local.pods()?.get(uid)?;
        let untouched = pod.metadata.generation.is_none_or(|generation| generation <= 1);
        self.given.retain(|key, _| sandbox.containers.iter().any(|container| container.key() == *key));
        for container in &spec.containers {
            let running = sandbox.containers.iter().rev().find(|c| c.name == container.name && c.is_running());
            let Some(key) = running.map(|running| running.key()) else { continue };
            let limits = lower::limits(container.resources.as_ref());
            match self.given.get(&key) {
                Some(given) if *given == limits => {}
                // It was made from what the Pod says.
                None if untouched => _ = self.given.insert(key, limits),
                _ => return Some((key, limits, lower::pod_limits(spec))),
            }
        }
        None
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut words = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        words.push_str(&format!(": {error}"));
        source = error.source();
    }
    words
}
