//! Patch: of an object, its status, or its scale.

use std::sync::Arc;

use flotilla_api::admit::Subresource;
use flotilla_api::patch::{Patch, PatchType};
use flotilla_api::{Cause, Kind, Reason, Status, schema};
use http::{StatusCode, header};
use hyper::body::Incoming;
use serde_json::{Value, json};

use super::read::write;
use super::route::Target;
use super::scale::{self, SCALE};
use super::{Answer, Call, Rest, at, body};
use crate::gate::{How, Verb};

impl Rest {
    pub(super) async fn patch(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
        part: Subresource,
    ) -> Answer {
        match patch_type(call)? {
            PatchType::Apply => return self.apply(call, body, kind, target, name, part).await,
            // How its lists are merged is known of a kind from its Go type, which a custom one does not have.
            PatchType::Strategic if kind.structure.is_some() => return Err(not_strategic()),
            _ => {}
        }
        refuse_force(call)?;
        let patch = read(call, body).await?;
        let options = body::write_options(call)?;
        let edit = |object: &mut Value| {
            *object = patch.apply(kind.facts(), object)?;
            Ok(())
        };
        let how = How { verb: Verb::Patch, ..How::update(part) };
        let written = self.gate().edit(&call.user, kind, at(kind, target, name)?, how, &options, edit).await?;
        self.written(call, kind, StatusCode::OK, &written).await
    }

    /// Server-side apply: makes the object, or brings it to what its manager wants.
    async fn apply(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
        part: Subresource,
    ) -> Answer {
        require_manager(call)?;
        let options = body::write_options(call)?;
        let config = body::object(kind, target, body::yaml(&body::read(body).await?)?)?;
        let how = How { verb: Verb::Patch, ..How::update(part) };
        let force = call.query.flag("force");
        let place = at(kind, target, name)?;
        let (written, created) = self.gate().own(&call.user, kind, place, how, (&config, force), &options).await?;
        let code = if created { StatusCode::CREATED } else { StatusCode::OK };
        self.written(call, kind, code, &written).await
    }

    /// Patches the Scale of an object, and the object by it.
    pub(super) async fn patch_scale(
        &self,
        call: &Call,
        body: Incoming,
        kind: &Arc<Kind>,
        target: &Target,
        name: &str,
    ) -> Answer {
        if patch_type(call)? == PatchType::Apply {
            return self.apply_scale(call, body, kind, target, name).await;
        }
        refuse_force(call)?;
        let patch = read(call, body).await?;
        let options = body::write_options(call)?;
        let schema = schema::get("io.k8s.api.autoscaling.v1.Scale");
        let edit = |object: &mut Value| {
            let wanted = patch.apply(schema, &scale::of(kind, object))?;
            scale::write(kind, object, &wanted)
        };
        let how = How::through(Verb::Patch, SCALE);
        let written = self.gate().edit(&call.user, kind, at(kind, target, name)?, how, &options, edit).await?;
        write(call, StatusCode::OK, &scale::of(kind, &written.object)).await
    }

    /// Applies a Scale: its manager owns the replicas of the object, through this subresource.
    async fn apply_scale(&self, call: &Call, body: Incoming, kind: &Arc<Kind>, target: &Target, name: &str) -> Answer {
        require_manager(call)?;
        let options = body::write_options(call)?;
        let scale = body::yaml(&body::read(body).await?)?;
        let nothing = json!({"metadata": {}});
        let mut config = nothing.clone();
        scale::write(kind, &mut config, &scale)?;
        if scale.pointer("/spec/replicas").is_none_or(Value::is_null) {
            config = nothing;
        }
        let config = body::object(kind, target, config)?;
        let how = How::through(Verb::Patch, SCALE);
        let asked = (&config, call.query.flag("force"));
        let (written, _) = self.gate().own(&call.user, kind, at(kind, target, name)?, how, asked, &options).await?;
        write(call, StatusCode::OK, &scale::of(kind, &written.object)).await
    }
}

fn require_manager(call: &Call) -> Result<(), Status> {
    match call.query.get("fieldManager") {
        "" => Err(bad_options("fieldManager", "FieldValueRequired", "Required value: is required for apply patch")),
        _ => Ok(()),
    }
}

fn refuse_force(call: &Call) -> Result<(), Status> {
    match call.query.has("force") {
        true => Err(bad_options("force", "FieldValueForbidden", "Forbidden: may not be specified for non-apply patch")),
        false => Ok(()),
    }
}

fn bad_options(field: &str, reason: &str, message: &str) -> Status {
    let cause = Cause { reason: reason.into(), message: message.into(), field: field.into() };
    Status::invalid("PatchOptions.meta.k8s.io", "", vec![cause])
}

fn not_strategic() -> Status {
    Status::new(
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
         application/merge-patch+json, application/apply-patch+yaml",
    )
}

fn patch_type(call: &Call) -> Result<PatchType, Status> {
    let content_type = call.head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    PatchType::of(content_type.unwrap_or_default())
}

async fn read(call: &Call, body: Incoming) -> Result<Patch, Status> {
    Patch::parse(patch_type(call)?, &body::read(body).await?)
}
