//! The friendly way to run containers: a small `Job`, lowered to Kubernetes' objects and raised from them again.
//!
//! A service is lowered to a Deployment, a batch job to a `batch/v1` Job. The object is the only thing that is stored;
//! an annotation on it says that it came from a Job, and the Job that is shown is read off the object as it is now.
//!
//! Invariant: complaints name the Job's own fields (`containers[0].image`), never those of what it is lowered to.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::selector::{Labels, SelectorError};

mod form;
mod lower;
mod raise;
mod status;

pub use form::{from_yaml, to_yaml};
pub use lower::{explain, lower, prepare, resubmit};
pub use raise::raise;
pub use status::{Phase, PodSummary, Summary, summarize};

/// On an object, the annotation that says that it came from a Job, and of which type; on it and its pods, the label
/// that holds the Job's name.
pub const MARK: &str = "flotilla.dev/job";

/// Runs until it is stopped.
pub const SERVICE: &str = "service";
/// Runs to completion.
pub const BATCH: &str = "batch";

/// What to run. Empty texts and absent numbers mean the default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Job {
    pub name: String,
    /// Empty means `default`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// [`SERVICE`] (the default) or [`BATCH`].
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub type_: String,
    /// Of a service: replicas. Of a batch job: how many tasks must succeed. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub count: Option<i32>,
    /// Of a batch job: how many tasks run at the same time. Default 1.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parallelism: Option<i32>,
    pub containers: Vec<Container>,
    /// Of a service: `Always`. Of a batch job: `Never` or `OnFailure` (the default).
    #[serde(skip_serializing_if = "String::is_empty")]
    pub restart_policy: String,
    /// Of a batch job: failures before it is given up. Default 6.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub retries: Option<i32>,
    /// Of a service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub update: Option<UpdatePolicy>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Only nodes with all these labels run the job.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub node_selector: BTreeMap<String, String>,
    /// Containers use the node's network instead of the pod bridge.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub host_network: bool,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Container {
    /// Defaults to the job's name for the first container.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub command: Vec<String>,
    /// Replaces the image's arguments.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub args: Vec<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub env: Vec<EnvVar>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ports: Vec<Port>,
    /// A quantity, as request and as limit: `500m`, `2`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub cpu: String,
    /// A quantity, as request and as limit: `64Mi`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub memory: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct EnvVar {
    pub name: String,
    pub value: String,
}

#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct Port {
    /// 1 to 65535, inside the container.
    pub port: u32,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// `TCP` (the default), `UDP` or `SCTP`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub protocol: String,
    /// Also reachable at this port of the node; 0: not.
    #[serde(skip_serializing_if = "is_zero")]
    pub host_port: u32,
}

/// How new replicas replace old ones.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default, deny_unknown_fields)]
pub struct UpdatePolicy {
    /// Number or percentage of replicas above count. Default `25%`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub max_surge: String,
    /// Number or percentage of replicas that may be missing. Default `25%`.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub max_unavailable: String,
    /// Stop all old replicas before starting new ones.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub recreate: bool,
    /// Seconds without progress after which an update counts as failed. Default 600.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub deadline_seconds: Option<i32>,
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature that serde calls")]
fn is_zero(number: &u32) -> bool {
    *number == 0
}

/// Chooses the pods of the job called `name`, in its namespace.
///
/// # Errors
/// If `name` cannot be the name of a job.
pub fn pods_of(name: &str) -> Result<Labels, SelectorError> {
    Labels::parse(&format!("{MARK}={name}"))
}
