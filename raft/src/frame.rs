//! Frames on a stream: a length of four bytes, then that many bytes.
//!
//! Invariant: a frame longer than its bound is refused before any memory is taken for it.

use std::io;
use std::time::Duration;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::codec::{self, MAX_ENVELOPE_BYTES};
use crate::transport::{Reader, Writer};

#[derive(Debug, thiserror::Error)]
pub(crate) enum FrameError {
    #[error("the stream broke")]
    Io(#[from] io::Error),
    #[error("a frame of {found} bytes, at most {bound} are allowed")]
    TooLong { found: usize, bound: usize },
    #[error("the peer was silent for {0:?}")]
    Silent(Duration),
    #[error(transparent)]
    Codec(#[from] codec::CodecError),
}

/// Reads one frame; `None` if the stream ended before it.
pub(crate) async fn read(reader: &mut Reader, bound: usize) -> Result<Option<Vec<u8>>, FrameError> {
    let mut length = [0; 4];
    match reader.read_exact(&mut length).await {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
        other => other?,
    };
    let found = u32::from_be_bytes(length) as usize;
    if found > bound {
        return Err(FrameError::TooLong { found, bound });
    }
    let mut body = vec![0; found];
    reader.read_exact(&mut body).await?;
    Ok(Some(body))
}

pub(crate) async fn write(writer: &mut Writer, body: &[u8]) -> Result<(), FrameError> {
    let length =
        u32::try_from(body.len()).map_err(|_| FrameError::TooLong { found: body.len(), bound: u32::MAX as usize })?;
    // In one piece, so that it leaves in one packet if it fits one.
    writer.write_all(&[&length.to_be_bytes(), body].concat()).await?;
    Ok(writer.flush().await?)
}

pub(crate) async fn read_message<T: DeserializeOwned>(reader: &mut Reader) -> Result<Option<T>, FrameError> {
    match read(reader, MAX_ENVELOPE_BYTES).await? {
        Some(body) => Ok(Some(codec::decode(&body)?)),
        None => Ok(None),
    }
}

pub(crate) async fn write_message<T: Serialize>(writer: &mut Writer, message: &T) -> Result<(), FrameError> {
    write(writer, &codec::encode(message)?).await
}

/// Bounds a step of a conversation.
pub(crate) async fn within<T>(
    bound: Duration,
    step: impl Future<Output = Result<T, FrameError>>,
) -> Result<T, FrameError> {
    tokio::time::timeout(bound, step).await.map_err(|_| FrameError::Silent(bound))?
}
