//! Delete, of one object or of all that match.

use flotilla_api::field::{Errors, Path};
use flotilla_api::{Builtin, Kind, Status};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Sent;
use super::read::{list_query, write};
use super::{Answer, Call, Rest, answer, body, not_allowed};
use crate::gate::{DeleteOptions, Propagation};

/// Upstream's `DeleteOptions`, as far as they mean something here.
#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct Options {
    kind: Option<String>,
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

impl Options {
    /// What was sent.
    ///
    /// # Errors
    /// `BadRequest` if it is something else.
    fn of(sent: Value) -> Result<Self, Status> {
        let unreadable =
            |why: String| Status::bad_request(format!("the body of the request is no DeleteOptions: {why}"));
        let options: Options = match sent {
            Value::Null => Options::default(),
            sent => Options::deserialize(sent).map_err(|error| unreadable(error.to_string()))?,
        };
        match options.kind.as_deref() {
            None | Some("" | "DeleteOptions") => Ok(options),
            Some(kind) => Err(unreadable(format!("it is of kind {kind:?}"))),
        }
    }

    /// Upstream's warning to who may be surprised by what stays.
    fn warnings(&self, kind: &Kind) -> &'static [&'static str] {
        let says_nothing = self.propagation_policy.is_none() && self.orphan_dependents.is_none();
        match says_nothing && kind.orphans && kind.builtin == Some(Builtin::Job) {
            true => {
                &["child pods are preserved by default when jobs are deleted; set propagationPolicy=Background to \
                       remove them or set propagationPolicy=Orphan to suppress this warning"]
            }
            false => &[],
        }
    }
}

/// What an eviction says of the delete that it comes to. A dry run may be asked for there or by the request.
///
/// # Errors
/// `BadRequest` if it is something else or contradicts the request, `Invalid` if it makes no sense.
pub(super) fn of_eviction(call: &Call, sent: Value) -> Result<DeleteOptions, Status> {
    let (mut options, asked) = (Options::of(sent)?, call.query.all("dryRun"));
    if options.dry_run.is_empty() {
        options.dry_run = asked.into_iter().map(str::to_owned).collect();
    } else if !asked.is_empty() && asked != options.dry_run {
        let words = "Non-matching dry-run options in request and content";
        return Err(Status::internal(format!("{words}: [{}] and [{}]", asked.join(" "), options.dry_run.join(" "))));
    }
    checked(call, options)
}

impl Rest {
    pub(super) async fn delete(&self, call: &Call, body: Sent) -> Answer {
        let (kind, place) = (&call.kind, call.place()?);
        let sent = options(call, body).await?;
        let (warnings, cascades) = (sent.warnings(kind), sent.orphan_dependents == Some(false));
        let options = checked(call, sent)?;
        let deleted = self.gate().delete(&call.user, kind, place, &options).await?;
        if !deleted.gone || kind.shows_deleted {
            // Only who asks for it the old way is told by the code that something is still to be done.
            let code = if !deleted.gone && cascades { StatusCode::ACCEPTED } else { StatusCode::OK };
            let mut response = self.show(call, kind, code, &deleted.object).await?;
            answer::warn(&mut response, warnings);
            return Ok(response);
        }
        let mut details = json!({"name": place.1, "kind": kind.plural, "uid": deleted.object["metadata"]["uid"]});
        if !kind.group.is_empty() {
            details["group"] = json!(kind.group);
        }
        let mut response = write(call, StatusCode::OK, &answer::success(details)).await?;
        answer::warn(&mut response, warnings);
        Ok(response)
    }

    pub(super) async fn delete_collection(&self, call: &Call, body: Sent) -> Answer {
        let kind = &call.kind;
        // Nobody empties all namespaces at once, nor removes them.
        if kind.builtin == Some(Builtin::Namespace) || (kind.is_namespaced() && call.target.namespace.is_none()) {
            return Err(not_allowed());
        }
        let sent = options(call, body).await?;
        let warnings = sent.warnings(kind);
        let options = checked(call, sent)?;
        let query = list_query(call, kind, &call.target)?;
        let deleted = self.gate().delete_collection(&call.user, kind, &query, &options).await?;
        let body = json!({
            "kind": format!("{}List", kind.kind),
            "apiVersion": kind.api_version(),
            "metadata": {"resourceVersion": deleted.revision.to_string()},
            "items": deleted.items,
        });
        let mut response = write(call, StatusCode::OK, &body).await?;
        answer::warn(&mut response, warnings);
        Ok(response)
    }
}

