//! Room for images: when the disk gets full, images that no pod of this node needs go, the longest unused first.
//!
//! Defined by kubelet's image garbage collection and its thresholds.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use flotilla_api::Builtin;
use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::object;
use flotilla_raft::{Range, ReadError};
use flotilla_runtime::images::GarbagePolicy;
use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::statvfs;
use tracing::{info, warn};

use crate::node::Node;

/// How often the disk is looked at.
const INTERVAL: Duration = Duration::from_secs(300);
/// Images go when the disk is fuller than this, in percent,
const HIGH_PERCENT: u64 = 85;
/// until it is no fuller than this.
const LOW_PERCENT: u64 = 80;
/// An image used since then stays: what needs it may be on its way.
const MIN_AGE: SignedDuration = SignedDuration::from_mins(2);

/// Keeps room on the disk of the images, for as long as it is polled.
pub async fn run(node: &Node) {
    loop {
        tokio::time::sleep(INTERVAL).await;
        if let Err(error) = look(node).await {
            warn!(error = format!("{error:#}"), "unused images stay");
        }
    }
}

async fn look(node: &Node) -> anyhow::Result<()> {
    let directory = node.config.data_dir.clone();
    let images = node.local.images().clone();
    let keep = needed(node)?;
    let unused_since = Timestamp::now() - MIN_AGE;
    // Reading the disk and deleting from it block.
    let freed = tokio::task::spawn_blocking(move || {
        let Some(wanted_bytes) = wanted_bytes(&directory)? else { return anyhow::Ok(None) };
        let policy = GarbagePolicy { keep, unused_since, wanted_bytes: Some(wanted_bytes) };
        Ok(Some((wanted_bytes, images.collect_garbage(&policy)?)))
    });
    match freed.await?? {
        Some((wanted_bytes, freed_bytes)) if freed_bytes < wanted_bytes => {
            warn!(wanted_bytes, freed_bytes, "the disk is nearly full, and the images in use must stay");
        }
        Some((_, freed_bytes)) => info!(freed_bytes, "unused images made room"),
        None => {}
    }
    Ok(())
}

/// The images of the pods that are bound to this node.
fn needed(node: &Node) -> Result<BTreeSet<String>, ReadError> {
    let pods = node.gate.store().range(Range::prefix(Builtin::Pod.collection().prefix()))?;
    let own = node.members.own_name();
    let bound = pods
        .items
        .iter()
        .filter_map(|kv| object::decode::<Pod>(&kv.value, kv.mod_revision).ok()?.spec)
        .filter(|spec| spec.node_name.as_deref() == Some(own));
    let images = bound.flat_map(|spec| {
        let init = spec.init_containers.into_iter().flatten();
        let added = spec.ephemeral_containers.into_iter().flatten().filter_map(|container| container.image);
        spec.containers.into_iter().chain(init).filter_map(|container| container.image).chain(added).collect::<Vec<_>>()
    });
    // The store knows an image by its whole name, a pod may use a short one.
    Ok(images
        .flat_map(|name| [node.local.images().find(&name).map(|image| image.digest.to_string()), Some(name)])
        .flatten()
        .collect())
}

/// How much should become free; `None` while there is room enough.
fn wanted_bytes(directory: &Path) -> nix::Result<Option<u64>> {
    let disk = statvfs(directory)?;
    let block_bytes = disk.fragment_size();
    Ok(excess(disk.blocks() * block_bytes, disk.blocks_available() * block_bytes))
}

fn excess(size_bytes: u64, free_bytes: u64) -> Option<u64> {
    let used_bytes = size_bytes.saturating_sub(free_bytes);
    let percent = |part: u64| size_bytes / 100 * part;
    (size_bytes > 0 && used_bytes > percent(HIGH_PERCENT)).then(|| used_bytes - percent(LOW_PERCENT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn room_is_made_only_on_a_disk_that_is_nearly_full() {
        assert_eq!(excess(1_000, 1_000), None);
        assert_eq!(excess(1_000, 150), None);
        assert_eq!(excess(1_000, 149), Some(51));
        assert_eq!(excess(1_000, 0), Some(200));
        assert_eq!(excess(0, 0), None);
    }
}
