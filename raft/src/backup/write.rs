//! Taking a backup: the state's objects as the frames of a file, as fast as somebody takes them.

use std::mem;
use std::sync::Arc;

use aws_lc_rs::digest::{Context, SHA256};
use bytes::Bytes;
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::{BackupError, BackupHeader, MAGIC, Piece};
use crate::codec;
use crate::inner::Inner;
use crate::runtime::{self, now_ms};
use crate::state::{ReadError, Record, State};

/// A block of objects is closed when it has this many bytes.
const BLOCK_BYTES: usize = 256 * 1024;
/// Frames that wait for whoever takes the backup.
const QUEUED_FRAMES: usize = 8;

/// The bytes of a backup file, in order.
pub struct Backup {
    frames: mpsc::Receiver<Result<Bytes, BackupError>>,
}

impl Backup {
    /// The next bytes; `None` at the end. After an error the file is worth nothing.
    pub async fn next(&mut self) -> Option<Result<Bytes, BackupError>> {
        self.frames.recv().await
    }
}

/// Begins a backup of what this replica has applied.
pub(crate) fn start(inner: &Arc<Inner>) -> Backup {
    let (send, frames) = mpsc::channel(QUEUED_FRAMES);
    let (state, cluster) = (inner.machine.state(), inner.options.cluster.clone());
    let closing = inner.machine.closing().clone();
    let work = move || {
        let port = Port { send, closing };
        if let Err(error) = write(&state, cluster, &port) {
            // Whoever has gone does not need to be told.
            let _ = port.give(Err(error));
        }
    };
    runtime::spawn(&inner.tasks, async {
        if let Err(error) = runtime::blocking(work).await {
            tracing::error!(%error, "a backup broke off");
        }
    });
    Backup { frames }
}

/// Where the frames go, from a thread that may wait.
struct Port {
    send: mpsc::Sender<Result<Bytes, BackupError>>,
    closing: CancellationToken,
}

impl Port {
    fn give(&self, bytes: Result<Bytes, BackupError>) -> Result<(), BackupError> {
        futures::executor::block_on(async {
            tokio::select! {
                sent = self.send.send(bytes) => sent.map_err(|_| BackupError::BrokenOff),
                () = self.closing.cancelled() => Err(BackupError::BrokenOff),
            }
        })
    }
}

fn write(state: &State, cluster: String, port: &Port) -> Result<(), BackupError> {
    let epoch = state.epoch();
    let mut frames = state.dump(
        |header| {
            let applied = header.applied.ok_or(BackupError::Empty)?;
            let (revision, now) = (header.revision, header.now_ms);
            let header = BackupHeader { cluster, epoch, revision, applied, now_ms: now, taken_ms: now_ms() };
            Frames::begin(header, port)
        },
        Frames::object,
    )?;
    frames.close_block()?;
    frames.end()
}

struct Frames<'a> {
    digest: Context,
    port: &'a Port,
    block: Vec<Record>,
    block_bytes: usize,
    objects: u64,
}

impl<'a> Frames<'a> {
    fn begin(header: BackupHeader, port: &'a Port) -> Result<Self, BackupError> {
        let mut frames = Self { digest: Context::new(&SHA256), port, block: Vec::new(), block_bytes: 0, objects: 0 };
        frames.put(MAGIC.to_vec())?;
        frames.piece(&Piece::Header(header))?;
        Ok(frames)
    }

    fn object(&mut self, record: Record) -> Result<(), BackupError> {
        self.objects += 1;
        self.block_bytes += record.size_bytes();
        self.block.push(record);
        if self.block_bytes >= BLOCK_BYTES { self.close_block() } else { Ok(()) }
    }

    fn close_block(&mut self) -> Result<(), BackupError> {
        if self.block.is_empty() {
            return Ok(());
        }
        self.block_bytes = 0;
        let block = mem::take(&mut self.block);
        self.piece(&Piece::Objects(block))
    }

    fn end(mut self) -> Result<(), BackupError> {
        self.piece(&Piece::End(self.objects))?;
        self.port.give(Ok(Bytes::copy_from_slice(self.digest.finish().as_ref())))
    }

    fn piece(&mut self, piece: &Piece) -> Result<(), BackupError> {
        let body = codec::encode(piece).map_err(ReadError::from)?;
        let length = u32::try_from(body.len()).unwrap_or(u32::MAX);
        self.put([&length.to_be_bytes(), &*body].concat())
    }

    fn put(&mut self, bytes: Vec<u8>) -> Result<(), BackupError> {
        self.digest.update(&bytes);
        self.port.give(Ok(bytes.into()))
    }
}
