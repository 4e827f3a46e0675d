//! One client for both systems: HTTP/2 over TLS 1.3 with certificates on both sides, and the same writes, reads and
//! watches.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use flotilla::proto::objects_client::ObjectsClient;
use flotilla::proto::{ApplyRequest, GetObjectRequest, ListObjectsRequest, WatchEvent, WatchObjectsRequest};
use flotilla_tests::api::Papers;
use futures::{StreamExt, stream};
use http::uri::PathAndQuery;
use hyper_util::rt::TokioIo;
use prost::Message;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;
use tower::service_fn;

use crate::etcd_api::{
    self, PutRequest, PutResponse, RangeRequest, RangeResponse, StatusRequest, StatusResponse, WatchCreate,
    WatchRequest, WatchResponse, after,
};

/// A name that the certificates of both systems carry.
pub const SERVER_NAME: &str = "localhost";
const CONNECT_TIMEOUT: Duration = Duration::from_secs(20);
/// A list of ten thousand objects, with room.
const MAX_ANSWER_BYTES: usize = 256 << 20;
const KIND: &str = "configmaps";

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

impl Door {
    /// # Errors
    /// If nobody listens, or the two do not trust each other.
    pub async fn channel(&self) -> anyhow::Result<Channel> {
        let papers = Papers::for_others(&std::fs::read_to_string(&self.credentials)?)?;
        let tls = TlsConnector::from(papers.tls());
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

    /// A connection of its own.
    ///
    /// # Errors
    /// As [`Self::channel`].
    pub async fn open(&self) -> anyhow::Result<Client> {
        let channel = self.channel().await?;
        Ok(match self.system {
            System::Flotilla => {
                Client::Flotilla(ObjectsClient::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES))
            }
            System::Etcd => Client::Etcd(Grpc::new(channel).max_decoding_message_size(MAX_ANSWER_BYTES)),
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
                call::<_, PutResponse>(grpc, etcd_api::PUT, put).await.map(drop)
            }
        }
    }

    /// A linearizable read of what was put under a name.
    ///
    /// # Errors
    /// What the node says, or that there is no such name.
    pub async fn get(&mut self, name: &str) -> Result<(), Status> {
        match self {
            Self::Flotilla(objects) => {
                let request = GetObjectRequest { kind: KIND.into(), namespace: String::new(), name: name.into() };
                objects.get(request).await.map(drop)
            }
            Self::Etcd(grpc) => {
                let range = RangeRequest { key: name.into(), range_end: Vec::new() };
                let found: RangeResponse = call(grpc, etcd_api::RANGE, range).await?;
                found.kvs.first().map(drop).ok_or_else(|| Status::not_found(name))
            }
        }
    }

    /// A linearizable and consistent list, and how many it holds: everything that was put into Flotilla, or what was put
    /// into etcd under a prefix.
    ///
    /// # Errors
    /// What the node says.
    pub async fn list(&mut self, prefix: &str) -> Result<usize, Status> {
        match self {
            Self::Flotilla(objects) => {
                let request =
                    ListObjectsRequest { kind: KIND.into(), json_only: true, ..ListObjectsRequest::default() };
                objects.list(request).await.map(|list| list.into_inner().items.len())
            }
            Self::Etcd(grpc) => {
                let range = RangeRequest { key: prefix.into(), range_end: after(prefix) };
                call::<_, RangeResponse>(grpc, etcd_api::RANGE, range).await.map(|found| found.kvs.len())
            }
        }
    }

    /// Follows what is put from now on; the watch stands when this returns.
    ///
    /// # Errors
    /// What the node says.
    pub async fn watch(&mut self, prefix: &str) -> Result<Events, Status> {
        match self {
            Self::Flotilla(objects) => {
                let list = ListObjectsRequest { kind: KIND.into(), limit: 1, ..ListObjectsRequest::default() };
                let revision = objects.list(list).await?.into_inner().revision;
                let request = WatchObjectsRequest { kind: KIND.into(), revision, ..WatchObjectsRequest::default() };
                Ok(Events::Flotilla(objects.watch(request).await?.into_inner()))
            }
            Self::Etcd(grpc) => {
                let create = WatchCreate { key: prefix.into(), range_end: after(prefix) };
                // The request's stream stays open for as long as the watch lives.
                let requests = stream::iter([WatchRequest { create: Some(create) }]).chain(stream::pending());
                grpc.ready().await.map_err(|error| Status::unavailable(error.to_string()))?;
                let codec = ProstCodec::<WatchRequest, WatchResponse>::default();
                let path = PathAndQuery::from_static(etcd_api::WATCH);
                let mut events = grpc.streaming(Request::new(requests), path, codec).await?.into_inner();
                match events.message().await? {
                    Some(WatchResponse { created: true, .. }) => Ok(Events::Etcd(events)),
                    _ => Err(Status::internal("the watch was not made")),
                }
            }
        }
    }
}

/// What a watch sees.
pub enum Events {
    Flotilla(Streaming<WatchEvent>),
    Etcd(Streaming<WatchResponse>),
}

impl Events {
    /// Waits for the next answer that has events, and counts them.
    ///
    /// # Errors
    /// What the node says, or that the watch ended.
    pub async fn next(&mut self) -> Result<usize, Status> {
        loop {
            let seen = match self {
                Self::Flotilla(events) => events.message().await?.map(|event| usize::from(event.r#type != "BOOKMARK")),
                Self::Etcd(events) => events.message().await?.map(|answer| answer.events.len()),
            };
            match seen {
                Some(0) => {}
                Some(events) => return Ok(events),
                None => return Err(Status::aborted("the watch ended")),
            }
        }
    }
}

/// What an etcd member thinks of itself and its leader.
///
/// # Errors
/// If it does not answer.
pub async fn etcd_status(door: &Door) -> anyhow::Result<StatusResponse> {
    let mut grpc = Grpc::new(door.channel().await?);
    Ok(call(&mut grpc, etcd_api::STATUS, StatusRequest {}).await?)
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
