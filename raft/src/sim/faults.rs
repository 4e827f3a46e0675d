//! What goes wrong: one fault after the other, of the kinds that the seed allows.

use std::sync::Arc;
use std::time::Duration;

use crate::types::NodeId;

use super::cluster::Cluster;
use super::disk::{Loss, Mood};
use super::net::Weather;
use super::world::world;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Fault {
    /// Some machines and the others do not hear each other.
    Partition,
    /// One way from one machine to another is closed.
    Deaf,
    HealNet,
    BadWeather,
    KillProcess,
    PowerLoss,
    PowerLossEverywhere,
    Pause,
    SlowDisk,
    StalledDisk,
    FailingDisk,
    FullDisk,
    WallClock,
    Transfer,
    Compact,
    AddReplica,
    RemoveReplica,
}

const ALL: [Fault; 17] = [
    Fault::Partition,
    Fault::Deaf,
    Fault::HealNet,
    Fault::BadWeather,
    Fault::KillProcess,
    Fault::PowerLoss,
    Fault::PowerLossEverywhere,
    Fault::Pause,
    Fault::SlowDisk,
    Fault::StalledDisk,
    Fault::FailingDisk,
    Fault::FullDisk,
    Fault::WallClock,
    Fault::Transfer,
    Fault::Compact,
    Fault::AddReplica,
    Fault::RemoveReplica,
];

/// The machines at one time; more than can vote.
const MAX_MACHINES: usize = 7;

/// A seed's choice of faults: a few kinds together find more than all of them at once.
pub(super) struct Faults {
    cluster: Arc<Cluster>,
    kinds: Vec<Fault>,
    next_id: NodeId,
}

impl Faults {
    pub fn new(cluster: Arc<Cluster>, next_id: NodeId) -> Self {
        let world = world();
        let odds = world.between(1, 4);
        let kinds = ALL.into_iter().filter(|kind| *kind == Fault::HealNet || world.between(0, 4) < odds).collect();
        Self { cluster, kinds, next_id }
    }

    /// Breaks things until the world's clock says so.
    pub async fn run(mut self, until: Duration, every_ms: u64) {
        let world = world();
        while world.now() < until {
            tokio::time::sleep(world.ms(1, every_ms)).await;
            if let Some(kind) = world.pick(&self.kinds) {
                self.cause(kind);
            }
        }
    }

    fn any(&self) -> Option<NodeId> {
        let world = world();
        match self.cluster.leader() {
            Some(leader) if world.one_in(3) => Some(leader),
            _ => world.pick(&self.cluster.running()),
        }
    }

    fn cause(&mut self, kind: Fault) {
        let (world, cluster) = (world(), self.cluster.clone());
        let Some(id) = self.any() else { return };
        world.note(id, format_args!("fault {kind:?}"));
        match kind {
            Fault::Partition => self.partition(id),
            Fault::Deaf => {
                let to = world.pick(&cluster.ids()).unwrap_or(id);
                cluster.net.cut([(id, to)]);
            }
            Fault::HealNet => {
                cluster.net.heal();
                cluster.net.set_weather(Weather::FAIR);
            }
            Fault::BadWeather => cluster.net.set_weather(Weather {
                delay_ms: (0, world.between(1, 60)),
                lost_one_in: world.between(0, 3) * 15,
                repeated_one_in: world.between(0, 3) * 4,
                late_one_in: world.between(0, 3) * 10,
            }),
            Fault::KillProcess => cluster.crash(id, Loss::Process, world.ms(50, 5000)),
            Fault::PowerLoss => cluster.crash(id, Loss::Power, world.ms(50, 15_000)),
            Fault::PowerLossEverywhere => {
                for id in cluster.running() {
                    cluster.crash(id, Loss::Power, world.ms(50, 3000));
                }
            }
            Fault::Pause => self.pause(id),
            Fault::SlowDisk => self.mood(id, |mood| mood.slow_ms = world.between(5, 400)),
            Fault::StalledDisk => {
                let until = world.now() + world.ms(100, 10_000);
                self.mood(id, |mood| mood.stalled_until = until);
            }
            Fault::FailingDisk => self.mood(id, |mood| mood.fails = true),
            Fault::FullDisk => self.mood(id, |mood| mood.free_bytes = 0),
            Fault::WallClock => {
                if let Some(station) = cluster.station(id) {
                    station.host.jump_wall(world.between(0, 7_200_000) as i64 - 3_600_000);
                }
            }
            Fault::Transfer => self.transfer(id),
            Fault::Compact => self.compact(id),
            Fault::AddReplica => self.add(id),
            Fault::RemoveReplica => self.remove(id),
        }
    }

