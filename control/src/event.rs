//! Events: what happened, told to people.
//!
//! Invariant: an Event is written in the Change that makes it true, or not at all.

use flotilla_api::k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use flotilla_api::k8s_openapi::{Metadata, Resource};
use flotilla_api::{Change, Expect};
use jiff::Timestamp;
use rand::RngCore;

use crate::{keys, meta};

/// Longest message; upstream refuses longer ones.
const MAX_MESSAGE_BYTES: usize = 1024;
/// Where Events about objects without a namespace live.
const DEFAULT_NAMESPACE: &str = "default";

/// What an Event says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Severity {
    Normal,
    Warning,
}

impl Severity {
    fn as_str(self) -> &'static str {
        match self {
            Severity::Normal => "Normal",
            Severity::Warning => "Warning",
        }
    }
}

/// A reference to an object, as Events carry it.
pub fn reference<T>(object: &T) -> ObjectReference
where
    T: Resource + Metadata<Ty = ObjectMeta>,
{
    let meta = object.metadata();
    ObjectReference {
        api_version: Some(T::API_VERSION.to_owned()),
        kind: Some(T::KIND.to_owned()),
        name: meta.name.clone(),
        namespace: meta.namespace.clone(),
        uid: meta.uid.clone(),
        ..ObjectReference::default()
    }
}

/// An Event about `object`, told by `component`.
pub fn event(
    object: ObjectReference,
    component: &str,
    severity: Severity,
    reason: &str,
    message: &str,
    now: Timestamp,
    rng: &mut dyn RngCore,
) -> Event {
    let namespace = object.namespace.clone().unwrap_or_else(|| DEFAULT_NAMESPACE.to_owned());
    let stem = object.name.as_deref().unwrap_or("object");
    let name = format!("{stem}.{}", suffix(now, rng));
    let time = meta::seconds(now);
    let metadata = ObjectMeta { generation: None, ..meta::mint(&namespace, name, now, rng) };
    Event {
        metadata,
        involved_object: object,
        type_: Some(severity.as_str().to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(clip(message).to_owned()),
        count: Some(1),
        first_timestamp: Some(time.clone()),
        last_timestamp: Some(time),
        source: Some(EventSource { component: Some(component.to_owned()), host: None }),
        reporting_component: Some(component.to_owned()),
        reporting_instance: Some(String::new()),
        ..Event::default()
    }
}

/// Sorts by time, to some microseconds; random digits keep the Events of one plan apart.
fn suffix(now: Timestamp, rng: &mut dyn RngCore) -> String {
    format!("{:013x}{:09x}", now.as_nanosecond() >> 12, rng.next_u64() >> 28)
}

/// Adds an Event to a Change.
pub fn tell(change: Change, event: &Event) -> Change {
    let key = keys::event(meta::namespace(&event.metadata), meta::name(&event.metadata));
    change.require(key.clone(), Expect::Absent).put(key, meta::encode(event))
}

fn clip(message: &str) -> &str {
    let mut end = message.len().min(MAX_MESSAGE_BYTES);
    while !message.is_char_boundary(end) {
        end -= 1;
    }
    &message[..end]
}

/// Tells Events in one component's name.
pub(crate) struct Teller<'a> {
    pub component: &'static str,
    pub now: Timestamp,
    pub rng: &'a mut dyn RngCore,
}

impl Teller<'_> {
    pub fn normal(&mut self, change: Change, object: &ObjectReference, reason: &str, message: &str) -> Change {
        self.tell(change, object, Severity::Normal, reason, message)
    }

    pub fn warning(&mut self, change: Change, object: &ObjectReference, reason: &str, message: &str) -> Change {
        self.tell(change, object, Severity::Warning, reason, message)
    }

    pub fn tell(
        &mut self,
        change: Change,
        object: &ObjectReference,
        severity: Severity,
        reason: &str,
        message: &str,
    ) -> Change {
        let event = event(object.clone(), self.component, severity, reason, message, self.now, self.rng);
        tell(change, &event)
    }
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;
    use rand::SeedableRng;
    use rand::rngs::SmallRng;

    use super::*;

    #[test]
    fn names_sort_by_time() {
        let mut rng = SmallRng::seed_from_u64(1);
        let start: Timestamp = "2026-01-01T00:00:00Z".parse().unwrap();
        let at = |ms: i64| start + SignedDuration::from_millis(ms);
        let names: Vec<String> = (0..1_000).map(|step| suffix(at(step * 2), &mut rng)).collect();
        assert!(names.is_sorted());
        assert!(names.iter().all(|name| name.len() == 22));
        assert_ne!(suffix(start, &mut rng), suffix(start, &mut rng));
    }
}
