//! A node that exists only here, and what is told against it.

mod properties;
mod stories;

use jiff::SignedDuration;
use serde_json::{Value, json};

use super::*;
use crate::deletion;

/// A node that carries out effects at once, and ends containers when a story says so.
struct Node {
    pod: Pod,
    observed: Observed,
    now: Timestamp,
    /// What was done, in order.
    done: Vec<Effect>,
    wake_at: Option<Timestamp>,
    finished: bool,
    /// Images that the registry has.
    registry: Vec<&'static str>,
    /// Containers that ignore the stop signal.
    stubborn: bool,
    sandboxes: u32,
}

const MAX_STEPS: usize = 60;

impl Node {
    fn new(spec: Value) -> Self {
        let mut spec = spec;
        let metadata = json!({"name": "p", "namespace": "default", "uid": "u", "generation": 1,
            "creationTimestamp": "2026-01-01T00:00:00Z"});
        for container in
            ["containers", "initContainers"].iter().filter_map(|key| spec[*key].as_array().cloned()).flatten()
        {
            assert!(container["name"].is_string());
        }
        for key in ["containers", "initContainers"] {
            for container in spec[key].as_array_mut().into_iter().flatten() {
                container.as_object_mut().unwrap().entry("image").or_insert("app:1".into());
            }
        }
        Self {
            pod: serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap(),
            observed: Observed { host_ip: Some("10.0.0.1".into()), ..Observed::default() },
            now: "2026-01-01T00:00:10Z".parse().unwrap(),
            done: Vec::new(),
            wake_at: None,
            finished: false,
            registry: vec!["app:1"],
            stubborn: false,
            sandboxes: 0,
        }
    }

    /// Steps until nothing more is to be done.
    fn settle(&mut self) {
        for _ in 0..MAX_STEPS {
            let step = step(&self.pod, &self.observed, self.now);
            let again = super::step(&self.pod, &self.observed, self.now);
            assert_eq!(step, again, "a step is a function of what it is given");
            let published = self.pod.status.as_ref() == Some(&step.status);
            self.pod.status = Some(step.status);
            self.wake_at = step.wake_at;
            self.finished = step.finished;
            if step.effects.is_empty() && published {
                return;
            }
            for effect in step.effects {
                self.carry_out(&effect);
                self.done.push(effect);
            }
        }
        panic!("the pod does not settle: {:?}", self.done);
    }

    fn carry_out(&mut self, effect: &Effect) {
        match effect {
            Effect::PullImage { image, .. } => self.pull(image),
            Effect::CreateSandbox => {
                assert!(self.observed.sandbox.is_none());
                self.sandboxes += 1;
                self.observed.sandbox = Some(Sandbox {
                    id: format!("sandbox-{}", self.sandboxes),
                    state: SandboxState::Ready,
                    ip: Some(format!("10.244.0.{}", self.sandboxes)),
                    created_at: self.now,
                });
            }
            Effect::StartContainer { name, attempt, crashes, image_id } => {
                let attempts = self.observed.containers.entry(name.clone()).or_default();
                assert!(attempts.iter().all(|other| !other.is_live() && other.attempt < *attempt), "{effect:?}");
                attempts.push(Attempt {
                    attempt: *attempt,
                    crashes: *crashes,
                    id: format!("{name}-{attempt}"),
                    image_id: image_id.clone(),
                    state: AttemptState::Running { started_at: self.now },
                    stopping: None,
                    probes: Probes::default(),
                });
            }
            Effect::StopContainer { name, kill_at, .. } => {
                let (stubborn, kill_at) = (self.stubborn, *kill_at);
                assert!(kill_at >= self.now);
                if stubborn {
                    self.current(name).stopping = Some(kill_at);
                } else {
                    self.exit(name, 0);
                }
            }
            Effect::RemoveContainer { name, attempt } => {
                self.observed.containers.get_mut(name).unwrap().retain(|other| other.attempt != *attempt);
            }
            Effect::StopSandbox => self.observed.sandbox.as_mut().unwrap().state = SandboxState::Stopped,
            Effect::RemoveSandbox => {
                assert!(self.observed.containers.values().flatten().all(|attempt| !attempt.is_live()));
                self.observed.sandbox = None;
                self.observed.containers.clear();
            }
            Effect::Probe { name, kind, .. } => self.probed(name, *kind, true),
        }
    }

