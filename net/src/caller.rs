//! Who called over TCP, and for how long it may speak. A node, while it is listed under its key, whatever becomes of its
//! certificate; a user, while its certificate is good and an authority in use stands behind it.
//!
//! Invariant: what is judged when a connection begins is judged again whenever the answer may have changed.

use std::time::{Duration, SystemTime};

use rustls::pki_types::CertificateDer;

use crate::certificate::{CertificateError, Subject};
use crate::credentials::Credentials;
use crate::members::{Members, Standing};

/// A certificate's end is looked for at least this often, since clocks are set.
const LOOK: Duration = Duration::from_secs(60);

/// The other end of a connection: who it is, by the certificates that it showed.
#[derive(Debug, Clone)]
pub struct Caller {
    subject: Subject,
    chain: Vec<CertificateDer<'static>>,
}

impl Caller {
    /// The caller that showed `chain`, its own certificate first, in a handshake that has succeeded.
    pub fn new(chain: &[CertificateDer<'_>]) -> Result<Self, CertificateError> {
        let leaf = chain.first().ok_or(CertificateError::Malformed("it is missing"))?;
        let subject = Subject::of(leaf)?;
        Ok(Caller { subject, chain: chain.iter().map(|one| one.clone().into_owned()).collect() })
    }

    pub fn subject(&self) -> &Subject {
        &self.subject
    }

    pub(crate) fn judge(&self, members: &Members, credentials: &Credentials) -> Result<(), &'static str> {
        let subject = &self.subject;
        match &subject.node {
            Some(node) if node.cluster != credentials.identity().cluster() => Err("another cluster's node"),
            Some(node) => match members.standing(node.id, &node.name, &subject.key_fingerprint) {
                Standing::Member => Ok(()),
                Standing::Unlisted => Err("the node is not a member of this cluster"),
                Standing::Revoked => Err("the node was removed from this cluster"),
            },
            None if subject.claims_a_node() => Err("a node's name without a node's certificate"),
            None if members.is_revoked_user(&subject.user, subject.issued()) => Err("the certificate was revoked"),
            None => credentials
                .vouch_for(&self.chain)
                .map_err(|_| "the certificate has expired, or its authority was replaced"),
        }
    }

    pub(crate) async fn until_refused(&self, members: &Members, credentials: &Credentials) -> &'static str {
        let (mut listed, mut users, mut current) = (members.watch(), members.watch_users(), credentials.watch());
        loop {
            if let Err(why) = self.judge(members, credentials) {
                return why;
            }
            let left = self.subject.not_after.duration_since(SystemTime::now()).unwrap_or_default();
            // A second more: the end itself still counts as good.
            let wait = if self.subject.node.is_some() { LOOK } else { (left + Duration::from_secs(1)).min(LOOK) };
            tokio::select! {
                Ok(()) = listed.changed() => {}
                Ok(()) = users.changed() => {}
                Ok(()) = current.changed() => {}
                () = tokio::time::sleep(wait) => {}
            }
        }
    }
}
