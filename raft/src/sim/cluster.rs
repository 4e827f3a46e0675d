//! The machines of a simulated cluster: their disks, their replicas, and how they start, crash and come back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::oneshot;

use crate::disk::Disk;
use crate::options::Options;
use crate::status::Status;
use crate::store::Store;
use crate::types::NodeId;

use super::disk::{Loss, Mood, Mounted, SimDisk};
use super::net::{Net, Port, Station};
use super::world::{Host, world};

/// A machine, running or not.
struct Machine {
    disk: Arc<SimDisk>,
    station: Option<Station>,
    /// It starts again at this time of the world, if it is down.
    starts_at: Duration,
    /// How fast its clock runs, in millionths, and how far its wall clock is ahead.
    rate_ppm: u64,
    ahead_ms: i64,
}

pub(super) struct Cluster {
    pub net: Arc<Net>,
    machines: Mutex<BTreeMap<NodeId, Machine>>,
    tune: fn(&mut Options),
}

impl Cluster {
    pub fn new(tune: fn(&mut Options)) -> Arc<Self> {
        Arc::new(Self { net: Net::new(), machines: Mutex::default(), tune })
    }

    fn machines(&self) -> MutexGuard<'_, BTreeMap<NodeId, Machine>> {
        self.machines.lock().unwrap()
    }

    /// A new machine with an empty disk.
    pub fn add(&self, id: NodeId) {
        let world = world();
        let rate_ppm = world.between(950_000, 1_050_000);
        let ahead_ms = world.between(0, 120_000) as i64 - 60_000;
        let (disk, starts_at) = (Arc::default(), Duration::ZERO);
        self.machines().insert(id, Machine { disk, station: None, starts_at, rate_ppm, ahead_ms });
    }

    /// Takes a machine away for ever.
    pub fn scrap(&self, id: NodeId) {
        self.crash(id, Loss::Power, Duration::MAX);
        self.machines().remove(&id);
    }

    pub fn ids(&self) -> Vec<NodeId> {
        self.machines().keys().copied().collect()
    }

    pub fn station(&self, id: NodeId) -> Option<Station> {
        self.machines().get(&id)?.station.clone()
    }

    pub fn disk(&self, id: NodeId) -> Option<Arc<SimDisk>> {
        self.machines().get(&id).map(|machine| machine.disk.clone())
    }

    /// The machines that run, paused ones included.
    pub fn running(&self) -> Vec<NodeId> {
        self.machines().iter().filter(|(_, machine)| machine.station.is_some()).map(|(id, _)| *id).collect()
    }

    /// The machines that answer.
    pub fn alive(&self) -> BTreeSet<NodeId> {
        let on = |machine: &Machine| machine.station.as_ref().is_some_and(|station| station.host.is_on());
        self.machines().iter().filter(|(_, machine)| on(machine)).map(|(id, _)| *id).collect()
    }

    pub fn any_station(&self) -> Option<Station> {
        self.station(world().pick(&self.running())?)
    }

    pub fn status(&self, id: NodeId) -> Option<Status> {
        self.station(id).map(|station| station.store.status().borrow().clone())
    }

    /// Whoever leads in the latest term.
    pub fn leader(&self) -> Option<NodeId> {
        let statuses = self.running().into_iter().filter_map(|id| self.status(id));
        statuses.filter(|status| status.is_leader).max_by_key(|status| status.term).map(|status| status.id)
    }

    /// A machine stops at once, and starts again after a time.
    pub fn crash(&self, id: NodeId, loss: Loss, down_for: Duration) {
        let world = world();
        let mut machines = self.machines();
        let Some(machine) = machines.get_mut(&id) else { return };
        machine.starts_at = world.now().saturating_add(down_for);
        let Some(station) = machine.station.take() else { return };
        world.note(id, format_args!("crashes: {loss:?}"));
        self.net.leave(id);
        machine.ahead_ms = station.host.ahead_ms();
        station.host.crash();
        machine.disk.crash(loss, &world);
    }

    /// Starts what is due, and ends the processes whose replica has given up, as a daemon's do.
    pub async fn keep_up(self: &Arc<Self>) {
        let world = world();
        for id in self.ids() {
            if let Some(fatal) = self.status(id).and_then(|status| status.fatal) {
                world.note(id, format_args!("gives up: {fatal}"));
                self.crash(id, Loss::Process, world.ms(100, 2000));
            }
            let due = self.machines().get(&id).is_some_and(|m| m.station.is_none() && m.starts_at <= world.now());
            if due {
                self.start(id).await;
            }
        }
    }

    async fn start(self: &Arc<Self>, id: NodeId) {
        let world = world();
        let (disk, host) = {
            let machines = self.machines();
            let Some(machine) = machines.get(&id) else { return };
            (machine.disk.clone(), Host::start(id, machine.rate_ppm, machine.ahead_ms))
        };
        world.note(id, "starts");
        let mut options = Options::new("/replica", id, "sim");
        (self.tune)(&mut options);
        let medium = Mounted { disk, host: host.clone() };
        let port = Arc::new(Port { net: self.net.clone(), from: id });
        let (tell, told) = oneshot::channel();
        tokio::spawn(host.task(async move {
            let _ = tell.send(Store::open_on(Disk::new(Arc::new(medium)), options, port).await);
        }));
        let opened = tokio::time::timeout(Duration::from_secs(60), told).await;
        let mut machines = self.machines();
        let Some(machine) = machines.get_mut(&id) else { return host.crash() };
        match opened {
            Ok(Ok(Ok(store))) => {
                let station = Station { host, store };
                self.net.join(id, station.clone());
                machine.station = Some(station);
            }
            failed => {
                if let Ok(Ok(Err(error))) = failed
                    && !machine.disk.mood().fails
                {
                    world.violation(format_args!(
                        "node {id} cannot start: {error}: {:?}",
                        std::error::Error::source(&error)
                    ));
                }
                host.crash();
                machine.starts_at = world.now() + Duration::from_secs(1);
            }
        }
    }

    /// Ends every fault, and starts every machine.
    pub fn heal(&self) {
        self.net.heal();
        self.net.set_weather(super::net::Weather::FAIR);
        for machine in self.machines().values_mut() {
            machine.disk.set_mood(Mood::default());
            machine.starts_at = Duration::ZERO;
            if let Some(station) = &machine.station {
                station.host.set_slow(2);
                station.host.go_on();
            }
        }
    }

    /// Has every machine take the next step towards the wanted voters, as daemons do each second.
    pub fn reconcile(&self) {
        let alive = self.alive();
        for id in &alive {
            let (Some(station), alive) = (self.station(*id), alive.clone()) else { continue };
            tokio::spawn(station.host.task(async move {
                let _ = station.store.reconcile_membership(&alive).await;
            }));
        }
    }
}
