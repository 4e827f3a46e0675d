//! SIGKILL at random moments: what was acknowledged is there, and the store opens.
//!
//! The test binary runs itself as the process that is killed.

mod cluster;

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use cluster::{Cluster, key, put};
use flotilla_raft::{Options, Range};
use rand::Rng;

const DIR: &str = "FLOTILLA_CRASH_DIR";
/// `CRASHES=200` for more.
const KILLS: usize = 12;
const VALUE_BYTES: usize = 512;

/// Snapshots, purges and compactions happen all the time.
fn busy(options: &mut Options) {
    options.snapshot_entries = 15;
    options.log_keep_entries = 3;
    options.history.max_revisions = 50;
}

/// Not a test by itself: writes until it is killed, saying what was acknowledged.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_is_killed() {
    let Ok(dir) = std::env::var(DIR) else { return };
    let mut cluster = Cluster::at(busy, 1, Path::new(&dir));
    let store = cluster.start(1).await;
    store.bootstrap().await.unwrap();
    cluster.leader(&[1]).await;
    store.barrier().await.unwrap();
    let next = store.range(Range::default()).unwrap().items.len();
    for i in next.. {
        let value = format!("{i}-{}", "x".repeat(VALUE_BYTES));
        store.propose(put(&format!("k{i:06}"), &value)).await.unwrap();
        println!("acknowledged {i}");
        std::io::stdout().flush().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn sigkill_loses_no_acknowledged_write() {
    let dir = tempfile::TempDir::new().unwrap();
    let kills = std::env::var("CRASHES").map_or(KILLS, |kills| kills.parse().expect("CRASHES is a number"));
    let mut acknowledged = 0;
    for _ in 0..kills {
        acknowledged = acknowledged.max(run_and_kill(dir.path()));
        let mut cluster = Cluster::at(busy, 1, dir.path());
        let store = cluster.start(1).await;
        cluster.leader(&[1]).await;
        store.barrier().await.unwrap();
        let found = store.range(Range::default()).unwrap().items;
        assert!(found.len() >= acknowledged, "{acknowledged} acknowledged, {} found", found.len());
        for (i, kv) in found.iter().enumerate() {
            assert_eq!(kv.key, key(&format!("k{i:06}")), "a hole");
            assert!(kv.value.starts_with(format!("{i}-").as_bytes()));
            assert_eq!(kv.mod_revision, i as u64 + 1);
        }
        drop(store);
        cluster.stop_all().await;
    }
    assert!(acknowledged > kills, "hardly anything was written: {acknowledged}");
    println!("{kills} kills, {acknowledged} writes acknowledged, none lost");
}

/// How many writes the process said were acknowledged before it was killed.
fn run_and_kill(dir: &Path) -> usize {
    let mut child = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "the_process_that_is_killed", "--nocapture"])
        .env(DIR, dir)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stop_after = rand::rng().random_range(1..120);
    let mut acknowledged = 0;
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines.by_ref().map_while(Result::ok) {
        if let Some((_, number)) = line.rsplit_once("acknowledged ") {
            acknowledged = number.parse::<usize>().unwrap() + 1;
        }
        if acknowledged > 0 && acknowledged % 120 >= stop_after {
            // Somewhere within the writes that follow.
            std::thread::sleep(Duration::from_micros(rand::rng().random_range(0..5000)));
            break;
        }
    }
    child.kill().unwrap();
    for line in lines.map_while(Result::ok) {
        if let Some((_, number)) = line.rsplit_once("acknowledged ") {
            acknowledged = acknowledged.max(number.parse::<usize>().unwrap() + 1);
        }
    }
    child.wait().unwrap();
    acknowledged
}
