//! The daemon from start to stop: enrol, open the store, join the others, serve, run pods.

use std::fs::File;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use flotilla_api::Registry;
use flotilla_control::Settings;
use flotilla_net::{Alpn, Blobs, ClientAuth, Net, Silence, Token};
use flotilla_raft::{NodeId, OpenError, RefillError, Store, Transport};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::{error, info, warn};

use crate::accounts::Accounts;
use crate::agent::{self, Local};
use crate::audit::{self, Audit};
use crate::blobs::{BlobPeers, ImageShelf};
use crate::config::Config;
use crate::data_dir::Refusal;
use crate::enrol::{self, Enrolment};
use crate::gate::{Gate, Sealer, User};
use crate::listen::Faces;
use crate::members::{self, Member};
use crate::metrics::Metrics;
use crate::node::Node;
use crate::peers::{RaftHandler, RaftTransport, StreamHandler};
use crate::rest::Rest;
use crate::slice::{self, ApiHandler, SliceHandler};
use crate::streams::Streams;
use crate::trust::{TokenWish, Trust};
use crate::turnstile::Turnstile;
use crate::{VERSION, addresses, data_dir, definitions, drain, footprint, grpc, lead, listen, secrets};

/// How long stopping may take before the daemon goes without finishing.
const STOP_TIMEOUT: Duration = Duration::from_secs(10);
/// Between two attempts to have a damaged replica taken out of the group.
const REFILL_RETRY: Duration = Duration::from_secs(1);
/// How long the store may take to find a leader before the daemon asks whether there is one.
const READY_NOTICE: Duration = Duration::from_secs(5);

/// Why a daemon stops that no signal stops.
const LEAVE: &str = "leave";
const FAILURE: &str = "failure";

/// Why a daemon has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    Stopped,
    /// The node has left its cluster: its daemon is not to be started again here.
    Left,
}

/// Runs the daemon until a signal stops it, or its node leaves.
///
/// # Errors
/// If it cannot start, with what to do about it.
pub async fn run(config: Config) -> anyhow::Result<Ended> {
    let config = Arc::new(config);
    prepare_directories(&config)?;
    let _lock = lock(&config.data_dir)?;
    data_dir::check(&config.data_dir)?;
    let token = config.token();
    let advertise = addresses::advertised(&config)?;
    let stop = CancellationToken::new();
    let started = tokio::select! {
        started = start(&config, token, &advertise, &stop) => started?,
        signal = stop_signal() => { info!(signal = signal?, "stopping before the start was complete"); return Ok(Ended::Stopped) }
    };
    _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
    let mut status = started.store.status();
    let reason = tokio::select! {
        signal = stop_signal() => signal?,
        () = stop.cancelled() => if data_dir::has_left(&config.data_dir) { LEAVE } else { FAILURE },
        // Raft never goes on after its storage failed; a new process reads what the disk really holds.
        failed = status.wait_for(|status| status.fatal.is_some()) => {
            let why = failed.ok().and_then(|status| status.fatal.clone()).unwrap_or_default();
            bail!("the store has stopped: {why}; containers go on running");
        }
    };
    info!(reason, "stopping; containers go on running");
    _ = sd_notify::notify(&[sd_notify::NotifyState::Stopping]);
    stop.cancel();
    if tokio::time::timeout(STOP_TIMEOUT, started.finish()).await.is_err() {
        warn!("not everything stopped in {} s", STOP_TIMEOUT.as_secs());
    }
    if reason == FAILURE {
        bail!("the daemon cannot go on, as its log says above; containers go on running");
    }
    Ok(if data_dir::has_left(&config.data_dir) { Ended::Left } else { Ended::Stopped })
}

/// A daemon that runs.
struct Started {
    node: Node,
    store: Store,
    tasks: TaskTracker,
}

impl Started {
    async fn finish(self) {
        // A leader that goes on purpose hands over first, so that nobody waits for an election.
        if self.store.status().borrow().is_leader
            && let Err(error) = self.store.transfer_leader(None).await
        {
            info!(error = &error as &dyn std::error::Error, "leadership is not handed over");
        }
        self.tasks.close();
        self.tasks.wait().await;
        self.store.shutdown().await;
        self.node.net.shutdown().await;
    }
}

