//! Why no node takes a pod, in one sentence that a user can act on.

use std::collections::BTreeMap;

use super::filter::Lack;

/// How many nodes lack what.
#[derive(Default)]
pub(super) struct Tally {
    counts: BTreeMap<Lack, usize>,
}

impl Tally {
    pub fn add(&mut self, lack: Lack) {
        *self.counts.entry(lack).or_default() += 1;
    }

    /// `0/3 nodes: 2 lack memory, 1 is cordoned`: the most common reason first.
    pub fn sentence(&self, nodes: usize) -> String {
        if nodes == 0 {
            return "0/0 nodes: the cluster has no nodes".into();
        }
        let mut reasons: Vec<(&Lack, usize)> = self.counts.iter().map(|(lack, count)| (lack, *count)).collect();
        reasons.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
        let reasons: Vec<String> = reasons.into_iter().map(|(lack, count)| lack.words(count)).collect();
        format!("0/{nodes} nodes: {}", reasons.join(", "))
    }
}

impl Lack {
    fn words(&self, count: usize) -> String {
        let verb = |one: &str, many: &str| format!("{count} {}", if count == 1 { one } else { many });
        let is = || verb("is", "are");
        let has = || verb("has", "have");
        match self {
            Lack::Unreachable => format!("{} unreachable", is()),
            Lack::NotReady => format!("{} not ready", is()),
            Lack::Cordoned => format!("{} cordoned", is()),
            Lack::Leaving => format!("{} leaving the cluster", is()),
            Lack::Selector => format!("{} not match the pod's node selector", verb("does", "do")),
            Lack::Taint(taint) => format!("{} the taint {taint} that the pod does not tolerate", has()),
            Lack::Port(port) => format!("{} port {port} taken", has()),
            Lack::Pods => format!("{} no room for another pod", has()),
            Lack::Room(resources) => format!("{} {resources}", verb("lacks", "lack")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentences() {
        let mut tally = Tally::default();
        assert_eq!(tally.sentence(0), "0/0 nodes: the cluster has no nodes");
        tally.add(Lack::Room("memory".into()));
        tally.add(Lack::Cordoned);
        tally.add(Lack::Room("memory".into()));
        assert_eq!(tally.sentence(3), "0/3 nodes: 2 lack memory, 1 is cordoned");
        let mut tally = Tally::default();
        tally.add(Lack::Taint("gpu=yes".into()));
        tally.add(Lack::Selector);
        tally.add(Lack::Port("80/TCP".into()));
        assert_eq!(
            tally.sentence(3),
            "0/3 nodes: 1 does not match the pod's node selector, \
             1 has the taint gpu=yes that the pod does not tolerate, 1 has port 80/TCP taken"
        );
    }
}
