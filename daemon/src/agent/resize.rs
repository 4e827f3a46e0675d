//! Resources of running containers follow their Pod, without a restart.
//!
//! What a container was given is not kept: after a restart of the daemon a pod that was ever changed is given its limits
//! again, which changes nothing that is right already.
//!
//! Invariant: one change of a pod's limits at a time.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_runtime::cgroup::Limits;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::local::Local;
use super::lower;

/// After the kernel refused limits that are still wanted.
const RETRY: Duration = Duration::from_secs(10);

/// How a change went: the container's key, what it was to be given, and why it was not.
type Done = (String, Limits, Result<(), String>);

#[derive(Default)]
pub struct Resizes {
    /// By the container's key.
    given: BTreeMap<String, Limits>,
    refused: BTreeMap<String, Refusal>,
    running: JoinSet<Done>,
    failures: Vec<String>,
}

/// What the kernel did not take: tried again when something else is wanted, or after a while.
struct Refusal {
    limits: Limits,
    why: String,
    /// `None` once that time has come.
    retry_at: Option<Instant>,
}

/// A running container, what it is to have, and whether that is known to be what it has.
struct Wanted {
    name: String,
    key: String,
    limits: Limits,
    is_given: bool,
}

impl Resizes {
    /// Waits until a change is done or is to be tried again; for ever when there is none.
    pub async fn next(&mut self) {
        let retry_at = self.refused.values().filter_map(|refusal| refusal.retry_at).min();
        let retry = async move {
            match retry_at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(done) = self.running.join_next() => match done {
                Ok(done) => self.take(done),
                Err(error) => debug!(%error, "a resize failed"),
            },
            () = retry => {
                let now = Instant::now();
                self.refused.values_mut().for_each(|refusal| _ = refusal.retry_at.take_if(|at| *at <= now));
            }
        }
    }

    fn take(&mut self, (key, limits, done): Done) {
        let Err(why) = done else {
            self.refused.remove(&key);
            self.given.insert(key, limits);
            return;
        };
        if self.refused.get(&key).is_none_or(|before| before.limits != limits) {
            self.failures.push(format!("cannot resize container {key}: {why}"));
        }
        self.refused.insert(key, Refusal { limits, why, retry_at: Some(Instant::now() + RETRY) });
    }

    /// Begins the next change that is needed; what could not be done before, in words.
    pub fn follow(&mut self, local: &Local, uid: &str, pod: &Pod) -> Vec<String> {
        let all = wanted(local, uid, pod, &self.given);
        self.given.retain(|key, _| all.iter().any(|wanted| wanted.key == *key));
        self.refused.retain(|key, _| all.iter().any(|wanted| wanted.key == *key && !wanted.is_given));
        let waits = |wanted: &Wanted| {
            let refusal = self.refused.get(&wanted.key);
            refusal.is_some_and(|refusal| refusal.limits == wanted.limits && refusal.retry_at.is_some())
        };
        let next = all.iter().find(|wanted| !wanted.is_given && !waits(wanted));
        if self.running.is_empty()
            && let Some(Wanted { key, limits, .. }) = next
            && let (Some(pods), Some(spec)) = (local.pods().cloned(), &pod.spec)
        {
            let (uid, key, limits, of_pod) = (uid.to_owned(), key.clone(), limits.clone(), lower::pod_limits(spec));
            self.running.spawn(async move {
                let set = pods.set_limits(&uid, &key, limits.clone(), of_pod).await;
                (key, limits, set.map_err(|error| chain(&error)))
            });
        }
        self.given.extend(all.into_iter().filter(|wanted| wanted.is_given).map(|wanted| (wanted.key, wanted.limits)));
        std::mem::take(&mut self.failures)
    }

    /// The containers that may not have what the Pod says yet, and why not if the kernel refused it.
    pub fn behind(&self, local: &Local, uid: &str, pod: &Pod) -> BTreeMap<String, Option<String>> {
        let behind = wanted(local, uid, pod, &self.given).into_iter().filter(|wanted| !wanted.is_given);
        let why = |wanted: &Wanted| {
            let refusal = self.refused.get(&wanted.key).filter(|refusal| refusal.limits == wanted.limits);
            refusal.map(|refusal| refusal.why.clone())
        };
        behind.map(|wanted| (wanted.name.clone(), why(&wanted))).collect()
    }
}

/// The running containers of a pod and what they are to have.
fn wanted(local: &Local, uid: &str, pod: &Pod, given: &BTreeMap<String, Limits>) -> Vec<Wanted> {
    let sandbox = local.pods().and_then(|pods| pods.get(uid));
    let (Some(spec), Some(sandbox)) = (&pod.spec, sandbox) else { return Vec::new() };
    // Its containers were made from what the Pod says.
    let untouched = pod.metadata.generation.is_none_or(|generation| generation <= 1);
    let each = spec.containers.iter().filter_map(|container| {
        let running = sandbox.containers.iter().rev().find(|c| c.name == container.name && c.is_running())?;
        let (key, limits) = (running.key(), lower::limits(container.resources.as_ref()));
        let is_given = given.get(&key).map_or(untouched, |given| *given == limits);
        Some(Wanted { name: container.name.clone(), key, limits, is_given })
    });
    each.collect()
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

#[cfg(test)]
mod tests {
    use futures::FutureExt;

    use super::*;

    #[tokio::test]
    async fn a_refusal_wakes_once_and_is_told_once() {
        let mut resizes = Resizes::default();
        let refused = || ("main-0".to_owned(), Limits::default(), Err("too little".to_owned()));
        resizes.take(refused());
        assert!(resizes.next().now_or_never().is_none(), "not at once");
        resizes.refused.values_mut().for_each(|refusal| refusal.retry_at = Some(Instant::now()));
        resizes.next().await;
        assert!(resizes.next().now_or_never().is_none(), "whoever looks decides whether it is tried");
        resizes.take(refused());
        assert_eq!(resizes.failures, ["cannot resize container main-0: too little"]);
    }
}
