//! Questions about who may do what, and about who asks.
//!
//! Defined by the Kubernetes API reference, `authorization.k8s.io/v1` and `SelfSubjectReview` of `authentication.k8s.io/v1`.

use flotilla_api::k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SubjectAccessReviewSpec,
};
use flotilla_api::{Cause, Kind, Reason, Status, admit};
use flotilla_control::rbac::Action;
use http::{Method, StatusCode};
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Sent;
use super::read::write;
use super::route::Target;
use super::{Answer, Call, Rest, answer, body, no_such_resource, not_allowed};
use crate::gate::{User, WriteOptions, resource_action};

impl Rest {
    /// Answers a question, if this is one that is asked here.
    pub(super) async fn review(&self, call: &Call, body: Sent, kind: &Kind, target: &Target) -> Answer {
        let (sent, mut warnings, options) = self.posted(call, body).await?;
        let (mut object, more) = admit::prepare_question(kind, sent, options.unknown_fields)?;
        warnings.extend(more);
        object["status"] = match kind.kind.as_str() {
            "SelfSubjectReview" => json!({"userInfo": call.user.info()}),
            "TokenReview" => self.review_token(&object).await?,
            "SelfSubjectRulesReview" => self.rules_of(&call.user, &object).await?,
            "SelfSubjectAccessReview" => self.access_of(&call.user, &spec(&object)?, kind).await?,
            _ => {
                let spec = spec(&object)?;
                check_subject(&spec, kind)?;
                if kind.is_namespaced() {
                    check_namespace(&spec, kind, target)?;
                }
                self.access_of(&subject(&spec), &spec, kind).await?
            }
        };
        let mut response = write(call, StatusCode::CREATED, &object).await?;
        answer::warn(&mut response, &warnings);
        Ok(response)
    }

    /// What was posted to the collection of a kind that is not kept, with what there is to warn of, and how it is meant.
    pub(super) async fn posted(&self, call: &Call, body: Sent) -> Result<(Value, Vec<String>, WriteOptions), Status> {
        let (kind, target) = (&call.kind, &call.target);
        if target.name.is_some() || kind.is_namespaced() != target.namespace.is_some() {
            return Err(no_such_resource());
        }
        if call.head.method != Method::POST {
            return Err(not_allowed());
        }
        self.gate().require(&call.user, &call.asked.action(), None).await?;
        let options = body::write_options(call)?;
        let sent = body::value(&call.head.headers, &body::read(body).await?)?;
        let (sent, warnings) = body::taken(kind, sent, options.unknown_fields)?;
        Ok((body::object(kind, target, sent)?, warnings, options))
    }

    async fn access_of(&self, user: &User, spec: &SubjectAccessReviewSpec, kind: &Kind) -> Result<Value, Status> {
        let action = action(spec, kind)?;
        let judged = self.gate().review(user, &action).await?;
        let mut status = json!({"allowed": judged.is_ok()});
        let (Ok(why) | Err(why)) = judged;
        if !why.is_empty() {
            status["reason"] = why.into();
        }
        Ok(status)
    }

    async fn rules_of(&self, user: &User, object: &Value) -> Result<Value, Status> {
        let namespace = object["spec"]["namespace"].as_str().unwrap_or_default();
        if namespace.is_empty() {
            return Err(Status::bad_request("no namespace on request"));
        }
        let (rules, mut problems) = self.gate().rules_for(user, namespace).await?;
        if user.as_node().is_some() {
            problems.push("node authorizer does not support user rule resolution".into());
        }
        let (mut on_resources, mut on_paths) = (Vec::new(), Vec::new());
        for rule in rules {
            let mut value = serde_json::to_value(&rule).map_err(Status::internal)?;
            if rule.resources.as_ref().is_some_and(|list| !list.is_empty()) {
                let mut value = value.clone();
                value.as_object_mut().map(|map| map.remove("nonResourceURLs"));
                on_resources.push(value);
            }
            if rule.non_resource_urls.as_ref().is_some_and(|list| !list.is_empty()) {
                value = json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls});
                on_paths.push(value);
            }
        }
        let mut status = json!({
            "resourceRules": on_resources,
            "nonResourceRules": on_paths,
            "incomplete": !problems.is_empty(),
        });
        if !problems.is_empty() {
            status["evaluationError"] = problems.join(", ").into();
        }
        Ok(status)
    }
}

fn spec(object: &Value) -> Result<SubjectAccessReviewSpec, Status> {
    SubjectAccessReviewSpec::deserialize(&object["spec"]).map_err(Status::bad_request)
}

