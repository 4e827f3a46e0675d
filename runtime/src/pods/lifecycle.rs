//! Making, adopting, stopping and removing sandboxes and containers.
//!
//! Invariant: every step of a removal may be repeated, and treats what is gone already as done.

use std::ffi::OsString;
use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use serde::de::DeserializeOwned;
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::sandbox::{Places, Record, Sandbox, View};
use super::spec::{STOP_SLACK, is_name, signal_number};
use super::wire::Wire;
use super::{
    Config, ContainerSpec, Inner, MAX_CHANGES, Mount, MountKind, Pods, PodsError, SandboxSpec, Seccomp, files, places,
};
use crate::cgroup::{self, Cgroup, Limits};
use crate::engine::capabilities::Held;
use crate::engine::spec::{Surroundings, config as oci_config};
use crate::network::{Forward, Network, POD_INTERFACE};
use crate::shim::disk;
use crate::shim::last_words::Place;
use crate::shim::protocol::{Create, Launch, Link, Request};
use crate::state::{SandboxState, container_key, wall_ms};

const MAX_ID_BYTES: usize = 64;
const MAX_NAME_BYTES: usize = 100;
const MAX_SOCKET_PATH_BYTES: usize = 100;
/// The control group of what holds a pod's process namespace, and how many processes that may become.
const PAUSE: &str = "pause";
const PAUSE_PIDS: i64 = 16;
/// In a container's bundle.
const LAST_WORDS: &str = "termination-log";
const MAX_FILE_BYTES: u64 = 4 * 1024 * 1024;
const LAUNCH_TIMEOUT: Duration = Duration::from_secs(20);
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(20);
const CGROUP_TIMEOUT: Duration = Duration::from_secs(10);
/// Sandboxes looked at at a time when opening.
const OPEN_AT_ONCE: usize = 16;

pub async fn open(config: Config) -> Result<Pods, PodsError> {
    for dir in [&config.root, &config.run] {
        fs::create_dir_all(dir).map_err(|source| PodsError::io(dir, source))?;
    }
    cgroup::check()?;
    Cgroup::new(&config.cgroup_parent)?.create(&Limits::default())?;
    let records = records(&config)?;
    let network = match &config.network {
        Some(network) => Some(Network::open(network.clone(), records.iter().filter_map(forward).collect()).await?),
        None => None,
    };
    let inner = Inner {
        network,
        sandboxes: Default::default(),
        busy: Default::default(),
        changes: broadcast::Sender::new(MAX_CHANGES),
        tasks: TaskTracker::new(),
        stop: CancellationToken::new(),
        config,
    };
    futures::stream::iter(records).for_each_concurrent(OPEN_AT_ONCE, |record| find(&inner, record)).await;
    Ok(Pods { inner: Arc::new(inner) })
}

fn records(config: &Config) -> Result<Vec<Record>, PodsError> {
    let entries = fs::read_dir(&config.root).map_err(|source| PodsError::io(&config.root, source))?;
    let mut records = Vec::new();
    for entry in entries.flatten() {
        let id = entry.file_name().to_string_lossy().into_owned();
        let path = places(config, &id).record();
        match read_json::<Record>(&path) {
            Ok(record) if record.spec.id == id => records.push(record),
            Ok(record) => tracing::warn!(path = %path.display(), id = record.spec.id, "a record of another sandbox"),
            Err(error) => tracing::warn!(path = %path.display(), %error, "not a sandbox's record"),
        }
    }
    Ok(records)
}

fn forward(record: &Record) -> Option<Forward> {
    let ip = record.ip?;
    Some(Forward { sandbox: record.spec.id.clone(), ip, ports: record.spec.ports.clone() })
}

/// Adopts a sandbox whose shim lives, or buries one whose shim is dead.
async fn find(inner: &Inner, record: Record) {
    let places = inner.places(&record.spec.id);
    match Wire::open(&places.socket(), true).await {
        // The daemon died before the pod had its network: its containers were never told of an address.
        Ok((_, state)) if record.ip.is_some() && !state.linked => {
            tracing::info!(sandbox = record.spec.id, "it was never finished");
            let (sandbox, _) = Sandbox::new(record, places, View { ready: false, state });
            sandbox.bury().await;
            inner.adopt(sandbox, None);
        }
        Ok((wire, state)) => {
            let (sandbox, tether) = Sandbox::new(record, places, View { ready: true, state });
            inner.adopt(sandbox, Some((tether, wire)));
        }
        Err(error) => {
            tracing::info!(sandbox = record.spec.id, %error, "its shim is gone");
            let (sandbox, _) = Sandbox::new(record, places, View::default());
            sandbox.bury().await;
            inner.adopt(sandbox, None);
        }
    }
}

