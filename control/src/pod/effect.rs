//! What the node's agent is asked to do for a pod.
//!
//! Invariant: asking is idempotent. An effect is returned by each step until [`super::Observed`] shows
//! its result; the agent drops one that is the [`Effect::same_as`] one that it is carrying out.

use jiff::Timestamp;

use super::probes::ProbeKind;

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Effect {
    PullImage {
        image: String,
        container: String,
    },
    CreateSandbox,
    /// Creates the attempt if it does not exist, and starts it. `crashes` is kept with the attempt.
    StartContainer {
        name: String,
        attempt: u32,
        crashes: u32,
        image_id: String,
    },
    /// Sends the stop signal at once and kills at `kill_at`, after the pre-stop hook if there is one.
    StopContainer {
        name: String,
        attempt: u32,
        kill_at: Timestamp,
        why: StopReason,
    },
    RemoveContainer {
        name: String,
        attempt: u32,
    },
    /// Takes down the network; logs and exit codes stay.
    StopSandbox,
    /// Takes away everything of the pod.
    RemoveSandbox,
    Probe {
        name: String,
        attempt: u32,
        kind: ProbeKind,
    },
}

impl Effect {
    /// Whether both ask for the same thing. When a container is killed may differ: until it is known
    /// that it was told to stop, the time moves on.
    pub fn same_as(&self, other: &Effect) -> bool {
        match (self, other) {
            (
                Effect::StopContainer { name, attempt, .. },
                Effect::StopContainer { name: other_name, attempt: other_attempt, .. },
            ) => (name, attempt) == (other_name, other_attempt),
            (Effect::PullImage { image, .. }, Effect::PullImage { image: other_image, .. }) => image == other_image,
            (one, other) => one == other,
        }
    }
}

/// Why a container is stopped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum StopReason {
    /// The pod was told to go.
    Deleted,
    /// The pod ran longer than it may.
    DeadlineExceeded,
    /// The pod took more than it may.
    Evicted,
    /// The other containers are done, or failed for good.
    PodFinished,
    /// The sandbox has to be made anew.
    SandboxChanged,
    /// A liveness or startup probe of it failed too often.
    Unhealthy(ProbeKind),
}
