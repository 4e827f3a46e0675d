//! Get and list.

use std::sync::Arc;

use flotilla_api::field::{Errors, Path};
use flotilla_api::{Kind, Status};
use http::StatusCode;
use serde_json::{Value, json};

use super::body::refuse;
use super::negotiate::{Form, View};
use super::pieces::Pieces;
use super::query::{Query, no_number};
use super::route::Target;
use super::shown::Shown;
use super::table::{self, Include};
use super::{Answer, Call, Rest, answer, at};
use crate::gate::{At, List, ListQuery, Verb};

pub(super) const LIST_OPTIONS: &str = "ListOptions";

impl Rest {
    pub(super) async fn get(&self, call: &Call, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        let (namespace, name) = at(kind, target, name)?;
        if let Some(wanted) = revision(call.query.get("resourceVersion"))? {
            self.gate().reach(At::NotOlderThan(wanted)).await?;
        }
        if is_whole_json(call) {
            let json = self.gate().get_json(&call.user, kind, namespace, name).await?;
            return Ok(answer::json(StatusCode::OK, &call.head.headers, json).await);
        }
        let object = self.gate().get(&call.user, kind, namespace, name).await?;
        self.show(call, kind, StatusCode::OK, &object).await
    }

    pub(super) async fn list(&self, call: &Call, kind: &Arc<Kind>, target: &Target) -> Answer {
        call.accepts.view.check(true)?;
        let query = list_query(call, kind, target)?;
        if query.limit > 0 {
            let list = self.gate().list_json(&call.user, kind, &query).await?;
            let json = Shown::of(call, kind)?.list(&list.items, &list_metadata(&list))?;
            return write_json(call, StatusCode::OK, json).await;
        }
        let found = self.gate().all(&call.user, Verb::List, kind, &query).await?;
        let list = Pieces::new(Shown::of(call, kind)?, found);
        match call.accepts.form {
            Form::Json => self.pieces(call, list).await,
            Form::Yaml => write_json(call, StatusCode::OK, list.whole().await?).await,
        }
    }

    /// Answers with one object, in the form that the client accepts.
    pub(super) async fn show(&self, call: &Call, kind: &Arc<Kind>, code: StatusCode, object: &Value) -> Answer {
        call.accepts.view.check(false)?;
        write(call, code, &Shown::of(call, kind)?.one(object)).await
    }
}

/// Answers with a Scale, in the form that the client accepts.
pub(super) async fn show_scale(call: &Call, code: StatusCode, scale: &Value) -> Answer {
    call.accepts.view.check(false)?;
    match call.accepts.view {
        View::Table(version) => {
            let include = Include::parse(call.query.get("includeObject"))?;
            write(call, code, &table::of_scale(version, scale, include)).await
        }
        View::Metadata(version) | View::MetadataList(version) => {
            write(call, code, &table::partial(version, scale)).await
        }
        View::Whole | View::AllGroups(_) => write(call, code, scale).await,
    }
}

/// Answers with JSON, or the same as YAML.
pub(super) async fn write(call: &Call, code: StatusCode, body: &Value) -> Answer {
    match call.accepts.form {
        Form::Json => write_json(call, code, body.to_string().into_bytes()).await,
        Form::Yaml => write_yaml(code, body),
    }
}

/// The same of what is JSON already.
pub(super) async fn write_json(call: &Call, code: StatusCode, json: Vec<u8>) -> Answer {
    match call.accepts.form {
        Form::Json => Ok(answer::json(code, &call.head.headers, json).await),
        Form::Yaml => write_yaml(code, &serde_json::from_slice(&json).map_err(Status::internal)?),
    }
}

fn write_yaml(code: StatusCode, body: &Value) -> Answer {
    let yaml = serde_saphyr::to_string(body).map_err(Status::internal)?;
    Ok(answer::bytes(code, "application/yaml", yaml))
}

/// Whether the stored bytes do, without being decoded.
fn is_whole_json(call: &Call) -> bool {
    call.accepts.form == Form::Json && call.accepts.view.is_whole()
}

fn list_metadata(list: &List<Vec<u8>>) -> Value {
    let mut metadata = json!({"resourceVersion": list.revision.to_string()});
    if !list.continue_token.is_empty() {
        metadata["continue"] = list.continue_token.as_str().into();
    }
    if let Some(remaining) = list.remaining {
        metadata["remainingItemCount"] = remaining.into();
    }
    metadata
}

/// What to list, by the query.
pub(super) fn list_query(call: &Call, kind: &Kind, target: &Target) -> Result<ListQuery, Status> {
    let limit = call.query.number("limit")?.unwrap_or_default();
    Ok(ListQuery {
        limit: usize::try_from(limit).unwrap_or_default(),
        continue_token: call.query.get("continue").to_owned(),
        at: as_of(&call.query)?,
        ..selection(call, kind, target)?
    })
}

