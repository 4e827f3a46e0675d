//! The output of all pods of a job in one stream, those that start later too.
//!
//! Invariant: at most [`MAX_STREAMS`] containers are followed at once, and each is followed once for each of its
//! starts.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::time::{Duration, Instant};

use anyhow::ensure;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use super::DONE;
use super::failure::is_passing;
use super::follow::{JobWatch, Step};
use super::logs::{LogsArgs, Source, copy, report, request};
use super::session::Session;
use crate::proto::{JobStatus, PodSummary};

/// As many streams as one connection carries well.
const MAX_STREAMS: usize = 100;

/// How soon a container that could not be followed is tried again.
const RETRY_MS: u64 = 1_000;

/// Pods of which nothing can have been written.
const NOT_STARTED: [&str; 6] =
    ["Pending", "ContainerCreating", "PodInitializing", "ErrImagePull", "ImagePullBackOff", "SchedulingGated"];

/// One container of one pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Id {
    pod: String,
    container: String,
}

impl Id {
    /// The container's name only where it tells anything.
    fn name(&self, several: bool) -> String {
        if several { format!("{}/{}", self.pod, self.container) } else { self.pod.clone() }
    }
}

/// Shows the logs of a job.
///
/// # Errors
/// If the job has no such container, or the daemon goes away for long.
pub async fn show(session: &Session, args: &LogsArgs, name: &str, status: JobStatus) -> anyhow::Result<u8> {
    let containers = containers(args, name, &status)?;
    if args.follow {
        Follower::new(session, args, containers).run(name).await
    } else {
        once(session, args, &containers, &status).await
    }
}

/// The containers of each pod that are shown.
fn containers(args: &LogsArgs, name: &str, status: &JobStatus) -> anyhow::Result<Vec<String>> {
    let mut all: Vec<String> =
        status.job.iter().flat_map(|job| &job.containers).map(|container| container.name.clone()).collect();
    if all.is_empty() {
        all.push(String::new());
    }
    if args.container.is_empty() {
        return Ok(all);
    }
    ensure!(all.contains(&args.container), "job {name} has no container {}: it has {}", args.container, all.join(", "));
    Ok(vec![args.container.clone()])
}

fn ids(pod: &PodSummary, containers: &[String]) -> Vec<Id> {
    containers.iter().map(|container| Id { pod: pod.name.clone(), container: container.clone() }).collect()
}

/// One pod after the other, as far as each has written.
async fn once(session: &Session, args: &LogsArgs, containers: &[String], status: &JobStatus) -> anyhow::Result<u8> {
    let mut code = DONE;
    let mut index = 0;
    for pod in &status.pods {
        if NOT_STARTED.contains(&pod.status.as_str()) {
            eprintln!("{}: {}", pod.name, pod.status);
            continue;
        }
        for id in ids(pod, containers) {
            let source = Source::new(&id.name(containers.len() > 1), index, session.out.colour);
            index += 1;
            let request = request(session, args, &id.pod, &id.container);
            if let Err(status) = copy(session.pods(), request, source).await {
                code = report(&id.name(containers.len() > 1), status);
            }
        }
    }
    Ok(code)
}

/// How one container is followed.
#[derive(Clone, Copy, Debug)]
struct Followed {
    /// Tells its sources apart.
    index: usize,
    /// The restarts of its pod when it was followed last.
    restarts: i32,
    state: State,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum State {
    Running,
    /// It could not be followed, or no longer, since then.
    Broken(Instant),
    Ended,
}

/// Follows every container of a job's pods.
struct Follower<'a> {
    session: &'a Session,
    args: &'a LogsArgs,
    containers: Vec<String>,
    followed: BTreeMap<Id, Followed>,
    pods: Vec<PodSummary>,
    tasks: JoinSet<(Id, Result<(), Status>)>,
    told_of_bound: bool,
    /// The job has ended or is gone: no more pods start.
    over: bool,
}

impl<'a> Follower<'a> {
    fn new(session: &'a Session, args: &'a LogsArgs, containers: Vec<String>) -> Self {
        Self {
            session,
            args,
            containers,
            followed: BTreeMap::new(),
            pods: Vec::new(),
            tasks: JoinSet::new(),
            told_of_bound: false,
            over: false,
        }
    }

