//! A bad line between the nodes and a registry: it can swallow everything, or break after so many bytes.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::{JoinHandle, JoinSet};

pub const PORT: u16 = 15_001;
const CHUNK_BYTES: usize = 16 << 10;
const PASS_ALL: u64 = u64::MAX;
/// Connections are taken and nothing ever comes back.
const SWALLOW: u64 = 0;

/// A proxy; gone when it is dropped.
pub struct Proxy {
    pub address: SocketAddr,
    /// How many bytes of answers a connection may carry from now on before it breaks.
    limit_bytes: Arc<AtomicU64>,
    task: JoinHandle<()>,
}

impl Proxy {
    /// # Panics
    /// If the port is taken.
    pub async fn start(at: IpAddr, to: SocketAddr) -> Self {
        let listener = TcpListener::bind((at, PORT)).await.expect("the proxy's port is free");
        let address = listener.local_addr().expect("a bound socket has an address");
        let limit_bytes = Arc::new(AtomicU64::new(PASS_ALL));
        let task = tokio::spawn(serve(listener, to, limit_bytes.clone()));
        Self { address, limit_bytes, task }
    }

    pub fn pass(&self) {
        self.limit_bytes.store(PASS_ALL, Ordering::Relaxed);
    }

    pub fn hang(&self) {
        self.limit_bytes.store(SWALLOW, Ordering::Relaxed);
    }

    pub fn break_after(&self, bytes: u64) {
        self.limit_bytes.store(bytes, Ordering::Relaxed);
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn serve(listener: TcpListener, to: SocketAddr, limit_bytes: Arc<AtomicU64>) {
    // Dropped with this task, and its connections with it.
    let mut connections = JoinSet::new();
    while let Ok((client, _)) = listener.accept().await {
        connections.spawn(relay(client, to, limit_bytes.clone()));
        while connections.try_join_next().is_some() {}
    }
}

/// Ends, and so breaks the connection, on any error.
async fn relay(mut client: TcpStream, to: SocketAddr, limit_bytes: Arc<AtomicU64>) -> std::io::Result<()> {
    let mut server = TcpStream::connect(to).await?;
    let (mut from_client, mut to_client) = client.split();
    let (mut from_server, mut to_server) = server.split();
    let answers = async {
        let mut carried = 0;
        let mut chunk = vec![0; CHUNK_BYTES];
        loop {
            let length = from_server.read(&mut chunk).await?;
            let limit = limit_bytes.load(Ordering::Relaxed);
            if limit == SWALLOW {
                std::future::pending::<()>().await;
            }
            carried += length as u64;
            if length == 0 || carried > limit {
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
