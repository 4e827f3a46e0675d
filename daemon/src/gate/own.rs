//! Server-side apply: an object is made, or brought to what a manager wants of it.

use flotilla_api::managed::{self, Writer};
use flotilla_api::{Key, Kind, Reason, Status};
use serde_json::Value;

use super::settle::{Decision, Reads};
use super::write::{text, with_revision};
use super::{Gate, How, Ownership, User, WriteOptions, Written};

impl Gate {
    /// Applies a configuration, and whether that made the object. `force` takes fields over that others own.
    ///
    /// # Errors
    /// `Conflict` with a cause for each field that others own and that would change, and those of [`Gate::create`] and
    /// [`Gate::update`].
    pub async fn own(
        &self,
        user: &User,
        kind: &Kind,
        (namespace, name): (&str, &str),
        how: How<'_>,
        (config, force): (&Value, bool),
        options: &WriteOptions,
    ) -> Result<(Written, bool), Status> {
        let key = Self::key(kind, namespace, name)?;
        let options = WriteOptions { ownership: Ownership::Declared, ..options.clone() };
        let decide = || self.decide_own(user, kind, &key, how, (config, force), &options);
        let ((written, created), revision) = self.settle(&mut Reads::default(), kind, decide).await?;
        Ok((Written { object: with_revision(written.object, revision), ..written }, created))
    }

    fn decide_own(
        &self,
        user: &User,
        kind: &Kind,
        key: &Key,
        how: How<'_>,
        (config, force): (&Value, bool),
        options: &WriteOptions,
    ) -> Result<Decision<(Written, bool)>, Status> {
        let api_version = kind.api_version();
        let writer = Writer {
            manager: &options.manager,
            api_version: &api_version,
            subresource: how.subresource.unwrap_or_default(),
            status_apart: kind.has_status(),
            now: jiff::Timestamp::now(),
        };
        if how.subresource.is_none() && self.load(key)?.is_none() {
            // It insists on an object that is not there.
            let uid = text(config, "/metadata/uid");
            if !uid.is_empty() {
                return Ok(Decision::Refuse(Status::new(
                    Reason::Conflict,
                    format!(
                        "Operation cannot be fulfilled on {} \"{}\": uid mismatch: the provided object specified uid \
                         {uid}, and no existing object was found",
                        kind.collection(),
                        key.name()
                    ),
                )));
            }
            if !text(config, "/metadata/resourceVersion").is_empty() {
                return Ok(Decision::Refuse(Status::not_found(kind.collection(), key.name())));
            }
            let made = managed::apply(None, config, kind.facts(), writer, force)?;
            return Ok(self.decide_create(user, kind, &made.object, options)?.map(|written| (written, true)));
        }
        let mut edit = |object: &mut Value| {
            let applied = managed::apply(Some(object), config, kind.facts(), writer, force)?;
            *object = applied.object;
            Ok(())
        };
        Ok(self.decide_update(user, kind, key, how, options, &mut edit).map(|written| (written, false)))
    }
}
