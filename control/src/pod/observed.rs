//! What a node knows of one pod's sandbox, containers and images, in plain types.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::probes::Probes;

/// All that is known of one pod.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandbox: Option<Sandbox>,
    /// The last attempt to make a sandbox failed; cleared by one that succeeds.
    pub sandbox_failure: Option<Failure>,
    /// The attempts of each container that are still known, oldest first.
    pub containers: BTreeMap<String, Vec<Attempt>>,
    /// The last attempt to make the container did not get as far as an [`Attempt`]: a missing Secret,
    /// say. Cleared by one that does.
    pub container_failures: BTreeMap<String, Failure>,
    /// By the reference in the spec. One that is not listed counts as absent.
    pub images: BTreeMap<String, Image>,
    /// Running containers that may not have the resources that the pod gives them yet, and why not if they were refused.
    pub behind: BTreeMap<String, Option<String>>,
    /// What the pod took more of than it may, in words; it is ended for that.
    pub excess: Option<String>,
    /// The node's own address.
    pub host_ip: Option<String>,
}

/// What the containers of a pod share: namespaces, an address, files.
#[derive(Clone, Debug, PartialEq)]
pub struct Sandbox {
    pub id: String,
    pub state: SandboxState,
    pub ip: Option<String>,
    pub created_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SandboxState {
    Ready,
    /// Its network is gone; containers cannot start in it any more.
    Stopped,
}

/// Something that did not work and is tried again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    pub at: Timestamp,
    /// How often in a row, at least 1.
    pub tries: u32,
    /// In kubelet's words: `CreateContainerConfigError`.
    pub reason: String,
    pub message: String,
}

/// One run of a container, from its creation to its removal.
#[derive(Clone, Debug, PartialEq)]
pub struct Attempt {
    /// 0 for the first; the container's restart count.
    pub attempt: u32,
    /// Of [`super::Effect::StartContainer`]: restarts in a row that did not last.
    pub crashes: u32,
    pub id: String,
    pub image_id: String,
    pub state: AttemptState,
    /// It was told to stop and will be killed at this time.
    pub stopping: Option<Timestamp>,
    pub probes: Probes,
}

#[derive(Clone, Debug, PartialEq)]
pub enum AttemptState {
    Created,
    Running { started_at: Timestamp },
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Exit {
    /// 128 and the signal's number if a signal ended it.
    pub code: i32,
    pub cause: ExitCause,
    pub message: Option<String>,
    /// `None` if it never ran.
    pub started_at: Option<Timestamp>,
    pub finished_at: Timestamp,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitCause {
    /// The process ended or was killed by someone.
    Ended,
    OutOfMemory,
    /// The process could not be started.
    NotStarted,
    /// Nobody knows: the node was restarted, or its records were lost.
    Lost,
}

/// An image on the node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Image {
    Absent,
    Pulling,
    Present {
        id: String,
        /// When this node last asked the registry for it; `None` if it did not since it runs.
        pulled_at: Option<Timestamp>,
    },
    /// The last pull failed and no usable copy is there, or the policy asks for a fresh one.
    Failed(Failure),
}

impl Attempt {
    pub fn exit(&self) -> Option<&Exit> {
        match &self.state {
            AttemptState::Exited(exit) => Some(exit),
            AttemptState::Created | AttemptState::Running { .. } => None,
        }
    }

    /// Whether there is a process, or could be one in a moment.
    pub fn is_live(&self) -> bool {
        self.exit().is_none()
    }
}