async fn start(
    config: &Arc<Config>,
    token: anyhow::Result<Option<Token>>,
    advertise: &[SocketAddr],
    stop: &CancellationToken,
) -> anyhow::Result<Started> {
    let cluster_cidr = parse_cidr(&config.cluster_cidr)?;
    // Whoever cannot listen is no node, and asks nobody to become one.
    let port = listen::reserve(config.listen)?;
    let socket = listen::reserve_unix(&config.socket())?;
    let enrolment = enrol::enrol(config, token, advertise).await?;
    let Enrolment { identity, seal_key, seed, seed_revision, records, founding, restored, has_store } = enrolment;
    let key = Some(identity.key().fingerprint());
    let own = Member { id: identity.id(), name: identity.name().to_owned(), key };
    info!(node = own.name, id = own.id, cluster = %identity.cluster(), version = VERSION, "starting");

    let net = Net::start(flotilla_net::Options {
        advertise: advertise.to_vec(),
        beat_period: Duration::from_millis(config.beat_ms),
        silence: Silence {
            suspect_after: Duration::from_millis(config.suspect_ms),
            dead_after: Duration::from_millis(config.dead_ms),
            ..Silence::default()
        },
        discovery: config.discovery,
        ..flotilla_net::Options::new(identity.clone(), config.listen, enrol::directory(config))
    })
    .await
    .with_context(|| format!("cannot listen on UDP {}", config.listen))?;
    for record in records {
        if let Err(error) = net.learn(record) {
            warn!(error = &error as &dyn std::error::Error, "an address is not used");
        }
    }
    net.set_members(seed.iter().chain([&own]));

    let options =
        flotilla_raft::Options::new(config.data_dir.join(data_dir::STORE), own.id, identity.cluster().to_string());
    let options = flotilla_raft::Options {
        replace_dead_after: Duration::from_secs(config.replace_dead_seconds),
        max_replicas: config.max_replicas,
        ..options
    };
    if has_store && flotilla_raft::is_gone(&options.dir) {
        return Err(lost(&options.dir).into());
    }
    let store = open_store(options, &net, &own).await?;
    if !has_store {
        enrol::stored(config)?;
    }
    net.register(Alpn::Raft, Arc::new(RaftHandler { store: store.clone() }));

    let tasks = TaskTracker::new();
    let known = members::Known { members: seed, revision: seed_revision, directory: enrol::directory(config) };
    let (members, keeper) = members::members(store.clone(), net.clone(), own.clone(), known, config.max_replicas);
    spawn(&tasks, "members", keeper.run(stop.clone()));
    let (feeds, feeding) = slice::feed(store.clone(), stop.clone());
    spawn(&tasks, "slices", feeding);
    let handler = SliceHandler { store: store.clone(), members: members.clone(), feeds, streams: Default::default() };
    net.register(Alpn::Slice, Arc::new(handler));
    spawn(&tasks, "slice", slice::follow(store.clone(), net.clone(), seed_revision, stop.clone()));

    let gate = Gate::new(store.clone(), Arc::new(Registry::builtin()), Sealer::new(seal_key.clone()));
    let (roles, stopped) = (gate.clone(), stop.clone());
    spawn(&tasks, "roles", async move { roles.follow_roles(stopped).await });
    let lifetime = config.certificate_lifetime();
    let trust = Arc::new(Trust::new(gate.clone(), net.clone(), members.clone(), seal_key, lifetime));
    net.admit_with(trust.clone());
    net.renew_with(trust.clone());
    let founder = founding.is_some();
    if let Some(sealed) = founding {
        store.bootstrap().await.context("the store cannot be founded")?;
        trust.found(&sealed, &identity, advertise, &config.labels).await?;
        enrol::founded(config)?;
    }
    let accounts = Accounts::new(gate.clone());
    let local = Arc::new(Local::open(config, accounts.clone(), gate.clone(), &own.name, net.clone()).await?);
    if let Standing::Gone = wait_for_leader(&store, &net, &config.data_dir).await? {
        // It died before it heard so. What runs here was made anew elsewhere.
        local.clear().await?;
        enrol::leave(config, &own.name, identity.cluster()).context("it cannot be kept that this node has left")?;
        data_dir::check(&config.data_dir)?;
    }
    if !secrets::can_be_read(&gate)? {
        return Err(enrol::strange_seal_key(config).into());
    }
    if restored {
        trust.resettle(&identity, advertise, &config.labels).await?;
        enrol::founded(config)?;
    }

    net.register(Alpn::Stream, Arc::new(StreamHandler { local: local.clone() }));
    let blobs = config.layers_from_peers.then(|| share_layers(&net, &members, &local, &tasks, stop));
    let streams = Streams::new(net.clone(), members.clone(), (*local).clone(), tasks.clone());
    let audit = open_audit(config, &tasks, stop)?;
    let metrics = Arc::new(Metrics::new(&gate)?);
    let node = Node {
        config: config.clone(),
        accounts: accounts.clone(),
        gate,
        turnstile: Turnstile::default(),
        audit,
        metrics,
        net: net.clone(),
        members: members.clone(),
        streams,
        local: local.clone(),
        trust: trust.clone(),
        blobs,
        tasks: tasks.clone(),
        is_leaving: Arc::default(),
        stop: stop.clone(),
    };

    let settings = Settings { cluster_cidr, node_cidr_prefix: node_prefix(cluster_cidr.1), ..Settings::default() };
    let leading = lead::run(node.gate.clone(), members, trust.clone(), settings, config.history(), stop.clone());
    spawn(&tasks, "lead", leading);
    spawn(&tasks, "definitions", definitions::follow(node.gate.clone(), stop.clone()));
    spawn(&tasks, "agent", agent::run(node.clone()));
    let (deleted, stopped) = (drain::end_when_deleted(node.clone()), stop.clone());
    spawn(&tasks, "deletion", async move { stopped.run_until_cancelled(deleted).await.unwrap_or_default() });
    spawn(&tasks, "addresses", addresses::follow(config.clone(), net.clone(), stop.clone()));

    trust.tell_revoked_users();
    let follower = trust.clone();
    let stopped = stop.clone();
    spawn(&tasks, "authorities", async move { follower.follow(stopped).await });

    let faces = Faces { grpc: grpc::routes(&node).await?, rest: Rest::new(&node) };
    net.register(Alpn::Api, Arc::new(ApiHandler { faces: faces.clone(), node: node.clone() }));
    let tls = flotilla_net::server_tls(net.credentials(), &["h2", "http/1.1"], ClientAuth::Optional)?;
    let listener = listen::open(port).with_context(|| format!("cannot listen on TCP {}", config.listen))?;
    let unix = listen::serve_unix(socket, faces.clone(), stop.clone());
    spawn(&tasks, "unix", report("the Unix socket", stop.clone(), unix));
    let tcp = listen::serve_tcp(listener, tls, net.clone(), faces, stop.clone());
    spawn(&tasks, "tcp", report("the API port", stop.clone(), tcp));
    spawn(&tasks, "footprint", footprint::settle(stop.clone()));
    info!(socket = %config.socket().display(), api = %config.listen, "ready");
    if founder {
        invite(&node).await;
    }
    Ok(Started { node, store, tasks })
}

