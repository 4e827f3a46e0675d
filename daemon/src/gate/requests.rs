//! Certificate requests at the gate: whose they are, and who may approve or sign them.
//!
//! Defined by what an API server does with `certificates.k8s.io`: its strategies, and the admission plugins
//! CertificateApproval, CertificateSigning and CertificateSubjectRestriction.
//!
//! Invariant: who requests a certificate is who the gate says, whatever the request says.

use flotilla_api::{Builtin, Kind, Reason, Status};
use serde_json::{Value, json};

use super::authorize::resource_action;
use super::write::text;
use super::{Gate, How, User};
use crate::requests::{self, CLIENT_SIGNER};

const GROUP: &str = "certificates.k8s.io";

impl Gate {
    /// Puts the requester into a new request.
    ///
    /// # Errors
    /// `Invalid` or `Forbidden` if nobody could sign it.
    pub(super) fn admit_request(&self, user: &User, kind: &Kind, object: &mut Value) -> Result<(), Status> {
        if kind.builtin != Some(Builtin::CertificateSigningRequest) {
            return Ok(());
        }
        let name = text(object, "/metadata/name").to_owned();
        let parsed = requests::read(object)
            .map_err(|why| Status::invalid(kind.qualified(), &name, vec![requests::unreadable(&why)]))?;
        let masters = parsed.organizations.iter().any(|group| group == User::MASTERS);
        if text(object, "/spec/signerName") == CLIENT_SIGNER && masters {
            return Err(refuse(
                kind,
                &name,
                &format!("use of {CLIENT_SIGNER} signer with {} group is not allowed", User::MASTERS),
            ));
        }
        object["spec"]["username"] = json!(user.name);
        object["spec"]["groups"] = json!(user.groups);
        let spec = object["spec"].as_object_mut();
        if let Some(spec) = spec {
            spec.remove("uid");
            spec.remove("extra");
            if !user.uid.is_empty() {
                spec.insert("uid".into(), json!(user.uid));
            }
            if !user.extra.is_empty() {
                spec.insert("extra".into(), json!(user.extra));
            }
        }
        Ok(())
    }

    /// Whether the user may approve or sign, if an update does.
    ///
    /// # Errors
    /// `Forbidden`, which may rest on roles that are behind; `Invalid` for a decision that is taken back.
    pub(super) fn check_request(
        &self,
        user: &User,
        kind: &Kind,
        how: How<'_>,
        old: &Value,
        new: &Value,
    ) -> Result<(), Status> {
        if kind.builtin != Some(Builtin::CertificateSigningRequest) {
            return Ok(());
        }
        let name = text(old, "/metadata/name");
        let is_approval = how.subresource == Some("approval");
        let wrong = requests::changes_refused(old, new, is_approval);
        if !wrong.is_empty() {
            return Err(Status::invalid(kind.qualified(), name, wrong));
        }
        let changed = |field: &str| old["status"].get(field) != new["status"].get(field);
        let verb = match (is_approval, changed("conditions"), changed("certificate")) {
            (true, true, _) => "approve",
            (false, true, _) | (false, _, true) => "sign",
            _ => return Ok(()),
        };
        let signer = text(old, "/spec/signerName");
        let all = format!("{}/*", signer.split('/').next().unwrap_or_default());
        let may = |name: &str| {
            let action = resource_action(verb, (GROUP, "signers", ""), ("", name));
            user.is_master() || self.roles.policy().check(user.who(), &action).is_ok()
        };
        match may(signer) || may(&all) {
            true => Ok(()),
            false => {
                Err(refuse(kind, name, &format!("user not permitted to {verb} requests with signerName {signer:?}")))
            }
        }
    }
}

fn refuse(kind: &Kind, name: &str, why: &str) -> Status {
    Status::new(Reason::Forbidden, format!("{} \"{name}\" is forbidden: {why}", kind.collection()))
}
