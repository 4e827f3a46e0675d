//! Stories of whole clusters: planners and scheduler against a store in memory.

mod budgets;
mod definitions;
mod deployments;
mod garbage;
mod jobs;
mod nodes;
mod properties;
mod quotas;
mod replica_sets;
mod scheduling;
mod sim;