    fn pull(&mut self, image: &str) {
        let tries = match self.observed.images.get(image) {
            Some(Image::Failed(failure)) => failure.tries + 1,
            _ => 1,
        };
        let state = match self.registry.contains(&image) {
            true => Image::Present { id: format!("sha256:{image}"), pulled_at: Some(self.now) },
            false => Image::Failed(Failure {
                at: self.now,
                tries,
                reason: "ErrImagePull".into(),
                message: "not found".into(),
            }),
        };
        self.observed.images.insert(image.to_owned(), state);
    }

    fn probed(&mut self, name: &str, kind: ProbeKind, ok: bool) {
        let container = self.pod.spec.as_ref().unwrap().containers.iter().find(|c| c.name == name).unwrap().clone();
        let now = self.now;
        let probes = &mut self.current(name).probes;
        let (record, probe) = match kind {
            ProbeKind::Startup => (&mut probes.startup, container.startup_probe),
            ProbeKind::Liveness => (&mut probes.liveness, container.liveness_probe),
            ProbeKind::Readiness => (&mut probes.readiness, container.readiness_probe),
        };
        *record = Some(ProbeRecord::after(record.as_ref(), kind, &probe.unwrap(), ok, String::new(), now));
    }

    fn current(&mut self, name: &str) -> &mut Attempt {
        self.observed.containers.get_mut(name).unwrap().last_mut().unwrap()
    }

    fn exit(&mut self, name: &str, code: i32) {
        self.exit_because(name, code, ExitCause::Ended);
    }

    fn exit_because(&mut self, name: &str, code: i32, cause: ExitCause) {
        let now = self.now;
        let attempt = self.current(name);
        let AttemptState::Running { started_at } = attempt.state else { panic!("{name} does not run") };
        let started_at = Some(started_at);
        attempt.state = AttemptState::Exited(Exit { code, cause, message: None, started_at, finished_at: now });
    }

    fn advance(&mut self, seconds: i64) {
        self.now += SignedDuration::from_secs(seconds);
    }

    fn delete(&mut self) {
        let mut marked = self.bound();
        let deletion::Deletion::Mark(grace) = deletion::of_pod(&marked, None) else { panic!() };
        deletion::mark_pod(&mut marked, grace, self.now);
        self.pod.metadata = marked.metadata;
    }

    fn bound(&self) -> Pod {
        let mut pod = self.pod.clone();
        pod.spec.as_mut().unwrap().node_name = Some("n1".into());
        pod
    }

    /// Everything on the node is lost; only the published status remembers.
    fn reboot(&mut self) {
        self.observed.sandbox = None;
        self.observed.containers.clear();
    }

    fn phase(&self) -> &str {
        pods::phase(&self.pod)
    }

    fn container(&self, name: &str) -> &ContainerStatus {
        known_status(self.pod.status.as_ref(), name).unwrap()
    }

    /// The state in one word: what it waits for, `running`, or how it ended.
    fn state(&self, name: &str) -> String {
        let state = self.container(name).state.as_ref().unwrap();
        if state.running.is_some() {
            return "running".into();
        }
        let waiting = state.waiting.as_ref().and_then(|waiting| waiting.reason.clone());
        waiting.or_else(|| state.terminated.as_ref().and_then(|ended| ended.reason.clone())).unwrap()
    }

    fn condition(&self, kind: &str) -> (String, String) {
        let condition = pods::condition(&self.pod, kind).unwrap();
        (condition.status.clone(), condition.reason.clone().unwrap_or_default())
    }

    fn starts(&self) -> Vec<(String, u32)> {
        let starts = self.done.iter().filter_map(|effect| match effect {
            Effect::StartContainer { name, attempt, .. } => Some((name.clone(), *attempt)),
            _ => None,
        });
        starts.collect()
    }
}

fn one(policy: &str) -> Node {
    Node::new(json!({"restartPolicy": policy, "terminationGracePeriodSeconds": 20, "containers": [{"name": "a"}]}))
}
