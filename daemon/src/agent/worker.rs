//! One pod's worker: observe, decide, publish, carry out, wait.
//!
//! Invariant: the status that tells of an exit is published before the exit's record is removed.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use flotilla_api::admit::Subresource;
use flotilla_api::k8s_openapi::api::core::v1::{Pod, PodStatus};
use flotilla_api::{Builtin, Reason, Status};
use flotilla_control::event::Severity;
use flotilla_control::pod::{self, Effect, Failure, Image, Observed, ProbeRecord, Probes};
use jiff::Timestamp;
use serde::Deserialize;
use tokio::sync::{Mutex, Notify, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, warn};

use super::carry::{Carrier, Done, Outcome, all_containers};
use super::events::Teller;
use super::local::Local;
use super::memory::{Fact, Memory};
use super::news::{self, News};
use super::observe;
use super::resize::Resizes;
use super::room::Room;
use crate::gate::{DeleteOptions, WriteOptions};

const MANAGER: &str = "flotilla-agent";
/// A sandbox whose Pod is gone ends within this.
const ORPHAN_GRACE_SECONDS: i64 = 30;
/// After a status could not be published.
const PUBLISH_RETRY: Duration = Duration::from_secs(1);
/// How often projected volumes are brought up to date.
const REFRESH: Duration = Duration::from_secs(60);
/// The longest wait without looking.
const RESYNC: Duration = Duration::from_secs(60);

pub struct Worker {
    local: Local,
    uid: String,
    wanted: watch::Receiver<Option<Arc<Pod>>>,
    nudge: Arc<Notify>,
    memory: Memory,
    sandbox_failure: Option<Failure>,
    container_failures: BTreeMap<String, Failure>,
    images: BTreeMap<String, Image>,
    /// When pulls that are under way began, by image.
    pulls: BTreeMap<String, Instant>,
    /// Containers whose next start comes after a pull for them.
    pulled_for: BTreeSet<String>,
    /// Pulls that failed in a row.
    pull_tries: BTreeMap<String, u32>,
    probes: BTreeMap<String, Probes>,
    stopping: BTreeMap<String, Timestamp>,
    under_way: Vec<Effect>,
    tasks: JoinSet<Done>,
    /// Events that are being told.
    telling: JoinSet<()>,
    teller: Teller,
    /// Volumes that are being brought up to date, at most one at a time.
    refreshing: JoinSet<()>,
    refreshed: Instant,
    resizes: Resizes,
    room: Room,
    /// Held by who lays down volumes.
    volumes: Arc<Mutex<()>>,
    /// The last Pod, for what remains to be said when the object is gone.
    last: Option<Arc<Pod>>,
    /// The last status that people were told of; the Pod's own may be older.
    told: Option<PodStatus>,
}

impl Worker {
    pub fn new(local: Local, uid: String, wanted: watch::Receiver<Option<Arc<Pod>>>, nudge: Arc<Notify>) -> Self {
        let memory = Memory::load(&local.log_dir(&uid));
        Self {
            local,
            uid,
            wanted,
            nudge,
            memory,
            sandbox_failure: None,
            container_failures: BTreeMap::new(),
            images: BTreeMap::new(),
            pulls: BTreeMap::new(),
            pulled_for: BTreeSet::new(),
            pull_tries: BTreeMap::new(),
            probes: BTreeMap::new(),
            stopping: BTreeMap::new(),
            under_way: Vec::new(),
            tasks: JoinSet::new(),
            telling: JoinSet::new(),
            teller: Teller::default(),
            refreshing: JoinSet::new(),
            refreshed: Instant::now(),
            resizes: Resizes::default(),
            room: Room::default(),
            volumes: Arc::default(),
            last: None,
            told: None,
        }
    }

    /// Runs until the Pod is gone and nothing of it is left; returns its uid.
    pub async fn run(mut self) -> String {
        loop {
            let wanted = self.wanted.borrow_and_update().clone();
            let now = Timestamp::now();
            let observed = self.observe(wanted.as_deref());
            let wait = match wanted {
                Some(pod) => {
                    self.last = Some(pod.clone());
                    self.step(&pod, &observed, now).await
                }
                None => {
                    let effects = pod::teardown(&observed, ORPHAN_GRACE_SECONDS, now);
                    if effects.is_empty() && observed.sandbox.is_none() && self.tasks.is_empty() {
                        self.clean_up().await;
                        return self.uid;
                    }
                    self.carry_out(effects);
                    RESYNC
                }
            };
            self.wait(wait).await;
        }
    }

