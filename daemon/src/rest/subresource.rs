//! Subresources: those that every kind may have, and those of single kinds.

use flotilla_api::admit::Subresource;
use flotilla_api::{Builtin, Kind, Reason, Status};
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::body::Sent;
use super::part::Part;
use super::read::{show_scale, write};
use super::scale::SCALE;
use super::signing::APPROVAL;
use super::{Answer, Call, Rest, answer, at_namespace, body, delete, no_such_resource, not_allowed};
use crate::gate::{How, Verb, WriteOptions};

impl Rest {
    pub(super) async fn subresource(&self, call: &Call, body: Sent, name: &str, subresource: &str) -> Answer {
        let (kind, target) = (&call.kind, &call.target);
        if !kind.subresources.iter().any(|known| known == subresource) {
            return Err(no_such_resource());
        }
        if let Some(part) = part(subresource) {
            return match call.head.method {
                Method::GET | Method::HEAD if part != Part::Finalizers => self.get_part(call, part, subresource).await,
                Method::PUT => self.replace(call, body, part).await,
                Method::PATCH if part != Part::Finalizers => self.patch(call, body, part).await,
                _ => Err(not_allowed()),
            };
        }
        match (subresource, &call.head.method) {
            ("binding", &Method::POST) => self.bind(call, body).await,
            ("exec", &Method::GET | &Method::POST) => self.exec(call, target, name).await,
            ("attach", &Method::GET | &Method::POST) => self.attach(call, target, name).await,
            ("portforward", &Method::GET | &Method::POST) => self.port_forward(call, target, name).await,
            ("proxy", _) => self.proxy(call, body.into_inner(), kind, target, name).await,
            ("log", &Method::GET | &Method::HEAD) => self.log(call, target, name).await,
            ("eviction", &Method::POST) => self.evict(call, body).await,
            ("token", &Method::POST) if kind.builtin == Some(Builtin::ServiceAccount) => {
                self.request_token(call, body, target, name).await
            }
            _ => Err(not_allowed()),
        }
    }

    /// What a subresource shows of an object, for those who may read that.
    async fn get_part(&self, call: &Call, part: Part, subresource: &str) -> Answer {
        let object = self.gate().get_for(&call.user, &call.kind, call.place()?, subresource).await?;
        match part {
            Part::Scale => show_scale(call, StatusCode::OK, &part.shown(&call.kind, &object)).await,
            _ => self.show(call, &call.kind, StatusCode::OK, &object).await,
        }
    }

    /// Assigns a pod to a node: what a scheduler of somebody else's does.
    async fn bind(&self, call: &Call, body: Sent) -> Answer {
        let options = body::write_options(call)?;
        let binding = body::value(&call.head.headers, &body::read(body).await?)?.value;
        check_named(&binding, "Binding", call.place()?)?;
        self.bind_pod(call, &call.kind, call.place()?, (&binding, &options)).await
    }

    /// The old way to say the same: the Binding names the pod.
    pub(super) async fn bind_named(&self, call: &Call, body: Sent) -> Answer {
        let (binding, warnings, options) = self.posted(call, body).await?;
        let name = binding["metadata"]["name"].as_str().unwrap_or_default();
        if name.is_empty() {
            return Err(Status::bad_request("name must be provided"));
        }
        let (pods, namespace) = (self.gate().built_in(Builtin::Pod)?, at_namespace(&call.target)?);
        let mut response = self.bind_pod(call, &pods, (namespace, name), (&binding, &options)).await?;
        answer::warn(&mut response, &warnings);
        Ok(response)
    }

