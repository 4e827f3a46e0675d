//! Why no node takes a pod, in one sentence: kube-scheduler's, for people and alerts look for its words.

use std::collections::BTreeMap;

use super::filter::Lack;

/// How many nodes lack what.
#[derive(Default)]
pub(super) struct Tally {
    counts: BTreeMap<String, usize>,
}

impl Tally {
    pub fn add(&mut self, lack: &Lack) {
        for reason in lack.reasons() {
            *self.counts.entry(reason).or_default() += 1;
        }
    }

    /// `0/3 nodes are available: 1 node(s) were unschedulable, 2 Insufficient memory.`: in the order of the texts.
    pub fn sentence(&self, nodes: usize) -> String {
        if nodes == 0 {
            return "no nodes available to schedule pods".into();
        }
        let mut reasons: Vec<String> = self.counts.iter().map(|(reason, count)| format!("{count} {reason}")).collect();
        reasons.sort();
        format!("0/{nodes} nodes are available: {}.", reasons.join(", "))
    }
}

impl Lack {
    fn reasons(&self) -> Vec<String> {
        let untolerated = |taint: &str| format!("node(s) had untolerated taint {{{taint}}}");
        vec![match self {
            Lack::Unreachable => untolerated("node.kubernetes.io/unreachable: "),
            Lack::NotReady => untolerated("node.kubernetes.io/not-ready: "),
            Lack::Cordoned => "node(s) were unschedulable".into(),
            Lack::Leaving => "node(s) were leaving the cluster".into(),
            Lack::Selector => "node(s) didn't match Pod's node affinity/selector".into(),
            Lack::Taint(taint) => untolerated(taint),
            Lack::Port => "node(s) didn't have free ports for the requested pod ports".into(),
            Lack::Pods => "Too many pods".into(),
            Lack::Room(resources) => return resources.iter().map(|name| format!("Insufficient {name}")).collect(),
        }]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences() {
        let mut tally = Tally::default();
        assert_eq!(tally.sentence(0), "no nodes available to schedule pods");
        tally.add(&Lack::Room(vec!["cpu".into(), "memory".into()]));
        tally.add(&Lack::Cordoned);
        tally.add(&Lack::Room(vec!["memory".into()]));
        assert_eq!(
            tally.sentence(3),
            "0/3 nodes are available: 1 Insufficient cpu, 1 node(s) were unschedulable, 2 Insufficient memory."
        );
        let mut tally = Tally::default();
        tally.add(&Lack::Taint("gpu: yes".into()));
        tally.add(&Lack::Selector);
        tally.add(&Lack::Port);
        assert_eq!(
            tally.sentence(3),
            "0/3 nodes are available: 1 node(s) didn't have free ports for the requested pod ports, 1 node(s) didn't \
             match Pod's node affinity/selector, 1 node(s) had untolerated taint {gpu: yes}."
        );
    }
}
