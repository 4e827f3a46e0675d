//! From what the runtime reports to what the pod's life is decided by.

use std::collections::BTreeMap;

use flotilla_control::pod::{Attempt, AttemptState, Exit, ExitCause, Probes, Sandbox, SandboxState};
use flotilla_runtime::state::{ContainerState, Phase, REASON_SHIM_DIED, REASON_START_ERROR, SandboxState as Reported};
use jiff::Timestamp;

use super::memory::Memory;

pub fn sandbox(reported: &Reported) -> Sandbox {
    Sandbox {
        id: reported.id.clone(),
        state: if reported.ready { SandboxState::Ready } else { SandboxState::Stopped },
        ip: reported.ip.map(|ip| ip.to_string()),
        created_at: time(reported.created_ms),
    }
}

/// The attempts of each container, oldest first.
pub fn attempts(
    reported: &Reported,
    memory: &Memory,
    probes: &BTreeMap<String, Probes>,
    stopping: &BTreeMap<String, Timestamp>,
) -> BTreeMap<String, Vec<Attempt>> {
    let mut attempts: BTreeMap<String, Vec<Attempt>> = BTreeMap::new();
    for container in &reported.containers {
        let key = container.key();
        let fact = memory.get(&key);
        // Asked for and not yet made: the effect that makes it is still under way.
        let Some(state) = state(container) else { continue };
        attempts.entry(container.name.clone()).or_default().push(Attempt {
            attempt: container.attempt,
            crashes: fact.crashes,
            id: format!("flotilla://{}-{key}", reported.uid),
            image_id: fact.image_id,
            state,
            stopping: stopping.get(&key).copied(),
            probes: probes.get(&key).cloned().unwrap_or_default(),
        });
    }
    for list in attempts.values_mut() {
        list.sort_by_key(|attempt| attempt.attempt);
    }
    attempts
}

fn state(container: &ContainerState) -> Option<AttemptState> {
    let started_at = container.started_ms.map(time);
    Some(match &container.phase {
        Phase::Creating => return None,
        Phase::Created => AttemptState::Created,
        Phase::Running => AttemptState::Running { started_at: started_at.unwrap_or(time(container.created_ms)) },
        Phase::Exited(exit) => AttemptState::Exited(Exit {
            code: exit.code,
            cause: match exit.reason.as_str() {
                _ if exit.oom_killed => ExitCause::OutOfMemory,
                REASON_START_ERROR => ExitCause::NotStarted,
                REASON_SHIM_DIED => ExitCause::Lost,
                _ => ExitCause::Ended,
            },
            message: (!exit.message.is_empty()).then(|| exit.message.clone()),
            started_at,
            finished_at: time(container.finished_ms.unwrap_or(container.created_ms)),
        }),
    })
}

fn time(ms: u64) -> Timestamp {
    i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok()).unwrap_or(Timestamp::UNIX_EPOCH)
}
