//! What a client command works with: the daemon, the namespace, and the way out.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use tonic::Request;
use tonic::transport::Channel;

use super::Global;
use super::output::{Out, ProgressLine};
use crate::client::{MAX_ANSWER_BYTES, Target};
use crate::proto::cluster_client::ClusterClient;
use crate::proto::images_client::ImagesClient;
use crate::proto::jobs_client::JobsClient;
use crate::proto::objects_client::ObjectsClient;
use crate::proto::pods_client::PodsClient;
use crate::proto::secrets_client::SecretsClient;

/// How long an answer that is not a stream may take.
const ANSWER_TIMEOUT_MS: u64 = 60_000;

/// How namespaces are named in requests that concern all of them.
pub const ALL_NAMESPACES: &str = "*";

pub struct Session {
    pub namespace: String,
    pub out: Out,
    channel: Channel,
}

impl Session {
    /// # Errors
    /// If the daemon cannot be reached.
    pub async fn open(global: &Global) -> anyhow::Result<Self> {
        let channel = target(global)?.connect().await?;
        Ok(Self::new(channel, global.namespace.clone(), Out::detect()))
    }

    pub fn new(channel: Channel, namespace: String, out: Out) -> Self {
        Self { namespace, out, channel }
    }

    /// The same daemon, another namespace.
    pub fn within(&self, namespace: &str) -> Self {
        Self::new(self.channel.clone(), namespace.into(), self.out)
    }

    pub fn jobs(&self) -> JobsClient<Channel> {
        JobsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn objects(&self) -> ObjectsClient<Channel> {
        ObjectsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn pods(&self) -> PodsClient<Channel> {
        PodsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn cluster(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn secrets(&self) -> SecretsClient<Channel> {
        SecretsClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    pub fn images(&self) -> ImagesClient<Channel> {
        ImagesClient::new(self.channel.clone()).max_decoding_message_size(MAX_ANSWER_BYTES)
    }

    /// The namespace to list: this one, or all.
    pub fn namespace_or_all(&self, all: bool) -> String {
        if all { ALL_NAMESPACES.into() } else { self.namespace.clone() }
    }

    pub fn progress(&self) -> ProgressLine {
        ProgressLine::new(self.out.terminal)
    }

    /// # Errors
    /// If standard output is closed.
    pub fn say(&self, text: impl AsRef<str>) -> io::Result<()> {
        self.out.line(text)
    }
}

/// Which daemon the options name.
///
/// # Errors
/// If they contradict each other.
pub fn target(global: &Global) -> anyhow::Result<Target> {
    Ok(Target::new(global.server.as_deref(), global.credentials.as_deref(), &global.socket)?)
}

/// A request whose answer is one message, and therefore does not take for ever.
pub fn ask<T>(message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(Duration::from_millis(ANSWER_TIMEOUT_MS));
    request
}

/// The time by which ages are told.
pub fn now() -> Timestamp {
    Timestamp::now()
}
