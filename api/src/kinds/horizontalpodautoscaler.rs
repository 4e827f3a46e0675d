//! HorizontalPodAutoscalers: as many replicas as the load asks for.

use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::{
    self as autoscaling, HPAScalingPolicy, HPAScalingRules, MetricSpec, MetricTarget, MetricValueStatus,
    ResourceMetricSource,
};

use super::{BuiltIn, Info};
use crate::columns::{self, Column, NONE, UNKNOWN};
use crate::defaults::{set, set_text};
use crate::field::{Errors, Path};
use crate::{names, validate};

const CPU_PERCENT: i32 = 80;
/// Metrics that a listing shows.
const SHOWN: usize = 2;

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
        Column::text("MaxPods"),
        Column::text("Replicas"),
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
        let target = path.child("scaleTargetRef");
        for (field, value) in [("kind", &spec.scale_target_ref.kind), ("name", &spec.scale_target_ref.name)] {
            match value.as_str() {
                "" => errors.required(&target.child(field), ""),
                value => validate::name(value, names::path_segment, &target.child(field), errors),
            }
        }
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

fn validate_metric(metric: &MetricSpec, path: &Path, errors: &mut Errors) {
    let types = ["ContainerResource", "External", "Object", "Pods", "Resource"];
    if metric.type_.is_empty() {
        return errors.required(&path.child("type"), "must specify a metric source type");
    }
    if !types.contains(&metric.type_.as_str()) {
        return errors.not_supported(&path.child("type"), metric.type_.as_str(), &types);
    }
    let Some((field, target, name)) = source(metric) else {
        let mut field = metric.type_.clone();
        field[..1].make_ascii_lowercase();
        let detail = format!("must populate information for the given metric source of type {}", metric.type_);
        return errors.required(&path.child(&field), &detail);
    };
    let path = path.child(field);
    if name == Some("") {
        errors.required(&path.child("name"), "must specify a resource name");
    }
    validate_target(target, &path.child("target"), errors);
}

fn validate_target(target: &MetricTarget, path: &Path, errors: &mut Errors) {
    match target.type_.as_str() {
        "" => errors.required(&path.child("type"), "must specify a metric target type"),
        other => validate::one_of(Some(other), &["AverageValue", "Utilization", "Value"], &path.child("type"), errors),
    }
    validate::positive(target.average_utilization, &path.child("averageUtilization"), errors);
    for (field, value) in [("value", &target.value), ("averageValue", &target.average_value)] {
        let amount = value.as_ref().map(|value| crate::quantity::Amount::parse(&value.0));
        if matches!(amount, Some(Ok(amount)) if amount.is_negative() || amount.is_zero()) {
            errors.invalid(&path.child(field), value.as_ref().map(|value| value.0.clone()), "must be positive");
        }
    }
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