    async fn wait(&mut self, wait: Duration) {
        tokio::select! {
            // The supervisor holds the sender for as long as this worker runs.
            _ = self.wanted.changed() => {}
            () = self.nudge.notified() => {}
            Some(done) = self.tasks.join_next(), if !self.tasks.is_empty() => match done {
                Ok(done) => self.take(done),
                Err(error) => {
                    warn!(%error, uid = self.uid, "a task of a pod failed; it is tried again");
                    // Which effect it was is not known any more: all are asked for again.
                    self.under_way.clear();
                }
            },
            Some(_) = self.telling.join_next(), if !self.telling.is_empty() => {}
            Some(_) = self.refreshing.join_next(), if !self.refreshing.is_empty() => {}
            () = self.resizes.next() => {}
            () = self.room.next() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }

    fn observe(&mut self, pod: Option<&Pod>) -> Observed {
        let reported = self.local.pods().and_then(|pods| pods.get(&self.uid));
        let containers = reported
            .as_ref()
            .map(|reported| observe::attempts(reported, &self.memory, &self.probes, &self.stopping))
            .unwrap_or_default();
        Observed {
            sandbox: reported.as_ref().map(observe::sandbox),
            sandbox_failure: self.sandbox_failure.clone(),
            containers,
            container_failures: self.container_failures.clone(),
            images: self.images_of(pod),
            behind: pod.map(|pod| self.resizes.behind(&self.local, &self.uid, pod)).unwrap_or_default(),
            excess: self.room.excess().map(str::to_owned),
            host_ip: Some(self.local.host_ip()),
        }
    }

    /// What is known of each image that the pod names.
    fn images_of(&self, pod: Option<&Pod>) -> BTreeMap<String, Image> {
        let containers = pod.map(all_containers).unwrap_or_default();
        let references = containers.into_iter().filter_map(|container| container.image);
        references
            .map(|reference| {
                let known = match self.images.get(&reference) {
                    Some(known) => known.clone(),
                    None => match self.local.images().find(&reference) {
                        Some(image) => Image::Present { id: image_id(&image), pulled_at: None },
                        None => Image::Absent,
                    },
                };
                (reference, known)
            })
            .collect()
    }

    async fn step(&mut self, pod: &Arc<Pod>, observed: &Observed, now: Timestamp) -> Duration {
        let step = pod::step(pod, observed, now);
        let published = self.publish(pod, &step.status).await;
        self.tell_of(pod, &step.status);
        let mut done = published.is_ok();
        if let Err(status) = &published {
            debug!(uid = self.uid, error = status.message, "a status is not published yet");
        }
        let forgets = |effect: &Effect| {
            matches!(effect, Effect::RemoveContainer { .. } | Effect::StopSandbox | Effect::RemoveSandbox)
        };
        self.refresh(pod, observed);
        let runs = observed.sandbox.as_ref().is_some_and(|sandbox| sandbox.state == pod::SandboxState::Ready);
        self.room.follow(&self.local, &self.uid, pod, runs && !step.finished);
        for message in self.resizes.follow(&self.local, &self.uid, pod) {
            self.tell(News::of_pod(Severity::Warning, "ResizeError", message));
        }
        self.carry_out(step.effects.into_iter().filter(|effect| done || !forgets(effect)).collect());
        if step.finished && done && pod.metadata.deletion_timestamp.is_some() {
            done = self.confirm(pod).await;
        }
        let due = step.wake_at.map(|at| Duration::try_from(at.duration_since(Timestamp::now())).unwrap_or_default());
        due.into_iter().chain((!done).then_some(PUBLISH_RETRY)).min().unwrap_or(RESYNC).min(RESYNC)
    }

    async fn publish(&self, pod: &Pod, status: &PodStatus) -> Result<(), Status> {
        if pod.status.as_ref() == Some(status) {
            return Ok(());
        }
        let sources = self.local.sources();
        let kind = sources.gate.built_in(Builtin::Pod)?;
        let (namespace, name) = names(pod);
        let options = WriteOptions::by(MANAGER);
        let published = sources
            .gate
            .update(&sources.user, &kind, (namespace, name), Subresource::Status, &options, |object| {
                if object.pointer("/metadata/uid").and_then(|uid| uid.as_str()) != Some(&self.uid) {
                    return Err(Status::not_found("pods", name));
                }
                let newest = PodStatus::deserialize(&object["status"]).unwrap_or_default();
                let status = pod::over(newest, status.clone());
                object["status"] = serde_json::to_value(status).map_err(Status::internal)?;
                Ok(())
            })
            .await;
        match published {
            // The Pod went meanwhile; the watch will say so.
            Err(status) if matches!(status.reason, Reason::NotFound | Reason::Forbidden) => Ok(()),
            published => published.map(|_| ()),
        }
    }

    /// Nothing of the pod is left on this node: its object may go. False if that has to be said again.
    async fn confirm(&self, pod: &Pod) -> bool {
        let sources = self.local.sources();
        let options = DeleteOptions {
            grace_period_seconds: Some(0),
            manager: MANAGER.into(),
            uid: Some(self.uid.clone()),
            ..DeleteOptions::default()
        };
        let deleted = async {
            let kind = sources.gate.built_in(Builtin::Pod)?;
            sources.gate.delete(&sources.user, &kind, names(pod), &options).await
        };
        match deleted.await {
            Err(status) if !matches!(status.reason, Reason::NotFound | Reason::Conflict | Reason::Forbidden) => {
                debug!(uid = self.uid, error = status.message, "the end of a pod is not confirmed yet");
                false
            }
            _ => true,
        }
    }

    /// Begins what is not under way already.
    fn carry_out(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            if self.under_way.iter().any(|other| other.same_as(&effect)) {
                continue;
            }
            let key = |name: &str, attempt: u32| flotilla_runtime::state::container_key(name, attempt);
            match &effect {
                Effect::PullImage { image, container } => {
                    self.images.insert(image.clone(), Image::Pulling);
                    self.pulls.insert(image.clone(), Instant::now());
                    self.tell(News::pulling(container, image));
                }
                Effect::StartContainer { name, attempt, crashes, image_id } => {
                    self.memory.set(key(name, *attempt), Fact { crashes: *crashes, image_id: image_id.clone() })
                }
                Effect::StopContainer { name, attempt, kill_at, why } => {
                    self.stopping.insert(key(name, *attempt), *kill_at);
                    self.tell(News::killing(name, *why));
                }
                _ => {}
            }
            self.under_way.push(effect.clone());
            self.tasks.spawn(self.carrier().carry_out(effect));
        }
    }

