//! The `approval` subresource of certificate requests.
//!
//! Defined by upstream's approval strategy: of what is sent, the decision counts and nothing else.

use std::sync::Arc;

use flotilla_api::Kind;
use flotilla_api::admit::Subresource;
use http::StatusCode;
use hyper::body::Incoming;
use jiff::Timestamp;
use serde_json::{Value, json};

use super::route::Target;
use super::write::read_object;
use super::{Answer, Call, Rest, at, body};
use crate::gate::{How, Verb};

pub const APPROVAL: &str = "approval";

impl Rest {
    pub(super) async fn approve(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
    ) -> Answer {
        let options = body::write_options(call)?;
        let sent = read_object(call, body, kind, target, options.unknown_fields).await?;
        let now = Timestamp::now();
        let edit = |stored: &mut Value| {
            if let Some(version) = sent["metadata"]["resourceVersion"].as_str().filter(|version| !version.is_empty()) {
                stored["metadata"]["resourceVersion"] = json!(version);
            }
            let conditions = decided(&stored["status"]["conditions"], &sent["status"]["conditions"], now);
            if !stored["status"].is_object() {
                stored["status"] = json!({});
            }
            stored["status"]["conditions"] = conditions;
            Ok(())
        };
        let how = How { part: Subresource::Status, ..How::through(Verb::Update, APPROVAL) };
        let written = self.gate().edit(&call.user, kind, at(kind, target, name)?, how, &options, edit).await?;
        self.written(call, kind, StatusCode::OK, &written).await
    }
}

/// The conditions that are sent, each with its times.
fn decided(stored: &Value, sent: &Value, now: Timestamp) -> Value {
    let now = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let known = |kind: &Value| stored.as_array().into_iter().flatten().find(|one| one["type"] == *kind);
    let conditions = sent.as_array().into_iter().flatten().map(|condition| {
        let mut condition = condition.clone();
        let before = known(&condition["type"]);
        if condition["lastUpdateTime"].is_null() {
            condition["lastUpdateTime"] = json!(now);
        }
        if condition["lastTransitionTime"].is_null() {
            let kept = before.filter(|before| before["status"] == condition["status"]);
            condition["lastTransitionTime"] =
                kept.map_or_else(|| json!(now), |before| before["lastTransitionTime"].clone());
        }
        condition
    });
    conditions.collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_decision_gets_its_times_once() {
        let at = |second: i64| Timestamp::from_second(second).unwrap();
        let sent = json!([{"type": "Approved", "status": "True", "reason": "Me"}]);
        let first = decided(&Value::Null, &sent, at(0));
        assert_eq!(first[0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        let again = decided(&first, &sent, at(60));
        assert_eq!(again[0]["lastTransitionTime"], "1970-01-01T00:00:00Z");
        assert_eq!(again[0]["lastUpdateTime"], "1970-01-01T00:01:00Z");
        assert_eq!(decided(&first, &Value::Null, at(0)), json!([]));
    }
}