    async fn bind_pod(
        &self,
        call: &Call,
        kind: &Kind,
        place: (&str, &str),
        (binding, options): (&Value, &WriteOptions),
    ) -> Answer {
        let name = place.1;
        let text = |pointer: &str| binding.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (to, uid) = (text("/target/name"), text("/metadata/uid"));
        if !matches!(text("/target/kind"), "" | "Node") || to.is_empty() {
            return Err(Status::new(Reason::Invalid, "target: Invalid value: must name an object of kind Node"));
        }
        let edit = |pod: &mut Value| {
            let refuse = |why: String| {
                Err(Status::new(
                    Reason::Conflict,
                    format!("Operation cannot be fulfilled on pods/binding \"{name}\": {why}"),
                ))
            };
            if !uid.is_empty() && pod["metadata"]["uid"] != uid {
                return refuse(format!(
                    "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
                    pod["metadata"]["uid"].as_str().unwrap_or_default()
                ));
            }
            if pod["metadata"].get("deletionTimestamp").is_some() {
                return refuse(format!("pod {name} is being deleted, cannot be assigned to a host"));
            }
            if let Some(node) = pod["spec"]["nodeName"].as_str().filter(|node| !node.is_empty()) {
                return refuse(format!("pod {name} is already assigned to node \"{node}\""));
            }
            pod["spec"]["nodeName"] = json!(to);
            Ok(())
        };
        let how = How { part: Subresource::Binding, ..How::through(Verb::Create, "binding") };
        self.gate().edit(&call.user, kind, place, how, options, edit).await?;
        write(call, StatusCode::CREATED, &answer::success(json!({}))).await
    }

    /// Deletes a pod if its budget allows that.
    async fn evict(&self, call: &Call, body: Sent) -> Answer {
        let place = call.place()?;
        let eviction = body::value(&call.head.headers, &body::read(body).await?)?.value;
        let text = |pointer: &str| eviction.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let known = matches!(text("/apiVersion"), "" | "policy/v1" | "policy/v1beta1");
        if !known || !matches!(text("/kind"), "" | "Eviction") {
            return Err(Status::bad_request("expected an object of apiVersion \"policy/v1\" and kind \"Eviction\""));
        }
        check_named(&eviction, "Eviction", place)?;
        let options = delete::of_eviction(call, eviction["deleteOptions"].clone())?;
        self.gate().evict(&call.user, place, &options).await?;
        write(call, StatusCode::CREATED, &answer::success(json!({}))).await
    }
}

/// Whether what is sent to a subresource names the object that the path does.
fn check_named(sent: &Value, kind: &str, (namespace, name): (&str, &str)) -> Result<(), Status> {
    let text = |field: &str| sent["metadata"][field].as_str().unwrap_or_default();
    if !text("namespace").is_empty() && text("namespace") != namespace {
        return Err(Status::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    match text("name") == name {
        true => Ok(()),
        false => Err(Status::bad_request(format!("name in URL does not match name in {kind} object"))),
    }
}

/// What of an object a subresource stands for, if it is not something else altogether.
fn part(subresource: &str) -> Option<Part> {
    Some(match subresource {
        "status" => Part::Object(Subresource::Status),
        "ephemeralcontainers" => Part::Object(Subresource::EphemeralContainers),
        "resize" => Part::Object(Subresource::Resize),
        SCALE => Part::Scale,
        APPROVAL => Part::Approval,
        "finalize" => Part::Finalizers,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_sent_names_the_object_of_its_path() {
        let said = |metadata: Value| {
            let checked = check_named(&json!({"metadata": metadata}), "Eviction", ("a", "p"));
            checked.map_err(|status| (status.reason, status.message)).err()
        };
        let other_name = "name in URL does not match name in Eviction object";
        let other_namespace = "the namespace of the provided object does not match the namespace sent on the request";
        for (metadata, wanted) in [
            (json!({"name": "p"}), None),
            (json!({"name": "p", "namespace": "a"}), None),
            (json!({}), Some(other_name)),
            (json!({"name": "q"}), Some(other_name)),
            (json!({"name": "p", "namespace": "b"}), Some(other_namespace)),
        ] {
            assert_eq!(said(metadata), wanted.map(|words| (Reason::BadRequest, words.to_owned())));
        }
    }
}
