//! One connection: a reader and a writer that run beside whoever speaks through its streams.
//!
//! Flow control towards us is what clients ignore, so that a stream nobody reads is held up by not reading from the
//! connection at all. A client that respects windows never gets that far.
//!
//! Invariant: header blocks are compressed and decompressed in the order of the frames that carry them.
//! Invariant: what was written when the work ends reaches a client that reads: the connection is not closed under it.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, BufReader, BufWriter};
use tokio::sync::{Semaphore, mpsc};
use tokio::time::timeout;

use super::SpdyError;
use super::flow::{INITIAL_WINDOW_BYTES, Window};
use super::frame::{self, Control, HEAD_BYTES, Head};
use super::headers::{Deflater, Headers, Inflater};
use super::stream::{Credit, PIECE_BYTES, Piece, SESSION_BYTES, STREAM_BYTES, Stream, StreamReader, StreamWriter};

/// Streams that a client may have open at once.
const MAX_STREAMS: usize = 1_024;
/// Streams opened and not taken up yet.
const QUEUED_STREAMS: usize = 64;
/// Frames that wait to be sent.
const QUEUED_FRAMES: usize = 64;
/// A client that is sent nothing for so long is asked whether it lives.
const KEEPALIVE: Duration = Duration::from_secs(30);
/// How long a client may take to hang up once all is said.
const LINGER: Duration = Duration::from_secs(5);
/// A client takes so long at most to take what it is sent.
const WRITE_TIMEOUT: Duration = Duration::from_secs(60);

/// A frame on its way to the client.
pub enum Outgoing {
    Reply { stream: u32 },
    Data { stream: u32, data: Bytes, fin: bool },
    Reset { stream: u32, status: u32 },
    Window { stream: u32, delta_bytes: u32 },
    Pong(u32),
    GoAway { status: u32 },
}

/// What the reader and the streams know of each other.
pub struct Shared {
    streams: Mutex<HashMap<u32, Entry>>,
    pub session_window: Window,
    pub session_credit: Credit,
}

struct Entry {
    /// `None`: the client has finished, or nobody reads.
    pieces: Option<mpsc::UnboundedSender<Piece>>,
    room: Arc<Semaphore>,
    window: Arc<Window>,
    /// The client has finished.
    ended: bool,
    /// We have finished.
    written: bool,
}

impl Shared {
    /// Nobody reads that stream any more.
    pub fn unread(&self, id: u32) {
        if let Some(entry) = self.lock().get_mut(&id) {
            entry.pieces = None;
        }
    }

    /// Nobody writes to that stream any more.
    pub fn unwritten(&self, id: u32) {
        self.change(id, |entry| entry.written = true);
    }

    fn ended(&self, id: u32) {
        self.change(id, |entry| {
            entry.pieces = None;
            entry.ended = true;
        });
    }