impl Pods {
    /// Makes a sandbox, or leaves nothing of it. Goes on to either end even when the caller stops waiting.
    pub async fn create_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, PodsError> {
        validate(&self.inner.config, &spec)?;
        let pods = self.clone();
        let making = self.inner.tasks.spawn(async move { pods.make_sandbox(spec).await });
        making.await.unwrap_or_else(|error| Err(PodsError::Shim(error.to_string())))
    }

    async fn make_sandbox(&self, spec: SandboxSpec) -> Result<SandboxState, PodsError> {
        let exists = || PodsError::Exists(spec.id.clone());
        let _claim = self.inner.claim(&spec.id).ok_or_else(exists)?;
        // Another sandbox of the same pod would share its control group, and go down with it.
        if self.list().iter().any(|other| other.id == spec.id || other.uid == spec.uid) {
            return Err(exists());
        }
        let ip = match (spec.host_network, &self.inner.network) {
            (true, _) => None,
            (false, Some(network)) => Some(network.take_address()?),
            (false, None) => return Err(PodsError::Invalid("this node has no pod network".into())),
        };
        let cgroup = format!("{}/pod{}", self.inner.config.cgroup_parent, spec.uid);
        let record = Record { spec, ip, created_ms: wall_ms(), cgroup };
        match make(&self.inner, &record).await {
            Ok(sandbox) => Ok(sandbox.state()),
            Err(error) => {
                if let Err(left) = clean(&self.inner, &record).await {
                    tracing::warn!(sandbox = record.spec.id, %left, "a sandbox that failed is left to be removed");
                    let places = self.inner.places(&record.spec.id);
                    self.inner.adopt(Sandbox::new(record, places, View::default()).0, None);
                }
                Err(error)
            }
        }
    }

    /// Makes a container up to the point where it waits to be started. When the engine refuses, the container is in
    /// `list` as exited, with the engine's words.
    pub async fn create_container(&self, sandbox: &str, mut spec: ContainerSpec) -> Result<(), PodsError> {
        let sandbox = self.sandbox(sandbox)?;
        let key = container_key(&spec.name, spec.attempt);
        if !is_name(&spec.name, MAX_NAME_BYTES) {
            return Err(PodsError::Invalid(format!("{:?} is no name for a container", spec.name)));
        }
        let stop_signal = signal_number(&spec.stop_signal)
            .ok_or_else(|| PodsError::Invalid(format!("{:?} is no signal", spec.stop_signal)))?;
        let cgroup = format!("{}/{key}", sandbox.record.cgroup);
        let bundle = sandbox.places.bundle(&key);
        let last_words = last_words(&mut spec, &bundle);
        let config = oci_config(&spec, &surroundings(&sandbox, &spec, &cgroup)?)?;
        write_bundle(&bundle, &config)?;
        if let Some(file) = last_words.as_ref().and_then(|words| words.file.as_deref()) {
            files::make_for_all(file).map_err(|source| PodsError::io(file, source))?;
        }
        files::make_cwd(&spec.rootfs, &spec.cwd).map_err(|source| PodsError::io(&spec.rootfs, source))?;
        let create = Create {
            name: spec.name,
            attempt: spec.attempt,
            bundle,
            cgroup,
            log_path: spec.log_path,
            tty: spec.tty,
            stdin: spec.stdin,
            stdin_once: spec.stdin_once,
            oom_score_adj: spec.oom_score_adj,
            stop_signal,
            last_words,
        };
        sandbox.call(Request::Create(create), Vec::new()).await
    }

    pub async fn start_container(&self, sandbox: &str, container: &str) -> Result<(), PodsError> {
        self.sandbox(sandbox)?.call(Request::Start { key: container.into() }, Vec::new()).await
    }

    /// The stop signal now and SIGKILL after the grace; returns when the container has ended. One that has ended, or
    /// never was, is stopped already.
    pub async fn stop_container(&self, sandbox: &str, container: &str, grace: Duration) -> Result<(), PodsError> {
        let sandbox = self.sandbox(sandbox)?;
        let Some(state) = sandbox.container(container) else { return Ok(()) };
        if state.phase.exit().is_some() {
            return Ok(());
        }
        let grace_ms = u64::try_from(grace.as_millis()).unwrap_or(u64::MAX);
        sandbox.call(Request::Stop { key: container.into(), grace_ms }, Vec::new()).await?;
        let within = grace.saturating_add(STOP_SLACK);
        let ended = |view: &View| {
            view.state.containers.iter().find(|c| c.key() == container).is_none_or(|c| c.phase.exit().is_some())
        };
        if sandbox.wait_for(within, ended).await { Ok(()) } else { Err(PodsError::Timeout(within)) }
    }

