//! What of an object a path reads and writes: all of it, or what a subresource shows.
//!
//! A request with PUT or PATCH is the same whatever it is about; what differs stands here.

use flotilla_api::admit::Subresource;
use flotilla_api::{Kind, Status, questions, schema};
use jiff::Timestamp;
use serde_json::{Value, json};

use super::scale::{self, SCALE};
use super::signing::{self, APPROVAL};
use crate::gate::{How, Verb, take_over};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The object, of which this may change.
    Object(Subresource),
    Scale,
    /// The decision about a certificate request.
    Approval,
    /// The finalizers in a Namespace's spec; the last of them gone, so is the Namespace if it is ending.
    Finalizers,
}

impl Part {
    /// What a request on it is called.
    pub fn how(self, verb: Verb) -> How<'static> {
        match self {
            Self::Object(part) => How { verb, ..How::update(part) },
            Self::Scale => How::through(verb, SCALE),
            Self::Approval => How { part: Subresource::Status, ..How::through(verb, APPROVAL) },
            Self::Finalizers => How { part: Subresource::Finalize, ..How::through(verb, "finalize") },
        }
    }

    /// What clients see of an object.
    pub fn shown(self, kind: &Kind, object: &Value) -> Value {
        match self {
            Self::Scale => scale::of(kind, object),
            _ => object.clone(),
        }
    }

    /// The kind of what is read and written, where that is not the object's own.
    pub fn kind(self) -> Option<&'static Kind> {
        (self == Self::Scale).then(questions::scale)
    }

    /// What that looks like.
    pub fn facts(self, kind: &Kind) -> Option<&schema::Schema> {
        self.kind().unwrap_or(kind).facts()
    }

    /// Makes a stored object what a client wants who was shown it.
    ///
    /// # Errors
    /// `Conflict` if another object is meant, `Invalid` or `BadRequest` for what makes no sense.
    pub fn write(self, kind: &Kind, stored: &mut Value, wanted: &Value) -> Result<(), Status> {
        match self {
            Self::Object(_) => {
                let mut new = wanted.clone();
                take_over(kind, stored, &mut new)?;
                *stored = new;
            }
            Self::Scale => scale::write(kind, stored, wanted)?,
            Self::Approval => {
                let mut new = wanted.clone();
                take_over(kind, stored, &mut new)?;
                signing::decide(stored, &new, Timestamp::now());
            }
            Self::Finalizers => {
                let mut new = wanted.clone();
                take_over(kind, stored, &mut new)?;
                stored["metadata"]["resourceVersion"] = new["metadata"]["resourceVersion"].clone();
                stored["spec"]["finalizers"] = new["spec"]["finalizers"].clone();
            }
        }
        Ok(())
    }

    /// What somebody owns of an object who applies this.
    ///
    /// # Errors
    /// As [`Part::write`].
    pub fn config(self, kind: &Kind, applied: Value) -> Result<Value, Status> {
        if self != Self::Scale {
            return Ok(applied);
        }
        let nothing = json!({"metadata": {}});
        let mut config = nothing.clone();
        scale::write(kind, &mut config, &applied)?;
        Ok(match applied.pointer("/spec/replicas").is_none_or(Value::is_null) {
            true => nothing,
            false => config,
        })
    }
}

#[cfg(test)]
mod tests {
    use flotilla_api::{Builtin, Reason, Registry};

    use super::*;

    fn stored() -> Value {
        json!({"metadata": {"name": "a", "uid": "u", "resourceVersion": "7"}, "data": {"k": "v"}})
    }

    fn written(builtin: Builtin, wanted: Value) -> Result<Value, Status> {
        let kind = Registry::builtin().built_in(builtin).unwrap();
        let mut object = stored();
        Part::Object(Subresource::None).write(&kind, &mut object, &wanted).map(|()| object)
    }

    #[test]
    fn an_update_without_a_revision_overwrites_where_the_kind_allows_it() {
        let wanted = json!({"metadata": {"name": "a"}, "data": {}});
        assert_eq!(written(Builtin::ConfigMap, wanted.clone()).unwrap()["metadata"]["resourceVersion"], "7");
        let refused = written(Builtin::Lease, wanted).unwrap_err();
        assert_eq!(
            (refused.reason, refused.message.as_str()),
            (
                Reason::Invalid,
                "leases.coordination.k8s.io \"a\" is invalid: metadata.resourceVersion: Invalid value: 0x0: must be \
                 specified for an update"
            )
        );
        let zero = json!({"metadata": {"name": "a", "resourceVersion": "0"}});
        assert_eq!(written(Builtin::ConfigMap, zero.clone()).unwrap()["metadata"]["resourceVersion"], "7");
        assert_eq!(written(Builtin::Lease, zero).unwrap_err().reason, Reason::Invalid);
        let named = json!({"metadata": {"name": "a", "resourceVersion": "6"}});
        assert_eq!(written(Builtin::Lease, named).unwrap()["metadata"]["resourceVersion"], "6");
    }

    #[test]
    fn an_update_of_another_object_of_that_name_is_refused() {
        let refused = written(Builtin::ConfigMap, json!({"metadata": {"name": "a", "uid": "w"}})).unwrap_err();
        assert_eq!(refused.reason, Reason::Conflict);
        assert!(refused.message.ends_with("UID in precondition: w, UID in object meta: u"), "{}", refused.message);
        assert!(written(Builtin::ConfigMap, json!({"metadata": {"name": "a", "uid": "u"}})).is_ok());
    }

    #[test]
    fn who_applies_a_scale_owns_the_replicas_only() {
        let kind = Registry::builtin().built_in(Builtin::Deployment).unwrap();
        let scale = |spec: Value| json!({"kind": "Scale", "apiVersion": "autoscaling/v1", "spec": spec});
        let config = |spec: Value| Part::Scale.config(&kind, scale(spec)).unwrap();
        assert_eq!(config(json!({"replicas": 3}))["spec"], json!({"replicas": 3}));
        assert_eq!(config(json!({})).get("spec"), None);
    }
}
