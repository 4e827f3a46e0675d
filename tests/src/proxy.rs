//! A bad line between the nodes and a registry: it can swallow everything, or die after so many bytes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub const PORT: u16 = 15_001;
const CHUNK_BYTES: usize = 16 << 10;

/// What the line does to what comes back from the registry.
struct Line {
    hangs: AtomicBool,
    /// How many bytes of answers it still carries before it dies.
    left_bytes: AtomicU64,
}

/// A proxy; gone when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    line: Arc<Line>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// # Panics
    /// If the port is taken.
    pub async fn start(at: IpAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind((at, PORT)).await.expect("the proxy's port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let line = Arc::new(Line { hangs: AtomicBool::new(false), left_bytes: AtomicU64::new(u64::MAX) });
        let task = tokio::spawn(serve(listener, to, line.clone()));
        Self { address, line, task }
    }

    /// All is well from now on.
    pub fn pass(&self) {
        self.line.left_bytes.store(u64::MAX, Ordering::Relaxed);
        self.line.hangs.store(false, Ordering::Relaxed);
    }

    /// Connections are taken and nothing comes back.
    pub fn hang(&self) {
        self.line.hangs.store(true, Ordering::Relaxed);
    }

    /// After so many bytes of answers all connections break, and no other is taken.
    pub fn die_after(&self, bytes: u64) {
        self.line.left_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Line {
    fn carries(&self, bytes: u64) -> bool {
        let less = |left: u64| left.checked_sub(bytes).or(Some(0));
        self.left_bytes.fetch_update(Ordering::Relaxed, Ordering::Relaxed, less).is_ok_and(|left| left > bytes)
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, line: Arc<Line>) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(relay(client, to, line.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Ends, and so breaks the connection, on any error.
async fn relay(mut client: TcpStream, to: SocketAddr, line: Arc<Line>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let length = from_server.read(&mut chunk).await?;
            if line.hangs.load(Ordering::Relaxed) {
                std::future::pending::<()>().await;
            }
            if length == 0 || !line.carries(length as u64) {
                return std::io::Result::Ok(());
            }
            to_client.write_all(&chunk[..length]).await?;
        }
    };
    tokio::select! {
        ended = answers => ended,
        Err(error) = copy(&mut from_client, &mut to_server) => Err(error),
    }
}
