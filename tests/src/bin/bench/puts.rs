//! Durable writes of 256 bytes a second: the API beside etcd's, and the store without an API.

use crate::etcd::Etcd;
use crate::examples::{self, StoreRate};
use crate::flotilla_cluster::Flotilla;
use crate::load::{Done, VALUE_BYTES, load};
use crate::report::Report;

const CLIENTS: [usize; 2] = [1, 100];
const NODES: [usize; 2] = [1, 3];

/// # Errors
/// If a system does not start, or a write fails.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let store = examples::store_rates()?;
    for nodes in NODES {
        let theirs = etcd(nodes).await?;
        let ours = flotilla(nodes).await?;
        for (number, clients) in CLIENTS.into_iter().enumerate() {
            tell(report, nodes, clients, &ours[number], &theirs[number]);
            tell_store(report, &store, nodes, clients, &theirs[number]);
        }
    }
    Ok(())
}

async fn etcd(nodes: usize) -> anyhow::Result<Vec<Done>> {
    let etcd = Etcd::start(nodes).await?;
    let door = etcd.door(etcd.leader().await?);
    let mut done = Vec::new();
    for clients in CLIENTS {
        done.push(load(&door, clients).await?);
    }
    Ok(done)
}

async fn flotilla(nodes: usize) -> anyhow::Result<Vec<Done>> {
    let flotilla = Flotilla::start(nodes).await?;
    let door = flotilla.door(&flotilla.leader().await?)?;
    let mut done = Vec::new();
    for clients in CLIENTS {
        done.push(load(&door, clients).await?);
    }
    Ok(done)
}

fn tell(report: &mut Report, nodes: usize, clients: usize, ours: &Done, theirs: &Done) {
    let what = format!("ConfigMaps of {VALUE_BYTES} B created over gRPC, {clients} clients, {nodes} nodes");
    report.beside(&what, ours.per_second, "etcd put", theirs.per_second, "/s");
    for percent in [50, 99] {
        let [ours, theirs] = [&ours.took, &theirs.took].map(|took| took.percentile_ms(percent));
        report.beside(&format!("… p{percent}"), ours, "etcd put", theirs, "ms");
    }
}

fn tell_store(report: &mut Report, store: &[StoreRate], nodes: usize, clients: usize, theirs: &Done) {
    if let Some(rate) = store.iter().find(|rate| rate.replicas == nodes && rate.clients == clients) {
        let what = format!("store alone, without API and TLS, {clients} clients, {nodes} replicas in one process");
        report.beside(&what, rate.per_second, "etcd put", theirs.per_second, "/s");
    }
}
