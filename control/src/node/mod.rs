//! The life of nodes: whether they are ready, what keeps pods away from them, which addresses their
//! pods get, and which pods have to leave them.

mod cidr;
mod evict;
mod health;

pub(crate) use evict::{disturbs, plan as plan_eviction, tolerates};
pub(crate) use health::plan as plan_nodes;
pub use health::{readiness_of, taints_of};

const MANAGER: &str = "node-lifecycle-controller";
pub(crate) const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub(crate) const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub(crate) const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
