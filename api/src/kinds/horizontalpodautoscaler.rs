//! HorizontalPodAutoscalers: as many replicas as the load asks for.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    self as autoscaling, CrossVersionObjectReference, HPAScalingPolicy, HPAScalingRules, MetricIdentifier, MetricSpec,
    MetricTarget, MetricValueStatus, ResourceMetricSource,
};

use super::{BuiltIn, Info};
use crate::columns::{self, Column, NONE, UNKNOWN};
use crate::defaults::{set, set_text};
use crate::field::{Errors, Path};
use crate::{names, validate};

const CPU_PERCENT: i32 = 80;
/// Metrics that a listing shows.
const SHOWN: usize = 2;
const METRICS: [&str; 5] = ["ContainerResource", "External", "Object", "Pods", "Resource"];

pub struct HorizontalPodAutoscaler;

impl BuiltIn for HorizontalPodAutoscaler {
    type Object = autoscaling::HorizontalPodAutoscaler;
    const INFO: Info = Info {
        group: "autoscaling",
        version: "v2",
        kind: "HorizontalPodAutoscaler",
        plural: "horizontalpodautoscalers",
        singular: "horizontalpodautoscaler",
        short_names: &["hpa"],
        categories: &["all"],
        subresources: &["status"],
        schema: "io.k8s.api.autoscaling.v2.HorizontalPodAutoscaler",
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        columns::NAME,
        Column::text("Reference"),
        Column::text("Targets"),
        Column::text("MinPods"),
        Column::count("MaxPods"),
        Column::count("Replicas"),
        columns::AGE,
    ];

    fn default(scaler: &mut autoscaling::HorizontalPodAutoscaler) {
        let spec = &mut scaler.spec;
        set(&mut spec.min_replicas, || 1);
        if spec.metrics.as_ref().is_none_or(Vec::is_empty) {
            let target =
                MetricTarget { type_: "Utilization".into(), average_utilization: Some(CPU_PERCENT), ..Default::default() };
            let resource = Some(ResourceMetricSource { name: "cpu".into(), target });
            spec.metrics = Some(vec![MetricSpec { type_: "Resource".into(), resource, ..Default::default() }]);
        }
        if let Some(behavior) = &mut spec.behavior {
            let policy = |type_: &str, value| HPAScalingPolicy { type_: type_.into(), value, period_seconds: 15 };
            let up = behavior.scale_up.get_or_insert_default();
            set(&mut up.stabilization_window_seconds, || 0);
            default_rules(up, vec![policy("Pods", 4), policy("Percent", 100)]);
            default_rules(behavior.scale_down.get_or_insert_default(), vec![policy("Percent", 100)]);
        }
    }

    fn create(scaler: &mut autoscaling::HorizontalPodAutoscaler) {
        scaler.status = Some(autoscaling::HorizontalPodAutoscalerStatus::default());
    }

    fn validate(scaler: &autoscaling::HorizontalPodAutoscaler, errors: &mut Errors) {
        let path = Path::new("spec");
        let spec = &scaler.spec;
        validate_reference(&spec.scale_target_ref, &path.child("scaleTargetRef"), errors);
        let min = spec.min_replicas.unwrap_or(1);
        if min < 1 {
            errors.invalid(&path.child("minReplicas"), min, "must be greater than or equal to 1");
        }
        if spec.max_replicas < 1 {
            errors.invalid(&path.child("maxReplicas"), spec.max_replicas, "must be greater than 0");
        }
        if spec.max_replicas < min {
            let detail = "must be greater than or equal to `minReplicas`";
            errors.invalid(&path.child("maxReplicas"), spec.max_replicas, detail);
        }
        for (index, metric) in spec.metrics.iter().flatten().enumerate() {
            validate_metric(metric, &path.child("metrics").index(index), errors);
        }
        if let Some(behavior) = &spec.behavior {
            let path = path.child("behavior");
            for (field, rules) in [("scaleUp", &behavior.scale_up), ("scaleDown", &behavior.scale_down)] {
                if let Some(rules) = rules {
                    validate_rules(rules, &path.child(field), errors);
                }
            }
        }
    }

