//! Watchers that follow a prefix from machine to machine, and the judgement of what they saw.
//!
//! Invariant: between where a watcher began and where it stands it has seen each event of its prefix once, in order.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::sync::mpsc;

use crate::kv::Event;
use crate::watch::WatchItem;

use super::clients::{id_of, prefixes};
use super::cluster::Cluster;
use super::invariants::Written;
use super::world::{World, world};

/// One unbroken stretch of watching.
#[derive(Clone, Debug)]
pub(super) struct Stretch {
    prefix: String,
    /// Everything after this revision was to be seen.
    after: u64,
    upto: u64,
    seen: Vec<(u64, String, Option<u64>)>,
}

enum News {
    Began(u64),
    Item(WatchItem),
}

pub(super) type Stretches = Arc<Mutex<Vec<Stretch>>>;

fn told(event: &Event) -> (u64, String, Option<u64>) {
    let value = match event {
        Event::Put { kv, .. } => Some(id_of(&kv.value)),
        Event::Delete { .. } => None,
    };
    (event.revision(), event.key().as_str().to_owned(), value)
}

/// Watches until the world's clock says so, wherever it can.
pub(super) async fn run(cluster: Arc<Cluster>, stretches: Stretches, until: Duration) {
    let world = world();
    let prefix = world.pick(&prefixes()).expect("a prefix");
    let mut at: Option<usize> = None;
    while world.now() < until {
        tokio::time::sleep(world.ms(0, 500)).await;
        let from = at.map_or(world.between(0, 2), |at| stretches.lock().unwrap()[at].upto + 1);
        let Some(mut news) = open(&cluster, &prefix, from) else { continue };
        // Watchers move on now and then, so that they resume elsewhere.
        let stay = world.ms(100, 20_000);
        let followed = follow(&mut news, &prefix, &stretches, &mut at);
        let _ = tokio::time::timeout(stay, followed).await;
    }
}

fn open(cluster: &Cluster, prefix: &str, from: u64) -> Option<mpsc::Receiver<News>> {
    let station = cluster.any_station()?;
    let (tell, news) = mpsc::channel(4);
    let prefix = prefix.to_owned();
    tokio::spawn(station.host.task(async move {
        let Ok(mut watch) = station.store.watch(&prefix, from).await else { return };
        drop(station.store);
        let mut next = News::Began(watch.next_revision() - 1);
        while tell.send(next).await.is_ok() {
            match watch.next().await {
                Some(item) => next = News::Item(item),
                None => return,
            }
        }
    }));
    Some(news)
}

async fn follow(news: &mut mpsc::Receiver<News>, prefix: &str, stretches: &Stretches, at: &mut Option<usize>) {
    while let Some(next) = news.recv().await {
        let mut stretches = stretches.lock().unwrap();
        match (next, *at) {
            (News::Began(after), None) => {
                stretches.push(Stretch { prefix: prefix.into(), after, upto: after, seen: Vec::new() });
                *at = Some(stretches.len() - 1);
            }
            (News::Began(_), Some(_)) => {}
            (News::Item(WatchItem::Events(events, upto)), Some(at)) => {
                stretches[at].seen.extend(events.iter().map(told));
                advance(&mut stretches[at], upto);
            }
            (News::Item(WatchItem::Progress(upto)), Some(at)) => advance(&mut stretches[at], upto),
            (News::Item(WatchItem::Compacted(upto)), Some(here)) => {
                if upto <= stretches[here].upto {
                    world().violation(format_args!("a watch at {} ends as compacted at {upto}", stretches[here].upto));
                }
                *at = None;
                return;
            }
            (News::Item(_), None) => {}
        }
    }
    // A watch from a forgotten revision is refused; the next one begins anew.
    if let Some(here) = *at
        && world().one_in(4)
    {
        let _ended = &stretches.lock().unwrap()[here];
        *at = None;
    }
}

fn advance(stretch: &mut Stretch, upto: u64) {
    if upto < stretch.upto {
        world().violation(format_args!("a watch at {} goes back to {upto}", stretch.upto));
    }
    stretch.upto = upto;
}

/// Compares what watchers saw with what was written; returns how many events they saw.
pub(super) fn judge(stretches: &Stretches, world: &World, truth: &BTreeMap<u64, Written>) -> u64 {
    let stretches = stretches.lock().unwrap();
    for stretch in stretches.iter() {
        let written = truth.range(stretch.after + 1..=stretch.upto.max(stretch.after + 1));
        let wanted: Vec<_> = written
            .filter(|(revision, (key, _))| **revision <= stretch.upto && key.starts_with(&stretch.prefix))
            .map(|(revision, (key, value))| (*revision, key.clone(), value.as_deref().map(id_of)))
            .collect();
        if wanted != stretch.seen {
            let at = wanted.iter().zip(&stretch.seen).position(|(a, b)| a != b);
            let at = at.unwrap_or(wanted.len().min(stretch.seen.len()));
            world.violation(format_args!(
                "a watch of {} from {} to {} saw {:?} where {:?} was due",
                stretch.prefix,
                stretch.after,
                stretch.upto,
                stretch.seen.get(at),
                wanted.get(at)
            ));
        }
    }
    stretches.iter().map(|stretch| stretch.seen.len() as u64).sum()
}
