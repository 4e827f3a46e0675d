//! A watch channel like tokio's, which wakes in the order in which was waited. Tokio's own draws lots.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, RwLock, RwLockReadGuard};

use openraft::async_runtime::watch::SendError;
use openraft::async_runtime::{self, RecvError};
use openraft::{OptionalSend, OptionalSync};
use tokio::sync::Notify;

pub(crate) type Ref<'a, T> = RwLockReadGuard<'a, T>;

#[derive(Debug)]
struct Shared<T> {
    value: RwLock<T>,
    version: AtomicU64,
    senders: AtomicUsize,
    changed: Notify,
}

#[derive(Debug)]
pub(crate) struct Sender<T>(Arc<Shared<T>>);

pub struct Receiver<T> {
    shared: Arc<Shared<T>>,
    seen: u64,
}

pub(crate) fn channel<T>(value: T) -> (Sender<T>, Receiver<T>) {
    let sender = Sender::new(value);
    let receiver = sender.subscribe();
    (sender, receiver)
}

impl<T> Sender<T> {
    pub fn new(value: T) -> Self {
        let (version, senders) = (AtomicU64::new(0), AtomicUsize::new(1));
        Self(Arc::new(Shared { value: RwLock::new(value), version, senders, changed: Notify::new() }))
    }

    pub fn subscribe(&self) -> Receiver<T> {
        Receiver { shared: self.0.clone(), seen: self.0.version.load(Ordering::SeqCst) }
    }

    pub fn borrow(&self) -> Ref<'_, T> {
        self.0.value.read().unwrap()
    }

    pub fn send_replace(&self, value: T) -> T {
        let mut old = Some(value);
        self.send_if_modified(|current| {
            old = old.take().map(|new| std::mem::replace(current, new));
            true
        });
        old.expect("the old value")
    }

    pub fn send_modify(&self, modify: impl FnOnce(&mut T)) {
        self.send_if_modified(|value| {
            modify(value);
            true
        });
    }

    pub fn send_if_modified(&self, modify: impl FnOnce(&mut T) -> bool) -> bool {
        let modified = modify(&mut self.0.value.write().unwrap());
        if modified {
            self.0.version.fetch_add(1, Ordering::SeqCst);
            self.0.changed.notify_waiters();
        }
        modified
    }
}

impl<T> Clone for Sender<T> {
    fn clone(&self) -> Self {
        self.0.senders.fetch_add(1, Ordering::SeqCst);
        Self(self.0.clone())
    }
}

impl<T> Drop for Sender<T> {
    fn drop(&mut self) {
        if self.0.senders.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.0.changed.notify_waiters();
        }
    }
}

impl<T> Clone for Receiver<T> {
    fn clone(&self) -> Self {
        Self { shared: self.shared.clone(), seen: self.seen }
    }
}

impl<T> Receiver<T> {
    pub fn borrow(&self) -> Ref<'_, T> {
        self.shared.value.read().unwrap()
    }

    pub fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.seen = self.shared.version.load(Ordering::SeqCst);
        self.shared.value.read().unwrap()
    }

    pub async fn changed(&mut self) -> Result<(), RecvError> {
        loop {
            let mut notified = std::pin::pin!(self.shared.changed.notified());
            notified.as_mut().enable();
            let version = self.shared.version.load(Ordering::SeqCst);
            if version != self.seen {
                self.seen = version;
                return Ok(());
            }
            if self.shared.senders.load(Ordering::SeqCst) == 0 {
                return Err(RecvError(()));
            }
            notified.await;
        }
    }

    pub async fn wait_for(&mut self, mut condition: impl FnMut(&T) -> bool) -> Result<Ref<'_, T>, RecvError> {
        while !condition(&self.borrow_and_update()) {
            self.changed().await?;
        }
        Ok(self.borrow())
    }
}

/// The channel as openraft wants it.
pub(crate) struct Signals;

pub(crate) struct Heard<T>(Receiver<T>);

impl<T> Clone for Heard<T> {
    fn clone(&self) -> Self {
        Self(self.0.clone())
    }
}

impl async_runtime::Watch for Signals {
    type Sender<T: OptionalSend + OptionalSync> = Sender<T>;
    type Receiver<T: OptionalSend + OptionalSync> = Heard<T>;
    type Ref<'a, T: OptionalSend + 'a> = Ref<'a, T>;

    fn channel<T: OptionalSend + OptionalSync>(init: T) -> (Sender<T>, Heard<T>) {
        let (sender, receiver) = channel(init);
        (sender, Heard(receiver))
    }
}

impl<T: OptionalSend + OptionalSync> async_runtime::WatchSender<Signals, T> for Sender<T> {
    fn send(&self, value: T) -> Result<(), SendError<T>> {
        // Besides the senders, somebody must hold the channel.
        if Arc::strong_count(&self.0) <= self.0.senders.load(Ordering::SeqCst) {
            return Err(SendError(value));
        }
        self.send_replace(value);
        Ok(())
    }

    fn send_if_modified<F: FnOnce(&mut T) -> bool>(&self, modify: F) -> bool {
        self.send_if_modified(modify)
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.borrow()
    }

    fn subscribe(&self) -> Heard<T> {
        Heard(self.subscribe())
    }
}

impl<T: OptionalSend + OptionalSync> async_runtime::WatchReceiver<Signals, T> for Heard<T> {
    async fn changed(&mut self) -> Result<(), RecvError> {
        self.0.changed().await
    }

    fn borrow_watched(&self) -> Ref<'_, T> {
        self.0.borrow()
    }

    fn borrow_and_update(&mut self) -> Ref<'_, T> {
        self.0.borrow_and_update()
    }
}
