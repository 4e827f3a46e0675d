//! Watchers that follow the registers through every fault, changing the node whenever one falls silent.

use std::collections::BTreeMap;
use std::time::Duration;

use flotilla::proto::WatchObjectsRequest;
use flotilla::proto::objects_client::ObjectsClient;
use serde_json::Value;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tonic::transport::Channel;

use super::clients::version;
use super::history::Version;
use crate::Cluster;

/// Registers are written many times a second: a stream that is silent for so long is taken up elsewhere.
const SILENCE: Duration = Duration::from_secs(2);
/// After a node refused.
const REFUSED_PACE: Duration = Duration::from_millis(50);

/// What one watcher saw, in the order in which it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Seen {
    pub events: Vec<(String, Version)>,
    /// How often it went on at another node.
    pub resumed: u64,
}

/// Watchers at work.
pub struct Followers {
    tasks: JoinSet<Seen>,
    /// Everything up to this revision is to be seen before they end.
    until: tokio::sync::watch::Sender<u64>,
    give_up: CancellationToken,
}

impl Followers {
    /// Follows all config maps after `revision`.
    #[must_use]
    pub fn start(cluster: &Cluster, count: usize, revision: u64) -> Self {
        let (until, limit) = tokio::sync::watch::channel(u64::MAX);
        let give_up = CancellationToken::new();
        let mut tasks = JoinSet::new();
        for number in 0..count {
            let mut nodes: Vec<_> = cluster.nodes().iter().map(|node| cluster.objects(node)).collect();
            let turn = number % nodes.len();
            nodes.rotate_left(turn);
            let follower = Follower { nodes, reached: revision, seen: Seen::default() };
            tasks.spawn(follower.run(limit.clone(), give_up.clone()));
        }
        Self { tasks, until, give_up }
    }

    /// Waits until each has reached `revision`, and returns what it saw; one that does not is missing what it has not.
    pub async fn finish(mut self, revision: u64, patience: Duration) -> Vec<Seen> {
        self.until.send_replace(revision);
        let mut all = Vec::new();
        let late = tokio::time::sleep(patience);
        tokio::pin!(late);
        loop {
            tokio::select! {
                ended = self.tasks.join_next() => match ended {
                    Some(ended) => all.push(ended.expect("a watcher does not panic")),
                    None => return all,
                },
                () = &mut late, if !self.give_up.is_cancelled() => self.give_up.cancel(),
            }
        }
    }
}

struct Follower {
    nodes: Vec<ObjectsClient<Channel>>,
    reached: u64,
    seen: Seen,
}

impl Follower {
    async fn run(mut self, mut until: tokio::sync::watch::Receiver<u64>, give_up: CancellationToken) -> Seen {
        loop {
            tokio::select! {
                () = self.follow() => {}
                _ = until.changed() => {}
                () = give_up.cancelled() => return self.seen,
            }
            if self.reached >= *until.borrow_and_update() {
                return self.seen;
            }
            self.seen.resumed += 1;
            self.nodes.rotate_left(1);
            tokio::time::sleep(REFUSED_PACE).await;
        }
    }

    /// Follows at one node until it ends the stream, refuses, or falls silent.
    async fn follow(&mut self) {
        let request =
            WatchObjectsRequest { kind: "configmaps".into(), revision: self.reached, ..WatchObjectsRequest::default() };
        let Ok(Ok(answer)) = tokio::time::timeout(SILENCE, self.nodes[0].watch(request)).await else { return };
        let mut events = answer.into_inner();
        while let Ok(Ok(Some(event))) = tokio::time::timeout(SILENCE, events.message()).await {
            if event.r#type != "BOOKMARK" {
                let object: Value = serde_json::from_slice(&event.json).expect("an object is JSON");
                let name = object.pointer("/metadata/name").and_then(Value::as_str).unwrap_or_default().to_owned();
                // Config maps that are no registers are none of ours.
                if let Some(version) = version(&object) {
                    self.seen.events.push((name, version));
                }
            }
            self.reached = self.reached.max(event.revision);
        }
    }
}

/// The versions of each register as the watchers saw them, and where they contradict each other.
#[must_use]
pub fn agreed(all: &[Seen]) -> (BTreeMap<String, Vec<Version>>, Vec<String>) {
    let mut found = Vec::new();
    for (number, seen) in all.iter().enumerate() {
        let jumps = seen.events.windows(2).filter(|pair| pair[0].1.revision >= pair[1].1.revision);
        found.extend(jumps.map(|pair| format!("watcher {number} saw {:?} and then {:?}", pair[0], pair[1])));
        let first = &all[0].events;
        if seen.events != *first {
            let same = seen.events.iter().zip(first).take_while(|(one, other)| one == other).count();
            found.push(format!(
                "watchers 0 and {number} part after {same} events: {:?} and {:?}; they saw {} and {}",
                first.get(same),
                seen.events.get(same),
                first.len(),
                seen.events.len()
            ));
        }
    }
    let mut orders: BTreeMap<String, Vec<Version>> = BTreeMap::new();
    for (name, version) in all.first().into_iter().flat_map(|seen| &seen.events) {
        orders.entry(name.clone()).or_default().push(version.clone());
    }
    (orders, found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seen(revisions: &[u64]) -> Seen {
        let event = |revision: &u64| ("a".to_owned(), Version { revision: *revision, value: revision.to_string() });
        Seen { events: revisions.iter().map(event).collect(), resumed: 0 }
    }

    #[test]
    fn gaps_repeats_and_disorder_are_found() {
        assert!(agreed(&[seen(&[1, 2, 3]), seen(&[1, 2, 3])]).1.is_empty());
        for wrong in [&[1, 3][..], &[1, 2, 2, 3], &[1, 3, 2], &[1, 2]] {
            assert!(!agreed(&[seen(&[1, 2, 3]), seen(wrong)]).1.is_empty(), "{wrong:?}");
        }
    }
}
