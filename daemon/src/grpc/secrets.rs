//! The keys of what is sealed.

use tonic::{Request, Response};

use super::watch::{Answer, stream};
use super::{master, refuse};
use crate::gate::Gate;
use crate::node::Node;
use crate::proto::{self, secrets_server::Secrets};
use crate::secrets;

pub struct Service {
    gate: Gate,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { gate: node.gate.clone() }
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
}
