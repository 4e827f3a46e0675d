//! The same measurement on both systems, one after the other.

use anyhow::Context;

use crate::client::Door;
use crate::etcd::Etcd;
use crate::flotilla_cluster::Flotilla;

/// What came out for each system.
pub struct Pair<T> {
    pub ours: T,
    pub theirs: T,
}

/// Measures at the leader of so many nodes of each.
///
/// # Errors
/// If a system does not start, or cannot be measured.
pub async fn at_leaders<T>(nodes: usize, measure: impl AsyncFn(Door) -> anyhow::Result<T>) -> anyhow::Result<Pair<T>> {
    let theirs = {
        let etcd = Etcd::start(nodes).await?;
        measure(etcd.door(etcd.leader().await?)).await.context("etcd")?
    };
    let flotilla = Flotilla::start(nodes).await?;
    let ours = measure(flotilla.door(&flotilla.leader().await?)?).await.context("Flotilla")?;
    Ok(Pair { ours, theirs })
}
