//! What a change of the View makes necessary to think about again.

use flotilla_api::Key;

/// One thing to plan. Asking for it twice does no harm; missing it once would.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Work {
    /// Readiness, taints and pod address ranges of all nodes: they share ranges and a rate limit.
    Nodes,
    /// The pods of one node, by its name: whether they may stay.
    Evict(String),
    Namespace(String),
    /// A CustomResourceDefinition, by its name.
    Definition(String),
    Deployment(Key),
    ReplicaSet(Key),
    Job(Key),
    ReplicationController(Key),
    /// A PodDisruptionBudget: what it allows now.
    Budget(Key),
    /// A ResourceQuota: what its namespace takes now.
    Quota(Key),
    /// An object of any kind whose owners, finalizers or node may no longer let it live.
    Garbage(Key),
    /// The range that Services have their addresses from.
    ServiceRange,
    /// An IPAddress: whether a Service has it.
    Address(Key),
    /// The PriorityClasses that every cluster has.
    PriorityClasses,
    /// Finished pods beyond what is kept.
    FinishedPods,
    /// The queue of pods without a node.
    Schedule,
}