/// Opens this node's replica. A damaged one may have forgotten what it promised, so it must not vote again: it is made
/// anew from the others.
async fn open_store(options: flotilla_raft::Options, net: &Net, own: &Member) -> anyhow::Result<Store> {
    let transport: Arc<dyn Transport> = Arc::new(RaftTransport::new(net.clone()));
    // The members are in the replica; what is left of them is whose addresses were kept.
    let known: Vec<Member> = net.peers().iter().map(|peer| Member::known(peer.id(), peer.name())).collect();
    let damage = match Store::open(options.clone(), transport.clone()).await {
        Err(OpenError::Disk(damage)) if damage.is_damage() => damage,
        Ok(store) if store.is_behind() => {
            net.set_members(known.iter().chain([own]));
            return Ok(store);
        }
        opened => return opened.context("the store cannot be opened"),
    };
    let others: Vec<NodeId> = known.iter().map(|member| member.id).filter(|id| *id != own.id).collect();
    if others.is_empty() {
        let why = "this node's replica is damaged and is not used, and no other node is known; containers go on running. \
                   Restore a backup";
        return Err(damage).context(Refusal(why.into()));
    }
    error!(
        error = &damage as &dyn std::error::Error,
        "this node's replica is damaged; it is made anew from the others"
    );
    net.set_members(known.iter().chain([own]));
    let mut told = false;
    while let Err(error) = flotilla_raft::refill(&options, &others, &transport).await {
        if let RefillError::Superseded(epoch) = error {
            return Err(left_behind(&format!("has a damaged replica that is not of its epoch {epoch}")).into());
        }
        if !std::mem::replace(&mut told, true) {
            warn!(error = &error as &dyn std::error::Error, "waiting for a leader that lets go of the damaged replica");
        }
        tokio::time::sleep(REFILL_RETRY).await;
    }
    info!("the damaged replica is removed; the leader gives this node another");
    Store::open(options, transport).await.context("the store cannot be opened")
}

