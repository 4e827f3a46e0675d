//! One container's state, out of what is observed and, where nothing is, of what the pod's status
//! remembers: a node that was restarted knows its containers only from there.

use flotilla_api::k8s_openapi::api::core::v1::{ContainerState, ContainerStateTerminated, ContainerStatus};
use jiff::Timestamp;

use super::backoff;
use super::observed::{Attempt, AttemptState, Exit, ExitCause, Observed};
use crate::meta;

/// What exit code stands for an end that nobody saw.
const LOST_CODE: i32 = 137;

#[derive(Clone, Debug)]
pub(super) struct Track<'a> {
    pub now: State<'a>,
    /// How the attempt before ended.
    pub last: Option<ContainerStateTerminated>,
    /// What the pod's status says of it.
    pub known: Option<&'a ContainerStatus>,
}

#[derive(Clone, Debug)]
pub(super) enum State<'a> {
    /// Never started, as far as anyone knows.
    Fresh,
    Created(&'a Attempt),
    Running(&'a Attempt, Timestamp),
    Ended(Ended),
}

#[derive(Clone, Debug)]
pub(super) struct Ended {
    pub attempt: u32,
    pub crashes: u32,
    pub exit: Exit,
    pub id: Option<String>,
    pub image_id: String,
    /// Whether it ended in the sandbox that is there now.
    pub here: bool,
}

impl<'a> Track<'a> {
    pub fn new(name: &str, known: Option<&'a ContainerStatus>, observed: &'a Observed, now: Timestamp) -> Self {
        let attempts = observed.containers.get(name).map(Vec::as_slice).unwrap_or_default();
        let Some(current) = attempts.last() else {
            return Self {
                now: remembered(known, now),
                last: known.and_then(|known| ended(known.last_state.as_ref())),
                known,
            };
        };
        let before =
            attempts.iter().rev().nth(1).and_then(|attempt| Some(terminated(attempt.exit()?, Some(&attempt.id))));
        let last = before.or_else(|| last_known(known, current.attempt));
        let now = match &current.state {
            AttemptState::Created => State::Created(current),
            AttemptState::Running { started_at } => State::Running(current, *started_at),
            AttemptState::Exited(exit) => State::Ended(Ended {
                attempt: current.attempt,
                crashes: backoff::crashes_before(current.crashes, exit),
                exit: exit.clone(),
                id: Some(current.id.clone()),
                image_id: current.image_id.clone(),
                here: true,
            }),
        };
        Self { now, last, known }
    }

    pub fn live(&self) -> Option<&'a Attempt> {
        match &self.now {
            State::Created(attempt) | State::Running(attempt, _) => Some(attempt),
            State::Fresh | State::Ended(_) => None,
        }
    }

    pub fn ended(&self) -> Option<&Ended> {
        match &self.now {
            State::Ended(ended) => Some(ended),
            _ => None,
        }
    }

    /// Whether it has an attempt in the sandbox that is there now.
    pub fn is_here(&self) -> bool {
        match &self.now {
            State::Fresh => false,
            State::Created(_) | State::Running(..) => true,
            State::Ended(ended) => ended.here,
        }
    }
}

/// The state that the pod's status remembers. What was running and is not observed any more has ended.
fn remembered<'a>(known: Option<&ContainerStatus>, now: Timestamp) -> State<'a> {
    let Some(known) = known else { return State::Fresh };
    let state = known.state.as_ref();
    let attempt = u32::try_from(known.restart_count).unwrap_or(0);
    let carried = |exit: Exit| {
        State::Ended(Ended {
            attempt,
            crashes: 0,
            exit,
            id: known.container_id.clone(),
            image_id: known.image_id.clone(),
            here: false,
        })
    };
    if let Some(terminated) = state.and_then(|state| state.terminated.as_ref()) {
        return carried(exit_of(terminated, now));
    }
    if let Some(running) = state.and_then(|state| state.running.as_ref()) {
        return carried(Exit {
            code: LOST_CODE,
            cause: ExitCause::Lost,
            message: Some("The container could not be located when the pod was looked at".into()),
            started_at: running.started_at.as_ref().map(|time| time.0),
            finished_at: now,
        });
    }
    // Waiting to be restarted: its last end is what counts.
    match known.last_state.as_ref().and_then(|last| last.terminated.as_ref()) {
        Some(terminated) => carried(exit_of(terminated, now)),
        None => State::Fresh,
    }
}

fn ended(state: Option<&ContainerState>) -> Option<ContainerStateTerminated> {
    state?.terminated.clone()
}

/// How the attempt before `attempt` ended, if the status remembers it.
fn last_known(known: Option<&ContainerStatus>, attempt: u32) -> Option<ContainerStateTerminated> {
    let known = known?;
    let same = u32::try_from(known.restart_count).unwrap_or(0) == attempt;
    let state = ended(known.state.as_ref());
    if same { ended(known.last_state.as_ref()) } else { state.or_else(|| ended(known.last_state.as_ref())) }
}

fn exit_of(terminated: &ContainerStateTerminated, now: Timestamp) -> Exit {
    Exit {
        code: terminated.exit_code,
        cause: match terminated.reason.as_deref() {
            Some("OOMKilled") => ExitCause::OutOfMemory,
            Some("StartError") => ExitCause::NotStarted,
            Some("ContainerStatusUnknown") => ExitCause::Lost,
            _ => ExitCause::Ended,
        },
        message: terminated.message.clone(),
        started_at: terminated.started_at.as_ref().map(|time| time.0),
        finished_at: terminated.finished_at.as_ref().map_or(now, |time| time.0),
    }
}

/// An end in the words of the API.
pub(super) fn terminated(exit: &Exit, id: Option<&str>) -> ContainerStateTerminated {
    let reason = match exit.cause {
        ExitCause::OutOfMemory => "OOMKilled",
        ExitCause::NotStarted => "StartError",
        ExitCause::Lost => "ContainerStatusUnknown",
        ExitCause::Ended if exit.code == 0 => "Completed",
        ExitCause::Ended => "Error",
    };
    ContainerStateTerminated {
        container_id: id.filter(|id| !id.is_empty()).map(str::to_owned),
        exit_code: exit.code,
        // As from upstream's runtimes, the code alone tells of it.
        signal: None,
        reason: Some(reason.to_owned()),
        message: exit.message.clone(),
        started_at: exit.started_at.map(meta::seconds),
        finished_at: Some(meta::seconds(exit.finished_at)),
    }
}