    fn partition(&self, id: NodeId) {
        let world = world();
        let ids = self.cluster.ids();
        let inside: Vec<NodeId> = match world.one_in(2) {
            true => vec![id],
            false => ids.iter().copied().filter(|_| world.one_in(2)).collect(),
        };
        let across = |a: &NodeId, b: &NodeId| inside.contains(a) != inside.contains(b);
        let ways = ids.iter().flat_map(|a| ids.iter().map(move |b| (*a, *b)));
        self.cluster.net.cut(ways.filter(|(a, b)| across(a, b)));
    }

    fn pause(&self, id: NodeId) {
        let Some(station) = self.cluster.station(id) else { return };
        station.host.pause();
        let lasts = world().ms(50, 20_000);
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            station.host.go_on();
        });
    }

    /// Changes how a disk behaves, and changes it back later.
    fn mood(&self, id: NodeId, change: impl FnOnce(&mut Mood)) {
        let Some(disk) = self.cluster.disk(id) else { return };
        let mut mood = disk.mood();
        change(&mut mood);
        disk.set_mood(mood);
        if let Some(station) = self.cluster.station(id) {
            station.host.set_slow(mood.slow_ms);
        }
        let lasts = world().ms(100, 15_000);
        let cluster = self.cluster.clone();
        tokio::spawn(async move {
            tokio::time::sleep(lasts).await;
            disk.set_mood(Mood::default());
            if let Some(station) = cluster.station(id) {
                station.host.set_slow(2);
            }
        });
    }

    fn transfer(&self, id: NodeId) {
        let Some(station) = self.cluster.station(id) else { return };
        let to = Some(id).filter(|_| world().one_in(2));
        tokio::spawn(station.host.task(async move { station.store.transfer_leader(to).await }));
    }

    fn compact(&self, id: NodeId) {
        let Some(station) = self.cluster.station(id) else { return };
        let revision = station.store.revision().saturating_sub(world().between(0, 50));
        tokio::spawn(station.host.task(async move { station.store.compact(revision).await }));
    }

    fn add(&mut self, by: NodeId) {
        let (cluster, new) = (&self.cluster, self.next_id);
        if cluster.ids().len() >= MAX_MACHINES {
            return;
        }
        self.next_id += 1;
        cluster.add(new);
        ask_to_add(cluster, by, new);
    }

    /// Removes a replica, then the machine, once it is certain that it is no member.
    fn remove(&self, id: NodeId) {
        let cluster = self.cluster.clone();
        let Some(by) = cluster.any_station().filter(|_| cluster.ids().len() > 2) else { return };
        tokio::spawn(by.host.task(async move {
            if by.store.remove_replica(id).await.is_ok() {
                world().note(id, "is removed");
                tokio::spawn(async move { cluster.scrap(id) });
            }
        }));
    }
}

/// Has a machine become a replica, however long that takes.
pub(super) fn ask_to_add(cluster: &Arc<Cluster>, by: NodeId, new: NodeId) {
    let cluster = cluster.clone();
    tokio::spawn(async move {
        let mut by = by;
        while cluster.ids().contains(&new) {
            if let Some(station) = cluster.station(by) {
                let (tell, told) = tokio::sync::oneshot::channel();
                tokio::spawn(station.host.task(async move { tell.send(station.store.add_replica(new).await.is_ok()) }));
                if let Ok(true) = told.await {
                    return;
                }
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            by = world().pick(&cluster.running()).unwrap_or(by);
        }
    });
}