/// What a node is told whose replica is not of the cluster's epoch any more.
fn left_behind(how: &str) -> Refusal {
    Refusal(format!(
        "the cluster has gone on without this node, which {how}; to join anew, make a token on a node of the cluster, \
         delete this Node there, remove the data directory here, and run 'flotilla up --join TOKEN'; containers go on running"
    ))
}

/// What a node is told that had a replica and finds nothing in its place. It is still counted on for what that promised.
fn lost(store: &Path) -> Refusal {
    let (place, data_dir) = (store.display(), store.parent().unwrap_or(store).display());
    Refusal(format!(
        "this node had its replica in {place}, and nothing is there: if that is on a disk of its own, mount it. If it is lost, \
         delete this Node on another node, remove {data_dir} and run 'flotilla up --join TOKEN'; if this is the only node, \
         remove {data_dir} and restore a backup; containers go on running"
    ))
}

/// Opens the audit log, if one is configured.
fn open_audit(config: &Config, tasks: &TaskTracker, stop: &CancellationToken) -> anyhow::Result<Audit> {
    let Some(path) = config.audit_log.clone() else { return Ok(Audit::default()) };
    let options = audit::Options {
        path,
        policy: config.audit_policy.clone(),
        max_bytes: config.audit_log_max_bytes,
        max_files: config.audit_log_max_files,
    };
    let (audit, writer) = audit::open(&options)?;
    spawn(tasks, "audit", writer.run(stop.clone()));
    Ok(audit)
}

/// Gives image layers to other nodes, and asks them before the registry.
fn share_layers(
    net: &Net,
    members: &members::Members,
    local: &Local,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> BlobPeers {
    let blobs = Blobs::serve(net.clone(), Arc::new(ImageShelf(local.images().clone())));
    let peers = BlobPeers::new(blobs.clone(), members.clone());
    local.images().ask_peers(Arc::new(peers.clone()));
    let stop = stop.clone();
    let announce = async move { stop.run_until_cancelled(blobs.announce()).await.unwrap_or_default() };
    spawn(tasks, "layers", announce);
    peers
}

/// Tells who founded a cluster how further machines join it. A journal keeps what it is told, so under systemd the
/// token is left to be asked for.
async fn invite(node: &Node) {
    println!("This machine is the first node of a new cluster.");
    let token = match std::env::var_os("INVOCATION_ID") {
        Some(_) => None,
        None => node.trust.create_token(&User::root(), &TokenWish::default()).await.ok(),
    };
    match token {
        Some((token, _)) => println!("To add a machine, run there within a day:\n\n  flotilla up --join {token}\n"),
        None => println!("To add a machine, run 'flotilla token create' here and the command that it prints there."),
    }
}

/// Spawns a part of the daemon under its name; the tracker waits for it at shutdown.
fn spawn(tasks: &TaskTracker, name: &'static str, task: impl Future<Output = ()> + Send + 'static) {
    use tracing::Instrument;
    tasks.spawn(task.instrument(tracing::info_span!("part", name)));
}

/// A face that fails takes the daemon down: a daemon that nobody can reach helps nobody.
async fn report(what: &'static str, stop: CancellationToken, face: impl Future<Output = anyhow::Result<()>>) {
    if let Err(error) = face.await {
        error!(error = format!("{error:#}"), "{what} failed");
        stop.cancel();
    }
}

/// What a machine with the identity of a node finds that it is.
enum Standing {
    Member,
    /// The others have taken it out, as it had asked them to.
    Gone,
}

/// Waits until somebody leads. A leader that was restarted believes that it still does until a quorum says so.
async fn wait_for_leader(store: &Store, net: &Net, data_dir: &Path) -> anyhow::Result<Standing> {
    let mut status = store.status();
    loop {
        let ready = status.wait_for(|status| status.leader.is_some());
        // Who has no replica is led by nobody; another replica feeds it instead.
        let fed = store.until_fed(true);
        _ = tokio::time::timeout(READY_NOTICE, async {
            tokio::select! { _ = ready => {} () = fed => {} }
        })
        .await;
        let confirmed = store.barrier().await.is_ok();
        let now = status.borrow().clone();
        // By a quorum, or through a slice, of its own epoch: a majority that was thought lost goes on.
        if confirmed {
            return Ok(Standing::Member);
        }
        if let Some(epoch) = now.superseded_by {
            return Err(left_behind(&format!("belongs to its epoch {} and not to {epoch}", now.epoch)).into());
        }
        let let_in = members::is_let_in(net).await;
        if !let_in && data_dir::is_leaving(data_dir) && drain::is_taken_out(net).await {
            return Ok(Standing::Gone);
        }
        if !let_in {
            warn!(
                "the other nodes do not know this machine as a member: if its Node was deleted, remove the data directory and \
                 run 'flotilla up --join TOKEN'"
            );
        }
        // Whoever led when this node stopped counts until it is known better.
        if let_in && now.leader.is_some_and(|leader| leader != now.id) {
            return Ok(Standing::Member);
        }
        if let_in {
            info!("waiting for a quorum of the cluster's voters");
        }
    }
}

/// Makes the daemon's directories.
///
/// # Errors
/// If we are not root, or they cannot be made.
pub fn prepare_directories(config: &Config) -> anyhow::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    if !nix::unistd::geteuid().is_root() {
        bail!("the daemon must run as root: it makes network namespaces, mounts and cgroups");
    }
    for dir in [&config.data_dir, &config.run_dir] {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .with_context(|| format!("cannot make {}", dir.display()))?;
    }
    Ok(())
}

