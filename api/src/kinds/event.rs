//! Events: what happened to an object, for people.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::{names, validate};

const MAX_NOTE_BYTES: usize = 1024;
const MAX_WORD_BYTES: usize = 128;

pub struct Event;

impl BuiltIn for Event {
    type Object = core::Event;
    const INFO: Info = Info {
        kind: "Event",
        plural: "events",
        singular: "event",
        short_names: &["ev"],
        selectable: &["involvedObject.kind", "involvedObject.namespace", "involvedObject.name", "involvedObject.uid", "involvedObject.apiVersion", "involvedObject.resourceVersion", "involvedObject.fieldPath", "reason", "reportingComponent", "source", "type"],
        schema: "io.k8s.api.core.v1.Event",
        // The name of what an event is about may be anything, and is a part of the event's.
        name_rule: names::path_segment,
        create_on_update: true,
        ..Info::DEFAULT
    };
    const COLUMNS: &'static [Column] = &[
        Column::text("Last Seen"),
        Column::text("Type"),
        Column::text("Reason"),
        Column::text("Object"),
        Column::wide("Subobject"),
        Column::wide("Source"),
        Column::text("Message"),
        Column::wide("First Seen"),
        Column::wide("Count"),
        Column::wide("Name"),
    ];

    fn validate(event: &core::Event, errors: &mut Errors) {
        let namespace = event.metadata.namespace.as_deref().unwrap_or_default();
        let about = event.involved_object.namespace.as_deref().unwrap_or_default();
        let is_new = event.event_time.is_some();
        let is_of_cluster = about.is_empty() && (namespace == "default" || (is_new && namespace == "kube-system"));
        if !is_of_cluster && (about.is_empty() || (!is_new && about != namespace)) {
            let path = Path::new("involvedObject").child("namespace");
            errors.invalid(&path, about, "does not match event.namespace");
        }
        if !namespace.is_empty() {
            names::dns_subdomain(namespace).iter().for_each(|c| errors.invalid(&Path::new("namespace"), namespace, c));
        }
        if is_new {
            validate_new_form(event, errors);
        }
    }

    fn row(event: &core::Event, now: Timestamp) -> Vec<String> {
        let created = event.metadata.creation_timestamp.as_ref();
        let event_time = event.event_time.as_ref().map(|time| Time(time.0));
        let first = event.first_timestamp.as_ref().or(event_time.as_ref()).or(created);
        let series = event.series.as_ref().and_then(|series| series.last_observed_time.as_ref()).map(|t| Time(t.0));
        let last = series.as_ref().or(event.last_timestamp.as_ref()).or(event_time.as_ref()).or(created);
        let about = &event.involved_object;
        let kind = about.kind.clone().unwrap_or_default().to_lowercase();
        let name = about.name.clone().unwrap_or_default();
        let series_count = event.series.as_ref().and_then(|series| series.count);
        vec![
            columns::since(last, now),
            event.type_.clone().unwrap_or_default(),
            event.reason.clone().unwrap_or_default(),
            if name.is_empty() { kind } else { format!("{kind}/{name}") },
            about.field_path.clone().unwrap_or_default(),
            source(event),
            event.message.clone().unwrap_or_default().trim().to_owned(),
            columns::since(first, now),
            series_count.or(event.count).unwrap_or(1).to_string(),
            columns::name(&event.metadata),
        ]
    }
}

fn source(event: &core::Event) -> String {
    let source = event.source.clone().unwrap_or_default();
    let component = source.component.or_else(|| event.reporting_component.clone()).unwrap_or_default();
    let host = source.host.or_else(|| event.reporting_instance.clone()).unwrap_or_default();
    if host.is_empty() { component } else { format!("{component}, {host}") }
}

/// What the newer form of events, the one with `eventTime`, must say.
fn validate_new_form(event: &core::Event, errors: &mut Errors) {
    let controller = event.reporting_component.as_deref().unwrap_or_default();
    let path = Path::new("reportingController");
    if controller.is_empty() {
        errors.required(&path, "");
    }
    validate::name(controller, names::qualified_name, &path, errors);
    let needed = [
        ("reportingInstance", event.reporting_instance.as_deref()),
        ("action", event.action.as_deref()),
        ("reason", event.reason.as_deref()),
    ];
    for (field, value) in needed {
        match value.unwrap_or_default() {
            "" => errors.required(&Path::new(field), ""),
            text if text.len() > MAX_WORD_BYTES => {
                errors.invalid(&Path::new(field), "", format_args!("can have at most {MAX_WORD_BYTES} characters"));
            }
            _ => {}
        }
    }
    if event.message.as_deref().is_some_and(|message| message.len() > MAX_NOTE_BYTES) {
        let detail = format_args!("can have at most {MAX_NOTE_BYTES} characters");
        errors.invalid(&Path::new("message"), "", detail);
    }
}

/// What an event must be like that is made through `events.k8s.io/v1`, beside what every event must.
pub(crate) fn validate_strictly(event: &core::Event, errors: &mut Errors) {
    let at = Path::new;
    let name = event.metadata.name.as_deref().unwrap_or_default();
    validate::name(name, names::dns_subdomain, &at("metadata").child("name"), errors);
    if let Some(series) = &event.series {
        if series.count.unwrap_or_default() < 2 {
            errors.invalid(&at("series.count"), "", "should be at least 2");
        }
        if series.last_observed_time.is_none() {
            errors.required(&at("series.lastObservedTime"), "");
        }
    }
    if event.event_time.is_none() {
        errors.required(&at("eventTime"), "");
    }
    let type_ = event.type_.as_deref().unwrap_or_default();
    if !matches!(type_, "Normal" | "Warning") {
        errors.invalid(&at("type"), "", format_args!("has invalid value: {type_}"));
    }
    let of_old = [
        ("firstTimestamp", event.first_timestamp.is_some()),
        ("lastTimestamp", event.last_timestamp.is_some()),
        ("count", event.count.unwrap_or_default() != 0),
        ("source", event.source.as_ref().is_some_and(|source| *source != core::EventSource::default())),
    ];
    for (field, _) in of_old.into_iter().filter(|(_, used)| *used) {
        errors.invalid(&at(field), "", "needs to be unset");
    }
}
