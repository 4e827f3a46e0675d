//! The keys of what is sealed, and of tokens.

use tonic::{Request, Response};

use super::watch::{Answer, stream};
use super::{master, refuse};
use crate::accounts::{self, Accounts};
use crate::gate::Gate;
use crate::node::Node;
use crate::proto::{self, secrets_server::Secrets};
use crate::secrets;

pub struct Service {
    gate: Gate,
    accounts: Accounts,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { gate: node.gate.clone(), accounts: node.accounts.clone() }
    }
}

#[tonic::async_trait]
impl Secrets for Service {
    async fn status(
        &self,
        request: Request<proto::SecretsStatusRequest>,
    ) -> Result<Response<proto::SecretsStatus>, tonic::Status> {
        master(&request, "see the keys of secrets")?;
        let keys = secrets::status(&self.gate).await.map_err(refuse)?;
        let keys = keys.into_iter().map(|key| proto::SecretsKey {
            id: key.id,
            created: key.created.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            primary: key.primary,
            objects: key.objects,
        });
        Ok(Response::new(proto::SecretsStatus { keys: keys.collect() }))
    }

    type RotateKeyStream = Answer<proto::Progress>;

    async fn rotate_key(
        &self,
        request: Request<proto::RotateSecretsKeyRequest>,
    ) -> Result<Response<Self::RotateKeyStream>, tonic::Status> {
        let user = master(&request, "rotate the key of secrets")?;
        let gate = self.gate.clone();
        let tell = |send| async move { secrets::rotate_and_tell(&gate, &user, &send).await.map_err(refuse) };
        Ok(Response::new(stream(tell)))
    }

    async fn account_keys(
        &self,
        request: Request<proto::AccountKeysRequest>,
    ) -> Result<Response<proto::AccountKeyList>, tonic::Status> {
        master(&request, "see the keys of tokens")?;
        let keys = self.accounts.key_records().await.map_err(refuse)?;
        let text = |at: jiff::Timestamp| at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        let keys = keys.into_iter().map(|key| proto::AccountKey {
            created: text(key.created_at.0),
            signs: key.retired_at.is_none(),
            ends: accounts::ends(&key).map(text).unwrap_or_default(),
            id: key.id,
        });
        Ok(Response::new(proto::AccountKeyList { keys: keys.collect() }))
    }

    async fn rotate_account_key(
        &self,
        request: Request<proto::RotateAccountKeyRequest>,
    ) -> Result<Response<proto::RotatedAccountKey>, tonic::Status> {
        let user = master(&request, "rotate the key of tokens")?;
        let end_tokens = request.get_ref().end_tokens;
        let id = self.accounts.rotate_key(&user, end_tokens).await.map_err(refuse)?;
        Ok(Response::new(proto::RotatedAccountKey { id }))
    }
}
