//! What writers are told of objects that are taken all the same, in upstream's words.
//!
//! Defined by the behaviour of a current kube-apiserver, like [`crate::validate`].
//!
//! Invariant: at most [`Warnings::MAX`] warnings are kept, no two of them alike.

use std::fmt;
use std::net::IpAddr;

use k8s_openapi::Metadata;
use k8s_openapi::api::batch::v1::JobSpec;
use k8s_openapi::api::core::v1::{NodeSelectorTerm, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::field::Path;
use crate::names;
use crate::validate::net;

pub(crate) mod pod;
pub(crate) mod service;
pub(crate) mod storage;
mod volume;

/// The warnings about one object, in the order in which they were found.
#[derive(Clone, Debug, Default)]
pub struct Warnings(Vec<String>);

impl Warnings {
    /// Further warnings are dropped.
    pub const MAX: usize = 64;

    pub fn new() -> Self {
        Self::default()
    }

    pub fn into_vec(self) -> Vec<String> {
        self.0
    }

    pub(crate) fn say(&mut self, words: impl fmt::Display) {
        let words = words.to_string();
        if self.0.len() < Self::MAX && !self.0.contains(&words) {
            self.0.push(words);
        }
    }

    /// `spec.containers[0].image: words`.
    pub(crate) fn at(&mut self, path: &Path, words: impl fmt::Display) {
        self.say(format_args!("{path}: {words}"));
    }
}

/// Whether what is to be made of the object is what it was: nobody is told of that again.
pub(crate) fn is_told<T: Metadata<Ty = ObjectMeta>>(old: Option<&T>, new: &T) -> bool {
    old.is_some_and(|old| old.metadata().generation == new.metadata().generation)
}

/// A name that becomes part of the names of pods.
pub(crate) fn name_of_pods(metadata: &ObjectMeta, warnings: &mut Warnings) {
    host_name(metadata, "this is used in Pod names and hostnames", warnings);
}

fn host_name(metadata: &ObjectMeta, purpose: &str, warnings: &mut Warnings) {
    let complaints = names::dns_label(metadata.name.as_deref().unwrap_or_default());
    if !complaints.is_empty() {
        let effect = "which can result in surprising behavior; a DNS label is recommended";
        let path = Path::new("metadata").child("name");
        warnings.at(&path, format_args!("{purpose}, {effect}: [{}]", complaints.join(" ")));
    }
}

/// What has a name and a template for pods.
pub(crate) fn workload<T: Metadata<Ty = ObjectMeta>>(
    old: Option<&T>,
    new: &T,
    template: Option<&PodTemplateSpec>,
    warnings: &mut Warnings,
) {
    if old.is_none() {
        name_of_pods(new.metadata(), warnings);
    }
    if !is_told(old, new)
        && let Some(template) = template
    {
        pod::template(template, &Path::new("spec").child("template"), warnings);
    }
}

/// What a job is to be like, whether it is made yet or not.
pub(crate) fn job(spec: &JobSpec, path: &Path, warnings: &mut Warnings) {
    const MANY_COMPLETIONS: i32 = 100_000;
    const MANY_AT_ONCE: i32 = 10_000;
    let is_indexed = spec.completion_mode.as_deref() == Some("Indexed");
    if is_indexed && spec.completions > Some(MANY_COMPLETIONS) && spec.parallelism > Some(MANY_AT_ONCE) {
        let words = "In Indexed Jobs with a number of completions higher than 10^5 and a parallelism higher than 10^4, \
                     Kubernetes might not be able to track completedIndexes when a big number of indexes fail";
        warnings.at(path, words);
    }
    pod::template(&spec.template, &path.child("template"), warnings);
}

/// What is said of a label of nodes that is to go.
pub(crate) fn deprecated_label(key: &str) -> Option<&'static str> {
    Some(match key {
        "beta.kubernetes.io/arch" => "deprecated since v1.14; use \"kubernetes.io/arch\" instead",
        "beta.kubernetes.io/os" => "deprecated since v1.14; use \"kubernetes.io/os\" instead",
        "failure-domain.beta.kubernetes.io/region" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/region\" instead"
        }
        "failure-domain.beta.kubernetes.io/zone" => {
            "deprecated since v1.17; use \"topology.kubernetes.io/zone\" instead"
        }
        "beta.kubernetes.io/instance-type" => {
            "deprecated since v1.17; use \"node.kubernetes.io/instance-type\" instead"
        }
        "app.kubernetes.io/created-by" => "deprecated since v1.9",
        "scheduler.alpha.kubernetes.io/preferAvoidPods" => "deprecated since v1.22; use Taints and Tolerations instead",
        "node-role.kubernetes.io/master" => "use \"node-role.kubernetes.io/control-plane\" instead",
        _ => return None,
    })
}

/// A key by which nodes are told apart: `path: key is deprecated …`.
fn key_of_nodes(key: &str, path: &Path, warnings: &mut Warnings) {
    if let Some(words) = deprecated_label(key) {
        warnings.at(path, format_args!("{key} is {words}"));
    }
}

fn node_term(term: &NodeSelectorTerm, path: &Path, warnings: &mut Warnings) {
    for (index, expression) in term.match_expressions.iter().flatten().enumerate() {
        let path = path.child("matchExpressions").index(index).child("key");
        key_of_nodes(&expression.key, &path, warnings);
    }
}

/// An address that is written otherwise than it should be.
fn ip(text: &str, path: &Path, warnings: &mut Warnings) {
    let Ok(IpAddr::V6(address)) = text.parse::<IpAddr>() else { return };
    if let Some(mapped) = address.to_ipv4_mapped() {
        let rest = "will be considered invalid in a future Kubernetes release";
        warnings.at(path, format_args!("non-standard IP address {text:?} {rest}: use \"{mapped}\""));
    } else if address.to_string() != text {
        let rest = "should be in RFC 5952 canonical format";
        warnings.at(path, format_args!("IPv6 address {text:?} {rest} (\"{address}\")"));
    }
}

/// A range of addresses that is written otherwise than it should be, or says more than its length lets count.
pub(crate) fn cidr(text: &str, path: &Path, warnings: &mut Warnings) {
    let Some((address, length)) = net::parse_cidr(text) else { return };
    let network = net::network((address, length));
    if network != address {
        let bits = if address.is_ipv4() { 32 } else { 128 };
        let either = format!("should be \"{network}/{length}\" or \"{address}/{bits}\"?");
        warnings.at(path, format_args!("CIDR value {text:?} is ambiguous in this context ({either})"));
    } else if address.is_ipv6() && format!("{address}/{length}") != text {
        let rest = "should be in RFC 5952 canonical format";
        warnings.at(path, format_args!("IPv6 CIDR value {text:?} {rest} (\"{address}/{length}\")"));
    }
}
