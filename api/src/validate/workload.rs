//! What Deployments, ReplicaSets and Jobs have in common: selectors, templates, strategies.

use k8s_openapi::api::apps::v1::DeploymentStrategy;
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::{Value, json};

use super::{NON_NEGATIVE, metadata, non_negative, pod};
use crate::field::{Errors, Path};
use crate::selector;

const PERCENT: &str = "a valid percent string must be a numeric string followed by an ending '%' (e.g. '1%',  or '93%', \
    regex used for validation is '[0-9]+%')";

pub(crate) fn replicas(replicas: Option<i32>, path: &Path, errors: &mut Errors) {
    non_negative(replicas, &path.child("replicas"), errors);
}

/// The selector must be there and must choose the pods of the template; `word` is what an empty one is no good for.
pub(crate) fn selector(
    labels: &LabelSelector,
    template: &PodTemplateSpec,
    word: &str,
    path: &Path,
    errors: &mut Errors,
) {
    let at = path.child("selector");
    let empty = labels.match_labels.as_ref().is_none_or(|l| l.is_empty())
        && labels.match_expressions.as_ref().is_none_or(Vec::is_empty);
    if !empty {
        selector::validate(labels, &at, errors);
        must_match(labels, template, path, errors);
    } else if !errors.has(&at) {
        errors.invalid(&at, json!({}), format_args!("empty selector is invalid for {word}"));
    }
}

/// A selector that is not there, which is not an empty one, chooses nothing.
pub(crate) fn selector_is_there(object: &Value, errors: &mut Errors) {
    let spec = Path::new("spec");
    if object.pointer("/spec/selector").is_none_or(Value::is_null) {
        errors.required(&spec.child("selector"), "");
        let labels = object.pointer("/spec/template/metadata/labels").cloned().unwrap_or_default();
        mismatch(labels, &spec, errors);
    }
}

fn mismatch(labels: Value, path: &Path, errors: &mut Errors) {
    let path = path.child("template").child("metadata").child("labels");
    errors.invalid(&path, labels, "`selector` does not match template `labels`");
}

/// The pods that the template makes must be those that the selector chooses.
pub(crate) fn must_match(labels: &LabelSelector, template: &PodTemplateSpec, path: &Path, errors: &mut Errors) {
    let template_labels = template.metadata.as_ref().and_then(|metadata| metadata.labels.as_ref());
    if !selector::matches(labels, template_labels) {
        mismatch(serde_json::to_value(template_labels).unwrap_or(Value::Null), path, errors);
    }
}

/// A pod template; `restart` lists the restart policies that its pods may have, all three if it does not matter.
pub(crate) fn template(template: &PodTemplateSpec, restart: &[&str], path: &Path, errors: &mut Errors) {
    if let Some(of) = &template.metadata {
        metadata::labels(of.labels.as_ref(), &path.child("labels"), errors);
        metadata::annotations(of.annotations.as_ref(), &path.child("annotations"), errors);
    }
    let path = path.child("spec");
    let Some(spec) = &template.spec else { return errors.required(&path, "") };
    pod::spec(spec, &path, errors);
    let policy = spec.restart_policy.as_deref().unwrap_or_default();
    if restart.len() == 3 {
        return;
    }
    if restart == ["Always"] {
        if matches!(policy, "Never" | "OnFailure") {
            errors.not_supported(&path.child("restartPolicy"), policy, restart);
        }
    } else if policy == "Always" {
        let words: Vec<String> = restart.iter().map(|word| format!("{word:?}")).collect();
        errors.required(&path.child("restartPolicy"), &format!("valid values: {}", words.join(", ")));
    }
}