    /// Takes note of what came of an effect.
    fn take(&mut self, done: Done) {
        self.under_way.retain(|effect| !effect.same_as(&done.effect));
        let now = Timestamp::now();
        let again = |last: Option<&Failure>, reason: &str, message: String| Failure {
            at: now,
            tries: last.map_or(0, |failure| failure.tries) + 1,
            reason: reason.to_owned(),
            message,
        };
        match (&done.effect, done.outcome) {
            (Effect::PullImage { image, container }, Outcome::Pulled(found)) => {
                self.pull_tries.remove(image);
                let took = self.pulls.remove(image).map_or(Duration::ZERO, |began| began.elapsed());
                self.pulled_for.insert(container.clone());
                self.tell(News::pulled(container, image, took, found.size_bytes));
                self.images.insert(image.clone(), Image::Present { id: image_id(&found), pulled_at: Some(now) });
            }
            (Effect::PullImage { image, .. }, Outcome::Failed { reason, message }) => {
                let tries = self.pull_tries.entry(image.clone()).or_default();
                *tries += 1;
                let failure = Failure { at: now, tries: *tries, reason, message };
                self.images.insert(image.clone(), Image::Failed(failure));
            }
            (Effect::CreateSandbox, Outcome::Failed { reason, message }) => {
                self.sandbox_failure = Some(again(self.sandbox_failure.as_ref(), &reason, message));
            }
            (Effect::CreateSandbox, _) => self.sandbox_failure = None,
            (Effect::StartContainer { name, .. }, Outcome::Unmounted(message)) => {
                self.tell(News::of_pod(Severity::Warning, "FailedMount", message));
                // The pod has not come as far as its containers: they wait as they did.
                let failure = again(self.container_failures.get(name), self.setting_up(), String::new());
                self.container_failures.insert(name.clone(), failure);
            }
            (Effect::StartContainer { name, .. }, Outcome::Failed { reason, message }) => {
                let failure = again(self.container_failures.get(name), &reason, message);
                self.container_failures.insert(name.clone(), failure);
            }
            (Effect::StartContainer { name, .. }, outcome) => {
                self.container_failures.remove(name);
                self.tell_of_start(name);
                if let Outcome::HookFailed = outcome {
                    self.tell(News::of(name, Severity::Warning, "FailedPostStartHook", "PostStartHook failed"));
                    self.tell(News::of(name, Severity::Normal, "Killing", "FailedPostStartHook"));
                }
            }
            (Effect::StopContainer { name, .. }, Outcome::HookFailed) => {
                self.tell(News::of(name, Severity::Warning, "FailedPreStopHook", "PreStopHook failed"));
            }
            (Effect::RemoveContainer { name, attempt }, Outcome::Done) => {
                let key = flotilla_runtime::state::container_key(name, *attempt);
                self.memory.remove(&key);
                self.probes.remove(&key);
                self.stopping.remove(&key);
            }
            (Effect::Probe { name, attempt, kind }, Outcome::Probed { ok, message }) => {
                self.take_probe(name, *attempt, *kind, ok, message, now);
            }
            (effect, Outcome::Failed { message, .. }) => warn!(uid = self.uid, ?effect, message, "tried again"),
            _ => {}
        }
    }

