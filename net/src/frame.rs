//! Frames on a stream: a length of four bytes, big-endian, then as many bytes.
//!
//! Invariant: a reader never takes, nor sets memory aside for, more than it was told to expect.

use std::io;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

/// Memory set aside for a frame before its bytes have come.
const FIRST_ALLOCATION_BYTES: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    #[error("the stream ended within a frame")]
    Truncated,
    #[error("a frame of {frame_bytes} bytes came where at most {max_bytes} may")]
    TooLarge { frame_bytes: usize, max_bytes: usize },
    #[error("the stream broke")]
    Stream(#[source] io::Error),
}

/// Writes one frame. It is not flushed further than the stream does by itself.
pub async fn write_frame<W: AsyncWrite + Unpin>(send: &mut W, body: &[u8]) -> Result<(), FrameError> {
    write_frame_after(send, &[], body).await
}

/// Writes one frame behind what opens the stream, in one piece, so that they leave in one packet if they fit one.
pub async fn write_frame_after<W: AsyncWrite + Unpin>(
    send: &mut W,
    opening: &[u8],
    body: &[u8],
) -> Result<(), FrameError> {
    let length = u32::try_from(body.len())
        .map_err(|_| FrameError::TooLarge { frame_bytes: body.len(), max_bytes: u32::MAX as usize })?;
    send.write_all(&[opening, &length.to_be_bytes(), body].concat()).await.map_err(FrameError::Stream)
}

/// Reads one frame of at most `max_bytes`.
pub async fn read_frame<R: AsyncRead + Unpin>(recv: &mut R, max_bytes: usize) -> Result<Bytes, FrameError> {
    read_frame_or_end(recv, max_bytes).await?.ok_or(FrameError::Truncated)
}

/// Like [`read_frame`], but `None` where the stream ends before a frame begins.
pub async fn read_frame_or_end<R: AsyncRead + Unpin>(
    recv: &mut R,
    max_bytes: usize,
) -> Result<Option<Bytes>, FrameError> {
    let Some(frame_bytes) = read_length(recv).await? else { return Ok(None) };
    if frame_bytes > max_bytes {
        return Err(FrameError::TooLarge { frame_bytes, max_bytes });
    }
    let mut body = BytesMut::with_capacity(frame_bytes.min(FIRST_ALLOCATION_BYTES));
    let mut rest = recv.take(frame_bytes as u64);
    while body.len() < frame_bytes {
        if rest.read_buf(&mut body).await.map_err(FrameError::Stream)? == 0 {
            return Err(FrameError::Truncated);
        }
    }
    Ok(Some(body.freeze()))
}

/// The length that opens a frame, or `None` at the stream's end.
async fn read_length<R: AsyncRead + Unpin>(recv: &mut R) -> Result<Option<usize>, FrameError> {
    let mut length = [0; 4];
    let mut have = 0;
    while have < length.len() {
        match recv.read(&mut length[have..]).await.map_err(FrameError::Stream)? {
            0 if have == 0 => return Ok(None),
            0 => return Err(FrameError::Truncated),
            n => have += n,
        }
    }
    Ok(Some(u32::from_be_bytes(length) as usize))
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn written(bodies: &[&[u8]]) -> Vec<u8> {
        let mut out = Vec::new();
        for body in bodies {
            write_frame(&mut out, body).await.expect("a vector takes all");
        }
        out
    }

    #[tokio::test]
    async fn frames_come_back_in_order_and_then_the_end() {
        let big = vec![7; 300_000];
        let bytes = written(&[b"one", b"", &big]).await;
        let mut stream = bytes.as_slice();
        assert_eq!(&read_frame(&mut stream, 3).await.expect("one")[..], b"one");
        assert_eq!(&read_frame(&mut stream, 3).await.expect("empty")[..], b"");
        assert_eq!(read_frame(&mut stream, 300_000).await.expect("big").len(), 300_000);
        assert!(read_frame_or_end(&mut stream, 3).await.expect("the end").is_none());
    }

    #[tokio::test]
    async fn a_frame_over_the_bound_is_refused_before_it_is_read() {
        let mut stream: &[u8] = &[0xff, 0xff, 0xff, 0xff];
        let refused = read_frame(&mut stream, 1024).await;
        assert!(matches!(refused, Err(FrameError::TooLarge { frame_bytes: 0xffff_ffff, max_bytes: 1024 })));
    }

    #[tokio::test]
    async fn a_frame_cut_short_is_an_error_wherever_it_is_cut() {
        let bytes = written(&[b"hello"]).await;
        for end in 0..bytes.len() {
            let mut stream = &bytes[..end];
            assert!(matches!(read_frame(&mut stream, 16).await, Err(FrameError::Truncated)), "{end}");
        }
    }
}
