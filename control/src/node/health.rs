//! What heartbeats and the node's own word make of it: its Ready condition, its taints, its range.
//!
//! Invariant: of taints that this planner does not manage, only the time is written that whoever added them left out.
//! Invariant: when more than half of three or more nodes are silent, the fault may be ours: pods are
//! told to leave one node at a time, and the time of the last taint, which is stored, is the clock.

use flotilla_api::k8s_openapi::api::core::v1::{Node, Taint};
use jiff::Timestamp;

use super::cidr::Ranges;
use super::{MANAGER, NOT_READY, UNREACHABLE, UNSCHEDULABLE};
use crate::event::{self, Teller};
use crate::plan::{Context, Liveness, Plan, change};
use crate::view::NodeEntry;
use crate::{condition, meta};

/// Where a silent node's own last word about its readiness is kept, to be put back when it returns.
const LAST_WORD: &str = "flotilla.dev/ready-before-silence";
const UNKNOWN_REASON: &str = "NodeStatusUnknown";
const UNKNOWN_MESSAGE: &str = "The node stopped answering heartbeats.";
/// Fewer nodes than this are never treated as a mass.
const MASS_MIN_NODES: usize = 3;

/// The status of a node's Ready condition, as it is stored; `None` while it never said anything.
pub fn readiness_of(node: &Node) -> Option<&str> {
    let conditions = node.status.as_ref()?.conditions.as_ref();
    condition::find(conditions, "Ready").map(|ready| ready.status.as_str())
}

/// A node's taints, and those that follow from being cordoned or not ready even before they are stored.
pub fn taints_of(node: &Node) -> Vec<Taint> {
    let spec = node.spec.as_ref();
    let mut taints = spec.and_then(|spec| spec.taints.clone()).unwrap_or_default();
    let implied = wanted(node).into_iter().filter(|(_, effect)| *effect == "NoSchedule");
    for (key, effect) in implied {
        if !taints.iter().any(|taint| taint.key == key && taint.effect == effect) {
            taints.push(taint(key, effect, None));
        }
    }
    taints
}

/// The managed taints that a node should have.
fn wanted(node: &Node) -> Vec<(&'static str, &'static str)> {
    let mut wanted = Vec::new();
    match readiness_of(node) {
        Some("True") => {}
        Some("False") => wanted.extend([(NOT_READY, "NoSchedule"), (NOT_READY, "NoExecute")]),
        Some(_) => wanted.extend([(UNREACHABLE, "NoSchedule"), (UNREACHABLE, "NoExecute")]),
        None => wanted.push((NOT_READY, "NoSchedule")),
    }
    if node.spec.as_ref().is_some_and(|spec| spec.unschedulable == Some(true)) {
        wanted.push((UNSCHEDULABLE, "NoSchedule"));
    }
    wanted
}

fn taint(key: &str, effect: &str, at: Option<Timestamp>) -> Taint {
    Taint { key: key.to_owned(), effect: effect.to_owned(), value: None, time_added: at.map(meta::seconds) }
}

fn is_managed(taint: &Taint) -> bool {
    matches!(taint.key.as_str(), NOT_READY | UNREACHABLE | UNSCHEDULABLE)
}

/// Whether pods that stay for a while cannot know since when.
fn lacks_time(taint: &Taint) -> bool {
    taint.effect == "NoExecute" && taint.time_added.is_none()
}

/// Whether the taint tells pods to leave because the node is silent.
fn moves_pods(taint: &Taint) -> bool {
    taint.key == UNREACHABLE && taint.effect == "NoExecute"
}

pub(crate) fn plan(cx: &mut Context<'_>) -> Plan {
    let mut plan = Plan::default();
    let view = cx.view;
    let settings = cx.settings;
    let mut ranges =
        Ranges::new(settings.cluster_cidr, settings.node_cidr_prefix, view.nodes().map(|node| &node.object));
    let mut leave = Leave::new(cx);
    for entry in view.nodes() {
        if meta::is_deleting(&entry.metadata) || is_in_order(entry, cx) {
            continue;
        }
        let mut node = entry.object.clone();
        judge(&mut node, cx);
        sync_taints(&mut node, cx.now, &mut leave);
        date_taints(&mut node, cx.now);
        if node.spec.as_ref().is_none_or(|spec| spec.pod_cidr.is_none())
            && let Some(range) = ranges.next()
        {
            let spec = node.spec.get_or_insert_default();
            spec.pod_cidrs = Some(vec![range.clone()]);
            spec.pod_cidr = Some(range);
        }
        if node != entry.object {
            plan.add(write(entry, &node, cx));
        }
    }
    if let Some(at) = leave.wake_at {
        plan.wake(at);
    }
    plan
}

/// Whether nothing is to be done about the node: most of the time, of most nodes.
fn is_in_order(node: &Node, cx: &Context<'_>) -> bool {
    let judged = match cx.liveness(meta::name(&node.metadata)).map(|liveness| liveness.state) {
        Some(Liveness::Dead) => readiness_of(node) == Some("Unknown"),
        Some(Liveness::Alive | Liveness::Suspect) => meta::annotation(&node.metadata, LAST_WORD).is_none(),
        None => true,
    };
    let spec = node.spec.as_ref();
    let wanted = wanted(node);
    let taints = || spec.iter().flat_map(|spec| spec.taints.iter().flatten()).filter(|taint| is_managed(taint));
    let has = |(key, effect): &(&str, &str)| taints().any(|taint| taint.key == *key && taint.effect == *effect);
    let tainted = taints().count() == wanted.len() && wanted.iter().all(has);
    let dated = spec.iter().flat_map(|spec| spec.taints.iter().flatten()).all(|taint| !lacks_time(taint));
    judged && tainted && dated && spec.is_some_and(|spec| spec.pod_cidr.is_some())
}

