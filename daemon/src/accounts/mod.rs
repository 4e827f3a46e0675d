//! Service accounts: the tokens that say who a pod is, and what the cluster keeps for each namespace.
//!
//! Defined by Kubernetes' reference on service accounts and by the TokenRequest and TokenReview APIs.
//!
//! Invariant: a token is worth something only while everything that it is bound to lives: its account, and its pod,
//! Secret or Node.
//! Invariant: a token is refused only when what it is bound to was looked for behind a barrier; and never taken for
//! somebody else's, or nobody's.

mod check;
mod issue;
mod jwt;
mod keys;
mod request;

#[cfg(test)]
mod tests;

use std::sync::{Arc, RwLock};
use std::time::Duration;

use serde_json::{Value, json};
use tracing::debug;

use crate::gate::Gate;
use keys::Keys;

pub use check::TokenError;
#[cfg(any(test, fuzzing))]
pub(crate) use jwt::fuzz;
pub use keys::{ends, new_key};
pub use request::is_young;

/// Who signs tokens, and whom they are for if nothing else is said: upstream's usual name.
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

const MANAGER: &str = "flotilla-accounts";
/// How often the leader looks after the keys of tokens.
const INTERVAL: Duration = Duration::from_secs(30);

/// Issues and judges tokens on one node. Cheap to clone.
#[derive(Clone)]
pub struct Accounts {
    gate: Gate,
    keys: Arc<RwLock<Option<Arc<Keys>>>>,
}

impl Accounts {
    pub fn new(gate: Gate) -> Self {
        Self { gate, keys: Arc::default() }
    }

    /// The keys that tokens can be verified with, as RFC 7517 has them.
    ///
    /// # Errors
    /// If the keyring cannot be read.
    pub fn key_set(&self) -> Result<Value, flotilla_api::Status> {
        self.keys().map(|keys| keys.set())
    }
}

/// What OpenID Connect's discovery tells of the issuer; `address` is where this node is reached.
pub fn openid_configuration(address: &str) -> Value {
    json!({
        "issuer": ISSUER,
        "jwks_uri": format!("https://{address}/openid/v1/jwks"),
        "response_types_supported": ["id_token"],
        "subject_types_supported": ["public"],
        "id_token_signing_alg_values_supported": ["ES256"],
    })
}

/// Looks after the keys of tokens for as long as this node leads.
pub async fn keep(gate: &Gate) {
    let accounts = Accounts::new(gate.clone());
    loop {
        if let Err(status) = accounts.keep_keys().await {
            debug!(error = status.message, "the keys of tokens stay as they are for now");
        }
        tokio::time::sleep(INTERVAL).await;
    }
}