/// A pod template of a `kind` that keeps its pods running.
pub(crate) fn running_template(of: &PodTemplateSpec, kind: &str, path: &Path, errors: &mut Errors) {
    template(of, &["Always"], path, errors);
    if of.spec.as_ref().is_some_and(|spec| spec.active_deadline_seconds.is_some()) {
        let detail = format_args!("activeDeadlineSeconds in {kind} is not Supported");
        errors.forbidden(&path.child("spec").child("activeDeadlineSeconds"), detail);
    }
}

/// Counts of a status.
pub(crate) fn counts(counts: &[(&str, Option<i64>)], errors: &mut Errors) {
    let path = Path::new("status");
    counts.iter().for_each(|(field, count)| non_negative(*count, &path.child(field), errors));
}

/// Counts of a status that are of some of its `replicas`, of which the last two are the ready ones and those of them that
/// are available; `ready` is what the former are called.
pub(crate) fn parts(replicas: i32, parts: &[(&str, Option<i32>)], ready: &str, errors: &mut Errors) {
    let path = Path::new("status");
    for (field, count) in parts.iter().map(|(field, count)| (field, count.unwrap_or_default())) {
        if count > replicas {
            errors.invalid(&path.child(field), count, "cannot be greater than status.replicas");
        }
    }
    if let [.., (_, is_ready), (field, available)] = parts
        && available.unwrap_or_default() > is_ready.unwrap_or_default()
    {
        errors.invalid(&path.child(field), *available, format_args!("cannot be greater than {ready}"));
    }
}

pub(crate) fn deployment_strategy(strategy: &DeploymentStrategy, path: &Path, errors: &mut Errors) {
    match (strategy.type_.as_deref().unwrap_or_default(), &strategy.rolling_update) {
        ("Recreate", Some(_)) => {
            let detail = "may not be specified when strategy `type` is 'Recreate'";
            errors.forbidden(&path.child("rollingUpdate"), detail);
        }
        ("RollingUpdate", None) => {
            errors.required(&path.child("rollingUpdate"), "this should be defaulted and never be nil");
        }
        ("RollingUpdate", Some(rolling)) => {
            let path = path.child("rollingUpdate");
            let unavailable = rolling.max_unavailable.clone().unwrap_or_default();
            let surge = rolling.max_surge.clone().unwrap_or_default();
            share(&unavailable, &path.child("maxUnavailable"), errors);
            share(&surge, &path.child("maxSurge"), errors);
            if is_zero(&unavailable) && is_zero(&surge) {
                let detail = "may not be 0 when `maxSurge` is 0";
                errors.invalid(&path.child("maxUnavailable"), shown(&unavailable), detail);
            }
            at_most_100_percent(&unavailable, &path.child("maxUnavailable"), errors);
        }
        ("Recreate", None) => {}
        (other, _) => errors.not_supported(&path.child("type"), other, &["Recreate", "RollingUpdate"]),
    }
}

/// A count that is not negative, or a percentage.
pub(crate) fn share(value: &IntOrString, path: &Path, errors: &mut Errors) {
    match value {
        IntOrString::Int(count) if *count < 0 => errors.invalid(path, *count, NON_NEGATIVE),
        IntOrString::String(text) if percent(value).is_none() => errors.invalid(path, text.as_str(), PERCENT),
        _ => {}
    }
}

pub(crate) fn at_most_100_percent(value: &IntOrString, path: &Path, errors: &mut Errors) {
    if percent(value).is_some_and(|percent| percent > 100) {
        errors.invalid(path, shown(value), "must not be greater than 100%");
    }
}

fn percent(value: &IntOrString) -> Option<u32> {
    let IntOrString::String(text) = value else { return None };
    let digits = text.strip_suffix('%').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()))?;
    digits.parse().ok()
}

pub(crate) fn is_zero(value: &IntOrString) -> bool {
    matches!(value, IntOrString::Int(0)) || percent(value) == Some(0)
}

fn shown(value: &IntOrString) -> Value {
    match value {
        IntOrString::Int(count) => (*count).into(),
        IntOrString::String(text) => text.as_str().into(),
    }
}
