//! Events: what happened to an object, for people.

use jiff::Timestamp;
use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::{BuiltIn, Info};
use crate::columns::{self, Column};
use crate::field::{Errors, Path};
use crate::names;

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
        let about = &event.involved_object;
        let path = Path::new("involvedObject").child("namespace");
        match about.namespace.as_deref().unwrap_or_default() {
            "" if namespace != "default" && namespace != "kube-system" => {
                errors.invalid(&path, "", "does not match event.namespace");
            }
            "" => {}
            other if other != namespace => errors.invalid(&path, other, "does not match event.namespace"),
            _ => {}
        }
        if !namespace.is_empty() {
            names::dns_subdomain(namespace).iter().for_each(|c| errors.invalid(&Path::new("namespace"), namespace, c));
        }
        if event.event_time.is_some() {
            validate_series_form(event, errors);
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
fn validate_series_form(event: &core::Event, errors: &mut Errors) {
    let needed = [
        ("reportingController", event.reporting_component.as_deref(), MAX_WORD_BYTES),
        ("reportingInstance", event.reporting_instance.as_deref(), MAX_WORD_BYTES),
        ("action", event.action.as_deref(), MAX_WORD_BYTES),
        ("reason", event.reason.as_deref(), MAX_WORD_BYTES),
    ];
    for (field, value, max_bytes) in needed {
        match value.unwrap_or_default() {
            "" => errors.required(&Path::new(field), ""),
            text if text.len() > max_bytes => {
                errors.invalid(&Path::new(field), "", format_args!("can have at most {max_bytes} characters"));
            }
            _ => {}
        }
    }
    if event.message.as_deref().is_some_and(|message| message.len() > MAX_NOTE_BYTES) {
        let detail = format_args!("can have at most {MAX_NOTE_BYTES} characters");
        errors.invalid(&Path::new("message"), "", detail);
    }
    if !matches!(event.type_.as_deref(), Some("Normal" | "Warning")) {
        errors.invalid(&Path::new("type"), event.type_.clone().unwrap_or_default(), "has invalid value: ");
    }
}
