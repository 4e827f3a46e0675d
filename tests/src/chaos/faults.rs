//! What can happen to machines, drawn at random, and how it is undone.

use std::collections::BTreeMap;
use std::io::Write;
use std::net::Ipv4Addr;
use std::process::Stdio;
use std::time::Duration;

use rand::Rng;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};

use crate::{Cluster, disk};

const HOLD_MS: std::ops::RangeInclusive<u64> = 200..=4_000;
/// Below the floor at which the cluster refuses to grow, and enough for what is under way.
const LEFT_BYTES: u64 = 64 << 20;

/// What happens to one node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Blow {
    /// SIGKILL for the daemon.
    Kill,
    /// SIGTERM for the daemon, as systemd restarts it.
    Restart,
    /// The machine loses power.
    Unplug,
    /// SIGSTOP for the daemon.
    Pause,
    /// The cable is pulled.
    Cut,
    /// The disk fills up.
    Fill,
}

const BLOWS: [Blow; 6] = [Blow::Kill, Blow::Restart, Blow::Unplug, Blow::Pause, Blow::Cut, Blow::Fill];

/// One thing that goes wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// A blow to each of some nodes.
    Blows(Vec<(String, Blow)>),
    /// These do not hear those; if `mutual`, those do not hear these either.
    Split { these: Vec<String>, those: Vec<String>, mutual: bool },
}

impl Fault {
    /// For counting.
    #[must_use]
    pub fn kinds(&self) -> Vec<String> {
        match self {
            Fault::Blows(blows) => blows.iter().map(|(_, blow)| format!("{blow:?}").to_lowercase()).collect(),
            Fault::Split { mutual: true, .. } => vec!["split".into()],
            Fault::Split { mutual: false, .. } => vec!["deaf".into()],
        }
    }
}

/// The next fault and how long it lasts. Every other one hits the leader.
pub fn draw(rng: &mut StdRng, nodes: &[String], leader: &str) -> (Fault, Duration) {
    let mut order: Vec<String> = nodes.to_vec();
    order.shuffle(rng);
    if rng.random_bool(0.5) {
        order.sort_by_key(|node| node != leader);
    }
    let minority = (nodes.len() - 1) / 2;
    let fault = match rng.random_range(0..10) {
        0..6 => blows(rng, &order[..rng.clone().random_range(1..=minority)]),
        6..8 => {
            let these = order[..rng.random_range(1..=minority)].to_vec();
            let those = order[these.len()..].to_vec();
            Fault::Split { these, those, mutual: rng.random_bool(0.7) }
        }
        // Nobody has a majority while this lasts.
        8 => {
            let blow = *[Blow::Kill, Blow::Unplug, Blow::Pause].choose(rng).expect("there are some");
            Fault::Blows(order[..=minority].iter().map(|node| (node.clone(), blow)).collect())
        }
        _ => Fault::Blows(order.iter().map(|node| (node.clone(), Blow::Kill)).collect()),
    };
    (fault, Duration::from_millis(rng.random_range(HOLD_MS)))
}

fn blows(rng: &mut StdRng, nodes: &[String]) -> Fault {
    Fault::Blows(nodes.iter().map(|node| (node.clone(), *BLOWS.choose(rng).expect("there are some"))).collect())
}

/// # Errors
/// If it cannot be brought about.
pub fn bring_about(cluster: &Cluster, fault: &Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Blows(blows) => blows.iter().try_for_each(|(node, blow)| strike(cluster, node, *blow)),
        Fault::Split { these, those, mutual } => {
            these.iter().try_for_each(|node| deafen(cluster, node, those))?;
            if *mutual {
                those.iter().try_for_each(|node| deafen(cluster, node, these))?;
            }
            Ok(())
        }
    }
}

fn strike(cluster: &Cluster, node: &str, blow: Blow) -> anyhow::Result<()> {
    match blow {
        Blow::Kill => cluster.dev.kill_daemon(node)?,
        Blow::Restart => cluster.dev.stop_daemon(node)?,
        Blow::Unplug => cluster.dev.pull_plug(node)?,
        Blow::Pause => cluster.dev.pause(node)?,
        Blow::Cut => cluster.dev.cut(node)?,
        Blow::Fill => disk::fill(&cluster.dev.places().data(node), LEFT_BYTES)?,
    }
    Ok(())
}

/// # Errors
/// If it cannot be undone.
pub fn undo(cluster: &mut Cluster, fault: &Fault) -> anyhow::Result<()> {
    match fault {
        Fault::Blows(blows) => blows.iter().try_for_each(|(node, blow)| mend(cluster, node, *blow)),
        Fault::Split { these, those, mutual } => {
            let deaf = these.iter().chain(those.iter().filter(|_| *mutual));
            deaf.into_iter().try_for_each(|node| nft(cluster, node, "delete table inet chaos\n"))
        }
    }
}

fn mend(cluster: &mut Cluster, node: &str, blow: Blow) -> anyhow::Result<()> {
    match blow {
        Blow::Kill | Blow::Restart | Blow::Unplug => _ = cluster.dev.start(node, None)?,
        Blow::Pause => cluster.dev.resume(node)?,
        Blow::Cut => cluster.dev.heal(node)?,
        Blow::Fill => disk::empty(&cluster.dev.places().data(node))?,
    }
    Ok(())
}

fn deafen(cluster: &Cluster, node: &str, to: &[String]) -> anyhow::Result<()> {
    let addresses: Result<Vec<Ipv4Addr>, _> = to.iter().map(|other| cluster.dev.address(other)).collect();
    let addresses: Vec<String> = addresses?.iter().map(ToString::to_string).collect();
    let rules = format!(
        "table inet chaos {{\nchain hear {{\ntype filter hook input priority -300;\nip saddr {{ {} }} drop\n}}\n}}\n",
        addresses.join(", ")
    );
    nft(cluster, node, &rules)
}

fn nft(cluster: &Cluster, node: &str, rules: &str) -> anyhow::Result<()> {
    let mut command = cluster.dev.space(node)?.command("nft")?;
    let mut child = command.args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    child.stdin.take().expect("is piped").write_all(rules.as_bytes())?;
    let status = child.wait()?;
    anyhow::ensure!(status.success(), "nft fails on {node}: {status}");
    Ok(())
}

/// How often each kind of fault came.
pub type Counts = BTreeMap<String, u64>;

#[cfg(test)]
mod tests {
    use rand::SeedableRng;

    use super::*;

    #[test]
    fn a_seed_draws_the_same_faults_and_all_kinds_come() {
        let nodes: Vec<String> = (1..=5).map(|number| format!("node-{number}")).collect();
        let draws = |seed| {
            let mut rng = StdRng::seed_from_u64(seed);
            (0..300).map(|_| draw(&mut rng, &nodes, "node-3")).collect::<Vec<_>>()
        };
        assert_eq!(draws(7), draws(7));
        let kinds: std::collections::BTreeSet<String> = draws(7).iter().flat_map(|(fault, _)| fault.kinds()).collect();
        assert_eq!(kinds.len(), BLOWS.len() + 2, "{kinds:?}");
    }
}