    /// Forgets a container that has ended. Its log stays.
    pub async fn remove_container(&self, sandbox: &str, container: &str) -> Result<(), PodsError> {
        let sandbox = self.sandbox(sandbox)?;
        let Some(state) = sandbox.container(container) else { return Ok(()) };
        if state.phase.exit().is_none() {
            return Err(PodsError::Refused(format!("{container} has not ended")));
        }
        let ready = sandbox.view.borrow().ready;
        match ready {
            true => sandbox.call(Request::Remove { key: container.into() }, Vec::new()).await?,
            false => sandbox.strike(container),
        }
        remove_dir(&sandbox.places.bundle(container))
    }

    /// Ends every container: the stop signal now and SIGKILL after the grace, all at the same time.
    pub async fn stop_sandbox(&self, id: &str, grace: Duration) -> Result<(), PodsError> {
        let keys: Vec<String> = self.sandbox(id)?.state().containers.iter().map(|c| c.key()).collect();
        let stops = keys.iter().map(|key| self.stop_container(id, key, grace));
        futures::future::join_all(stops).await.into_iter().collect()
    }

    /// Kills what still runs, and removes all that belongs to the sandbox but the logs. One that is not there is
    /// removed already.
    pub async fn remove_sandbox(&self, id: &str) -> Result<(), PodsError> {
        let Ok(sandbox) = self.sandbox(id) else { return Ok(()) };
        let _claim =
            self.inner.claim(id).ok_or_else(|| PodsError::Refused(format!("{id} is being removed already")))?;
        let ready = sandbox.view.borrow().ready;
        if ready {
            // A shim that is gone or stuck is dealt with below.
            let _ = sandbox.call(Request::Shutdown, Vec::new()).await;
            if !sandbox.wait_for(SHUTDOWN_TIMEOUT, |view| !view.ready).await {
                sandbox.bury().await;
            }
        }
        clean(&self.inner, &sandbox.record).await?;
        self.inner.sandboxes.write().unwrap_or_else(PoisonError::into_inner).remove(id);
        let _ = self.inner.changes.send(id.to_owned());
        Ok(())
    }
}

impl Sandbox {
    /// Forgets a container of a shim that is dead.
    fn strike(&self, key: &str) {
        self.view.send_modify(|view| view.state.containers.retain(|c| c.key() != key));
        let state = self.view.borrow().state.clone();
        if let Err(error) = disk::save(&self.places.state, &state, false) {
            tracing::warn!(%error, "cannot record a removal");
        }
    }
}

async fn make(inner: &Inner, record: &Record) -> Result<Arc<Sandbox>, PodsError> {
    let places = inner.places(&record.spec.id);
    let io = |path: &Path, source| PodsError::io(path, source);
    for dir in [&places.state, &places.run] {
        fs::create_dir_all(dir).map_err(|source| io(dir, source))?;
    }
    let path = places.record();
    let bytes = serde_json::to_vec_pretty(record).map_err(|error| io(&path, error.into()))?;
    disk::replace(&path, &bytes, false).map_err(|source| io(&path, source))?;
    Cgroup::new(&record.cgroup)?.create(&record.spec.limits)?;
    files::write(&places, &record.spec, record.ip).map_err(|source| io(&places.state, source))?;
    if !record.spec.host_ipc {
        files::mount_shm(&places.shm()).map_err(|source| io(&places.shm(), source))?;
    }
    launch(inner, record, &places).await?;
    let (mut wire, mut state) = Wire::open(&places.socket(), true).await?;
    if let Some(pause) = state.pause {
        confine(pause, &record.cgroup)?;
    }
    if let (Some(ip), Some(network)) = (record.ip, &inner.network) {
        network.connect(&record.spec.id, state.pid).await?;
        wire.call(Request::Link(link(network, ip)), Vec::new()).await?;
        state.linked = true;
        network.forward(Forward { sandbox: record.spec.id.clone(), ip, ports: record.spec.ports.clone() }).await?;
    }
    let (sandbox, tether) = Sandbox::new(record.clone(), places, View { ready: true, state });
    Ok(inner.adopt(sandbox, Some((tether, wire))))
}

/// Counts the process that holds a pod's process namespace with the pod, whose containers can reach it.
fn confine(pause: i32, pod: &str) -> Result<(), PodsError> {
    let group = Cgroup::new(pod)?.child(PAUSE)?;
    group.create(&Limits { pids: Some(PAUSE_PIDS), ..Limits::default() })?;
    group.take(pause)?;
    let path = format!("/proc/{pause}/oom_score_adj");
    fs::write(&path, "0").map_err(|source| PodsError::io(Path::new(&path), source))
}

