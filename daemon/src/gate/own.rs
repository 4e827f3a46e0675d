//! Server-side apply: an object is made, or brought to what a manager wants of it.

use flotilla_api::managed::{self, Writer};
use flotilla_api::{Key, Kind, Reason, Status};
use serde_json::Value;

use super::settle::{Decision, Reads};
use super::write::{take_over, text, with_revision};
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
            let mut applied = managed::apply(Some(object), config, kind.facts(), writer, force)?.object;
            // What a configuration says of the object that it means is a condition.
            for (field, path) in [("uid", "/metadata/uid"), ("resourceVersion", "/metadata/resourceVersion")] {
                let said = text(config, path);
                if !said.is_empty() {
                    applied["metadata"][field] = said.into();
                }
            }
            take_over(kind, object, &mut applied)?;
            *object = applied;
            Ok(())
        };
        Ok(self.decide_update(user, kind, key, how, options, &mut edit).map(|written| (written, false)))
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::Builtin;
    use flotilla_api::admit::Subresource;
    use serde_json::json;

    use super::*;
    use crate::gate::{Verb, alone};

    #[tokio::test]
    async fn a_configuration_is_of_the_object_that_it_means() {
        let dir = tempfile::tempdir().unwrap();
        let gate = alone::gate(&dir).await;
        let (root, options) = (User::root(), WriteOptions::by("test"));
        let kind = gate.built_in(Builtin::Namespace).unwrap();
        let how = How { verb: Verb::Patch, ..How::update(Subresource::None) };
        let apply = async |field: &str, said: &str| {
            let metadata = json!({"name": "a", "labels": {"of": "test"}});
            let mut config = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata});
            config["metadata"][field] = said.into();
            let applied = gate.own(&root, &kind, ("", "a"), how, (&config, false), &options).await;
            applied.map(|(written, _)| written.object).map_err(|status| (status.reason, status.message))
        };
        let made = apply("resourceVersion", "").await.unwrap();
        let same = |field: &str| made["metadata"][field].as_str().unwrap().to_owned();
        for (field, said) in [("uid", same("uid")), ("resourceVersion", same("resourceVersion"))] {
            assert_eq!(apply(field, &said).await.unwrap(), made);
        }
        assert_eq!(apply("resourceVersion", "0").await.unwrap(), made, "whatever there is");
        let (reason, words) = apply("resourceVersion", "99").await.unwrap_err();
        assert!(reason == Reason::Conflict && words.contains("the object has been modified"), "{words}");
        let (reason, words) = apply("uid", "w").await.unwrap_err();
        assert!(reason == Reason::Conflict && words.contains("UID in precondition: w"), "{words}");
    }
}
