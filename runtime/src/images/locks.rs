//! Who works on what: one writer a blob or layer, and nothing collected that is being made.

use std::collections::HashMap;
use std::fmt::Display;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use tokio::sync::OwnedMutexGuard;

use super::digest::Digest;

/// A lock for each key that someone holds or waits for.
#[derive(Debug, Default)]
pub struct KeyedLocks(Mutex<HashMap<String, Weak<tokio::sync::Mutex<()>>>>);

impl KeyedLocks {
    pub async fn lock(&self, key: impl Display) -> OwnedMutexGuard<()> {
        self.get(key.to_string()).lock_owned().await
    }

    fn get(&self, key: String) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = lock(&self.0);
        if let Some(existing) = locks.get(&key).and_then(Weak::upgrade) {
            return existing;
        }
        locks.retain(|_, held| held.strong_count() > 0);
        let made = Arc::default();
        locks.insert(key, Arc::downgrade(&made));
        made
    }
}

/// Content that must stay though no image names it yet.
#[derive(Clone, Debug, Default)]
pub struct Pins(Arc<Mutex<HashMap<Digest, usize>>>);

/// Keeps its digests while it lives.
#[derive(Debug)]
pub struct Pin {
    pins: Pins,
    digests: Vec<Digest>,
}

impl Pins {
    pub fn pin(&self, digests: impl IntoIterator<Item = Digest>) -> Pin {
        let mut pin = Pin { pins: self.clone(), digests: Vec::new() };
        pin.extend(digests);
        pin
    }

    /// Calls `collect` with what is pinned; nothing is pinned or unpinned meanwhile.
    pub fn while_unchanged<T>(&self, collect: impl FnOnce(&dyn Fn(&Digest) -> bool) -> T) -> T {
        let pinned = lock(&self.0);
        collect(&|digest| pinned.contains_key(digest))
    }
}

impl Pin {
    pub fn extend(&mut self, digests: impl IntoIterator<Item = Digest>) {
        let mut pinned = lock(&self.pins.0);
        for digest in digests {
            *pinned.entry(digest).or_default() += 1;
            self.digests.push(digest);
        }
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pinned = lock(&self.pins.0);
        for digest in &self.digests {
            if let Some(count) = pinned.get_mut(digest) {
                *count -= 1;
            }
        }
        pinned.retain(|_, count| *count > 0);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pin_holds_until_the_last_is_dropped() {
        let pins = Pins::default();
        let digest = Digest::of(b"x");
        let is_pinned = || pins.while_unchanged(|pinned| pinned(&digest));
        let (first, second) = (pins.pin([digest]), pins.pin([digest]));
        drop(first);
        assert!(is_pinned());
        drop(second);
        assert!(!is_pinned());
    }

    #[tokio::test]
    async fn a_key_is_held_by_one() {
        let locks = KeyedLocks::default();
        let held = locks.lock("a").await;
        assert!(locks.get("a".into()).try_lock().is_err());
        assert!(locks.get("b".into()).try_lock().is_ok());
        drop(held);
        assert!(locks.get("a".into()).try_lock().is_ok());
    }
}