fn subject(spec: &SubjectAccessReviewSpec) -> User {
    User {
        name: spec.user.clone().unwrap_or_default(),
        uid: spec.uid.clone().unwrap_or_default(),
        groups: spec.groups.clone().unwrap_or_default(),
        extra: spec.extra.clone().unwrap_or_default(),
    }
}

fn check_subject(spec: &SubjectAccessReviewSpec, kind: &Kind) -> Result<(), Status> {
    let named = spec.user.as_ref().is_some_and(|user| !user.is_empty());
    match named || spec.groups.as_ref().is_some_and(|groups| !groups.is_empty()) {
        true => Ok(()),
        false => {
            Err(invalid(kind, "spec.user", "Invalid value: \"\": at least one of user or group must be specified"))
        }
    }
}

fn check_namespace(spec: &SubjectAccessReviewSpec, kind: &Kind, target: &Target) -> Result<(), Status> {
    if spec.non_resource_attributes.is_some() {
        let why = "Invalid value: \"nonResourceAttributes\": disallowed on this kind of request";
        return Err(invalid(kind, "spec.nonResourceAttributes", why));
    }
    let asked = spec.resource_attributes.as_ref().and_then(|of| of.namespace.as_deref()).unwrap_or_default();
    match asked == target.namespace.as_deref().unwrap_or_default() {
        true => Ok(()),
        false => Err(invalid(
            kind,
            "spec.resourceAttributes.namespace",
            &format!("Invalid value: {asked:?}: must match metadata.namespace"),
        )),
    }
}

/// What the question is about: something with a resource, or with a path, and not both.
fn action<'a>(spec: &'a SubjectAccessReviewSpec, kind: &Kind) -> Result<Action<'a>, Status> {
    fn text(text: &Option<String>) -> &str {
        text.as_deref().unwrap_or_default()
    }
    match (&spec.resource_attributes, &spec.non_resource_attributes) {
        (Some(of), None) => {
            let ResourceAttributes { verb, group, resource, subresource, namespace, name, .. } = of;
            Ok(match (text(group), text(resource)) {
                // What is asked here is taken as it is; a Namespace is in itself if the question says so.
                ("", "namespaces") => Action::Resource {
                    verb: text(verb),
                    group: "",
                    resource: "namespaces",
                    subresource: text(subresource),
                    namespace: text(namespace),
                    name: text(name),
                },
                (group, resource) => {
                    resource_action(text(verb), (group, resource, text(subresource)), (text(namespace), text(name)))
                }
            })
        }
        (None, Some(NonResourceAttributes { verb, path })) => Ok(Action::Path { verb: text(verb), path: text(path) }),
        (Some(_), Some(_)) => Err(invalid(
            kind,
            "spec.nonResourceAttributes",
            "Invalid value: \"nonResourceAttributes\": cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => Err(invalid(
            kind,
            "spec.resourceAttributes",
            "Invalid value: null: exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
    }
}

fn invalid(kind: &Kind, field: &str, message: &str) -> Status {
    let cause = Cause { reason: "FieldValueInvalid".into(), message: message.into(), field: field.into() };
    Status { reason: Reason::Invalid, ..Status::invalid(kind.qualified(), "", vec![cause]) }
}

#[cfg(test)]
mod tests {
    use flotilla_api::questions;

    use super::*;

    fn of(spec: Value) -> Result<String, String> {
        let kind = questions::find("authorization.k8s.io", "v1", "subjectaccessreviews").unwrap();
        let spec = SubjectAccessReviewSpec::deserialize(&spec).unwrap();
        check_subject(&spec, kind).map_err(|status| status.message)?;
        action(&spec, kind).map(|action| format!("{action:?}")).map_err(|status| status.message)
    }

    #[test]
    fn a_question_is_about_one_thing_and_somebody() {
        let both = of(json!({"user": "a", "resourceAttributes": {}, "nonResourceAttributes": {}})).unwrap_err();
        assert!(both.contains("cannot be specified in combination with resourceAttributes"), "{both}");
        let none = of(json!({"user": "a"})).unwrap_err();
        assert_eq!(
            none,
            "SubjectAccessReview.authorization.k8s.io \"\" is invalid: spec.resourceAttributes: Invalid value: null: \
             exactly one of nonResourceAttributes or resourceAttributes must be specified"
        );
        let nobody = of(json!({"resourceAttributes": {}})).unwrap_err();
        assert!(nobody.contains("at least one of user or group must be specified"), "{nobody}");
        let path = of(json!({"groups": ["g"], "nonResourceAttributes": {"verb": "get", "path": "/x"}})).unwrap();
        assert_eq!(path, "Path { verb: \"get\", path: \"/x\" }");
    }
}