/// Sets the Ready condition from the heartbeats.
fn judge(node: &mut Node, cx: &Context<'_>) {
    let name = meta::name(&node.metadata).to_owned();
    let Some(liveness) = cx.liveness(&name) else { return };
    let status = readiness_of(node).map(str::to_owned);
    match (liveness.state, status.as_deref()) {
        (Liveness::Dead, Some("Unknown")) => {}
        (Liveness::Dead, last) => {
            let last = last.unwrap_or_default().to_owned();
            meta::set(&mut node.metadata.annotations, LAST_WORD, last);
            let conditions = &mut node.status.get_or_insert_default().conditions;
            condition::set(conditions, "Ready", "Unknown", UNKNOWN_REASON, UNKNOWN_MESSAGE, cx.now);
        }
        (Liveness::Alive | Liveness::Suspect, status) => put_back(node, status, cx.now),
    }
}

/// A node that is heard again is what it said it was, until it says something else.
fn put_back(node: &mut Node, status: Option<&str>, now: Timestamp) {
    let Some(word) = meta::annotation(&node.metadata, LAST_WORD).map(str::to_owned) else { return };
    if status == Some("Unknown") {
        let conditions = &mut node.status.get_or_insert_default().conditions;
        let message = "The node answers again.";
        match word.as_str() {
            "True" => {
                condition::set(conditions, "Ready", "True", "NodeReady", message, now);
            }
            "False" => {
                condition::set(conditions, "Ready", "False", "NodeNotReady", message, now);
            }
            _ => condition::remove(conditions, "Ready"),
        }
    }
    let annotations = &mut node.metadata.annotations;
    if let Some(map) = annotations {
        map.remove(LAST_WORD);
    }
    annotations.take_if(|map| map.is_empty());
}

fn sync_taints(node: &mut Node, now: Timestamp, leave: &mut Leave) {
    let wanted = wanted(node);
    let spec = node.spec.get_or_insert_default();
    let mut taints = spec.taints.take().unwrap_or_default();
    let is_wanted = |taint: &Taint| wanted.iter().any(|(key, effect)| taint.key == *key && taint.effect == *effect);
    taints.retain(|taint| !is_managed(taint) || is_wanted(taint));
    for (key, effect) in wanted {
        let there = taints.iter().any(|taint| taint.key == key && taint.effect == effect);
        let new = taint(key, effect, Some(now));
        if !there && (!moves_pods(&new) || leave.permit(now)) {
            taints.push(new);
        }
    }
    spec.taints = (!taints.is_empty()).then_some(taints);
}

/// What people add has no time: it counts from now.
fn date_taints(node: &mut Node, now: Timestamp) {
    let taints = node.spec.iter_mut().flat_map(|spec| spec.taints.iter_mut().flatten());
    taints.filter(|taint| lacks_time(taint)).for_each(|taint| taint.time_added = Some(meta::seconds(now)));
}

/// How many nodes may still be told to let their pods go.
struct Leave {
    limited: bool,
    next_at: Timestamp,
    interval_ms: u64,
    wake_at: Option<Timestamp>,
}

impl Leave {
    fn new(cx: &Context<'_>) -> Self {
        let judged = cx.view.nodes().filter_map(|node| cx.liveness(meta::name(&node.metadata)));
        let (all, dead) = judged
            .fold((0, 0), |(all, dead), liveness| (all + 1, dead + usize::from(liveness.state == Liveness::Dead)));
        let taints = cx.view.nodes().flat_map(|node| node.spec.iter().flat_map(|spec| spec.taints.iter().flatten()));
        let last =
            taints.filter(|taint| moves_pods(taint)).filter_map(|taint| Some(taint.time_added.as_ref()?.0)).max();
        let interval_ms = cx.settings.mass_silence_interval_ms;
        Self {
            limited: all >= MASS_MIN_NODES && dead * 2 > all,
            next_at: last.map_or(Timestamp::MIN, |last| meta::plus_ms(last, interval_ms)),
            interval_ms,
            wake_at: None,
        }
    }

    fn permit(&mut self, now: Timestamp) -> bool {
        if !self.limited {
            return true;
        }
        let permitted = self.next_at <= now;
        if permitted {
            self.next_at = meta::plus_ms(now, self.interval_ms);
        } else {
            self.wake_at = Some(self.next_at);
        }
        permitted
    }
}

fn write(entry: &NodeEntry, node: &Node, cx: &mut Context<'_>) -> flotilla_api::Change {
    let change = change(MANAGER).update(entry.key.clone(), entry.revision, meta::encode(node));
    let (before, after) = (readiness_of(&entry.object), readiness_of(node));
    if before == after {
        return change;
    }
    let mut teller = Teller { component: MANAGER, now: cx.now, rng: cx.rng };
    let name = meta::name(&node.metadata);
    let about = event::reference(node);
    match after {
        Some("True") => teller.normal(change, &about, "NodeReady", &format!("Node {name} is ready again")),
        Some("Unknown") => {
            teller.warning(change, &about, "NodeNotReady", &format!("Node {name} stopped answering heartbeats"))
        }
        _ => teller.warning(change, &about, "NodeNotReady", &format!("Node {name} is not ready")),
    }
}
