//! One client for both systems: HTTP/2 over TLS 1.3 with certificates on both sides, and a durable write of the size
//! that is asked for.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use flotilla::proto::ApplyRequest;
use flotilla::proto::objects_client::ObjectsClient;
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use tonic_prost::ProstCodec;
use tower::service_fn;

/// A name that the certificates of both systems carry.
pub const SERVER_NAME: &str = "localhost";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);

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
    /// `HOST:PORT`.
    pub address: String,
    /// Key, certificate and CA as PEM, in this order.
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
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        let tls = TlsConnector::from(Arc::new(self.tls()?));
        let address = self.address.clone();
        let connector = service_fn(move |_: Uri| {
            let (tls, address) = (tls.clone(), address.clone());
            async move {
                let stream = TcpStream::connect(address).await?;
                stream.set_nodelay(true)?;
                let name = ServerName::try_from(SERVER_NAME).map_err(io::Error::other)?;
                tls.connect(name, stream).await.map(TokioIo::new)
            }
        });
        let endpoint = Endpoint::from_static("http://bench").connect_timeout(CONNECT_TIMEOUT);
        endpoint.connect_with_connector(connector).await.with_context(|| format!("{} cannot be reached", self.address))
    }

    fn tls(&self) -> anyhow::Result<ClientConfig> {
        let pem = std::fs::read(&self.credentials)?;
        let key = PrivateKeyDer::from_pem_slice(&pem)?;
        let mut certificates = CertificateDer::pem_slice_iter(&pem).collect::<Result<Vec<_>, _>>()?;
        anyhow::ensure!(!certificates.is_empty(), "the credentials hold no certificate");
        let mut roots = RootCertStore::empty();
        for authority in certificates.split_off(1) {
            roots.add(authority)?;
        }
        let builder = ClientConfig::builder_with_protocol_versions(&[&rustls::version::TLS13]);
        let mut config = builder.with_root_certificates(roots).with_client_auth_cert(certificates, key)?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }

    /// A connection of its own.
    ///
    /// # Errors
    /// As [`Self::channel`].
    pub async fn open(&self) -> anyhow::Result<Client> {
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