/// One daemon a data directory.
///
/// # Errors
/// If one has it.
pub fn lock(data_dir: &Path) -> anyhow::Result<Flock<File>> {
    let path = data_dir.join("lock");
    let file = File::create(&path).with_context(|| format!("cannot make {}", path.display()))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, _)| {
        anyhow::anyhow!("another daemon uses {}; stop it, or choose another --data-dir", data_dir.display())
    })
}

fn parse_cidr(text: &str) -> anyhow::Result<(std::net::Ipv4Addr, u8)> {
    let parsed = text.split_once('/').and_then(|(ip, prefix)| Some((ip.parse().ok()?, prefix.parse().ok()?)));
    match parsed.filter(|(_, prefix)| (8..=24).contains(prefix)) {
        Some((ip, prefix)) if is_network(ip, prefix) => Ok((ip, prefix)),
        Some((ip, prefix)) if ip.to_bits() & (u32::MAX >> prefix) != 0 => {
            let network = std::net::Ipv4Addr::from_bits(ip.to_bits() & !(u32::MAX >> prefix));
            bail!("cluster_cidr: {text:?} must be a whole network: did you mean {network}/{prefix}?")
        }
        _ => bail!(
            "cluster_cidr: {text:?} must be an IPv4 network of /8 to /24 that pods can have, such as 10.244.0.0/16"
        ),
    }
}

/// Whether pods can have its addresses.
fn is_network(ip: std::net::Ipv4Addr, prefix: u8) -> bool {
    ip.to_bits() & (u32::MAX >> prefix) == 0
        && !(ip.is_loopback() || ip.is_multicast() || ip.octets()[0] == 0 || ip.octets()[0] >= 240)
}

/// How much of the cluster's pod addresses one node gets: enough for a thousand pods out of a /16, and for sixteen
/// nodes out of the smallest.
fn node_prefix(cluster_prefix: u8) -> u8 {
    if cluster_prefix <= 18 { cluster_prefix + 6 } else { cluster_prefix + 4 }
}

async fn stop_signal() -> anyhow::Result<&'static str> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    })
}

/// Starts the log: people's form or JSON lines, on standard error.
///
/// # Errors
/// If the filter cannot be parsed.
pub fn start_logging(config: &Config) -> anyhow::Result<()> {
    use tracing_subscriber::EnvFilter;
    // What Raft and multicast DNS say to themselves is for those who ask for it by name: without a quorum, Raft warns ten
    // times a second.
    let filter = EnvFilter::try_new(format!("openraft=error,libp2p_mdns=warn,{}", config.log))
        .with_context(|| format!("log: {:?} is not a filter", config.log))?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match config.log_format {
        crate::config::LogFormat::Json => builder.json().init(),
        crate::config::LogFormat::Human => {
            builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).with_target(false).init();
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_get_a_whole_network_of_their_own() {
        assert_eq!(parse_cidr("10.244.0.0/16").unwrap(), ([10, 244, 0, 0].into(), 16));
        for bad in ["10.244.0.0", "10.0.0.0/7", "10.0.0.0/25", "127.0.0.0/8", "224.0.0.0/8", "0.0.0.0/8", "fd00::/16"] {
            assert!(parse_cidr(bad).unwrap_err().to_string().contains("must be an IPv4 network"), "{bad}");
        }
        let error = parse_cidr("10.244.1.2/16").unwrap_err().to_string();
        assert!(error.ends_with("did you mean 10.244.0.0/16?"), "{error}");
    }
}
