//! Every decision of the cluster: a planner for each behaving kind, the scheduler, and the life of a
//! pod on its node.
//!
//! The daemon's shell feeds watch events to a [`View`], takes the [`Work`] that they made necessary,
//! asks [`plan`] for [`Plan`]s, proposes their Changes, and waits until the View has seen them. The
//! agent of a node does the same for one pod with [`pod::step`].
//!
//! Invariant: nothing here does I/O, reads a clock or draws randomness that it was not handed.
//! Invariant: a planner asked twice about the same View returns nothing new once its Changes are seen.
//! Invariant: each write of a plan carries the revision that the decision was made from, so that a
//! decision from an outdated View does not land.

mod account;
mod address;
pub mod authority;
mod budget;
pub mod concern;
mod condition;
mod definition;
pub mod deletion;
mod deployment;
pub mod event;
pub mod fair;
mod garbage;
mod job;
pub mod keys;
mod maker;
pub mod meta;
mod names;
mod namespace;
mod node;
mod plan;
pub mod pod;
mod pods;
mod preference;
mod priority;
mod quota;
pub mod rbac;
mod replica_set;
pub mod resources;
mod scheduler;
mod selector;
mod view;
mod work;

pub use flotilla_api::k8s_openapi;
pub use node::{readiness_of, taints_of};
pub use plan::{Context, Liveness, NodeLiveness, Plan, Settings, plan};
pub use view::{HostPort, NodeEntry, NodeFacts, NodeUse, PodEntry, PodFacts, Stored, View};
pub use work::Work;
