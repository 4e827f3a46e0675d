//! Stories of whole clusters: planners and scheduler against a store in memory.

mod definitions;
mod deployments;
mod garbage;
mod jobs;
mod nodes;
mod properties;
mod replica_sets;
mod scheduling;
mod sim;
