//! Blocking readers and writers at one end, async streams at the other.
//!
//! Invariant: at most [`QUEUED_CHUNKS`] chunks wait between the two.

use std::io::{self, Read, Write};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::sync::mpsc;

const QUEUED_CHUNKS: usize = 8;
const CHUNK_BYTES: usize = 256 << 10;

/// The blocking end of a stream that is being read.
pub struct Source {
    receiver: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    ended: bool,
}

/// A blocking reader, and the future that feeds it from `stream` and must run meanwhile.
pub fn reader(mut stream: impl AsyncRead + Unpin + Send) -> (Source, impl Future<Output = ()> + Send) {
    let (sender, receiver) = mpsc::channel(QUEUED_CHUNKS);
    let feed = async move {
        loop {
            let mut chunk = Vec::with_capacity(CHUNK_BYTES);
            let read = (&mut stream).take(CHUNK_BYTES as u64).read_buf(&mut chunk).await;
            let is_last = !matches!(read, Ok(1..));
            // An empty chunk marks the end; a reader that is gone wants no more.
            if sender.send(read.map(|_| chunk.into())).await.is_err() || is_last {
                return;
            }
        }
    };
    (Source { receiver, current: Bytes::new(), ended: false }, feed)
}

impl Read for Source {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.current.is_empty() && !self.ended {
            // Without a mark at the end, the feeding side was dropped.
            let gone = || io::Error::new(io::ErrorKind::UnexpectedEof, "the stream was dropped");
            self.current = self.receiver.blocking_recv().ok_or_else(gone)??;
            self.ended = self.current.is_empty();
        }
        let count = buffer.len().min(self.current.len());
        self.current.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}

/// The blocking end of a stream that is being written.
pub struct Sink(mpsc::Sender<Bytes>);

/// A blocking writer, and the future that drains it into `stream` and must run meanwhile.
pub fn writer(mut stream: impl AsyncWrite + Unpin + Send) -> (Sink, impl Future<Output = io::Result<()>> + Send) {
    let (sender, mut receiver) = mpsc::channel::<Bytes>(QUEUED_CHUNKS);
    let drain = async move {
        while let Some(chunk) = receiver.recv().await {
            stream.write_all(&chunk).await?;
        }
        stream.flush().await
    };
    (Sink(sender), drain)
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let chunk = &bytes[..bytes.len().min(CHUNK_BYTES)];
        let sent = self.0.blocking_send(Bytes::copy_from_slice(chunk));
        sent.map(|()| chunk.len()).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