    fn validate_status(new: &autoscaling::HorizontalPodAutoscaler, errors: &mut Errors) {
        let Some(status) = &new.status else { return };
        let path = Path::new("status");
        validate::non_negative(status.current_replicas, &path.child("currentReplicas"), errors);
        validate::non_negative(Some(status.desired_replicas), &path.child("desiredReplicas"), errors);
    }

    fn row(scaler: &autoscaling::HorizontalPodAutoscaler, now: Timestamp) -> Vec<String> {
        let spec = scaler.spec.clone();
        let status = scaler.status.clone().unwrap_or_default();
        vec![
            columns::name(&scaler.metadata),
            format!("{}/{}", spec.scale_target_ref.kind, spec.scale_target_ref.name),
            targets(&spec.metrics.unwrap_or_default(), status.current_metrics.as_deref().unwrap_or_default()),
            spec.min_replicas.map_or_else(|| "<unset>".to_owned(), |min| min.to_string()),
            spec.max_replicas.to_string(),
            status.current_replicas.unwrap_or_default().to_string(),
            columns::age(&scaler.metadata, now),
        ]
    }
}

fn default_rules(rules: &mut HPAScalingRules, policies: Vec<HPAScalingPolicy>) {
    set_text(&mut rules.select_policy, "Max");
    set(&mut rules.policies, || policies);
}

/// The source of a metric, by its type, with what it aims at.
fn source(metric: &MetricSpec) -> Option<(&'static str, &MetricTarget, Option<&str>)> {
    match metric.type_.as_str() {
        "Object" => metric.object.as_ref().map(|one| ("object", &one.target, None)),
        "Pods" => metric.pods.as_ref().map(|one| ("pods", &one.target, None)),
        "Resource" => metric.resource.as_ref().map(|one| ("resource", &one.target, Some(one.name.as_str()))),
        "ContainerResource" => {
            metric.container_resource.as_ref().map(|one| ("containerResource", &one.target, Some(one.name.as_str())))
        }
        "External" => metric.external.as_ref().map(|one| ("external", &one.target, None)),
        _ => None,
    }
}

fn validate_reference(reference: &CrossVersionObjectReference, path: &Path, errors: &mut Errors) {
    for (field, value) in [("kind", &reference.kind), ("name", &reference.name)] {
        match value.as_str() {
            "" => errors.required(&path.child(field), ""),
            value => validate::name(value, names::path_segment, &path.child(field), errors),
        }
    }
}

fn validate_metric(metric: &MetricSpec, path: &Path, errors: &mut Errors) {
    if metric.type_.is_empty() {
        errors.required(&path.child("type"), "must specify a metric source type");
    }
    validate::one_of(Some(&metric.type_), &METRICS, &path.child("type"), errors);
    // In the order in which they are looked at: only the first one is.
    let all = [
        ("object", metric.object.is_some()),
        ("external", metric.external.is_some()),
        ("pods", metric.pods.is_some()),
        ("resource", metric.resource.is_some()),
        ("containerResource", metric.container_resource.is_some()),
    ];
    let given: Vec<&str> = all.into_iter().filter(|(_, given)| *given).map(|(field, _)| field).collect();
    if let Some(first) = given.first() {
        validate_source(metric, first, &path.child(first), errors);
    }
    let expected = field_of(&metric.type_);
    if let Some(expected) = expected.filter(|expected| !given.contains(expected)) {
        errors.required(&path.child(expected), "must populate information for the given metric source");
    }
    if given.len() > 1 {
        for other in given.into_iter().filter(|field| Some(*field) != expected) {
            errors.forbidden(&path.child(other), "must populate the given metric source only");
        }
    }
}

/// Where a metric of some type is described.
fn field_of(type_: &str) -> Option<&'static str> {
    Some(match type_ {
        "ContainerResource" => "containerResource",
        "External" => "external",
        "Object" => "object",
        "Pods" => "pods",
        "Resource" => "resource",
        _ => return None,
    })
}

