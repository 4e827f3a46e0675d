//! What `-o json` and `-o yaml` show of nodes, jobs, pods, tokens, images and the cluster.
//!
//! Invariant: fields are only ever added here; `docs/cli.md` lists them. Absent text is an empty string, times are
//! RFC 3339.

use std::collections::BTreeMap;

use flotilla_raft::EpochId;
use serde::Serialize;

use super::accounts::state as state_of_account_key;
use super::jobs::type_of;
use super::secrets::state as state_of_key;
use crate::convert;
use crate::proto::{
    AccountKey, CaNode, CaStatus, ClusterStatus, EventSummary, ImageSummary, JobStatus, NodeSummary, PodSummary,
    SecretsKey, TokenSummary,
};

/// A struct of borrowed fields, made of the message that has the same ones.
macro_rules! view {
    ($view:ident of $message:ident { $($field:ident: $type:ty = $value:expr),* $(,)? }) => {
        #[derive(Debug, Serialize)]
        #[serde(rename_all = "camelCase")]
        pub struct $view<'a> {
            $($field: $type),*
        }

        impl<'a> From<&'a $message> for $view<'a> {
            fn from(message: &'a $message) -> Self {
                // A closure each, so that the list reads like the message.
                Self { $($field: { let value: fn(&'a $message) -> $type = $value; value(message) }),* }
            }
        }
    };
}

view!(NodeView of NodeSummary {
    name: &'a str = |m| &m.name,
    id: u64 = |m| m.id,
    role: &'a str = |m| &m.role,
    status: &'a str = |m| &m.status,
    message: &'a str = |m| &m.message,
    address: &'a str = |m| &m.address,
    version: &'a str = |m| &m.version,
    cpu_used_millis: i64 = |m| m.cpu_used_millis,
    cpu_capacity_millis: i64 = |m| m.cpu_capacity_millis,
    memory_used_bytes: i64 = |m| m.memory_used_bytes,
    memory_capacity_bytes: i64 = |m| m.memory_capacity_bytes,
    pods: i32 = |m| m.pods,
    created: &'a str = |m| &m.created,
});

view!(TokenView of TokenSummary {
    id: &'a str = |m| &m.id,
    state: &'a str = |m| &m.state,
    uses: u32 = |m| m.uses,
    max_uses: u32 = |m| m.max_uses,
    created: &'a str = |m| &m.created,
    expires: &'a str = |m| &m.expires,
    labels: BTreeMap<&'a str, &'a str> = |m| m.labels.iter().map(|(key, value)| (&**key, &**value)).collect(),
    taints: &'a [String] = |m| &m.taints,
});

view!(SecretsKeyView of SecretsKey {
    id: &'a str = |m| &m.id,
    state: &'a str = |m| state_of_key(m),
    objects: u64 = |m| m.objects,
    created: &'a str = |m| &m.created,
});

view!(AccountKeyView of AccountKey {
    id: &'a str = |m| &m.id,
    state: &'a str = |m| state_of_account_key(m),
    created: &'a str = |m| &m.created,
    ends: &'a str = |m| &m.ends,
});

view!(ImageView of ImageSummary {
    id: &'a str = |m| &m.id,
    references: &'a [String] = |m| &m.references,
    size_bytes: u64 = |m| m.size_bytes,
    created: &'a str = |m| &m.created,
    nodes: &'a [String] = |m| &m.nodes,
});

view!(ClusterView of ClusterStatus {
    cluster_id: &'a str = |m| &m.cluster_id,
    node: &'a str = |m| &m.node,
    version: &'a str = |m| &m.version,
    leader: &'a str = |m| &m.leader,
    term: u64 = |m| m.term,
    epoch: String = |m| EpochId::from(m.epoch).to_string(),
    revision: u64 = |m| m.revision,
    voters: &'a [String] = |m| &m.voters,
    voters_change: bool = |m| m.voters_change,
    learners: &'a [String] = |m| &m.learners,
    problems: &'a [String] = |m| &m.problems,
});

view!(CaView of CaStatus {
    phase: &'a str = |m| &m.phase,
    fingerprint: &'a str = |m| &m.fingerprint,
    expires: &'a str = |m| &m.expires,
    other_fingerprint: &'a str = |m| &m.other_fingerprint,
    started: &'a str = |m| &m.started,
    until: &'a str = |m| &m.until,
    nodes: Vec<CaNodeView<'a>> = |m| m.nodes.iter().map(CaNodeView::from).collect(),
});

view!(CaNodeView of CaNode {
    name: &'a str = |m| &m.name,
    certified_by: &'a str = |m| &m.certified_by,
    waited_for: bool = |m| m.waited_for,
});

view!(PodView of PodSummary {
    name: &'a str = |m| &m.name,
    namespace: &'a str = |m| &m.namespace,
    status: &'a str = |m| &m.status,
    message: &'a str = |m| &m.message,
    ready: &'a str = |m| &m.ready,
    restarts: i32 = |m| m.restarts,
    node: &'a str = |m| &m.node,
    ip: &'a str = |m| &m.ip,
    created: &'a str = |m| &m.created,
});

view!(EventView of EventSummary {
    type_: &'a str = |m| &m.r#type,
    reason: &'a str = |m| &m.reason,
    message: &'a str = |m| &m.message,
    object: &'a str = |m| &m.object,
    count: i32 = |m| m.count,
    last_seen: &'a str = |m| &m.last_seen,
});

/// A job as it stands: what was submitted (as its file says it), how far it is, with its pods and what happened lately.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct JobView<'a> {
    name: &'a str,
    namespace: &'a str,
    #[serde(rename = "type")]
    type_: &'a str,
    status: &'a str,
    message: &'a str,
    desired: i32,
    ready: i32,
    updated: i32,
    succeeded: i32,
    failed: i32,
    created: &'a str,
    revision: u64,
    job: Option<flotilla_api::job::Job>,
    pods: Vec<PodView<'a>>,
    events: Vec<EventView<'a>>,
}

impl<'a> From<&'a JobStatus> for JobView<'a> {
    fn from(message: &'a JobStatus) -> Self {
        let job = message.job.as_ref();
        Self {
            name: job.map_or("", |job| &job.name),
            namespace: job.map_or("", |job| &job.namespace),
            type_: job.map_or("", type_of),
            status: &message.phase,
            message: &message.message,
            desired: message.desired,
            ready: message.ready,
            updated: message.updated,
            succeeded: message.succeeded,
            failed: message.failed,
            created: &message.created,
            revision: message.revision,
            job: message.job.clone().map(convert::job_from_proto),
            pods: message.pods.iter().map(PodView::from).collect(),
            events: message.events.iter().map(EventView::from).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde::Serialize;
    use serde_json::Value;

    use super::*;

    fn fields(view: &impl Serialize) -> Vec<String> {
        let Value::Object(map) = serde_json::to_value(view).unwrap() else { panic!("not an object") };
        map.into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn every_field_is_documented() {
        let text = include_str!("../../../docs/cli.md");
        for (section, fields) in [
            ("nodes", fields(&NodeView::from(&NodeSummary::default()))),
            ("status", fields(&ClusterView::from(&ClusterStatus::default()))),
            ("jobs", fields(&JobView::from(&JobStatus::default()))),
            ("pods of a job", fields(&PodView::from(&PodSummary::default()))),
            ("events of a job", fields(&EventView::from(&EventSummary::default()))),
            ("token list", fields(&TokenView::from(&TokenSummary::default()))),
            ("image ls", fields(&ImageView::from(&ImageSummary::default()))),
        ] {
            let row = text.lines().find(|line| line.starts_with(&format!("| {section} |")));
            let row = row.unwrap_or_else(|| panic!("docs/cli.md has no row for {section}"));
            for field in fields {
                assert!(row.contains(&format!("`{field}`")), "{section}: {field}");
            }
        }
    }
}
