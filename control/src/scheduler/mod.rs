//! The scheduler: gives each waiting pod a node, or says in words why it cannot.
//!
//! Invariant: within a pass later pods see the room that earlier ones took, so that no node is filled
//! beyond what it offers.
//! Invariant: a pod that cannot be placed is written to only when the words change.

mod filter;
mod score;
mod words;

use std::collections::HashMap;

use flotilla_api::{Change, Expect};

use crate::event::{self, Teller};
use crate::plan::{Context, Plan, change};
use crate::view::PodEntry;
use crate::{condition, meta, pods};
use filter::Slot;
use score::Owners;
use words::Tally;

const MANAGER: &str = "default-scheduler";
const SCHEDULED: &str = "PodScheduled";
const UNSCHEDULABLE: &str = "Unschedulable";
/// The search for a pod ends when so many nodes fit: enough to choose a good one from, and the same
/// work in a cluster of any size.
const COMPARED_NODES: usize = 100;

/// One pass over the queue.
struct Pass<'a> {
    slots: Vec<Slot<'a>>,
    owners: Owners<'a>,
    /// Why pods of a class found no node. Room only shrinks within a pass, so the answer holds.
    refused: HashMap<u64, String>,
    /// Where the search begins: it goes round, so that all nodes get their share.
    start: usize,
}

pub(crate) fn plan(cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let view = cx.view;
    let mut queue = view.queue();
    let mut pass = Pass::new(cx);
    for pod in queue.by_ref().take(cx.settings.schedule_pass_pods) {
        let change = match pass.place(pod) {
            Ok(slot) => bind(pod, slot, cx),
            Err(message) => refuse(pod, message, cx),
        };
        plan.add(change);
    }
    if queue.next().is_some() {
        plan.wake(cx.now);
    }
    plan
}

impl<'a> Pass<'a> {
    fn new(cx: &mut Context<'a>) -> Self {
        let slots: Vec<Slot<'a>> = cx.view.nodes().map(|node| Slot::new(node, cx)).collect();
        let start = match slots.len() {
            0 => 0,
            count => cx.rng.next_u32() as usize % count,
        };
        Self { owners: Owners::new(cx.view, &slots), slots, refused: HashMap::new(), start }
    }

    /// The node for a pod, whose room is taken at once, or why there is none.
    fn place(&mut self, pod: &'a PodEntry) -> Result<&Slot<'a>, &str> {
        if self.refused.contains_key(&pod.facts.class) {
            return Err(&self.refused[&pod.facts.class]);
        }
        match self.search(pod) {
            Ok(index) => {
                self.slots[index].take(pod);
                self.owners.add(pod, index);
                Ok(&self.slots[index])
            }
            Err(tally) => Err(self.refused.entry(pod.facts.class).or_insert(tally.sentence(self.slots.len()))),
        }
    }

    fn search(&mut self, pod: &'a PodEntry) -> Result<usize, Tally> {
        let mut tally = Tally::default();
        let siblings = self.owners.of(pod);
        let mut best: Option<(score::Score, usize)> = None;
        let mut fitting = 0;
        let count = self.slots.len();
        let mut looked_at = 0;
        while looked_at < count && fitting < COMPARED_NODES {
            let index = (self.start + looked_at) % count;
            looked_at += 1;
            let slot = &self.slots[index];
            match slot.refuses(pod) {
                Some(lack) => tally.add(&lack),
                None => {
                    fitting += 1;
                    let score = score::of(slot, pod, siblings.and_then(|on| on.get(&index)).copied().unwrap_or(0));
                    if best.as_ref().is_none_or(|(other, _)| score < *other) {
                        best = Some((score, index));
                    }
                }
            }
        }
        self.start = if count == 0 { 0 } else { (self.start + looked_at) % count };
        // A whole round ends where it began: move on by one, so that equals take turns.
        if looked_at == count && count > 0 {
            self.start = (self.start + 1) % count;
        }
        best.map(|(_, index)| index).ok_or(tally)
    }
}

fn bind(pod: &PodEntry, slot: &Slot<'_>, cx: &mut Context<'_>) -> Change {
    let mut next = pod.whole();
    next.spec.get_or_insert_default().node_name = Some(slot.name.to_owned());
    let status = next.status.get_or_insert_default();
    condition::set(&mut status.conditions, SCHEDULED, "True", "", "", cx.now);
    let change = change(MANAGER).require(slot.node.key.clone(), Expect::Exists).update(
        pod.key.clone(),
        pod.revision,
        meta::encode(&next),
    );
    let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
    let message = format!("Successfully assigned {}/{} to {}", pod.key.namespace(), pod.key.name(), slot.name);
    teller.normal(change, &event::reference(&**pod), "Scheduled", &message)
}

fn refuse(pod: &PodEntry, message: &str, cx: &mut Context<'_>) -> Change {
    let known = pods::condition(pod, SCHEDULED)
        .is_some_and(|condition| condition.status == "False" && condition.message.as_deref() == Some(message));
    if known {
        return change(MANAGER);
    }
    let mut next = pod.whole();
    let status = next.status.get_or_insert_default();
    condition::set(&mut status.conditions, SCHEDULED, "False", UNSCHEDULABLE, message, cx.now);
    let change = change(MANAGER).update(pod.key.clone(), pod.revision, meta::encode(&next));
    let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
    teller.warning(change, &event::reference(&**pod), "FailedScheduling", message)
}
