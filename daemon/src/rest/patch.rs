//! Patch: of an object, or of what a subresource shows of it.

use flotilla_api::admit::repeated::{self, Loose};
use flotilla_api::admit::{self, UnknownFields};
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
            return self.apply(call, repeated::yaml(&sent)?, part, &options).await;
        }
        let (patch, mut complaints) = Patch::parse(patch_type, &sent)?;
        if options.unknown_fields == UnknownFields::Drop {
            complaints.clear();
        }
        let edit = |object: &mut Value| {
            let patched = patch.apply(part.facts(kind), &part.shown(kind, object))?;
            if options.unknown_fields == UnknownFields::Refuse {
                let unknown =
                    if part == Part::Scale { Vec::new() } else { admit::unknown_fields(kind, patched.clone()) };
                let all: Vec<String> = complaints.iter().cloned().chain(unknown).collect();
                if !all.is_empty() {
                    return Err(patch.refuse_strictly(&patched, &all));
                }
            }
            body::check_name(&call.target, &patched)?;
            part.write(kind, object, &patched)
        };
        let edited = self.gate().edit(&call.user, kind, place, part.how(Verb::Patch), &options, edit).await;
        let written = edited.map_err(|status| match status.reason {
            // It was read: what does not decode is what it has made.
            Reason::BadRequest if !status.causes.is_empty() => Status { reason: Reason::Invalid, ..status },
            _ => status,
        })?;
        self.written(call, part, StatusCode::OK, &written.after(complaints)).await
    }

    /// Server-side apply: makes the object, or brings it to what its manager wants.
    async fn apply(&self, call: &Call, sent: Loose, part: Part, options: &WriteOptions) -> Answer {
        let kind = &call.kind;
        let mut complaints: Vec<String> = sent.complaints().collect();
        match options.unknown_fields {
            UnknownFields::Refuse if !complaints.is_empty() => {
                return Err(Status::bad_request(format!("error strict decoding YAML: {}", complaints.join(", "))));
            }
            UnknownFields::Drop => complaints.clear(),
            UnknownFields::Refuse | UnknownFields::Warn => {}
        }
        let config = part.config(kind, sent.value)?;
        let config = match part {
            Part::Scale => body::object(kind, &call.target, config)?,
            _ => body::intent(kind, &call.target, config)?,
        };
        let asked = (&config, call.query.flag("force"));
        let (written, created) =
            self.gate().own(&call.user, kind, call.place()?, part.how(Verb::Patch), asked, options).await?;
        let code = if created { StatusCode::CREATED } else { StatusCode::OK };
        self.written(call, part, code, &written.after(complaints)).await
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
