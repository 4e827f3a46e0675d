//! From a plain container specification to the OCI runtime specification's `config.json`.
//!
//! The defaults (mounts, masked and read-only paths, capabilities, seccomp, devices) are those of containerd and
//! Docker, so that images behave as they do elsewhere. https://github.com/opencontainers/runtime-spec/blob/main/config.md
//!
//! Invariant: pure; the same specification gives the same bytes.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use super::capabilities::{Held, resolve};
use super::seccomp;
use crate::pods::{ContainerSpec, Mount, MountKind, Seccomp};

const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
const MASKED: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];

#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    #[error("{field}: {reason}")]
    Invalid { field: &'static str, reason: String },
    #[error("seccomp profile {path}")]
    Profile { path: PathBuf, source: std::io::Error },
}

/// What a container takes from its sandbox.
#[derive(Debug, Clone)]
pub struct Surroundings {
    /// The process whose net, ipc and uts namespaces the pod shares.
    pub shim_pid: i32,
    /// The process whose pid namespace the container joins.
    pub pid_of: Option<i32>,
    pub host_network: bool,
    pub host_ipc: bool,
    pub hostname: String,
    /// The container's own group.
    pub cgroup_path: PathBuf,
    /// Whether the container gets its view of the control groups.
    pub shows_cgroups: bool,
    /// The pod's `/dev/shm`, or the host's.
    pub shm: PathBuf,
    /// Generated files and where they belong in the container.
    pub files: Vec<(PathBuf, &'static str)>,
    pub counts_swap: bool,
    pub held: Held,
    /// Nodes of `/dev`, for privileged containers.
    pub devices: Vec<Value>,
    /// The custom seccomp profile's bytes, where the container names one.
    pub profile: Option<Value>,
}

/// The whole `config.json`.
pub fn config(spec: &ContainerSpec, around: &Surroundings) -> Result<Value, SpecError> {
    validate(spec)?;
    let capabilities = capabilities(spec, around)?;
    let mut linux = json!({
        "cgroupsPath": around.cgroup_path,
        "namespaces": namespaces(spec, around),
        "resources": resources(spec, around),
    });
    if spec.privileged {
        linux["devices"] = json!(around.devices);
    } else {
        linux["maskedPaths"] = json!(MASKED);
        linux["readonlyPaths"] = json!(READ_ONLY);
        if let Some(profile) = seccomp_profile(spec, around, &capabilities) {
            linux["seccomp"] = profile;
        }
    }
    Ok(json!({
        "ociVersion": "1.0.2",
        "root": {"path": spec.rootfs, "readonly": spec.read_only_rootfs},
        "process": process(spec, around, &capabilities),
        "mounts": mounts(spec, around),
        "linux": linux,
    }))
}

/// What an exec changes of a container's process.
#[derive(Debug, Clone, Default)]
pub struct Tenant {
    pub args: Vec<String>,
    pub env: Vec<(String, String)>,
    pub cwd: Option<String>,
    pub user: Option<(u32, u32)>,
    pub tty: bool,
}

/// The OCI `process` object of another process in the container of `config`.
pub fn tenant_process(config: &Value, tenant: &Tenant) -> Result<Value, SpecError> {
    if tenant.args.is_empty() || tenant.args[0].is_empty() {
        return Err(SpecError::Invalid { field: "args", reason: "no command".into() });
    }
    let mut process = config["process"].clone();
    process["args"] = json!(tenant.args);
    process["terminal"] = json!(tenant.tty);
    if let Some(cwd) = &tenant.cwd {
        process["cwd"] = json!(cwd);
    }
    if let Some((uid, gid)) = tenant.user {
        process["user"] = json!({"uid": uid, "gid": gid});
    }
    let kept = process["env"].as_array().cloned().unwrap_or_default();
    let overridden = |entry: &Value| {
        let key = entry.as_str().and_then(|e| e.split_once('=')).map(|(key, _)| key);
        tenant.env.iter().any(|(name, _)| Some(name.as_str()) == key)
    };
    let mut env: Vec<Value> = kept.into_iter().filter(|entry| !overridden(entry)).collect();
    if tenant.tty && !env.iter().any(|e| e.as_str().is_some_and(|e| e.starts_with("TERM="))) {
        env.push(json!("TERM=xterm"));
    }
    env.extend(tenant.env.iter().map(|(name, value)| json!(format!("{name}={value}"))));
    process["env"] = json!(env);
    Ok(process)
}

fn validate(spec: &ContainerSpec) -> Result<(), SpecError> {
    let invalid = |field, reason: &str| Err(SpecError::Invalid { field, reason: reason.into() });
    if spec.args.is_empty() || spec.args[0].is_empty() {
        return invalid("args", "no command");
    }
    if spec.args.iter().any(|arg| arg.contains('\0'))
        || spec.env.iter().any(|(k, v)| k.contains(['\0', '=']) || v.contains('\0'))
    {
        return invalid("args", "arguments and environment must not hold NUL, nor names '='");
    }
    if !spec.cwd.is_empty() && !spec.cwd.starts_with('/') {
        return invalid("cwd", "not an absolute path");
    }
    if !spec.rootfs.is_absolute() {
        return invalid("rootfs", "not an absolute path");
    }
    match spec.mounts.iter().find(|m| !m.destination.is_absolute() || m.destination == Path::new("/")) {
        Some(mount) => {
            invalid("mounts", &format!("{} is not a path inside the container", mount.destination.display()))
        }
        None => Ok(()),
    }
}

fn capabilities(spec: &ContainerSpec, around: &Surroundings) -> Result<Vec<&'static str>, SpecError> {
    resolve(&spec.capabilities_add, &spec.capabilities_drop, spec.privileged, &around.held)
        .map_err(|reason| SpecError::Invalid { field: "capabilities", reason })
}

