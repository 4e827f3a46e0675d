//! Where the network's tasks run: on threads of their own, so that nothing that the rest of the daemon does, neither a slow
//! disk nor a long computation, delays a heartbeat. What the rest of the daemon handles runs where it called from.
//!
//! Invariant: no handler and no port runs on the network's threads.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Instant;

use quinn::{AsyncTimer, AsyncUdpSocket, TokioRuntime};
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_util::task::AbortOnDropHandle;

const THREAD_NAME: &str = "flotilla-net";

/// The network's threads. They end when it is dropped.
pub(crate) struct Home {
    own: Option<Runtime>,
    handle: Handle,
}

impl Home {
    /// `threads` of its own, or with none those of the caller.
    pub(crate) fn new(threads: usize) -> io::Result<Self> {
        if threads == 0 {
            return Ok(Home { own: None, handle: Handle::current() });
        }
        let own = Builder::new_multi_thread()
            .worker_threads(threads)
            .max_blocking_threads(threads + 1)
            .thread_name(THREAD_NAME)
            .enable_all()
            .build()?;
        let handle = own.handle().clone();
        Ok(Home { own: Some(own), handle })
    }

    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }
}

impl Drop for Home {
    fn drop(&mut self) {
        if let Some(own) = self.own.take() {
            own.shutdown_background();
        }
    }
}

/// Runs `work` on `handle` and waits for it; it ends with whoever waits. `None` if it panicked.
pub(crate) async fn elsewhere<T: Send + 'static>(
    handle: &Handle,
    work: impl Future<Output = T> + Send + 'static,
) -> Option<T> {
    AbortOnDropHandle::new(handle.spawn(work)).await.inspect_err(|error| tracing::error!(%error, "a call failed")).ok()
}

/// QUIC's own tasks and timers on a given runtime, whoever makes a connection.
#[derive(Debug)]
pub(crate) struct QuicRuntime(pub(crate) Handle);

impl quinn::Runtime for QuicRuntime {
    fn new_timer(&self, at: Instant) -> Pin<Box<dyn AsyncTimer>> {
        let _entered = self.0.enter();
        TokioRuntime.new_timer(at)
    }

    fn spawn(&self, task: Pin<Box<dyn Future<Output = ()> + Send>>) {
        // QUIC keeps the end of its own tasks: an endpoint's ends with its last handle, a connection's when it has drained.
        self.0.spawn(task);
    }

    fn wrap_udp_socket(&self, socket: std::net::UdpSocket) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let _entered = self.0.enter();
        TokioRuntime.wrap_udp_socket(socket)
    }
}
