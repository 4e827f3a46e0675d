//! Durable puts a second: 256 bytes, every write synced, 1 and 3 replicas in this process, 1, 10 and 100 clients;
//! then how long no write is acknowledged after a leader is cut off.
//!
//! `TMPDIR=/on/the/disk cargo run --release -p flotilla-raft --example put_bench [SECONDS]`

#[path = "../tests/cluster/mod.rs"]
mod cluster;

use std::time::{Duration, Instant};

use bytes::Bytes;
use cluster::{Cluster, insist, key, put};
use flotilla_api::Change;
use flotilla_raft::Store;

const VALUE_BYTES: usize = 256;
const FAILOVERS: usize = 10;
const WARM_UP: Duration = Duration::from_millis(500);

#[tokio::main]
async fn main() {
    let seconds = std::env::args().nth(1).and_then(|s| s.parse().ok()).unwrap_or(5);
    println!("{:>8} {:>8} {:>10} {:>9} {:>9} {:>9}", "replicas", "clients", "puts/s", "p50 ms", "p99 ms", "max ms");
    for ids in [&[1_u64][..], &[1, 2, 3]] {
        for clients in [1, 10, 100] {
            let cluster = Cluster::boot(|_| {}, ids, ids.len()).await;
            let leader = cluster.store(cluster.leader(ids).await);
            let mut took = load(&leader, clients, Duration::from_secs(seconds)).await;
            took.sort_unstable();
            let at = |share: f64| took[((took.len() - 1) as f64 * share) as usize].as_secs_f64() * 1e3;
            let rate = took.len() as f64 / seconds as f64;
            println!("{:>8} {clients:>8} {rate:>10.0} {:>9.2} {:>9.2} {:>9.2}", ids.len(), at(0.5), at(0.99), at(1.0));
            drop(leader);
            cluster.stop_all().await;
        }
    }
    failover().await;
}

/// Cuts the leader off, again and again, while a client of another replica wants to write.
async fn failover() {
    let ids = [1, 2, 3];
    let cluster = Cluster::boot(|_| {}, &ids, 3).await;
    let mut took = Vec::new();
    for round in 0..FAILOVERS {
        let lost = cluster.leader(&ids).await;
        let client = cluster.store(ids.into_iter().find(|id| *id != lost).expect("another replica"));
        insist(&client, put("before", &round.to_string())).await;
        cluster.net.isolate(lost, &ids);
        let began = Instant::now();
        let revision = insist(&client, put("after", &round.to_string())).await;
        took.push(began.elapsed());
        cluster.net.heal();
        let back = cluster.store(lost);
        back.reach(revision).await.expect("the lost one is back");
    }
    took.sort_unstable();
    let ms = |i: usize| took[i].as_millis();
    println!(
        "leader cut off -> next write: median {} ms, worst {} ms of {FAILOVERS}",
        ms(FAILOVERS / 2),
        ms(FAILOVERS - 1)
    );
    cluster.stop_all().await;
}

/// How long each put took that began after the warm-up.
async fn load(store: &Store, clients: usize, lasting: Duration) -> Vec<Duration> {
    let begin = Instant::now() + WARM_UP;
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    let clients: Vec<_> = (0..clients)
        .map(|client| tokio::spawn(puts(store.clone(), client, value.clone(), begin, begin + lasting)))
        .collect();
    let mut took = Vec::new();
    for client in clients {
        took.extend(client.await.expect("a client that ends"));
    }
    took
}

async fn puts(store: Store, client: usize, value: Bytes, begin: Instant, end: Instant) -> Vec<Duration> {
    let mut took = Vec::new();
    for i in 0_u64.. {
        let began = Instant::now();
        if began >= end {
            break;
        }
        let change = Change::new("bench", "bench").put(key(&format!("c{client}-{}", i % 1000)), value.clone());
        store.propose(change).await.expect("a put");
        if began >= begin {
            took.push(began.elapsed());
        }
    }
    took
}
