//! Whether a node may take a pod, and if not, for which one reason.
//!
//! Invariant: a pod fits only if what is taken and what it asks for stay within what the node offers.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::core::v1::{NodeSelectorTerm, PodSpec, Taint};

use crate::node::{NOT_READY, UNREACHABLE, UNSCHEDULABLE, tolerates};
use crate::plan::{Context, Liveness};
use crate::resources::Resources;
use crate::selector;
use crate::view::{HostPort, NodeEntry, PodEntry};
use crate::{meta, plan};

/// A node during one pass: what it offers and what is taken.
pub(super) struct Slot<'a> {
    pub node: &'a NodeEntry,
    pub name: &'a str,
    pub taken: Resources,
    ports: Vec<HostPort>,
    /// Silent for a moment: others are preferred.
    pub suspect: bool,
    dead: bool,
}

/// Why a node does not take a pod.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Lack {
    Unreachable,
    NotReady,
    Cordoned,
    Leaving,
    Selector,
    /// Its key and value.
    Taint(String),
    Port,
    Pods,
    /// The resources that are short.
    Room(Vec<String>),
}

impl<'a> Slot<'a> {
    pub fn new(node: &'a NodeEntry, cx: &Context<'a>) -> Self {
        let name = meta::name(&node.stored.object.metadata);
        let usage = cx.view.usage(name);
        let state = cx.liveness(name).map(|plan::NodeLiveness { state, .. }| state);
        Self {
            node,
            name,
            taken: usage.map(|usage| usage.requested.clone()).unwrap_or_default(),
            ports: usage.map(|usage| usage.host_ports.clone()).unwrap_or_default(),
            suspect: state == Some(Liveness::Suspect),
            dead: state == Some(Liveness::Dead),
        }
    }

    pub fn take(&mut self, pod: &PodEntry) {
        self.taken.add(&pod.facts.requests);
        self.ports.extend(pod.facts.host_ports.iter().cloned());
    }

    /// The first reason against the pod; `None` if it fits.
    pub fn refuses(&self, pod: &PodEntry) -> Option<Lack> {
        if self.dead {
            return Some(Lack::Unreachable);
        }
        if meta::is_deleting(&self.node.metadata) {
            return Some(Lack::Leaving);
        }
        let spec = pod.spec.as_ref()?;
        self.untolerated(spec)
            .or_else(|| (!self.selected_by(spec)).then_some(Lack::Selector))
            .or_else(|| self.taken_port(pod))
            .or_else(|| self.shortage(&pod.facts.requests))
    }

    fn untolerated(&self, spec: &PodSpec) -> Option<Lack> {
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let keeps_away = |taint: &&Taint| {
            matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute")
                && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
        };
        let taint = self.node.facts.taints.iter().find(keeps_away)?;
        Some(match taint.key.as_str() {
            UNSCHEDULABLE => Lack::Cordoned,
            NOT_READY => Lack::NotReady,
            UNREACHABLE => Lack::Unreachable,
            key => Lack::Taint(format!("{key}: {}", taint.value.as_deref().unwrap_or_default())),
        })
    }

    fn selected_by(&self, spec: &PodSpec) -> bool {
        let labels = self.node.metadata.labels.as_ref();
        let get = |key: &str| labels.and_then(|labels| labels.get(key));
        let simple = spec.node_selector.iter().flatten().all(|(key, value)| get(key) == Some(value));
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let required =
            affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
        simple
            && required.is_none_or(|required| {
                required.node_selector_terms.iter().any(|term| term_matches(term, labels, self.name))
            })
    }

    /// The weight of the pod's wishes (preferred node affinity, PreferNoSchedule taints) that the node meets.
    pub fn liking(&self, pod: &PodEntry) -> i64 {
        let Some(spec) = pod.spec.as_ref() else { return 0 };
        let labels = self.node.metadata.labels.as_ref();
        let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
        let wishes = affinity.and_then(|wish| wish.preferred_during_scheduling_ignored_during_execution.as_deref());
        let met = wishes.unwrap_or_default().iter().filter(|wish| term_matches(&wish.preference, labels, self.name));
        let tolerations = spec.tolerations.as_deref().unwrap_or_default();
        let unwelcome = self.node.facts.taints.iter().filter(|taint| {
            taint.effect == "PreferNoSchedule" && !tolerations.iter().any(|toleration| tolerates(toleration, taint))
        });
        met.map(|wish| i64::from(wish.weight)).sum::<i64>() - 100 * i64::try_from(unwelcome.count()).unwrap_or(0)
    }

    fn taken_port(&self, pod: &PodEntry) -> Option<Lack> {
        let mut wanted = pod.facts.host_ports.iter();
        wanted.any(|port| self.ports.iter().any(|other| other.collides(port))).then_some(Lack::Port)
    }

    fn shortage(&self, asked: &Resources) -> Option<Lack> {
        let offered = &self.node.facts.allocatable;
        let fits = |offered: i64, taken: i64, asked: i64| asked == 0 || asked <= offered.saturating_sub(taken);
        if !fits(offered.pods, self.taken.pods, asked.pods) {
            return Some(Lack::Pods);
        }
        let cpu = fits(offered.cpu_millis, self.taken.cpu_millis, asked.cpu_millis);
        let memory = fits(offered.memory_bytes, self.taken.memory_bytes, asked.memory_bytes);
        let get = |map: &BTreeMap<String, i64>, name: &str| map.get(name).copied().unwrap_or(0);
        let mut others = asked
            .others
            .iter()
            .filter(|(name, asked)| !fits(get(&offered.others, name), get(&self.taken.others, name), **asked));
        if cpu && memory && others.clone().next().is_none() {
            return None;
        }
        let mut short: Vec<String> = Vec::new();
        short.extend((!cpu).then(|| "cpu".into()));
        short.extend((!memory).then(|| "memory".into()));
        short.extend(others.by_ref().map(|(name, _)| name.clone()));
        Some(Lack::Room(short))
    }
}

/// An empty term matches nothing, as the API reference says.
fn term_matches(term: &NodeSelectorTerm, labels: Option<&BTreeMap<String, String>>, name: &str) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    let name = name.to_owned();
    let values = |values: &Option<Vec<String>>| values.clone().unwrap_or_default();
    (!expressions.is_empty() || !fields.is_empty())
        && expressions.iter().all(|demand| {
            let found = labels.and_then(|labels| labels.get(&demand.key));
            selector::expression(&demand.operator, &values(&demand.values), found)
        })
        && fields.iter().all(|demand| {
            demand.key == "metadata.name"
                && selector::expression(&demand.operator, &values(&demand.values), Some(&name))
        })
}
