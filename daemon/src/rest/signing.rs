//! The `approval` subresource of certificate requests.
//!
//! Defined by upstream's approval strategy: of what is sent, the decision counts and nothing else.

use jiff::Timestamp;
use serde_json::{Value, json};

pub const APPROVAL: &str = "approval";

/// Puts the decision that is sent, and the revision that it was made from, into the stored request.
pub fn decide(stored: &mut Value, sent: &Value, now: Timestamp) {
    stored["metadata"]["resourceVersion"] = sent["metadata"]["resourceVersion"].clone();
    let conditions = decided(&stored["status"]["conditions"], &sent["status"]["conditions"], now);
    if !stored["status"].is_object() {
        stored["status"] = json!({});
    }
    stored["status"]["conditions"] = conditions;
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