    async fn run(mut self, name: &str) -> anyhow::Result<u8> {
        let mut watch = JobWatch::new(self.session, name);
        let mut retry = tokio::time::interval(Duration::from_millis(RETRY_MS));
        loop {
            tokio::select! {
                step = watch.next(), if !self.over => self.step(step?),
                Some(ended) = self.tasks.join_next() => {
                    if let Ok((id, result)) = ended {
                        self.ended(&id, result)?;
                    }
                }
                _ = retry.tick() => self.follow_pods(),
            }
            if self.over && self.tasks.is_empty() {
                return Ok(DONE);
            }
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Away => return,
            Step::Deleted => self.over = true,
            Step::Status(status) => {
                self.over = matches!(status.phase.as_str(), "Complete" | "Failed");
                self.pods = status.pods;
                let there: BTreeSet<&str> = self.pods.iter().map(|pod| pod.name.as_str()).collect();
                self.followed.retain(|id, f| f.state == State::Running || there.contains(id.pod.as_str()));
            }
        }
        self.follow_pods();
    }

    /// Begins to follow what has started, or started again.
    fn follow_pods(&mut self) {
        for pod in std::mem::take(&mut self.pods) {
            if !NOT_STARTED.contains(&pod.status.as_str()) {
                for id in ids(&pod, &self.containers) {
                    self.follow(id, pod.restarts);
                }
            }
            self.pods.push(pod);
        }
    }

    fn follow(&mut self, id: Id, restarts: i32) {
        let before = self.followed.get(&id).copied();
        let mut request = request(self.session, self.args, &id.pod, &id.container);
        match before {
            Some(Followed { state: State::Running, .. }) => return,
            Some(Followed { state: State::Ended, restarts: seen, .. }) if seen >= restarts => return,
            // All of what a new start writes is new.
            Some(Followed { state: State::Ended, .. }) => (request.tail_lines, request.since_seconds) = (None, None),
            Some(Followed { state: State::Broken(since), .. }) if since.elapsed().as_millis() < RETRY_MS.into() => {
                return;
            }
            Some(Followed { state: State::Broken(since), .. }) => {
                let seconds = since.elapsed().as_secs().saturating_add(1);
                request.since_seconds = Some(seconds.try_into().unwrap_or(i64::MAX));
                request.tail_lines = None;
            }
            None => {}
        }
        if self.tasks.len() >= MAX_STREAMS {
            return self.tell_of_bound();
        }
        let index = before.map_or(self.followed.len(), |before| before.index);
        let source = Source::new(&id.name(self.containers.len() > 1), index, self.session.out.colour);
        let client = self.session.pods();
        self.followed.insert(id.clone(), Followed { index, restarts, state: State::Running });
        self.tasks.spawn(async move { (id, copy(client, request, source).await) });
    }

    fn tell_of_bound(&mut self) {
        if !self.told_of_bound {
            eprintln!("only {MAX_STREAMS} containers are followed at once");
            self.told_of_bound = true;
        }
    }

    fn ended(&mut self, id: &Id, result: Result<(), Status>) -> anyhow::Result<()> {
        let state = match result {
            Ok(()) => State::Ended,
            // Standard output is closed.
            Err(status) if status.code() == Code::Cancelled => {
                return Err(io::Error::from(io::ErrorKind::BrokenPipe).into());
            }
            // The container has not started yet, or its node is away.
            Err(status) if is_passing(&status) || is_early(&status) => State::Broken(Instant::now()),
            Err(status) if status.code() == Code::NotFound => State::Ended,
            Err(status) => {
                report(&id.name(self.containers.len() > 1), status);
                State::Ended
            }
        };
        if let Some(followed) = self.followed.get_mut(id) {
            followed.state = state;
        }
        Ok(())
    }
}

/// Said of a container that has not started yet.
fn is_early(status: &Status) -> bool {
    matches!(status.code(), Code::FailedPrecondition | Code::InvalidArgument)
}
