//! Patch: of an object, or of what a subresource shows of it.

use flotilla_api::patch::{Patch, PatchType};
use flotilla_api::{Reason, Status};
use http::{StatusCode, header};
use serde_json::Value;

use super::body::Sent;
use super::part::Part;
use super::{Answer, Call, Rest, body};
use crate::gate::{Verb, WriteOptions};

impl Rest {
    pub(super) async fn patch(&self, call: &Call, body: Sent, part: Part) -> Answer {
        let kind = &call.kind;
        let patch_type = patch_type(call)?;
        // How its lists are merged is known of a kind from its Go type, which a custom one does not have.
        if patch_type == PatchType::Strategic && kind.structure.is_some() && part != Part::Scale {
            return Err(not_strategic());
        }
        let (place, options) = (call.place()?, body::write_options(call)?);
        let sent = body::read(body).await?;
        if patch_type == PatchType::Apply {
            return self.apply(call, body::yaml(&sent)?, part, &options).await;
        }
        let patch = Patch::parse(patch_type, &sent)?;
        let edit = |object: &mut Value| {
            let patched = patch.apply(part.facts(kind), &part.shown(kind, object))?;
            body::check_name(&call.target, &patched)?;
            part.write(kind, object, &patched)
        };
        let written = self.gate().edit(&call.user, kind, place, part.how(Verb::Patch), &options, edit).await?;
        self.written(call, part, StatusCode::OK, &written).await
    }

    /// Server-side apply: makes the object, or brings it to what its manager wants.
    async fn apply(&self, call: &Call, sent: Value, part: Part, options: &WriteOptions) -> Answer {
        let kind = &call.kind;
        let config = part.config(kind, sent)?;
        let config = match part {
            Part::Scale => body::object(kind, &call.target, config)?,
            _ => body::intent(kind, &call.target, config)?,
        };
        let asked = (&config, call.query.flag("force"));
        let (written, created) =
            self.gate().own(&call.user, kind, call.place()?, part.how(Verb::Patch), asked, options).await?;
        let code = if created { StatusCode::CREATED } else { StatusCode::OK };
        self.written(call, part, code, &written).await
    }
}

fn not_strategic() -> Status {
    Status::new(
        Reason::UnsupportedMediaType,
        "the body of the request was in an unknown format - accepted media types include: application/json-patch+json, \
         application/merge-patch+json, application/apply-patch+yaml",
    )
}

/// # Errors
/// `UnsupportedMediaType`.
pub(super) fn patch_type(call: &Call) -> Result<PatchType, Status> {
    let content_type = call.head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    PatchType::of(content_type.unwrap_or_default())
}
