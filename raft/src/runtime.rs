//! Where threads, time and chance come from: tokio and the system.
//!
//! Invariant: nothing else in this crate starts a thread, reads a clock that does not stand still under a paused
//! tokio clock, or draws a random number, so that a simulation can take the place of all of it.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::Rng;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn random() -> u64 {
    rand::rng().random()
}

/// Does what may hold up its thread where that holds up nobody else.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// A thread of its own for one future.
pub(crate) struct Worker {
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    pub fn start(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        let thread = std::thread::Builder::new().name(name.into());
        let thread = thread.spawn(move || futures::executor::block_on(work))?;
        Ok(Self { thread: Mutex::new(Some(thread)) })
    }

    /// Waits until the future has come to its end.
    pub async fn ended(&self) {
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(thread) = thread {
            let _ = blocking(move || thread.join()).await;
        }
    }
}
