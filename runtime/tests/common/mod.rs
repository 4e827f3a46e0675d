//! One node's pods in a directory, a control group and a network namespace of their own.
#![allow(dead_code, reason = "each test program uses some of it")]

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use flotilla_runtime::Pods;
use flotilla_runtime::cgroup::Cgroup;
use flotilla_runtime::engine::EngineChoice;
use flotilla_runtime::network::NetworkConfig;
use flotilla_runtime::pods::{Config, ContainerSpec, LogOptions, SandboxSpec};
use flotilla_runtime::state::{ContainerState, Exit, Phase};

pub const PATIENCE: Duration = Duration::from_secs(60);

/// The example `shim`, which cargo builds beside the tests.
pub fn shim() -> PathBuf {
    let mut path = std::env::current_exe().unwrap();
    path.pop();
    path.pop();
    path.push("examples/shim");
    assert!(path.exists(), "{} is missing: run `cargo test`, which builds it", path.display());
    path
}

/// A node to run pods on, gone with all it ran when dropped.
pub struct Node {
    pub dir: tempfile::TempDir,
    pub config: Config,
    rootfs: AtomicU32,
}

impl Node {
    pub fn new() -> Self {
        Self::with(EngineChoice::Libcontainer)
    }

    pub fn with(engine: EngineChoice) -> Self {
        assert!(nix::unistd::geteuid().is_root(), "these tests make containers: run them as root");
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let dir = tempfile::tempdir().unwrap();
        let cgroup = format!("/flotilla-test-{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let config = Config {
            root: dir.path().join("pods"),
            run: dir.path().join("run"),
            engine,
            cgroup_parent: cgroup,
            shim: vec![shim().to_string_lossy().into_owned()],
            network: None,
            ..Config::default()
        };
        Self { dir, config, rootfs: AtomicU32::new(0) }
    }

    pub async fn open(&self) -> Pods {
        Pods::open(self.config.clone()).await.unwrap()
    }

    /// A root file system with busybox, of its own.
    pub fn rootfs(&self) -> PathBuf {
        let path = self.dir.path().join(format!("rootfs{}", self.rootfs.fetch_add(1, Ordering::Relaxed)));
        for dir in ["bin", "etc", "tmp", "proc", "dev", "sys"] {
            fs::create_dir_all(path.join(dir)).unwrap();
        }
        fs::copy("/usr/bin/busybox", path.join("bin/busybox")).unwrap();
        for applet in [
            "sh", "true", "false", "echo", "cat", "sleep", "id", "hostname", "ip", "ping", "nc", "dd", "tail", "head",
            "wc", "ls", "pwd", "env", "stty", "kill", "grep", "mount", "seq", "yes", "mkdir",
        ] {
            std::os::unix::fs::symlink("busybox", path.join("bin").join(applet)).unwrap();
        }
        path
    }

    /// A container that runs a shell script.
    pub fn container(&self, name: &str, script: &str) -> ContainerSpec {
        ContainerSpec {
            name: name.into(),
            rootfs: self.rootfs(),
            args: ["sh", "-c", script].map(String::from).into(),
            log_path: self.log_path(name),
            ..ContainerSpec::default()
        }
    }

    pub fn log_path(&self, name: &str) -> PathBuf {
        self.dir.path().join("logs").join(name).join("0.log")
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        // Even after a failed assertion: what a sandbox may have left is found by its record.
        for pod in fs::read_dir(&self.config.root).into_iter().flatten().flatten() {
            let pid = fs::read(pod.path().join("state.json"))
                .ok()
                .and_then(|state| serde_json::from_slice::<serde_json::Value>(&state).ok()?["pid"].as_i64());
            if let Some(pid) = pid.filter(|pid| is_shim(*pid as i32)) {
                let _ =
                    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid as i32), nix::sys::signal::Signal::SIGKILL);
            }
            let _ = nix::mount::umount(&self.config.run.join(pod.file_name()).join("shm"));
        }
        if let Ok(cgroup) = Cgroup::new(&self.config.cgroup_parent) {
            cgroup.kill_all(Duration::from_secs(5));
            let _ = cgroup.remove(Duration::from_secs(5));
        }
    }
}

fn is_shim(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "flotilla-shim")
}

pub fn sandbox(id: &str) -> SandboxSpec {
    SandboxSpec {
        id: id.into(),
        namespace: "default".into(),
        name: id.into(),
        uid: format!("uid-{id}"),
        hostname: id.into(),
        host_network: true,
        ..SandboxSpec::default()
    }
}

/// A network namespace of this thread's own, and of all that it starts.
pub fn own_network() {
    nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
    assert!(std::process::Command::new("ip").args(["link", "set", "lo", "up"]).status().unwrap().success());
}

pub fn bridge(cidr: &str) -> NetworkConfig {
    NetworkConfig {
        bridge: "flotilla0".into(),
        pod_cidr: cidr.parse().unwrap(),
        mtu: 1500,
        masquerade: true,
        native_cidrs: Vec::new(),
    }
}

/// Waits for something to be so.
pub async fn until<T>(what: &str, mut found: impl FnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = found() {
            return found;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub async fn run(pods: &Pods, sandbox: &str, spec: ContainerSpec) -> String {
    let key = format!("{}-{}", spec.name, spec.attempt);
    pods.create_container(sandbox, spec).await.unwrap();
    pods.start_container(sandbox, &key).await.unwrap();
    key
}

pub fn state(pods: &Pods, sandbox: &str, key: &str) -> Option<ContainerState> {
    pods.get(sandbox)?.containers.into_iter().find(|c| c.key() == key)
}

pub async fn exit(pods: &Pods, sandbox: &str, key: &str) -> Exit {
    until(&format!("{key} ends"), || state(pods, sandbox, key)?.phase.exit().cloned()).await
}

pub async fn running(pods: &Pods, sandbox: &str, key: &str) -> i32 {
    until(&format!("{key} runs"), || {
        let state = state(pods, sandbox, key)?;
        (state.phase == Phase::Running).then_some(state.pid)?
    })
    .await
}

/// Everything that the container has written so far.
pub async fn output(pods: &Pods, sandbox: &str, key: &str) -> String {
    let mut reader = pods.logs(sandbox, key, LogOptions::default()).unwrap();
    let mut text = Vec::new();
    while let Some(piece) = reader.next().await.unwrap() {
        text.extend_from_slice(&piece);
    }
    String::from_utf8_lossy(&text).into_owned()
}

/// Waits until the container's output holds some text.
pub async fn said(pods: &Pods, sandbox: &str, key: &str, text: &str) -> String {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let all = output(pods, sandbox, key).await;
        if all.contains(text) {
            return all;
        }
        assert!(Instant::now() < deadline, "{key} did not say {text:?}: {all:?}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

pub fn alive(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

pub fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
