//! Durable writes of 256 bytes a second: the API beside etcd's, and the store without an API.

use crate::examples::{self, StoreRate};
use crate::load::{Done, VALUE_BYTES, Work, load};
use crate::pair::{Pair, at_leaders};
use crate::report::Report;

const CLIENTS: [usize; 4] = [1, 10, 100, 1000];
const NODES: [usize; 2] = [1, 3];

/// # Errors
/// If a system does not start, or a write fails.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let store = examples::store_rates()?;
    for nodes in NODES {
        let Pair { ours, theirs } = at_leaders(nodes, async |door| {
            let mut done = Vec::new();
            for clients in CLIENTS {
                done.push(load(&door, clients, Work::Put).await?);
            }
            Ok(done)
        })
        .await?;
        for ((clients, ours), theirs) in CLIENTS.into_iter().zip(&ours).zip(&theirs) {
            let what = format!("ConfigMaps of {VALUE_BYTES} B created over gRPC, {clients} clients, {nodes} nodes");
            tell(report, &what, "etcd put", ours, theirs);
            tell_store(report, &store, nodes, clients, theirs);
        }
    }
    Ok(())
}

/// A row for the rate and two for how long it took.
pub fn tell(report: &mut Report, what: &str, peer: &str, ours: &Done, theirs: &Done) {
    report.beside(what, ours.per_second, peer, theirs.per_second, "/s");
    for percent in [50, 99] {
        let [ours, theirs] = [&ours.took, &theirs.took].map(|took| took.percentile_ms(percent));
        report.beside(&format!("… p{percent}"), ours, peer, theirs, "ms");
    }
}

fn tell_store(report: &mut Report, store: &[StoreRate], nodes: usize, clients: usize, theirs: &Done) {
    if let Some(rate) = store.iter().find(|rate| rate.replicas == nodes && rate.clients == clients) {
        let what = format!("store alone, without API and TLS, {clients} clients, {nodes} replicas in one process");
        report.beside(&what, rate.per_second, "etcd put", theirs.per_second, "/s");
    }
}
