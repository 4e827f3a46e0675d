//! Where tasks, threads, time and chance come from: tokio and the system, or in a simulation its world.
//!
//! Invariant: nothing else in this crate starts a task or a thread, reads a clock other than tokio's, or draws a
//! random number, so that the simulation decides all of it.

use std::io;
use std::sync::{Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{SystemTime, UNIX_EPOCH};

use rand::Rng;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio_util::task::TaskTracker;

#[cfg(test)]
use crate::sim;

#[cfg(not(test))]
pub(crate) use openraft::impls::TokioRuntime as Runtime;
#[cfg(test)]
pub(crate) use sim::runtime::Runtime;
#[cfg(test)]
pub(crate) use sim::signal as watch;
#[cfg(not(test))]
pub(crate) use tokio::sync::watch;

/// Milliseconds since 1970.
pub(crate) fn now_ms() -> u64 {
    #[cfg(test)]
    if let Some(host) = sim::host() {
        return host.wall_ms();
    }
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

pub(crate) fn random() -> u64 {
    #[cfg(test)]
    if sim::host().is_some() {
        return sim::random();
    }
    rand::rng().random()
}

/// Starts a task that the tracker knows of.
pub(crate) fn spawn(tasks: &TaskTracker, task: impl Future<Output = ()> + Send + 'static) {
    #[cfg(test)]
    if let Some(host) = sim::host() {
        tasks.spawn(host.task(task));
        return;
    }
    tasks.spawn(task);
}

/// Does what may hold up its thread where that holds up nobody else.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> io::Result<T> {
    #[cfg(test)]
    if let Some(host) = sim::host() {
        host.slow().await;
        return Ok(work());
    }
    tokio::task::spawn_blocking(work).await.map_err(io::Error::other)
}

/// Does what may hold up its thread right here, while another thread does what this one had to do: nobody has to wake for
/// the work, nor for its result.
pub(crate) async fn in_place<T>(work: impl FnOnce() -> T) -> T {
    #[cfg(test)]
    if let Some(host) = sim::host() {
        host.slow().await;
        return work();
    }
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::MultiThread => tokio::task::block_in_place(work),
        // There is no other thread.
        _ => work(),
    }
}

/// A thread of its own for one future.
pub(crate) struct Worker {
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Worker {
    pub fn start(name: &str, work: impl Future<Output = ()> + Send + 'static) -> io::Result<Self> {
        #[cfg(test)]
        if let Some(host) = sim::host() {
            tokio::spawn(host.task(work));
            return Ok(Self { thread: Mutex::default() });
        }
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