/// What the body says, or else the query: one of the two, as upstream has it.
async fn options(call: &Call, body: Sent) -> Result<Options, Status> {
    let bytes = body::read(body).await?;
    match bytes.is_empty() {
        true => from_query(call),
        false => Options::of(body::value(&call.head.headers, &bytes)?.value),
    }
}

fn from_query(call: &Call) -> Result<Options, Status> {
    let query = &call.query;
    Ok(Options {
        kind: None,
        grace_period_seconds: query.number("gracePeriodSeconds")?,
        orphan_dependents: query.has("orphanDependents").then(|| query.flag("orphanDependents")),
        propagation_policy: query.has("propagationPolicy").then(|| query.get("propagationPolicy").to_owned()),
        preconditions: None,
        dry_run: query.all("dryRun").into_iter().map(str::to_owned).collect(),
    })
}

fn checked(call: &Call, options: Options) -> Result<DeleteOptions, Status> {
    let mut errors = Errors::new();
    let asked = (options.propagation_policy.as_deref(), options.orphan_dependents);
    let propagation = propagation(&call.kind, asked, &mut errors);
    let asked: Vec<&str> = options.dry_run.iter().map(String::as_str).collect();
    let dry_run = body::dry_run(&asked, &mut errors);
    body::refuse("DeleteOptions", errors)?;
    let preconditions = options.preconditions.unwrap_or_default();
    Ok(DeleteOptions {
        // As upstream: what makes no sense means at once.
        grace_period_seconds: options.grace_period_seconds.map(|seconds| if seconds < 0 { 1 } else { seconds }),
        propagation,
        manager: body::manager(&call.query, &call.head.headers),
        uid: preconditions.uid,
        resource_version: preconditions.resource_version,
        dry_run,
    })
}

fn propagation(kind: &Kind, (policy, orphan): (Option<&str>, Option<bool>), errors: &mut Errors) -> Propagation {
    let field = Path::new("propagationPolicy");
    if let (Some(policy), Some(_)) = (policy, orphan) {
        errors.invalid(&field, policy, "orphanDependents and deletionPropagation cannot be both set");
    }
    match policy {
        None if orphan.unwrap_or(kind.orphans) => Propagation::Orphan,
        None | Some("Background") => Propagation::Background,
        Some("Orphan") => Propagation::Orphan,
        Some("Foreground") => Propagation::Foreground,
        Some(other) => {
            errors.not_supported(&field, other, &["Foreground", "Background", "Orphan", "nil"]);
            Propagation::Background
        }
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::Registry;

    use super::*;

    #[test]
    fn what_becomes_of_dependents_is_said_one_way_only() {
        let registry = Registry::builtin();
        let map = registry.built_in(Builtin::ConfigMap).unwrap();
        let job = registry.built_in(Builtin::Job).unwrap();
        let of_kind = |kind: &Kind, policy: Option<&str>, orphan: Option<bool>| {
            let mut errors = Errors::new();
            let propagation = propagation(kind, (policy, orphan), &mut errors);
            body::refuse("DeleteOptions", errors).map(|()| propagation)
        };
        let of = |policy: Option<&str>, orphan: Option<bool>| of_kind(&map, policy, orphan);
        assert_eq!(of(None, None).unwrap(), Propagation::Background);
        assert_eq!(of_kind(&job, None, None).unwrap(), Propagation::Orphan);
        assert_eq!(of_kind(&job, None, Some(false)).unwrap(), Propagation::Background);
        assert_eq!(of_kind(&job, Some("Background"), None).unwrap(), Propagation::Background);
        let old = registry.served("apps", "v1beta1", "deployments").unwrap();
        assert_eq!(of_kind(&old, None, None).unwrap(), Propagation::Orphan);
        assert_eq!(of(Some("Foreground"), None).unwrap(), Propagation::Foreground);
        assert_eq!(of(None, Some(true)).unwrap(), Propagation::Orphan);
        assert_eq!(of(Some("Orphan"), None).unwrap(), Propagation::Orphan);
        assert_eq!(
            of(Some("Orphan"), Some(true)).unwrap_err().message,
            "DeleteOptions.meta.k8s.io \"\" is invalid: propagationPolicy: Invalid value: \"Orphan\": orphanDependents \
             and deletionPropagation cannot be both set"
        );
        assert_eq!(of(Some("Sometimes"), None).unwrap_err().causes[0].reason, "FieldValueNotSupported");
    }
}