fn link(network: &Network, address: std::net::Ipv4Addr) -> Link {
    let config = network.config();
    Link {
        interface: POD_INTERFACE.into(),
        address,
        prefix_len: config.pod_cidr.prefix_len(),
        gateway: network.gateway(),
        mtu: config.mtu,
    }
}

async fn launch(inner: &Inner, record: &Record, places: &Places) -> Result<(), PodsError> {
    let spec = &record.spec;
    let mut sysctls = spec.sysctls.clone();
    if !spec.host_network {
        // As containerd and Docker have it: low ports and ping without privileges, since the network is the pod's own.
        sysctls.entry("net.ipv4.ip_unprivileged_port_start".into()).or_insert("0".into());
        sysctls.entry("net.ipv4.ping_group_range".into()).or_insert("0 2147483647".into());
    }
    let launch = Launch {
        sandbox: spec.id.clone(),
        state_dir: places.state.clone(),
        run_dir: places.run.clone(),
        hostname: spec.hostname.clone(),
        host_network: spec.host_network,
        host_ipc: spec.host_ipc,
        share_pid: spec.share_pid,
        engine: inner.config.engine.clone(),
        log_max_bytes: inner.config.log.max_bytes,
        log_max_files: inner.config.log.max_files,
        sysctls,
    };
    let path = places.run.join(crate::shim::LAUNCH);
    let bytes = serde_json::to_vec_pretty(&launch).map_err(|error| PodsError::io(&path, error.into()))?;
    fs::write(&path, bytes).map_err(|source| PodsError::io(&path, source))?;
    let Some((program, args)) = inner.config.shim.split_first() else {
        return Err(PodsError::Invalid("no shim command is configured".into()));
    };
    let started = tokio::process::Command::new(program)
        .args(args)
        .arg(&path)
        .env_clear()
        .env("PATH", std::env::var_os("PATH").unwrap_or_else(|| OsString::from("/usr/sbin:/usr/bin:/sbin:/bin")))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(LAUNCH_TIMEOUT, started).await.map_err(|_| PodsError::Timeout(LAUNCH_TIMEOUT))?;
    let output = output.map_err(|source| PodsError::io(Path::new(program), source))?;
    if output.status.success() {
        return Ok(());
    }
    Err(PodsError::Shim(String::from_utf8_lossy(&output.stderr).trim().to_owned()))
}

/// Removes all that a sandbox may have left, its record last.
async fn clean(inner: &Inner, record: &Record) -> Result<(), PodsError> {
    let id = &record.spec.id;
    let places = inner.places(id);
    let cgroup = Cgroup::new(&record.cgroup)?;
    let killing = tokio::task::spawn_blocking(move || {
        if let Some(state) = disk::load(&places.state) {
            super::sandbox::kill_shim(&state);
        }
        cgroup.kill_all(CGROUP_TIMEOUT);
        cgroup.remove(CGROUP_TIMEOUT)?;
        files::unmount_shm(&places.shm()).map_err(|source| PodsError::io(&places.shm(), source))?;
        remove_dir(&places.run)?;
        Ok::<_, PodsError>(places)
    });
    let places = killing.await.map_err(|error| PodsError::Shim(error.to_string()))??;
    if let (Some(ip), Some(network)) = (record.ip, &inner.network) {
        network.unforward(id).await?;
        network.disconnect(id).await?;
        remove_dir(&places.state)?;
        network.free_address(ip);
        return Ok(());
    }
    remove_dir(&places.state)
}

fn surroundings(sandbox: &Sandbox, spec: &ContainerSpec, cgroup: &str) -> Result<Surroundings, PodsError> {
    let view = sandbox.view.borrow();
    if !view.ready {
        return Err(PodsError::ShimGone);
    }
    let target = match &spec.pid_of {
        Some(key) => {
            let found =
                view.state.containers.iter().find(|container| container.key() == *key && container.is_running());
            let pid = found.and_then(|container| container.pid);
            Some(pid.ok_or_else(|| PodsError::Refused(format!("the target container {key} is not running")))?)
        }
        None => None,
    };
    let pid_of = view.state.pause.or(target);
    let profile = match &spec.seccomp {
        Seccomp::Path(path) => Some(read_json(path)?),
        _ => None,
    };
    Ok(Surroundings {
        shim_pid: view.state.pid,
        pid_of,
        host_network: sandbox.record.spec.host_network,
        host_ipc: sandbox.record.spec.host_ipc,
        hostname: sandbox.record.spec.hostname.clone(),
        cgroup_path: cgroup.into(),
        // On cgroup v1, libcontainer looks itself up in `/proc` by the process id that it has in its new namespace: that
        // is somebody else, or nobody, but where the namespace is new as well and the id therefore 1.
        shows_cgroups: pid_of.is_none() || cgroup::is_v2(),
        shm: if sandbox.record.spec.host_ipc { "/dev/shm".into() } else { sandbox.places.shm() },
        files: files::list(&sandbox.places),
        counts_swap: cgroup::counts_swap(),
        held: Held::now(),
        devices: if spec.privileged { super::devices::of_host() } else { Vec::new() },
        profile,
    })
}

