//! Role-based access control: who may do what, by the roles and bindings that are stored.
//!
//! Defined by the Kubernetes API reference, `rbac.authorization.k8s.io/v1`, and by what an API server does with it. The
//! gate of every node keeps a [`Policy`] from a watch and asks it; nothing here knows how a request came.
//!
//! Invariant: roles only ever grant. What no rule grants is refused.
//! Invariant: a binding whose role is not there grants nothing, and whoever is refused hears of it.

mod aggregate;
mod cover;
mod defaults;
mod policy;
mod reconcile;
mod rule;

pub use aggregate::aggregate;
pub use cover::{compact, covers, describe, quoted};
pub use defaults::{default_bindings, default_roles};
pub use policy::{Grant, Policy, Rules, Who};
pub use reconcile::{reconcile_binding, reconcile_role};
pub use rule::{Action, allows};

/// The API group of roles and bindings.
pub const GROUP: &str = "rbac.authorization.k8s.io";
/// The value of an `apiGroups`, `resources`, `verbs` or `nonResourceURLs` entry that stands for all.
pub const ALL: &str = "*";
