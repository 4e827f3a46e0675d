//! One client for both systems: the command line's own way to reach a daemon, with TLS 1.3 and certificates on both
//! sides, and a durable write of the size that is asked for.

use std::path::{Path, PathBuf};

use flotilla::client::{ClientError, Target};
use flotilla::proto::ApplyRequest;
use flotilla::proto::objects_client::ObjectsClient;
use http::uri::PathAndQuery;
use prost::Message;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic::{Request, Status};
use tonic_prost::ProstCodec;

#[derive(Clone, Copy, Debug)]
pub enum System {
    /// A write creates a ConfigMap through `Objects.Apply`.
    Flotilla,
    /// A write is a `Put` of etcd's own API.
    Etcd,
}

/// Where a node is reached, and with what.
#[derive(Clone, Debug)]
pub struct Door {
    pub system: System,
    pub address: String,
    /// Key, certificate and CA as PEM.
    pub credentials: PathBuf,
}

pub enum Client {
    Flotilla(ObjectsClient<Channel>),
    Etcd(Grpc<Channel>),
}

/// `etcdserverpb.PutRequest`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
struct PutRequest {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

#[derive(Clone, PartialEq, Message)]
struct PutResponse {}

#[derive(Clone, PartialEq, Message)]
struct StatusRequest {}

/// `etcdserverpb.StatusResponse`, as far as it is used.
#[derive(Clone, PartialEq, Message)]
pub struct EtcdStatus {
    #[prost(message, optional, tag = "1")]
    header: Option<EtcdHeader>,
    /// 0 while there is none.
    #[prost(uint64, tag = "4")]
    pub leader: u64,
}

#[derive(Clone, PartialEq, Message)]
struct EtcdHeader {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

impl EtcdStatus {
    /// Who answered.
    pub fn member(&self) -> u64 {
        self.header.as_ref().map_or(0, |header| header.member_id)
    }
}

impl Door {
    /// # Errors
    /// If nobody listens, or the two do not trust each other.
    pub async fn channel(&self) -> Result<Channel, ClientError> {
        Target::new(Some(&self.address), Some(&self.credentials), Path::new(""))?.connect().await
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// As [`Self::channel`].
    pub async fn open(&self) -> Result<Client, ClientError> {
        let channel = self.channel().await?;
        Ok(match self.system {
            System::Flotilla => Client::Flotilla(ObjectsClient::new(channel)),
            System::Etcd => Client::Etcd(Grpc::new(channel)),
        })
    }
}

impl Client {
    /// Returns when the write is durable on a quorum.
    ///
    /// # Errors
    /// What the node says.
    pub async fn put(&mut self, name: &str, value: &str) -> Result<(), Status> {
        match self {
            Self::Flotilla(objects) => objects.apply(create(name, value)).await.map(drop),
            Self::Etcd(grpc) => {
                let put = PutRequest { key: name.into(), value: value.into() };
                call::<_, PutResponse>(grpc, "/etcdserverpb.KV/Put", put).await.map(drop)
            }
        }
    }
}

/// What an etcd member thinks of itself and its leader.
///
/// # Errors
/// If it does not answer.
pub async fn etcd_status(door: &Door) -> anyhow::Result<EtcdStatus> {
    let mut grpc = Grpc::new(door.channel().await?);
    Ok(call(&mut grpc, "/etcdserverpb.Maintenance/Status", StatusRequest {}).await?)
}

async fn call<Q, A>(grpc: &mut Grpc<Channel>, method: &'static str, request: Q) -> Result<A, Status>
where
    Q: Message + 'static,
    A: Message + Default + 'static,
{
    grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
    let codec = ProstCodec::<Q, A>::default();
    let answer = grpc.unary(Request::new(request), PathAndQuery::from_static(method), codec).await?;
    Ok(answer.into_inner())
}

fn create(name: &str, value: &str) -> ApplyRequest {
    let manifest = serde_json::json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value},
    });
    ApplyRequest { manifest: manifest.to_string().into_bytes(), create_only: true, ..ApplyRequest::default() }
}
