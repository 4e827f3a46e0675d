//! One thousand watchers of the same keys: how long until the last of them has seen a write, and how many events a second
//! they are told.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::future::try_join_all;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use crate::client::{Client, Door, Events};
use crate::load::{connect, value};
use crate::pair::{Pair, at_leaders};
use crate::report::{Report, Spread};

const WATCHERS: usize = 1000;
/// Watchers share connections, ten to one.
const CONNECTIONS: usize = 100;
const WRITES: usize = 30;
const WRITERS: usize = 10;
const BURST: usize = 200;
/// An event that takes longer ends the measurement.
const EVENT_LIMIT: Duration = Duration::from_secs(30);

struct Seen {
    /// From sending a write to the last watcher's event.
    took: Spread,
    events_per_second: f64,
}

/// # Errors
/// If a system does not start, or a watcher misses a write.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let Pair { ours, theirs } = at_leaders(3, async |door| fan_out(&door).await).await?;
    for percent in [50, 99] {
        let what = format!("write → seen by all of {WATCHERS} watchers, 3 nodes, p{percent} of {WRITES}");
        let [ours, theirs] = [&ours.took, &theirs.took].map(|took| took.percentile_ms(percent));
        report.beside(&what, ours, "etcd watch", theirs, "ms");
    }
    let what = format!("events told to {WATCHERS} watchers, {WRITERS} clients writing");
    report.beside(&what, ours.events_per_second, "etcd watch", theirs.events_per_second, "/s");
    Ok(())
}

async fn fan_out(door: &Door) -> anyhow::Result<Seen> {
    let mut watchers = Watchers::start(door).await?;
    let mut writers = connect(door, WRITERS).await?;
    writers[0].put("watch-first", &value()).await?;
    watchers.all_have_seen(1).await?;
    let mut took = Vec::new();
    for number in 0..WRITES {
        let began = Instant::now();
        writers[0].put(&format!("watch-one-{number}"), &value()).await?;
        watchers.all_have_seen(1).await?;
        took.push(began.elapsed());
    }
    let began = Instant::now();
    let burst = try_join_all(writers.into_iter().enumerate().map(|(number, writer)| write(writer, number)));
    tokio::try_join!(async { burst.await.map(drop) }, watchers.all_have_seen(BURST))?;
    let events_per_second = (WATCHERS * BURST) as f64 / began.elapsed().as_secs_f64();
    Ok(Seen { took: Spread::of(took)?, events_per_second })
}

async fn write(mut client: Client, number: usize) -> anyhow::Result<()> {
    for key in 0..BURST / WRITERS {
        client.put(&format!("watch-burst-{number}-{key}"), &value()).await?;
    }
    Ok(())
}

/// Watchers that tell of each event they see; they end when this is dropped.
struct Watchers {
    tasks: JoinSet<anyhow::Result<()>>,
    seen: mpsc::UnboundedReceiver<usize>,
}

impl Watchers {
    async fn start(door: &Door) -> anyhow::Result<Self> {
        let (tell, seen) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let mut clients = connect(door, CONNECTIONS).await?;
        for number in 0..WATCHERS {
            let events = clients[number % CONNECTIONS].watch("watch-").await?;
            tasks.spawn(follow(events, tell.clone()));
        }
        Ok(Self { tasks, seen })
    }

    /// Waits until every watcher has seen so many writes more.
    async fn all_have_seen(&mut self, writes: usize) -> anyhow::Result<()> {
        let all = async {
            // None sees a write twice, so that a sum is enough.
            let mut missing = WATCHERS * writes;
            while missing > 0 {
                tokio::select! {
                    biased;
                    told = self.seen.recv() => missing = missing.saturating_sub(told.context("the watchers ended")?),
                    Some(ended) = self.tasks.join_next() => ended??,
                }
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(EVENT_LIMIT, all).await.context("a watcher has not seen a write in time")?
    }
}

async fn follow(mut events: Events, tell: mpsc::UnboundedSender<usize>) -> anyhow::Result<()> {
    loop {
        if tell.send(events.next().await?).is_err() {
            return Ok(());
        }
    }
}