    fn change(&self, id: u32, change: impl FnOnce(&mut Entry)) {
        let mut streams = self.lock();
        if let Some(entry) = streams.get_mut(&id) {
            change(entry);
            if entry.ended && entry.written {
                streams.remove(&id);
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<u32, Entry>> {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Gives the streams that a client opens.
pub struct Acceptor {
    streams: mpsc::Receiver<Stream>,
}

impl Acceptor {
    /// The next; `None` when the client is gone. Cancel-safe.
    pub async fn next(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

/// A connection that an upgrade began.
pub struct Connection<S> {
    io: S,
    shared: Arc<Shared>,
    out: mpsc::Sender<Outgoing>,
    frames: mpsc::Receiver<Outgoing>,
    opened: mpsc::Sender<Stream>,
}

impl<S: AsyncRead + AsyncWrite + Send + Unpin> Connection<S> {
    pub fn new(io: S) -> (Self, Acceptor) {
        let (out, frames) = mpsc::channel(QUEUED_FRAMES);
        let (opened, streams) = mpsc::channel(QUEUED_STREAMS);
        let shared = Shared {
            streams: Mutex::default(),
            session_window: Window::new(INITIAL_WINDOW_BYTES, false),
            session_credit: Credit::default(),
        };
        (Self { io, shared: Arc::new(shared), out, frames, opened }, Acceptor { streams })
    }

    /// Runs until `work` is done and the client has what was said, or until the client hangs up or breaks the rules.
    ///
    /// # Errors
    /// If the connection broke, or had to be broken.
    pub async fn run(self, work: impl Future<Output = ()>) -> Result<(), SpdyError> {
        let (read, write) = tokio::io::split(self.io);
        let out = self.out.clone();
        let reader = Reader {
            read: BufReader::with_capacity(PIECE_BYTES, read),
            shared: self.shared.clone(),
            out: self.out,
            opened: self.opened,
            inflater: Inflater::default(),
            session_room: Arc::new(Semaphore::new(SESSION_BYTES)),
            initial_window_bytes: INITIAL_WINDOW_BYTES,
            windows_hold: false,
            last_stream: 0,
        };
        let mut reading = std::pin::pin!(reader.run());
        let mut writing = std::pin::pin!(write_frames(write, self.frames));
        let status = tokio::select! {
            read = &mut reading => match read {
                Ok(()) => return Ok(()),
                Err(SpdyError::Io(error)) => return Err(error.into()),
                Err(SpdyError::Protocol(_)) => 1,
            },
            written = &mut writing => return written.map_err(SpdyError::from),
            () = work => 0,
        };
        let goodbye = async { _ = out.send(Outgoing::GoAway { status }).await };
        let said = timeout(LINGER, async { tokio::join!(goodbye, &mut writing).1 }).await;
        if status != 0 {
            return Err(SpdyError::Protocol("see what it was sent"));
        }
        // The client hangs up first: closing on bytes that it sent would throw away what it has not read yet.
        _ = timeout(LINGER, &mut reading).await;
        said.unwrap_or(Ok(())).map_err(SpdyError::from)
    }
}

struct Reader<R> {
    read: BufReader<R>,
    shared: Arc<Shared>,
    out: mpsc::Sender<Outgoing>,
    opened: mpsc::Sender<Stream>,
    inflater: Inflater,
    session_room: Arc<Semaphore>,
    initial_window_bytes: i64,
    windows_hold: bool,
    last_stream: u32,
}

impl<R: AsyncRead + Send + Unpin> Reader<R> {
    async fn run(mut self) -> Result<(), SpdyError> {
        let ended = self.read_frames().await;
        for entry in self.shared.lock().values_mut() {
            entry.pieces = None;
            entry.window.close();
        }
        self.shared.session_window.close();
        ended
    }

    async fn read_frames(&mut self) -> Result<(), SpdyError> {
        loop {
            let mut head = [0; HEAD_BYTES];
            match self.read.read_exact(&mut head).await {
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
                read => read?,
            };
            match frame::head(head)? {
                Head::Data { stream, fin, length } => self.data(stream, fin, length).await?,
                Head::Control { kind, flags, length } => {
                    let mut body = vec![0; length];
                    self.read.read_exact(&mut body).await?;
                    self.control(frame::control(kind, flags, &body)?).await?;
                }
            }
        }
    }

    async fn data(&mut self, stream: u32, fin: bool, mut left: usize) -> Result<(), SpdyError> {
        while left > 0 {
            let mut piece = BytesMut::zeroed(left.min(PIECE_BYTES));
            let length = self.read.read(&mut piece).await?;
            if length == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            piece.truncate(length);
            left -= length;
            self.deliver(stream, piece.freeze()).await;
        }
        if fin {
            self.shared.ended(stream);
        }
        Ok(())
    }

    /// Hands over to whoever reads the stream; what nobody reads is thrown away.
    async fn deliver(&mut self, stream: u32, data: Bytes) {
        let found = self.shared.lock().get(&stream).and_then(|entry| Some((entry.pieces.clone()?, entry.room.clone())));
        let length = data.len() as u32;
        if let Some((pieces, room)) = found
            && let Ok(in_session) = self.session_room.clone().acquire_many_owned(length).await
            && let Ok(in_stream) = room.acquire_many_owned(length).await
            && pieces.send(Piece { data, _room: (in_session, in_stream) }).is_ok()
        {
            return;
        }
        self.shared.session_credit.add(length);
    }

    async fn control(&mut self, frame: Control) -> Result<(), SpdyError> {
        match frame {
            Control::SynStream { stream, fin, unidirectional, block } => {
                let headers = self.inflater.headers(&block)?;
                self.open(stream, fin, unidirectional, headers).await?;
            }
            Control::SynReply { block, .. } => _ = self.inflater.headers(&block)?,
            Control::Headers { stream, fin, block } => {
                self.inflater.headers(&block)?;
                if fin {
                    self.shared.ended(stream);
                }
            }
            Control::Reset { stream, .. } => {
                if let Some(entry) = self.shared.lock().remove(&stream) {
                    entry.window.close();
                }
            }
            Control::Settings { initial_window_bytes } => self.settle(initial_window_bytes),
            Control::Ping(id) if id % 2 == 1 => self.say(Outgoing::Pong(id)).await,
            Control::Window { stream, delta_bytes } => self.open_window(stream, delta_bytes).await?,
            Control::Ping(_) | Control::GoAway | Control::Unknown => {}
        }
        Ok(())
    }

    async fn open(&mut self, id: u32, fin: bool, unidirectional: bool, headers: Headers) -> Result<(), SpdyError> {
        if id.is_multiple_of(2) || id <= self.last_stream {
            return Err(SpdyError::Protocol("a stream that is not the client's next"));
        }
        self.last_stream = id;
        if self.shared.lock().len() >= MAX_STREAMS {
            self.say(Outgoing::Reset { stream: id, status: frame::REFUSED_STREAM }).await;
            return Ok(());
        }
        let stream = self.enter(id, fin, headers);
        if !unidirectional {
            self.say(Outgoing::Reply { stream: id }).await;
        }
        // Nobody takes streams any more: dropping this one tells the client.
        _ = self.opened.send(stream).await;
        Ok(())
    }

    fn enter(&self, id: u32, fin: bool, headers: Headers) -> Stream {
        let (sender, pieces) = mpsc::unbounded_channel();
        let room = Arc::new(Semaphore::new(STREAM_BYTES));
        let window = Arc::new(Window::new(self.initial_window_bytes, self.windows_hold));
        let entry = Entry {
            pieces: (!fin).then_some(sender),
            room: room.clone(),
            window: window.clone(),
            ended: fin,
            written: false,
        };
        self.shared.lock().insert(id, entry);
        let (out, shared) = (self.out.clone(), self.shared.clone());
        Stream {
            id,
            headers,
            reader: StreamReader { id, pieces, room, out: out.clone(), shared: shared.clone(), credit_bytes: 0 },
            writer: StreamWriter { id, window, out, shared, finished: false },
        }
    }

    fn settle(&mut self, initial_window_bytes: Option<u32>) {
        let Some(bytes) = initial_window_bytes else { return };
        let delta_bytes = i64::from(bytes) - self.initial_window_bytes;
        self.initial_window_bytes = i64::from(bytes);
        self.windows_hold = true;
        for entry in self.shared.lock().values() {
            entry.window.open(delta_bytes);
        }
    }

    async fn open_window(&mut self, stream: u32, delta_bytes: u32) -> Result<(), SpdyError> {
        if stream == 0 {
            return match self.shared.session_window.open(i64::from(delta_bytes)) {
                true => Ok(()),
                false => Err(SpdyError::Protocol("a window is too large")),
            };
        }
        if !self.windows_hold {
            self.windows_hold = true;
            self.shared.lock().values().for_each(|entry| _ = entry.window.open(0));
        }
        let sane = self.shared.lock().get(&stream).is_none_or(|entry| entry.window.open(i64::from(delta_bytes)));
        if !sane {
            if let Some(entry) = self.shared.lock().remove(&stream) {
                entry.window.close();
            }
            self.say(Outgoing::Reset { stream, status: frame::FLOW_CONTROL_ERROR }).await;
        }
        Ok(())
    }

    async fn say(&mut self, frame: Outgoing) {
        _ = self.out.send(frame).await;
    }
}

/// Writes what is queued until told to go away.
async fn write_frames(write: impl AsyncWrite + Send + Unpin, mut frames: mpsc::Receiver<Outgoing>) -> io::Result<()> {
    let mut write = BufWriter::with_capacity(PIECE_BYTES + HEAD_BYTES, write);
    let mut deflater = Deflater::default();
    let mut next_ping = 2_u32;
    loop {
        let frame = match frames.try_recv() {
            Ok(frame) => Some(frame),
            Err(_) => {
                in_time(write.flush()).await?;
                timeout(KEEPALIVE, frames.recv()).await.ok().flatten()
            }
        };
        let bytes = match frame {
            None => {
                next_ping = next_ping.wrapping_add(2);
                frame::ping(next_ping)
            }
            Some(Outgoing::Data { stream, data, fin }) => {
                in_time(write.write_all(&frame::data(stream, fin, data.len()))).await?;
                in_time(write.write_all(&data)).await?;
                continue;
            }
            Some(Outgoing::Reply { stream }) => {
                let block = deflater.block(&Headers::default()).map_err(io::Error::other)?;
                frame::syn_reply(stream, &block)
            }
            Some(Outgoing::Reset { stream, status }) => frame::reset(stream, status),
            Some(Outgoing::Window { stream, delta_bytes }) => frame::window(stream, delta_bytes),
            Some(Outgoing::Pong(id)) => frame::ping(id),
            Some(Outgoing::GoAway { status }) => {
                in_time(write.write_all(&frame::go_away(0, status))).await?;
                in_time(write.flush()).await?;
                return in_time(write.shutdown()).await;
            }
        };
        in_time(write.write_all(&bytes)).await?;
    }
}

async fn in_time(writing: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(WRITE_TIMEOUT, writing).await.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
}