/// Gives the container the file for its last words, among its mounts.
fn last_words(spec: &mut ContainerSpec, bundle: &Path) -> Option<Place> {
    let wanted = spec.last_words.take()?;
    let file = (!wanted.path.as_os_str().is_empty()).then(|| bundle.join(LAST_WORDS));
    spec.mounts.extend(file.clone().map(|source| Mount {
        destination: wanted.path,
        kind: MountKind::Bind { source },
        read_only: false,
    }));
    Some(Place { file, max_bytes: wanted.max_bytes, or_log: wanted.or_log })
}

fn write_bundle(bundle: &Path, config: &serde_json::Value) -> Result<(), PodsError> {
    fs::create_dir_all(bundle).map_err(|source| PodsError::io(bundle, source))?;
    let path = bundle.join("config.json");
    let bytes = serde_json::to_vec(config).map_err(|error| PodsError::io(&path, error.into()))?;
    fs::write(&path, bytes).map_err(|source| PodsError::io(&path, source))
}

/// Whether a sysctl belongs to a namespace that is the pod's own.
fn is_of_pod(sysctl: &str, spec: &SandboxSpec) -> bool {
    let ipc = ["kernel.shm", "kernel.msg", "fs.mqueue."];
    if sysctl == "kernel.sem" || ipc.iter().any(|prefix| sysctl.starts_with(prefix)) {
        return !spec.host_ipc;
    }
    sysctl.starts_with("net.") && !spec.host_network
}

fn validate(config: &Config, spec: &SandboxSpec) -> Result<(), PodsError> {
    let invalid = |reason: String| Err(PodsError::Invalid(reason));
    if let Some(name) = spec.sysctls.keys().find(|name| !is_of_pod(name, spec)) {
        return invalid(format!("forbidden sysctl: {name:?} is not the pod's own"));
    }
    for (field, text) in [("id", &spec.id), ("uid", &spec.uid)] {
        if !is_name(text, MAX_ID_BYTES) {
            return invalid(format!("{field}: {text:?} is not 1 to {MAX_ID_BYTES} letters, digits, '.', '_' or '-'"));
        }
    }
    if !is_name(&spec.hostname, 64) {
        return invalid(format!("hostname: {:?}", spec.hostname));
    }
    let socket = places(config, &spec.id).socket();
    if socket.as_os_str().len() > MAX_SOCKET_PATH_BYTES {
        return invalid(format!("{} is too long for a socket", socket.display()));
    }
    let one_line = |lines: &[String]| lines.iter().all(|line| !line.contains(['\n', '\0']));
    if !one_line(&spec.dns) || !one_line(&spec.host_aliases) {
        return invalid("dns and host aliases are one line each".into());
    }
    if spec.host_network && !spec.ports.is_empty() {
        return invalid("ports: a pod on the host's network needs none".into());
    }
    Ok(())
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T, PodsError> {
    use std::io::Read;
    let io = |source| PodsError::io(path, source);
    let mut bytes = Vec::new();
    fs::File::open(path).map_err(io)?.take(MAX_FILE_BYTES).read_to_end(&mut bytes).map_err(io)?;
    serde_json::from_slice(&bytes).map_err(|error| PodsError::io(path, error.into()))
}

fn remove_dir(path: &Path) -> Result<(), PodsError> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(PodsError::io(path, error)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pod_sets_its_own_sysctls_only() {
        let own = SandboxSpec::default();
        let shared = SandboxSpec { host_network: true, host_ipc: true, ..SandboxSpec::default() };
        for name in ["net.ipv4.tcp_syncookies", "kernel.shmmax", "kernel.sem", "fs.mqueue.msg_max"] {
            assert!(is_of_pod(name, &own) && !is_of_pod(name, &shared), "{name}");
        }
        for name in ["kernel.core_pattern", "vm.overcommit_memory", "kernel.hostname", "fs.file-max"] {
            assert!(!is_of_pod(name, &own), "{name}");
        }
    }
}