fn seccomp_profile(spec: &ContainerSpec, around: &Surroundings, capabilities: &[&str]) -> Option<Value> {
    match &spec.seccomp {
        Seccomp::Default => Some(seccomp::default_profile(capabilities)),
        Seccomp::Unconfined => None,
        Seccomp::Path(_) => around.profile.clone(),
    }
}

fn process(spec: &ContainerSpec, around: &Surroundings, capabilities: &[&str]) -> Value {
    let mut env: Vec<String> = spec.env.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let has = |env: &[String], key: &str| env.iter().any(|entry| entry.starts_with(key));
    if !has(&env, "PATH=") {
        env.insert(0, DEFAULT_PATH.into());
    }
    if !has(&env, "HOSTNAME=") {
        env.push(format!("HOSTNAME={}", around.hostname));
    }
    if spec.tty && !has(&env, "TERM=") {
        env.push("TERM=xterm".into());
    }
    let mut user = json!({"uid": spec.user.uid, "gid": spec.user.gid});
    if !spec.user.additional_gids.is_empty() {
        user["additionalGids"] = json!(spec.user.additional_gids);
    }
    let mut process = json!({
        "terminal": spec.tty,
        "user": user,
        "args": spec.args,
        "env": env,
        "cwd": if spec.cwd.is_empty() { "/" } else { &spec.cwd },
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
    });
    // Absent rather than `false`: libcontainer then loads the seccomp profile while it still may.
    if spec.no_new_privileges {
        process["noNewPrivileges"] = json!(true);
    }
    process
}

fn namespaces(spec: &ContainerSpec, around: &Surroundings) -> Value {
    let of_shim = |name: &str| format!("/proc/{}/ns/{name}", around.shim_pid);
    let mut all =
        vec![json!({"type": "mount"}), json!({"type": "cgroup"}), json!({"type": "uts", "path": of_shim("uts")})];
    match around.pid_of {
        _ if spec.host_pid => {}
        Some(pid) => all.push(json!({"type": "pid", "path": format!("/proc/{pid}/ns/pid")})),
        None => all.push(json!({"type": "pid"})),
    }
    if !around.host_ipc {
        all.push(json!({"type": "ipc", "path": of_shim("ipc")}));
    }
    if !around.host_network {
        all.push(json!({"type": "network", "path": of_shim("net")}));
    }
    json!(all)
}

fn resources(spec: &ContainerSpec, around: &Surroundings) -> Value {
    let limits = &spec.limits;
    let mut resources = json!({"devices": [{"allow": spec.privileged, "access": "rwm"}]});
    let mut cpu = serde_json::Map::new();
    let mut set = |key: &str, value: Option<Value>| value.map(|value| cpu.insert(key.into(), value));
    set("shares", limits.cpu_shares.map(|v| json!(v)));
    set("quota", limits.cpu_quota_us.map(|v| json!(v)));
    set("period", limits.cpu_period_us.map(|v| json!(v)));
    if !cpu.is_empty() {
        resources["cpu"] = Value::Object(cpu);
    }
    if let Some(limit_bytes) = limits.memory_bytes {
        resources["memory"] = json!({"limit": limit_bytes});
        if around.counts_swap {
            resources["memory"]["swap"] = json!(limit_bytes);
        }
    }
    if let Some(pids) = limits.pids {
        resources["pids"] = json!({"limit": pids});
    }
    resources
}

fn mounts(spec: &ContainerSpec, around: &Surroundings) -> Vec<Value> {
    let own: BTreeSet<&Path> = spec.mounts.iter().map(|m| m.destination.as_path()).collect();
    let sys = if spec.privileged { "rw" } else { "ro" };
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| json!({"destination": destination, "type": kind, "source": source, "options": options});
    let mut all = vec![
        mount("/proc", "proc", "proc", &["nosuid", "noexec", "nodev"]),
        mount("/dev", "tmpfs", "tmpfs", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
        mount(
            "/dev/pts",
            "devpts",
            "devpts",
            &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", sys]),
        mount("/sys/fs/cgroup", "cgroup", "cgroup", &["nosuid", "noexec", "nodev", "relatime", sys]),
        json!({"destination": "/dev/shm", "type": "bind", "source": around.shm, "options": ["rbind", "nosuid", "nodev", "noexec"]}),
    ];
    let access = if spec.read_only_rootfs { "ro" } else { "rw" };
    all.extend(around.files.iter().map(|(source, destination)| {
        json!({"destination": destination, "type": "bind", "source": source, "options": ["rbind", access]})
    }));
    all.retain(|mount| !own.contains(Path::new(mount["destination"].as_str().unwrap_or_default())));
    all.retain(|mount| around.shows_cgroups || mount["type"] != "cgroup");
    all.extend(spec.mounts.iter().map(volume));
    all
}

fn volume(mount: &Mount) -> Value {
    let access = if mount.read_only { "ro" } else { "rw" };
    match &mount.kind {
        MountKind::Bind { source } => json!({
            "destination": mount.destination, "type": "bind", "source": source, "options": ["rbind", access, "rprivate"],
        }),
        MountKind::Tmpfs { size_bytes } => {
            let mut options = vec!["nosuid".to_owned(), "nodev".into(), "mode=1777".into(), access.into()];
            options.extend(size_bytes.map(|size| format!("size={size}")));
            json!({"destination": mount.destination, "type": "tmpfs", "source": "tmpfs", "options": options})
        }
    }
}
