//! Create and update.

use std::sync::Arc;

use flotilla_api::admit::{Subresource, UnknownFields};
use flotilla_api::{Kind, Status};
use http::StatusCode;
use hyper::body::Incoming;
use serde_json::Value;

use super::route::Target;
use super::{Answer, Call, Rest, answer, at, body, not_allowed};
use crate::gate::Written;

impl Rest {
    pub(super) async fn create(&self, call: &Call, body: Incoming, kind: &Arc<Kind>, target: &Target) -> Answer {
        if kind.is_namespaced() && target.namespace.is_none() {
            return Err(not_allowed());
        }
        let options = body::write_options(call)?;
        let object = read_object(call, body, kind, target, options.unknown_fields).await?;
        let written = self.gate().create(&call.user, kind, object, &options).await?;
        self.written(call, kind, StatusCode::CREATED, &written).await
    }

    /// Replaces an object, or its status, by the one that was sent.
    pub(super) async fn replace(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
        subresource: Subresource,
    ) -> Answer {
        let place = at(kind, target, name)?;
        let options = body::write_options(call)?;
        let object = read_object(call, body, kind, target, options.unknown_fields).await?;
        let edit = |stored: &mut Value| {
            let mut new = object.clone();
            take_over(stored, &mut new);
            *stored = new;
            Ok(())
        };
        let written = self.gate().update(&call.user, kind, place, subresource, &options, edit).await?;
        self.written(call, kind, StatusCode::OK, &written).await
    }

    /// Answers with what was written, and what there was to say about it.
    pub(super) async fn written(&self, call: &Call, kind: &Arc<Kind>, code: StatusCode, written: &Written) -> Answer {
        let mut response = self.show(call, kind, code, &written.object).await?;
        answer::warn(&mut response, &written.warnings);
        Ok(response)
    }
}

/// An update that names no revision overwrites whatever there is.
fn take_over(stored: &Value, new: &mut Value) {
    let Some(metadata) = new.get_mut("metadata").and_then(Value::as_object_mut) else { return };
    let named = metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|version| !version.is_empty());
    if !named {
        metadata.insert("resourceVersion".into(), stored["metadata"]["resourceVersion"].clone());
    }
}

/// Reads the body as an object for `target`.
pub(super) async fn read_object(
    call: &Call,
    body: Incoming,
    kind: &Kind,
    target: &Target,
    unknown_fields: UnknownFields,
) -> Result<Value, Status> {
    let bytes = body::read(body).await?;
    let value = body::value(&call.head.headers, &bytes, unknown_fields == UnknownFields::Refuse)?;
    body::object(kind, target, value)
}
