//! Forgetting images, and deleting what no image needs.
//!
//! Invariant: nothing is deleted that an image, a mount, or a pull under way needs.

use std::collections::BTreeSet;
use std::time::{Duration, SystemTime};

use super::catalog::Image;
use super::digest::Digest;
use super::disk;
use super::error::ImageError;
use super::{Store, builtin};

/// Which images may go.
#[derive(Clone, Debug)]
pub struct GarbagePolicy {
    /// References or digests of images that stay, used or not.
    pub keep: BTreeSet<String>,
    /// Images pulled or mounted since then stay.
    pub unused_since: jiff::Timestamp,
    /// Stop when this much is free; without it, all that may go goes.
    pub wanted_bytes: Option<u64>,
}

/// Deletes unused images, the longest unused first, and everything that no image needs. Says how many
/// bytes that freed. Blocks.
pub fn collect(store: &Store, policy: &GarbagePolicy) -> Result<u64, ImageError> {
    let partial_before = system_time(policy.unused_since);
    let mut freed_bytes = sweep(store, Some(partial_before))?;
    let mut images = store.catalog.list();
    images.sort_by_key(|image| image.used);
    for image in images.iter().filter(|image| may_go(store, policy, image)) {
        if policy.wanted_bytes.is_some_and(|wanted_bytes| freed_bytes >= wanted_bytes) {
            break;
        }
        tracing::info!(image = %image.digest, names = ?image.references, "unused image is deleted");
        store.catalog.remove_images(&[image.digest])?;
        freed_bytes += sweep(store, None)?;
    }
    Ok(freed_bytes)
}

fn may_go(store: &Store, policy: &GarbagePolicy, image: &Image) -> bool {
    let is_kept = |name: &String| policy.keep.contains(name) || name == builtin::NAME;
    let digests = [image.digest.to_string(), image.id.to_string()];
    let mut names = image.references.iter().chain(&image.repo_digests).chain(&digests);
    image.used < policy.unused_since && !names.any(is_kept) && store.mounts.user_of(&image.digest).is_none()
}

/// Forgets one name, and deletes what only it needed. Blocks.
pub fn remove(store: &Store, name: &str) -> Result<u64, ImageError> {
    let image = store.catalog.find(name).ok_or_else(|| ImageError::NotFound(name.to_owned()))?;
    let is_last = match name.parse::<super::Reference>() {
        Ok(reference) => {
            image.references.iter().all(|other| *other == reference.to_string()) || reference.digest().is_some()
        }
        Err(_) => true,
    };
    if is_last && let Some(container) = store.mounts.user_of(&image.digest) {
        return Err(ImageError::InUse { reference: name.to_owned(), container });
    }
    store.catalog.remove(name)?;
    sweep(store, None)
}

/// Deletes blobs and layers that nothing needs, and unfinished blobs last written before
/// `partial_before`. Directories are moved aside under the lock, and deleted after it.
fn sweep(store: &Store, partial_before: Option<SystemTime>) -> Result<u64, ImageError> {
    let (freed_bytes, aside) = store.pins.while_unchanged(|is_pinned| {
        let blobs: BTreeSet<Digest> = store.catalog.blobs().into_iter().collect();
        let layers: BTreeSet<Digest> = needed_layers(store);
        let mut freed_bytes = 0;
        let mut aside = Vec::new();
        for digest in store.blobs.list()?.iter().filter(|digest| !blobs.contains(*digest) && !is_pinned(digest)) {
            freed_bytes += store.blobs.remove(digest)?;
        }
        for chain_id in store.layers.list().iter().filter(|id| !layers.contains(*id) && !is_pinned(id)) {
            let (size_bytes, path) = store.layers.set_aside(chain_id)?;
            freed_bytes += size_bytes;
            aside.push(path);
        }
        if let Some(before) = partial_before {
            freed_bytes += store.blobs.remove_unfinished(before, is_pinned)?;
        }
        Ok::<_, ImageError>((freed_bytes, aside))
    })?;
    for path in aside {
        disk::remove(&path)?;
    }
    Ok(freed_bytes)
}

fn needed_layers(store: &Store) -> BTreeSet<Digest> {
    let images = store.catalog.list().into_iter().flat_map(|image| image.layers);
    let mounts = store.mounts.list().into_values().flat_map(|record| record.layers);
    images.chain(mounts).map(|layer| layer.chain_id).collect()
}

fn system_time(time: jiff::Timestamp) -> SystemTime {
    let since = Duration::from_millis(u64::try_from(time.as_millisecond()).unwrap_or(0));
    SystemTime::UNIX_EPOCH.checked_add(since).unwrap_or(SystemTime::UNIX_EPOCH)
}
