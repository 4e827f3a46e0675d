//! Delete, of one object or of all that match.

use std::sync::Arc;

use bytes::Bytes;
use flotilla_api::{Builtin, Kind, Reason, Status};
use http::StatusCode;
use hyper::body::Incoming;
use serde::Deserialize;
use serde_json::{Value, json};

use super::read::{list_query, write};
use super::route::Target;
use super::{Answer, Call, Rest, answer, at, body, not_allowed};
use crate::gate::{DeleteOptions, Propagation};

/// Upstream's `DeleteOptions`, as far as they mean something here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Options {
    grace_period_seconds: Option<i64>,
    orphan_dependents: Option<bool>,
    propagation_policy: Option<String>,
    preconditions: Option<Preconditions>,
    dry_run: Vec<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Preconditions {
    uid: Option<String>,
    resource_version: Option<String>,
}

impl Rest {
    pub(super) async fn delete(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
    ) -> Answer {
        let place = at(kind, target, name)?;
        let options = options(call, &body::read(body).await?)?;
        let deleted = self.gate().delete(&call.user, kind, place, &options).await?;
        if !deleted.gone {
            return self.show(call, kind, StatusCode::OK, &deleted.object).await;
        }
        let details = json!({
            "name": name,
            "group": kind.group,
            "kind": kind.plural,
            "uid": deleted.object["metadata"]["uid"],
        });
        write(call, StatusCode::OK, &answer::success(details)).await
    }

    pub(super) async fn delete_collection(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
    ) -> Answer {
        if kind.builtin == Some(Builtin::Namespace) {
            return Err(not_allowed());
        }
        let options = options(call, &body::read(body).await?)?;
        let query = list_query(call, kind, target)?;
        let deleted = self.gate().delete_collection(&call.user, kind, &query, &options).await?;
        let body = json!({
            "kind": format!("{}List", kind.kind),
            "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": deleted.revision.to_string()},
            "items": deleted.items,
        });
        write(call, StatusCode::OK, &body).await
    }
}

/// What the body says, or else the query.
fn options(call: &Call, bytes: &Bytes) -> Result<DeleteOptions, Status> {
    let sent = match bytes.is_empty() {
        true => Value::Null,
        false => body::value(&call.head.headers, bytes, false)?,
    };
    options_of(call, sent)
}

/// What was sent says, or else the query.
pub(super) fn options_of(call: &Call, sent: Value) -> Result<DeleteOptions, Status> {
    let mut options = match sent {
        Value::Null => Options::default(),
        sent => Options::deserialize(sent).map_err(|error| Status::bad_request(format!("DeleteOptions: {error}")))?,
    };
    let query = &call.query;
    options.grace_period_seconds = options.grace_period_seconds.or(query.number("gracePeriodSeconds")?);
    if options.propagation_policy.is_none() && query.has("propagationPolicy") {
        options.propagation_policy = Some(query.get("propagationPolicy").into());
    }
    if options.orphan_dependents.is_none() && query.has("orphanDependents") {
        options.orphan_dependents = Some(query.flag("orphanDependents"));
    }
    let asked = options.dry_run.iter().map(String::as_str).collect::<Vec<_>>();
    if !matches!(asked.as_slice(), [] | ["All"]) {
        return Err(invalid("dryRun: Unsupported value: supported values: \"All\""));
    }
    if options.grace_period_seconds.is_some_and(|seconds| seconds < 0) {
        // As upstream: what makes no sense means at once.
        options.grace_period_seconds = Some(1);
    }
    let preconditions = options.preconditions.unwrap_or_default();
    Ok(DeleteOptions {
        grace_period_seconds: options.grace_period_seconds,
        propagation: propagation(options.propagation_policy.as_deref(), options.orphan_dependents)?,
        manager: body::manager(query, &call.head.headers)?,
        uid: preconditions.uid,
        resource_version: preconditions.resource_version,
        dry_run: !asked.is_empty() || body::dry_run(query)?,
    })
}

fn propagation(policy: Option<&str>, orphan: Option<bool>) -> Result<Propagation, Status> {
    match (policy, orphan) {
        (Some(_), Some(_)) => Err(invalid("orphanDependents and deletionPropagation cannot be both set")),
        (None, Some(true)) | (Some("Orphan"), None) => Ok(Propagation::Orphan),
        (None, _) | (Some("" | "Background"), None) => Ok(Propagation::Background),
        (Some("Foreground"), None) => Ok(Propagation::Foreground),
        (Some(other), None) => Err(invalid(&format!(
            "propagationPolicy: Unsupported value: \"{other}\": supported values: \"Foreground\", \"Background\", \
             \"Orphan\", \"nil\""
        ))),
    }
}

fn invalid(message: &str) -> Status {
    Status::new(Reason::Invalid, format!("DeleteOptions.meta.k8s.io \"\" is invalid: {message}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_becomes_of_dependents_is_said_one_way_only() {
        assert_eq!(propagation(None, None).unwrap(), Propagation::Background);
        assert_eq!(propagation(Some("Foreground"), None).unwrap(), Propagation::Foreground);
        assert_eq!(propagation(None, Some(true)).unwrap(), Propagation::Orphan);
        assert_eq!(propagation(Some("Orphan"), None).unwrap(), Propagation::Orphan);
        assert!(propagation(Some("Orphan"), Some(true)).is_err());
        assert!(propagation(Some("Sometimes"), None).is_err());
    }
}