/// Which objects to list or watch, by the query.
pub(super) fn selection(call: &Call, kind: &Kind, target: &Target) -> Result<ListQuery, Status> {
    let query = &call.query;
    for field in ["limit", "timeoutSeconds"] {
        // Upstream reads them even where they mean nothing.
        query.number(field)?;
    }
    let namespace = target.namespace.clone().filter(|_| kind.is_namespaced());
    let mut fields = query.get("fieldSelector").to_owned();
    if let Some(name) = &target.name {
        // A watch of one object, the old way.
        fields = [fields.as_str(), &format!("metadata.name={name}")].join(",").trim_start_matches(',').into();
    }
    ListQuery::parse(namespace, query.get("labelSelector"), &fields)
}

/// As of when to list. Defined by the API concepts, "Semantics for get and list", and upstream's validation of
/// `ListOptions`.
fn as_of(query: &Query) -> Result<At, Status> {
    let (version, matching) = (query.get("resourceVersion"), query.get("resourceVersionMatch"));
    let continued = !query.get("continue").is_empty();
    refuse(LIST_OPTIONS, list_errors(query, version, matching, continued))?;
    if continued {
        return match version {
            "" | "0" => Ok(At::Latest),
            _ => Err(Status::bad_request("specifying resource version is not allowed when using continue")),
        };
    }
    let limited = query.number("limit")?.unwrap_or_default() > 0;
    Ok(match (matching, revision(version)?) {
        (_, None) => At::Latest,
        ("Exact", Some(revision)) => At::Exactly(revision),
        ("", Some(revision)) if limited && revision > 0 => At::Exactly(revision),
        (_, Some(revision)) => At::NotOlderThan(revision),
    })
}

fn list_errors(query: &Query, version: &str, matching: &str, continued: bool) -> Errors {
    let (mut errors, field) = (Errors::new(), Path::new("resourceVersionMatch"));
    if !matching.is_empty() {
        if version.is_empty() {
            errors.forbidden(&field, "resourceVersionMatch is forbidden unless resourceVersion is provided");
        }
        if continued {
            errors.forbidden(&field, "resourceVersionMatch is forbidden when continue is provided");
        }
        if !matches!(matching, "Exact" | "NotOlderThan") {
            errors.not_supported(&field, matching, &["Exact", "NotOlderThan", ""]);
        }
        if (matching, version) == ("Exact", "0") {
            errors.forbidden(&field, "resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\"");
        }
    }
    if query.has("sendInitialEvents") {
        errors.forbidden(&Path::new("sendInitialEvents"), "sendInitialEvents is forbidden for list");
    }
    errors
}

/// A resource version; `None` if there is none.
///
/// # Errors
/// `Invalid` if it is not one.
pub(super) fn revision(text: &str) -> Result<Option<u64>, Status> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).or_else(|error| {
        let mut errors = Errors::new();
        errors.invalid(&Path::new("resourceVersion"), text, no_number("ParseUint", text, &error));
        refuse(LIST_OPTIONS, errors).map(|()| None)
    })
}

#[cfg(test)]
mod tests {
    use flotilla_api::Reason;

    use super::*;

    #[test]
    fn versions_mean_what_the_api_concepts_say() {
        let table = [
            ("", Ok(At::Latest)),
            ("resourceVersion=0", Ok(At::NotOlderThan(0))),
            ("resourceVersion=7", Ok(At::NotOlderThan(7))),
            ("resourceVersion=7&limit=2", Ok(At::Exactly(7))),
            ("resourceVersion=0&limit=2", Ok(At::NotOlderThan(0))),
            ("resourceVersion=7&resourceVersionMatch=Exact", Ok(At::Exactly(7))),
            ("resourceVersion=7&resourceVersionMatch=NotOlderThan&limit=1", Ok(At::NotOlderThan(7))),
            ("continue=x", Ok(At::Latest)),
            ("resourceVersion=0&resourceVersionMatch=Exact", Err(Reason::Invalid)),
            ("resourceVersionMatch=Exact", Err(Reason::Invalid)),
            ("resourceVersion=7&resourceVersionMatch=Other", Err(Reason::Invalid)),
            ("resourceVersion=x", Err(Reason::Invalid)),
            ("resourceVersion=7&continue=x", Err(Reason::BadRequest)),
            ("continue=x&resourceVersionMatch=Exact", Err(Reason::Invalid)),
            ("sendInitialEvents=true", Err(Reason::Invalid)),
        ];
        let wrong = as_of(&Query::parse("resourceVersion=x")).unwrap_err();
        assert!(
            wrong
                .message
                .ends_with("resourceVersion: Invalid value: \"x\": strconv.ParseUint: parsing \"x\": invalid syntax"),
            "{wrong:?}"
        );
        for (query, wanted) in table {
            assert_eq!(as_of(&Query::parse(query)).map_err(|status| status.reason), wanted, "{query}");
        }
    }
}
