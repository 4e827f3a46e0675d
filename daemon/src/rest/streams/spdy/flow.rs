//! How much a client may still be sent (section 2.6.8).
//!
//! Clients of Kubernetes never open a window again: the library that they are made of ignores flow control altogether.
//! A window therefore holds only for a client that has shown that it knows of windows.
//!
//! Invariant: what was sent is counted from the beginning, so that a window that begins to hold is right.

use std::sync::{Mutex, PoisonError};

use tokio::sync::Notify;

/// What either side may send before it hears from the other.
pub const INITIAL_WINDOW_BYTES: i64 = 64 * 1024;
const MAX_WINDOW_BYTES: i64 = (1 << 31) - 1;

pub struct Window {
    state: Mutex<State>,
    changed: Notify,
}

struct State {
    left_bytes: i64,
    holds: bool,
    closed: bool,
}

impl Window {
    pub fn new(initial_bytes: i64, holds: bool) -> Self {
        Self { state: Mutex::new(State { left_bytes: initial_bytes, holds, closed: false }), changed: Notify::new() }
    }

    /// Waits until something may be sent: how much of `wanted`, or `None` if nothing may be sent any more.
    pub async fn take(&self, wanted_bytes: usize) -> Option<usize> {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let mut state = self.lock();
                let room = match state.holds {
                    true => usize::try_from(state.left_bytes).unwrap_or(0).min(wanted_bytes),
                    false => wanted_bytes,
                };
                if state.closed {
                    return None;
                }
                if room > 0 || wanted_bytes == 0 {
                    state.left_bytes = state.left_bytes.saturating_sub_unsigned(room as u64);
                    return Some(room);
                }
            }
            changed.await;
        }
    }

    /// Gives back what was taken and not sent.
    pub fn give_back(&self, bytes: usize) {
        let mut state = self.lock();
        state.left_bytes = state.left_bytes.saturating_add_unsigned(bytes as u64);
        drop(state);
        self.changed.notify_waiters();
    }

    /// The client takes more (or, after a change of its settings, less); false if that is more than can be.
    pub fn open(&self, delta_bytes: i64) -> bool {
        let mut state = self.lock();
        state.holds = true;
        state.left_bytes = state.left_bytes.saturating_add(delta_bytes);
        let sane = state.left_bytes <= MAX_WINDOW_BYTES;
        drop(state);
        self.changed.notify_waiters();
        sane
    }

    /// Waits until nothing may be sent any more.
    pub async fn closed(&self) {
        loop {
            let mut changed = std::pin::pin!(self.changed.notified());
            changed.as_mut().enable();
            if self.lock().closed {
                return;
            }
            changed.await;
        }
    }

    pub fn close(&self) {
        self.lock().closed = true;
        self.changed.notify_waiters();
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_window_holds_once_it_was_opened_and_counts_what_was_sent_before() {
        let window = Window::new(100, false);
        assert_eq!(window.take(150).await, Some(150), "the client may know nothing of windows");
        assert!(window.open(60));
        assert_eq!(window.take(150).await, Some(10));
        let mut waiting = tokio_test(window.take(5));
        assert!(waiting.is_none());
        window.give_back(3);
        waiting = tokio_test(window.take(5));
        assert_eq!(waiting, Some(Some(3)));
        assert!(!window.open(i64::from(u32::MAX)));
        window.close();
        assert_eq!(window.take(1).await, None);
    }

    fn tokio_test<T>(future: impl Future<Output = T>) -> Option<T> {
        use futures::FutureExt;
        future.now_or_never()
    }
}
