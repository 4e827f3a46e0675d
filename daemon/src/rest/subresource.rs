//! Subresources: those that every kind may have, and those of single kinds.

use std::sync::Arc;

use flotilla_api::admit::Subresource;
use flotilla_api::{Builtin, Kind, Reason, Status};
use http::{Method, StatusCode};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::read::write;
use super::route::Target;
use super::scale::{self, SCALE};
use super::signing::APPROVAL;
use super::{Answer, Call, Rest, answer, at, body, delete, no_such_resource, not_allowed};
use crate::gate::{How, Verb};

impl Rest {
    pub(super) async fn subresource(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
        subresource: &str,
    ) -> Answer {
        if !kind.subresources.iter().any(|known| known == subresource) {
            return Err(no_such_resource());
        }
        let method = &call.head.method;
        match (subresource, method) {
            ("status", &Method::GET | &Method::HEAD) => self.get_part(call, kind, target, (name, "status")).await,
            ("status", &Method::PUT) => self.replace(call, body, kind, target, name, Subresource::Status).await,
            ("status", &Method::PATCH) => self.patch(call, body, kind, target, name, Subresource::Status).await,
            (SCALE, &Method::PATCH) => self.patch_scale(call, body, kind, target, name).await,
            (SCALE, &Method::GET | &Method::HEAD) => self.get_scale(call, kind, target, name).await,
            (SCALE, &Method::PUT) => self.put_scale(call, body, kind, target, name).await,
            ("binding", &Method::POST) => self.bind(call, body, kind, target, name).await,
            ("exec", &Method::GET | &Method::POST) => self.exec(call, target, name).await,
            ("attach", &Method::GET | &Method::POST) => self.attach(call, target, name).await,
            ("portforward", &Method::GET | &Method::POST) => self.port_forward(call, target, name).await,
            ("proxy", _) => self.proxy(call, body, kind, target, name).await,
            ("ephemeralcontainers" | "resize", &Method::GET | &Method::HEAD) => {
                self.get_part(call, kind, target, (name, subresource)).await
            }
            ("ephemeralcontainers", &Method::PUT) => {
                self.replace(call, body, kind, target, name, Subresource::EphemeralContainers).await
            }
            ("ephemeralcontainers", &Method::PATCH) => {
                self.patch(call, body, kind, target, name, Subresource::EphemeralContainers).await
            }
            ("resize", &Method::PATCH) => self.patch(call, body, kind, target, name, Subresource::Resize).await,
            ("resize", &Method::PUT) => self.replace(call, body, kind, target, name, Subresource::Resize).await,
            ("log", &Method::GET | &Method::HEAD) => self.log(call, target, name).await,
            ("eviction", &Method::POST) => self.evict(call, body, kind, target, name).await,
            (APPROVAL, &Method::GET | &Method::HEAD) => self.get_part(call, kind, target, (name, APPROVAL)).await,
            (APPROVAL, &Method::PUT) => self.approve(call, body, kind, target, name).await,
            ("token", &Method::POST) if kind.builtin == Some(Builtin::ServiceAccount) => {
                self.request_token(call, body, target, name).await
            }
            ("finalize", &Method::PUT) => self.finalize(call, body, kind, target, name).await,
            _ => Err(not_allowed()),
        }
    }

    /// The object, for those who may read this part of it.
    async fn get_part(&self, call: &Call, kind: &Arc<Kind>, target: &Target, (name, part): (&str, &str)) -> Answer {
        let object = self.gate().get_for(&call.user, kind, at(kind, target, name)?, part).await?;
        self.show(call, kind, StatusCode::OK, &object).await
    }

    async fn get_scale(&self, call: &Call, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        let object = self.gate().get_for(&call.user, kind, at(kind, target, name)?, SCALE).await?;
        write(call, StatusCode::OK, &scale::of(kind, &object)).await
    }

    async fn put_scale(&self, call: &Call, body: Incoming, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        let options = body::write_options(call)?;
        let wanted = body::value(&call.head.headers, &body::read(body).await?, false)?;
        let edit = |object: &mut Value| scale::write(kind, object, &wanted);
        let how = How::through(Verb::Update, SCALE);
        let place = at(kind, target, name)?;
        let written = self.gate().edit(&call.user, kind, place, how, &options, edit).await?;
        write(call, StatusCode::OK, &scale::of(kind, &written.object)).await
    }

    /// Assigns a pod to a node: what a scheduler of somebody else's does.
    async fn bind(&self, call: &Call, body: Incoming, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        let options = body::write_options(call)?;
        let binding = body::value(&call.head.headers, &body::read(body).await?, false)?;
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
                    pod["metadata"]["uid"]
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
        let place = at(kind, target, name)?;
        self.gate().edit(&call.user, kind, place, how, &options, edit).await?;
        write(call, StatusCode::CREATED, &answer::success(json!({}))).await
    }

    /// Deletes a pod if its budget allows that.
    async fn evict(&self, call: &Call, body: Incoming, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        let eviction = body::value(&call.head.headers, &body::read(body).await?, false)?;
        let text = |pointer: &str| eviction.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let known = matches!(text("/apiVersion"), "" | "policy/v1" | "policy/v1beta1");
        if !known || !matches!(text("/kind"), "" | "Eviction") {
            return Err(Status::bad_request("expected an object of apiVersion \"policy/v1\" and kind \"Eviction\""));
        }
        if !matches!(text("/metadata/name"), "") && text("/metadata/name") != name {
            return Err(Status::bad_request("name in URL does not match name in Eviction object"));
        }
        let options = delete::options_of(call, eviction["deleteOptions"].clone())?;
        self.gate().evict(&call.user, at(kind, target, name)?, &options).await?;
        write(call, StatusCode::CREATED, &answer::success(json!({}))).await
    }

    /// Replaces the finalizers in a Namespace's spec; the last of them gone, so is the Namespace if it is ending.
    async fn finalize(&self, call: &Call, body: Incoming, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        let options = body::write_options(call)?;
        let sent = body::value(&call.head.headers, &body::read(body).await?, false)?;
        let edit = |namespace: &mut Value| {
            namespace["spec"]["finalizers"] = sent["spec"]["finalizers"].clone();
            Ok(())
        };
        let how = How { part: Subresource::Finalize, ..How::through(Verb::Update, "finalize") };
        let place = at(kind, target, name)?;
        let written = self.gate().edit(&call.user, kind, place, how, &options, edit).await?;
        self.written(call, kind, StatusCode::OK, &written).await
    }
}