    fn take_probe(
        &mut self,
        name: &str,
        attempt: u32,
        kind: pod::ProbeKind,
        ok: bool,
        message: String,
        now: Timestamp,
    ) {
        let spec = self.last.as_ref().and_then(|pod| pod.spec.as_ref());
        let containers =
            spec.into_iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
        let Some(container) = containers.into_iter().find(|container| container.name == name) else { return };
        let (kind_word, said) = (format!("{kind:?}"), message.clone());
        let probes = self.probes.entry(flotilla_runtime::state::container_key(name, attempt)).or_default();
        let (probe, record) = match kind {
            pod::ProbeKind::Startup => (&container.startup_probe, &mut probes.startup),
            pod::ProbeKind::Liveness => (&container.liveness_probe, &mut probes.liveness),
            pod::ProbeKind::Readiness => (&container.readiness_probe, &mut probes.readiness),
        };
        if let Some(probe) = probe {
            *record = Some(ProbeRecord::after(record.as_ref(), kind, probe, ok, message, now));
            if !ok {
                let words = format!("{kind_word} probe failed: {said}");
                self.tell(News::of(name, Severity::Warning, "Unhealthy", words));
            }
        }
    }

    /// Tells of what a status says for the first time.
    fn tell_of(&mut self, pod: &Pod, status: &PodStatus) {
        let before = self.told.replace(status.clone()).or_else(|| pod.status.clone()).unwrap_or_default();
        let (namespace, name) = names(pod);
        for news in news::between(&format!("{name}_{namespace}({})", self.uid), &before, status) {
            self.tell(news);
        }
    }

    /// Tells of what came before a container's start.
    fn tell_of_start(&mut self, name: &str) {
        let pod = self.last.clone();
        let container = pod.and_then(|pod| all_containers(&pod).into_iter().find(|container| container.name == name));
        let Some(container) = container else { return };
        if !self.pulled_for.remove(name) {
            self.tell(News::present(name, container.image.as_deref().unwrap_or_default()));
        }
        self.tell(News::created(name));
    }

    /// What a container waits for while its pod is set up.
    fn setting_up(&self) -> &'static str {
        let inits = self.last.as_ref().and_then(|pod| pod.spec.as_ref()?.init_containers.as_ref());
        if inits.is_none_or(Vec::is_empty) { "ContainerCreating" } else { "PodInitializing" }
    }

    fn tell(&mut self, news: News) {
        let Some(pod) = self.last.clone() else { return };
        if let Some(telling) = self.teller.tell(&self.local, &pod, news) {
            self.telling.spawn(telling);
        }
    }

    /// Has the files of ConfigMaps, Secrets and the pod's own fields follow them, every now and then.
    fn refresh(&mut self, pod: &Arc<Pod>, observed: &Observed) {
        let ready = observed.sandbox.as_ref().is_some_and(|sandbox| sandbox.state == pod::SandboxState::Ready);
        let due = self.refreshed.elapsed() >= REFRESH && pod.metadata.deletion_timestamp.is_none();
        if ready && due && self.refreshing.is_empty() && super::volumes::are_projected(pod) {
            self.refreshed = Instant::now();
            self.refreshing.spawn(self.carrier().refresh());
        }
    }

    fn carrier(&self) -> Carrier {
        Carrier {
            local: self.local.clone(),
            uid: self.uid.clone(),
            pod: self.last.clone(),
            volumes: self.volumes.clone(),
        }
    }

    /// Removes what outlives a sandbox: volumes, logs, root file systems.
    async fn clean_up(&self) {
        let (local, uid) = (self.local.clone(), self.uid.clone());
        let cleaned = tokio::task::spawn_blocking(move || super::carry::remove_remains(&local, &uid)).await;
        if let Err(error) = cleaned {
            warn!(%error, uid = self.uid, "something of a pod is left behind");
        }
    }
}

pub fn image_id(image: &flotilla_runtime::images::Image) -> String {
    image.repo_digests.first().cloned().unwrap_or_else(|| image.id.to_string())
}

pub fn names(pod: &Pod) -> (&str, &str) {
    (pod.metadata.namespace.as_deref().unwrap_or("default"), pod.metadata.name.as_deref().unwrap_or_default())
}