fn validate_source(metric: &MetricSpec, field: &str, path: &Path, errors: &mut Errors) {
    match field {
        "object" => metric.object.iter().for_each(|source| {
            validate_reference(&source.described_object, &path.child("describedObject"), errors);
            validate_identifier(&source.metric, &path.child("metric"), errors);
            let detail = "must set either a target value or averageValue";
            validate_total(&source.target, detail, &path.child("target"), errors);
        }),
        "external" => metric.external.iter().for_each(|source| {
            validate_identifier(&source.metric, &path.child("metric"), errors);
            let path = path.child("target");
            let detail = "must set either a target value for metric or a per-pod target";
            validate_total(&source.target, detail, &path, errors);
            if source.target.value.is_some() && source.target.average_value.is_some() {
                let detail = "may not set both a target value for metric and a per-pod target";
                errors.forbidden(&path.child("value"), detail);
            }
        }),
        "pods" => metric.pods.iter().for_each(|source| {
            validate_identifier(&source.metric, &path.child("metric"), errors);
            validate_target(&source.target, &path.child("target"), errors);
            if source.target.average_value.is_none() {
                let path = path.child("target").child("averageValue");
                errors.required(&path, "must specify a positive target averageValue");
            }
        }),
        "resource" => metric.resource.iter().for_each(|source| {
            validate_resource(&source.name, &path.child("name"), errors);
            validate_share(&source.target, &path.child("target"), errors);
        }),
        _ => metric.container_resource.iter().for_each(|source| {
            validate_resource(&source.name, &path.child("name"), errors);
            if !source.name.is_empty() {
                validate::resources::of_container(&source.name, &path.child("name"), errors);
            }
            match source.container.as_str() {
                "" => errors.required(&path.child("container"), "must specify a container"),
                container => validate::name(container, names::dns_label, &path.child("container"), errors),
            }
            validate_share(&source.target, &path.child("target"), errors);
        }),
    }
}

fn validate_resource(name: &str, path: &Path, errors: &mut Errors) {
    if name.is_empty() {
        errors.required(path, "must specify a resource name");
    }
}

fn validate_identifier(metric: &MetricIdentifier, path: &Path, errors: &mut Errors) {
    match metric.name.as_str() {
        "" => errors.required(&path.child("name"), "must specify a metric name"),
        name => validate::name(name, names::path_segment, &path.child("name"), errors),
    }
}

/// What a metric of no resource aims at, as a whole or for each pod.
fn validate_total(target: &MetricTarget, detail: &str, path: &Path, errors: &mut Errors) {
    validate_target(target, path, errors);
    if target.value.is_none() && target.average_value.is_none() {
        errors.required(&path.child("averageValue"), detail);
    }
}

/// What a resource's use aims at, as an amount or as a share of what was asked for.
fn validate_share(target: &MetricTarget, path: &Path, errors: &mut Errors) {
    validate_target(target, path, errors);
    match (target.average_utilization, &target.average_value) {
        (None, None) => {
            let detail = "must set either a target raw value or a target utilization";
            errors.required(&path.child("averageUtilization"), detail);
        }
        (Some(_), Some(_)) => {
            let detail = "may not set both a target raw value and a target utilization";
            errors.forbidden(&path.child("averageValue"), detail);
        }
        _ => {}
    }
}

fn validate_target(target: &MetricTarget, path: &Path, errors: &mut Errors) {
    if target.type_.is_empty() {
        errors.required(&path.child("type"), "must specify a metric target type");
    }
    if !matches!(target.type_.as_str(), "AverageValue" | "Utilization" | "Value") {
        let detail = "must be either Utilization, Value, or AverageValue";
        errors.invalid(&path.child("type"), target.type_.as_str(), detail);
    }
    for (field, value) in [("value", &target.value), ("averageValue", &target.average_value)] {
        let amount = value.as_ref().map(|value| crate::quantity::Amount::parse(&value.0));
        if matches!(amount, Some(Ok(amount)) if amount.is_negative() || amount.is_zero()) {
            errors.invalid(&path.child(field), value.as_ref().map(|value| value.0.clone()), "must be positive");
        }
    }
    validate::positive(target.average_utilization, &path.child("averageUtilization"), errors);
}

