//! Pods run as a ServiceAccount: each new one is made so on its way in.
//!
//! Defined by upstream's ServiceAccount admission; see [`flotilla_api::account`].

use flotilla_api::k8s_openapi::api::core::v1::{PodSpec, ServiceAccount};
use flotilla_api::{Builtin, Key, Kind, Reason, Status, account, names};
use serde::Deserialize;
use serde_json::Value;

use super::Gate;

impl Gate {
    /// Makes a new pod one of its account; any other object stays as it is.
    ///
    /// # Errors
    /// That there is no such account, or why the store cannot be read.
    pub(super) fn admit_account(&self, kind: &Kind, key: &Key, object: &mut Value) -> Result<(), Status> {
        if kind.builtin != Some(Builtin::Pod) {
            return Ok(());
        }
        let mut spec = PodSpec::deserialize(&object["spec"]).map_err(Status::internal)?;
        let name = account::name(&spec).to_owned();
        let found = match name.contains('/') {
            true => None,
            false => self.load(&Key::new(&Builtin::ServiceAccount.collection(), key.namespace(), &name))?,
        };
        let found: Option<ServiceAccount> =
            found.map(|kv| serde_json::from_slice(&kv.value)).transpose().map_err(Status::internal)?;
        account::admit(&mut spec, found.as_ref(), &names::suffix(&mut rand::rng()), (key.namespace(), key.name()))
            .map_err(|message| Status::new(Reason::Forbidden, message))?;
        object["spec"] = serde_json::to_value(spec).map_err(Status::internal)?;
        Ok(())
    }
}
