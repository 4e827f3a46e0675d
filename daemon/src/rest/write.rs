//! Create and update.

use flotilla_api::admit::{self, Subresource, UnknownFields};
use flotilla_api::{Kind, Reason, Status};
use http::StatusCode;
use serde_json::Value;

use super::body::Sent;
use super::part::Part;
use super::read::show_scale;
use super::{Answer, Call, Rest, answer, body, not_allowed};
use crate::gate::{Verb, Written};

impl Rest {
    pub(super) async fn create(&self, call: &Call, body: Sent) -> Answer {
        if call.kind.is_namespaced() && call.target.namespace.is_none() {
            return Err(not_allowed());
        }
        let options = body::write_options(call)?;
        let (sent, warnings) = read_value(call, &call.kind, body, options.unknown_fields).await?;
        let object = body::object(&call.kind, &call.target, sent)?;
        let written = self.gate().create(&call.user, &call.kind, object, &options).await?;
        self.written(call, Part::Object(Subresource::None), StatusCode::CREATED, &written.after(warnings)).await
    }

    /// Replaces an object, or what a subresource shows of it, by what was sent. Some kinds are made this way, too.
    pub(super) async fn replace(&self, call: &Call, body: Sent, part: Part) -> Answer {
        let kind = &call.kind;
        let (place, options) = (call.place()?, body::write_options(call)?);
        let sent_kind = part.kind().unwrap_or(kind);
        let (sent, mut warnings) = read_value(call, sent_kind, body, options.unknown_fields).await?;
        body::check_name(&call.target, &sent)?;
        let sent = match part.kind() {
            Some(kind) => {
                let (sent, unknown) = admit::prepare_question(kind, sent, options.unknown_fields)?;
                warnings.extend(unknown);
                sent
            }
            None => body::object(kind, &call.target, sent)?,
        };
        let edit = |stored: &mut Value| part.write(kind, stored, &sent);
        let replaced = self.gate().edit(&call.user, kind, place, part.how(Verb::Update), &options, edit).await;
        let (code, written) = match replaced {
            Err(status) if status.reason == Reason::NotFound && is_made_by(call, part) => {
                (StatusCode::CREATED, self.gate().create(&call.user, kind, sent, &options).await?)
            }
            replaced => (StatusCode::OK, replaced?),
        };
        self.written(call, part, code, &written.after(warnings)).await
    }

    /// Answers with what was written, and what there was to say about it.
    pub(super) async fn written(&self, call: &Call, part: Part, code: StatusCode, written: &Written) -> Answer {
        let mut response = match part {
            Part::Scale => show_scale(call, code, &part.shown(&call.kind, &written.object)).await?,
            _ => self.show(call, &call.kind, code, &written.object).await?,
        };
        answer::warn(&mut response, &written.warnings);
        Ok(response)
    }
}

/// Whether a PUT makes an object that is not there.
fn is_made_by(call: &Call, part: Part) -> bool {
    part == Part::Object(Subresource::None) && call.kind.create_on_update
}

async fn read_value(
    call: &Call,
    kind: &Kind,
    body: Sent,
    unknown_fields: UnknownFields,
) -> Result<(Value, Vec<String>), Status> {
    let sent = body::value(&call.head.headers, &body::read(body).await?)?;
    body::taken(kind, sent, unknown_fields)
}
