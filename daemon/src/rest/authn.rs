//! Who sends a request: as the connection's handshake showed, or nobody.

use flotilla_api::{Reason, Status};
use http::{HeaderMap, header};

use super::Rest;
use crate::gate::User;
use crate::listen::Peer;

impl Rest {
    /// # Errors
    /// `Unauthorized` if the request claims to be somebody and does not show it: it is never taken for anonymous.
    pub(super) fn authenticate(&self, peer: &Peer, headers: &HeaderMap) -> Result<User, Status> {
        if let Some(user) = &peer.user {
            return Ok(user.clone());
        }
        match headers.contains_key(header::AUTHORIZATION) {
            true => Err(Status::new(Reason::Unauthorized, "Unauthorized")),
            false => Ok(User::anonymous()),
        }
    }
}