fn validate_rules(rules: &HPAScalingRules, path: &Path, errors: &mut Errors) {
    const MAX_WINDOW_SECONDS: i32 = 3_600;
    const MAX_PERIOD_SECONDS: i32 = 1_800;
    if let Some(seconds) = rules.stabilization_window_seconds {
        let path = path.child("stabilizationWindowSeconds");
        validate::non_negative(Some(seconds), &path, errors);
        if seconds > MAX_WINDOW_SECONDS {
            errors.invalid(&path, seconds, format_args!("must be less than or equal to {MAX_WINDOW_SECONDS}"));
        }
    }
    let words = ["Disabled", "Max", "Min"];
    validate::one_of(rules.select_policy.as_deref(), &words, &path.child("selectPolicy"), errors);
    let policies = rules.policies.as_deref().unwrap_or_default();
    if policies.is_empty() {
        errors.required(&path.child("policies"), "must specify at least one Policy");
    }
    for (index, policy) in policies.iter().enumerate() {
        let path = path.child("policies").index(index);
        validate::one_of(Some(&policy.type_), &["Percent", "Pods"], &path.child("type"), errors);
        validate::positive(Some(policy.value), &path.child("value"), errors);
        validate::positive(Some(policy.period_seconds), &path.child("periodSeconds"), errors);
        if policy.period_seconds > MAX_PERIOD_SECONDS {
            let detail = format_args!("must be less than or equal to {MAX_PERIOD_SECONDS}");
            errors.invalid(&path.child("periodSeconds"), policy.period_seconds, detail);
        }
    }
}

/// `cpu: 50%/80%`, `<unknown>/10 (avg)`, the first two and how many more there are.
fn targets(metrics: &[MetricSpec], current: &[autoscaling::MetricStatus]) -> String {
    if metrics.is_empty() {
        return NONE.to_owned();
    }
    let shown: Vec<String> =
        metrics.iter().enumerate().map(|(index, metric)| target(metric, current.get(index))).take(SHOWN).collect();
    match metrics.len() {
        0..=SHOWN => shown.join(", "),
        count => format!("{} + {} more...", shown.join(", "), count - SHOWN),
    }
}

fn target(metric: &MetricSpec, current: Option<&autoscaling::MetricStatus>) -> String {
    let Some((_, target, resource)) = source(metric) else { return UNKNOWN.to_owned() };
    let value: Option<&MetricValueStatus> = current.and_then(|current| match metric.type_.as_str() {
        "Object" => current.object.as_ref().map(|one| &one.current),
        "Pods" => current.pods.as_ref().map(|one| &one.current),
        "Resource" => current.resource.as_ref().map(|one| &one.current),
        "ContainerResource" => current.container_resource.as_ref().map(|one| &one.current),
        _ => current.external.as_ref().map(|one| &one.current),
    });
    let unknown = || UNKNOWN.to_owned();
    let prefix = resource.map(|resource| format!("{resource}: ")).unwrap_or_default();
    if let Some(average) = &target.average_value {
        let now = value.and_then(|value| value.average_value.as_ref()).map_or_else(unknown, |value| value.0.clone());
        let suffix = if resource.is_some() || metric.type_ == "Pods" { "" } else { " (avg)" };
        return format!("{prefix}{now}/{}{suffix}", average.0);
    }
    if resource.is_some() {
        let now = value.and_then(|value| value.average_utilization).map_or_else(unknown, |value| format!("{value}%"));
        let wanted = target.average_utilization.map_or_else(|| "<auto>".to_owned(), |value| format!("{value}%"));
        return format!("{prefix}{now}/{wanted}");
    }
    let now = value.and_then(|value| value.value.as_ref()).map_or_else(unknown, |value| value.0.clone());
    format!("{now}/{}", target.value.as_ref().map(|value| value.0.clone()).unwrap_or_default())
}
