//! `status` without a job: who leads, who holds the store, what is wrong.

use std::fmt::Write;

use flotilla_raft::EpochId;

use super::DONE;
use super::output::{Format, Out, Table, Tone, plain};
use super::session::{Session, ask};
use super::views::ClusterView;
use crate::proto::{ClusterStatus, ClusterStatusRequest, NodeSummary, NodesRequest};

pub async fn status(session: &Session, format: Format) -> anyhow::Result<u8> {
    let mut client = session.cluster();
    let status = client.status(ask(ClusterStatusRequest {})).await?.into_inner();
    if format != Format::Table {
        session.out.show(format, &ClusterView::from(&status), Table::default)?;
        return Ok(DONE);
    }
    // Without a leader nobody knows how the nodes are; what is known here is wanted then all the more.
    let nodes = match client.nodes(ask(NodesRequest {})).await {
        Ok(nodes) => Some(nodes.into_inner().nodes),
        Err(_) if status.leader.is_empty() => None,
        Err(error) => return Err(error.into()),
    };
    session.say(describe(&session.out, &status, nodes.as_deref()).trim_end())?;
    Ok(DONE)
}

fn describe(out: &Out, status: &ClusterStatus, nodes: Option<&[NodeSummary]>) -> String {
    let mut text = String::new();
    let mut fact = |name: &str, value: &str| {
        // Writing to a string does not fail.
        let _ = writeln!(text, "{}{}", out.paint(Tone::Strong, &format!("{name:<10}")), value);
    };
    fact("Cluster", &plain(&status.cluster_id));
    let epoch = EpochId::from(status.epoch);
    if epoch.is_after(EpochId::FIRST) {
        let often = match epoch.life() - 1 {
            1 => "once".to_owned(),
            times => format!("{times} times"),
        };
        fact("Epoch", &format!("{epoch} (restored or recovered {often})"));
    }
    fact("Leader", &leader_words(status));
    let being_changed = if status.voters_change { " (being changed)" } else { "" };
    fact("Voters", &format!("{}{being_changed}", names(&status.voters)));
    fact("Learners", &names(&status.learners));
    fact("Nodes", &nodes.map_or("not known without a leader".into(), node_words));
    fact("Revision", &status.revision.to_string());
    fact("Answered", &plain(&format!("{} (version {})", status.node, status.version)));
    match status.problems.as_slice() {
        [] => fact("Problems", &out.paint(Tone::Good, "none")),
        problems => {
            for problem in problems {
                fact("Problem", &out.paint(Tone::Bad, &plain(problem)));
            }
        }
    }
    text
}

fn leader_words(status: &ClusterStatus) -> String {
    match status.leader.as_str() {
        "" => "none: an election is under way, or most voters are out of reach".into(),
        leader => plain(&format!("{leader} (term {})", status.term)),
    }
}

fn names(names: &[String]) -> String {
    if names.is_empty() { "none".into() } else { plain(&names.join(", ")) }
}

fn node_words(nodes: &[NodeSummary]) -> String {
    let ready = nodes.iter().filter(|node| node.status.split(',').next() == Some("Ready")).count();
    let pods: i32 = nodes.iter().map(|node| node.pods).sum();
    format!("{ready}/{} ready, {pods} pods", nodes.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cluster_in_a_few_lines() {
        let status = ClusterStatus {
            cluster_id: "c1".into(),
            node: "node-2".into(),
            leader: "node-1".into(),
            term: 3,
            revision: 1042,
            voters: vec!["node-1".into(), "node-2".into(), "node-3".into()],
            version: "0.1.0".into(),
            problems: vec!["node-3 is silent".into()],
            ..ClusterStatus::default()
        };
        let plain_out = Out { terminal: false, colour: false };
        let node = NodeSummary { status: "Ready,SchedulingDisabled".into(), pods: 4, ..NodeSummary::default() };
        let silent = NodeSummary { status: "NotReady".into(), ..NodeSummary::default() };
        assert_eq!(
            describe(&plain_out, &status, Some(&[node, silent])),
            "Cluster   c1\n\
             Leader    node-1 (term 3)\n\
             Voters    node-1, node-2, node-3\n\
             Learners  none\n\
             Nodes     1/2 ready, 4 pods\n\
             Revision  1042\n\
             Answered  node-2 (version 0.1.0)\n\
             Problem   node-3 is silent\n"
        );
        let text = describe(&plain_out, &ClusterStatus { epoch: 3 << 32 | 0x1a2b, ..status }, None);
        assert!(text.contains("Nodes     not known without a leader"), "{text}");
        assert!(text.contains("\nEpoch     3-00001a2b (restored or recovered 2 times)\n"), "{text}");
    }
}
