//! The images of the node that answers.

use flotilla_api::{Reason, Status};
use flotilla_runtime::images::{Image, Images as Store, PullProgress};
use tokio::io::AsyncWriteExt;
use tonic::{Request, Response, Streaming};

use super::watch::{Answer, stream};
use super::{master, refuse};
use crate::blobs::BlobPeers;
use crate::node::Node;
use crate::proto::{self, images_server::Images};

/// What is held of an archive between the network and the disk.
const PIPE_BYTES: usize = 256 * 1024;
/// The largest archive that is imported.
const MAX_ARCHIVE_BYTES: u64 = 32 * 1024 * 1024 * 1024;

pub struct Service {
    images: Store,
    peers: Option<BlobPeers>,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { images: node.local.images().clone(), peers: node.blobs.clone() }
    }
}

#[tonic::async_trait]
impl Images for Service {
    type PullStream = Answer<proto::PullProgress>;

    async fn pull(
        &self,
        request: Request<proto::PullImageRequest>,
    ) -> Result<Response<Self::PullStream>, tonic::Status> {
        master(&request, "pull images")?;
        let reference = request.into_inner().reference;
        let images = self.images.clone();
        Ok(Response::new(stream(|send| async move {
            let (progress, mut seen) = tokio::sync::watch::channel(PullProgress::default());
            let mut pull = std::pin::pin!(images.pull(&reference, None, progress));
            loop {
                tokio::select! {
                    pulled = &mut pull => {
                        let image = pulled.map_err(|error| refuse(Status::new(Reason::ServiceUnavailable, error)))?;
                        let done = proto::PullProgress {
                            phase: "done".into(),
                            done_bytes: image.size_bytes,
                            total_bytes: image.size_bytes,
                            image: Some(summary(&image)),
                        };
                        _ = send.send(Ok(done)).await;
                        return Ok(());
                    }
                    Ok(()) = seen.changed() => {
                        let now = seen.borrow_and_update().clone();
                        let message = proto::PullProgress {
                            phase: format!("{:?}", now.phase).to_lowercase(),
                            done_bytes: now.done_bytes,
                            total_bytes: now.total_bytes,
                            image: None,
                        };
                        _ = send.send(Ok(message)).await;
                    }
                }
            }
        })))
    }

    async fn import(
        &self,
        request: Request<Streaming<proto::ImportChunk>>,
    ) -> Result<Response<proto::ImportResponse>, tonic::Status> {
        master(&request, "import images")?;
        let mut chunks = request.into_inner();
        let (mut feed, archive) = tokio::io::duplex(PIPE_BYTES);
        let receive = async {
            let mut size_bytes = 0;
            while let Some(chunk) = chunks.message().await? {
                size_bytes += chunk.data.len() as u64;
                if size_bytes > MAX_ARCHIVE_BYTES {
                    let message = format!("the archive is larger than {MAX_ARCHIVE_BYTES} bytes");
                    return Err(refuse(Status::new(Reason::RequestEntityTooLarge, message)));
                }
                // An import that has failed reads no more and says why.
                if feed.write_all(&chunk.data).await.is_err() {
                    break;
                }
            }
            drop(feed);
            Ok(())
        };
        let (received, imported) = tokio::join!(receive, self.images.import(archive, None));
        received?;
        let imported = imported.map_err(|error| refuse(Status::bad_request(error)))?;
        Ok(Response::new(proto::ImportResponse { images: imported.iter().map(summary).collect() }))
    }

    async fn list(
        &self,
        request: Request<proto::ListImagesRequest>,
    ) -> Result<Response<proto::ListImagesResponse>, tonic::Status> {
        master(&request, "list images")?;
        let peers = match request.into_inner().peers {
            true => Some(self.peers.as_ref().ok_or_else(|| {
                let message = "this node does not share layers: layers_from_peers is false in its configuration";
                refuse(Status::new(Reason::BadRequest, message))
            })?),
            false => None,
        };
        let images = self.images.list();
        let holders = match peers {
            Some(peers) => peers.holders(&images).await,
            None => vec![Vec::new(); images.len()],
        };
        let summaries =
            images.iter().zip(holders).map(|(image, nodes)| proto::ImageSummary { nodes, ..summary(image) });
        let images = summaries.collect();
        Ok(Response::new(proto::ListImagesResponse { images }))
    }

    async fn remove(
        &self,
        request: Request<proto::RemoveImageRequest>,
    ) -> Result<Response<proto::RemoveImageResponse>, tonic::Status> {
        master(&request, "remove images")?;
        let reference = request.into_inner().reference;
        let images = self.images.clone();
        let removed = tokio::task::spawn_blocking(move || images.remove(&reference)).await;
        let freed = removed.map_err(|e| refuse(Status::internal(e)))?.map_err(|e| refuse(Status::bad_request(e)))?;
        Ok(Response::new(proto::RemoveImageResponse { freed_bytes: freed }))
    }
}

fn summary(image: &Image) -> proto::ImageSummary {
    proto::ImageSummary {
        references: image.references.clone(),
        id: image.id.to_string(),
        size_bytes: image.size_bytes,
        created: image.created.map(|at| at.to_string()).unwrap_or_default(),
        nodes: Vec::new(),
    }
}
