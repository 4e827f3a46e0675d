//! From a Pod to what the runtime understands.
//!
//! Defined by the Kubernetes API reference (`Container`, `SecurityContext`) and the OCI image specification.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use flotilla_api::k8s_openapi::api::core::v1::{
    Container, Pod, PodSecurityContext, PodSpec, ResourceRequirements, SeccompProfile, SecurityContext,
};
use flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use flotilla_api::kinds::pod::{qos_class, resources_of_whole};
use flotilla_api::quantity;
use flotilla_runtime::cgroup::Limits;
use flotilla_runtime::images::Image;
use flotilla_runtime::network::{PortMapping, Protocol};
use flotilla_runtime::pods::{ContainerSpec, LastWords, Mount, MountKind, SandboxSpec, Seccomp, User};

use super::source::{SourceError, expand};
use super::subpath;
use super::volumes::is_projected;

/// What upstream gives a container that asks for no CPU.
const MIN_CPU_SHARES: u64 = 2;
const CPU_PERIOD_US: u64 = 100_000;
const MAX_LAST_WORDS_BYTES: u64 = 4 * 1024;
const MAX_POD_LAST_WORDS_BYTES: u64 = 12 * 1024;
/// Name servers that resolvers look at.
const MAX_NAMESERVERS: usize = 3;
/// Processes of a pod that says nothing else; as many as systemd gives a service by default here.
const DEFAULT_PIDS: i64 = 4_096;

/// Upstream's default.
const CLUSTER_DOMAIN: &str = "cluster.local";

/// The sandbox of a pod.
pub fn sandbox(pod: &Pod) -> SandboxSpec {
    let spec = pod.spec.clone().unwrap_or_default();
    let text = |text: &Option<String>| text.clone().unwrap_or_default();
    let (uid, namespace) = (text(&pod.metadata.uid), text(&pod.metadata.namespace));
    let hostname = match spec.host_network {
        Some(true) => text(&spec.node_name),
        _ => spec.hostname.clone().unwrap_or_else(|| text(&pod.metadata.name)),
    };
    let hostname: String = hostname.chars().take(63).collect();
    let subdomain = spec.subdomain.as_deref().filter(|subdomain| !subdomain.is_empty());
    let full_name = subdomain.map(|subdomain| format!("{hostname}.{subdomain}.{namespace}.svc.{CLUSTER_DOMAIN}"));
    SandboxSpec {
        id: uid.clone(),
        namespace,
        name: text(&pod.metadata.name),
        uid,
        hostname,
        full_name: full_name.unwrap_or_default(),
        host_network: spec.host_network.unwrap_or(false),
        host_ipc: spec.host_ipc.unwrap_or(false),
        share_pid: spec.share_process_namespace.unwrap_or(false),
        dns: dns(&spec, &fs::read_to_string("/etc/resolv.conf").unwrap_or_default()),
        host_aliases: spec
            .host_aliases
            .iter()
            .flatten()
            .map(|alias| format!("{}\t{}", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t")))
            .collect(),
        sysctls: spec
            .security_context
            .iter()
            .flat_map(|context| context.sysctls.iter().flatten())
            .map(|sysctl| (sysctl.name.clone(), sysctl.value.clone()))
            .collect(),
        ports: ports(&spec),
        labels: BTreeMap::new(),
        limits: pod_limits(&spec),
    }
}

/// Why no node here runs a pod: what is to keep it apart from others, and cannot be had.
pub fn refusal(spec: &PodSpec) -> Option<String> {
    if let Some(class) = spec.runtime_class_name.as_deref().filter(|class| !class.is_empty()) {
        return Some(format!("no runtime for RuntimeClass {class:?} is configured"));
    }
    if spec.host_users == Some(false) {
        return Some("user namespaces are not supported: hostUsers must not be false".into());
    }
    let containers = spec.containers.iter().chain(spec.init_containers.iter().flatten());
    let of_containers =
        containers.filter_map(|container| container.security_context.as_ref()?.app_armor_profile.as_ref());
    let of_pod = spec.security_context.as_ref().and_then(|context| context.app_armor_profile.as_ref());
    let mut profiles = of_pod.into_iter().chain(of_containers);
    let profile = profiles.find(|profile| profile.type_ == "Localhost")?;
    Some(format!("AppArmor is not enforced: profile {:?} cannot be loaded", profile.localhost_profile))
}

/// `/etc/resolv.conf` of a pod that does not take the host's as it is: the host's with what the pod adds to it, or with
/// the policy `None` the pod's word alone.
fn dns(spec: &PodSpec, host: &str) -> Vec<String> {
    let Some(config) = &spec.dns_config else { return Vec::new() };
    let host = if spec.dns_policy.as_deref() == Some("None") { "" } else { host };
    let of_host = |keyword: &'static str| {
        host.lines().filter_map(move |line| {
            let mut words = line.split_whitespace();
            (words.next() == Some(keyword)).then(|| words.map(str::to_owned).collect::<Vec<_>>())
        })
    };
    let mut servers: Vec<String> = of_host("nameserver").filter_map(|words| words.into_iter().next()).collect();
    servers.extend(config.nameservers.iter().flatten().cloned());
    let mut searches = of_host("search").next_back().unwrap_or_default();
    searches.extend(config.searches.iter().flatten().cloned());
    let options = config.options.iter().flatten().filter_map(|option| {
        let name = option.name.clone()?;
        Some(option.value.as_ref().map_or(name.clone(), |value| format!("{name}:{value}")))
    });
    let options = of_host("options").next_back().unwrap_or_default().into_iter().chain(options);
    let name = |option: &String| option.split(':').next().unwrap_or_default().to_owned();
    // The last word on an option holds.
    let options: BTreeMap<String, String> = options.map(|option| (name(&option), option)).collect();
    let mut lines: Vec<String> =
        distinct(servers).take(MAX_NAMESERVERS).map(|server| format!("nameserver {server}")).collect();
    let words = [("search", distinct(searches).collect()), ("options", options.into_values().collect::<Vec<_>>())];
    lines.extend(
        words.into_iter().filter(|(_, list)| !list.is_empty()).map(|(word, list)| format!("{word} {}", list.join(" "))),
    );
    lines
}

fn distinct(list: Vec<String>) -> impl Iterator<Item = String> {
    let mut seen = BTreeSet::new();
    list.into_iter().filter(move |one| seen.insert(one.clone()))
}

fn ports(spec: &PodSpec) -> Vec<PortMapping> {
    let ports = spec.containers.iter().flat_map(|container| container.ports.iter().flatten());
    ports
        .filter_map(|port| {
            Some(PortMapping {
                protocol: match port.protocol.as_deref() {
                    Some("UDP") => Protocol::Udp,
                    Some("SCTP") => Protocol::Sctp,
                    _ => Protocol::Tcp,
                },
                host_port: u16::try_from(port.host_port?).ok().filter(|port| *port > 0)?,
                container_port: u16::try_from(port.container_port).ok()?,
                host_ip: port.host_ip.as_deref().and_then(|ip| ip.parse().ok()),
            })
        })
        .collect()
}

/// The pod's own group is as large as the pod says, or as its containers together if each of them is bounded.
pub fn pod_limits(spec: &PodSpec) -> Limits {
    let whole = resources_of_whole(spec);
    let whole_limits = limits(whole);
    let names = |map: Option<&BTreeMap<String, Quantity>>, name: &str| map.is_some_and(|map| map.contains_key(name));
    let asks_cpu =
        whole.is_some_and(|whole| names(whole.requests.as_ref(), "cpu") || names(whole.limits.as_ref(), "cpu"));
    let each: Vec<Limits> = spec.containers.iter().map(|container| limits(container.resources.as_ref())).collect();
    let sum = |get: fn(&Limits) -> Option<i64>| each.iter().map(get).sum::<Option<i64>>().filter(|sum| *sum > 0);
    Limits {
        cpu_shares: whole_limits
            .cpu_shares
            .filter(|_| asks_cpu)
            .or_else(|| Some(each.iter().filter_map(|limits| limits.cpu_shares).sum::<u64>().max(MIN_CPU_SHARES))),
        cpu_quota_us: whole_limits.cpu_quota_us.or_else(|| sum(|limits| limits.cpu_quota_us)),
        cpu_period_us: Some(CPU_PERIOD_US),
        // Init containers run alone and may need more than the others together: each is bounded by itself.
        memory_bytes: whole_limits.memory_bytes.or_else(|| match &spec.init_containers {
            Some(init) if !init.is_empty() => None,
            _ => sum(|limits| limits.memory_bytes),
        }),
        pids: Some(DEFAULT_PIDS),
    }
}

pub fn limits(resources: Option<&ResourceRequirements>) -> Limits {
    let amount = |map: Option<&BTreeMap<String, Quantity>>, name: &str| map.and_then(|map| map.get(name)).cloned();
    let limit = |name: &str| amount(resources.and_then(|r| r.limits.as_ref()), name);
    let request = |name: &str| amount(resources.and_then(|r| r.requests.as_ref()), name).or_else(|| limit(name));
    let millis = |quantity: Quantity| quantity::cpu_millis(&quantity).ok().filter(|millis| *millis > 0);
    let cpu_limit = limit("cpu").and_then(millis);
    Limits {
        cpu_shares: Some(
            request("cpu").and_then(millis).map_or(MIN_CPU_SHARES, |m| (m as u64 * 1_024 / 1_000).max(MIN_CPU_SHARES)),
        ),
        cpu_quota_us: cpu_limit.map(|millis| (millis * CPU_PERIOD_US as i64 / 1_000).max(1_000)),
        cpu_period_us: Some(CPU_PERIOD_US),
        memory_bytes: limit("memory").and_then(|q| quantity::bytes(&q).ok()).filter(|bytes| *bytes > 0),
        pids: None,
    }
}

/// What a container is made of beside the Pod.
pub struct Parts<'a> {
    pub attempt: u32,
    pub image: &'a Image,
    pub rootfs: PathBuf,
    pub environment: Vec<(String, String)>,
    pub volumes: &'a BTreeMap<String, PathBuf>,
    /// Where parts of volumes are bound for this container.
    pub sub_paths: &'a Path,
    pub log_path: PathBuf,
    /// The key of the container whose processes it sees as its own.
    pub pid_of: Option<String>,
}

/// One attempt at one container.
///
/// # Errors
/// In kubelet's words: nothing to run, a user that is not known, a volume that is not there.
pub fn container(pod: &Pod, container: &Container, parts: Parts) -> Result<ContainerSpec, SourceError> {
    let spec = pod.spec.clone().unwrap_or_default();
    let pod_context = spec.security_context.clone().unwrap_or_default();
    let context = container.security_context.clone().unwrap_or_default();
    let config = &parts.image.config;
    let user = user(&context, &pod_context, config.user.as_deref().unwrap_or_default(), &parts.rootfs)?;
    if context.run_as_non_root.or(pod_context.run_as_non_root) == Some(true) && user.uid == 0 {
        return Err(SourceError("container has runAsNonRoot and image will run as root".into()));
    }
    let mut environment = image_environment(&config.env);
    environment.push(("HOSTNAME".into(), spec.hostname.clone().or(pod.metadata.name.clone()).unwrap_or_default()));
    environment.retain(|(name, _)| !parts.environment.iter().any(|(own, _)| own == name));
    environment.extend(parts.environment);
    let args = command(container, &config.entrypoint, &config.cmd, &environment)?;
    let capabilities = context.capabilities.clone().unwrap_or_default();
    Ok(ContainerSpec {
        name: container.name.clone(),
        attempt: parts.attempt,
        rootfs: parts.rootfs,
        args,
        mounts: mounts(&spec, container, parts.volumes, parts.sub_paths, &environment)?,
        env: environment,
        cwd: container.working_dir.clone().or_else(|| config.working_dir.clone()).unwrap_or_default(),
        user,
        tty: container.tty.unwrap_or(false),
        stdin: container.stdin.unwrap_or(false),
        stdin_once: container.stdin_once.unwrap_or(false),
        capabilities_add: capabilities.add.unwrap_or_default(),
        capabilities_drop: capabilities.drop.unwrap_or_default(),
        privileged: context.privileged.unwrap_or(false),
        read_only_rootfs: context.read_only_root_filesystem.unwrap_or(false),
        no_new_privileges: context.allow_privilege_escalation == Some(false),
        host_pid: spec.host_pid.unwrap_or(false),
        pid_of: parts.pid_of,
        seccomp: seccomp(context.seccomp_profile.as_ref().or(pod_context.seccomp_profile.as_ref())),
        limits: limits(container.resources.as_ref()),
        oom_score_adj: Some(oom_score(&spec, container)),
        log_path: parts.log_path,
        stop_signal: config.stop_signal.clone().unwrap_or_default(),
        last_words: Some(last_words(&spec, container)),
    })
}

/// The kubelet's bounds: of one container, and of all of a pod together.
fn last_words(spec: &PodSpec, container: &Container) -> LastWords {
    let ephemeral = spec.ephemeral_containers.as_ref().map_or(0, Vec::len);
    let count = spec.containers.len() + spec.init_containers.as_ref().map_or(0, Vec::len) + ephemeral;
    LastWords {
        path: container.termination_message_path.clone().unwrap_or_default().into(),
        max_bytes: MAX_LAST_WORDS_BYTES.min(MAX_POD_LAST_WORDS_BYTES / count.max(1) as u64),
        or_log: container.termination_message_policy.as_deref() == Some("FallbackToLogsOnError"),
    }
}

fn image_environment(lines: &[String]) -> Vec<(String, String)> {
    let mut environment: Vec<(String, String)> =
        lines.iter().filter_map(|line| line.split_once('=')).map(|(n, v)| (n.to_owned(), v.to_owned())).collect();
    if !environment.iter().any(|(name, _)| name == "PATH") {
        environment.push(("PATH".into(), "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()));
    }
    environment
}

/// `command` replaces the image's entrypoint and its arguments; `args` alone replaces its arguments.
fn command(
    container: &Container,
    entrypoint: &[String],
    cmd: &[String],
    environment: &[(String, String)],
) -> Result<Vec<String>, SourceError> {
    let command = container.command.as_deref().filter(|command| !command.is_empty());
    let args = container.args.as_deref().filter(|args| !args.is_empty());
    let own = |words: &[String]| words.iter().map(|word| expand(word, environment)).collect::<Vec<_>>();
    let words = match (command, args) {
        (Some(command), args) => [own(command), own(args.unwrap_or_default())].concat(),
        (None, Some(args)) => [entrypoint.to_vec(), own(args)].concat(),
        (None, None) => [entrypoint, cmd].concat(),
    };
    match words.is_empty() {
        true => Err(SourceError("no command specified: neither the container nor its image says what to run".into())),
        false => Ok(words),
    }
}

/// What is projected is mounted read-only whatever the mount says: its files are the node's to change.
fn mounts(
    spec: &PodSpec,
    container: &Container,
    volumes: &BTreeMap<String, PathBuf>,
    sub_paths: &Path,
    environment: &[(String, String)],
) -> Result<Vec<Mount>, SourceError> {
    let projected: BTreeSet<&str> =
        spec.volumes.iter().flatten().filter(|v| is_projected(v)).map(|volume| volume.name.as_str()).collect();
    let mut mounts = Vec::new();
    for (index, mount) in container.volume_mounts.iter().flatten().enumerate() {
        let volume =
            volumes.get(&mount.name).ok_or_else(|| SourceError(format!("volume {:?} is not available", mount.name)))?;
        let inside = mount.sub_path.clone().or_else(|| mount.sub_path_expr.as_ref().map(|e| expand(e, environment)));
        let source = match inside.filter(|path| !path.is_empty()) {
            None => volume.clone(),
            Some(inside) => {
                let at = sub_paths.join(index.to_string());
                subpath::bind(volume, &inside, &at)
                    .map_err(|error| SourceError(format!("failed to prepare subPath {inside:?}: {error}")))?;
                at
            }
        };
        mounts.push(Mount {
            destination: PathBuf::from(&mount.mount_path),
            kind: MountKind::Bind { source },
            read_only: mount.read_only.unwrap_or(false) || projected.contains(mount.name.as_str()),
        });
    }
    Ok(mounts)
}

fn seccomp(profile: Option<&SeccompProfile>) -> Seccomp {
    match profile.map(|profile| profile.type_.as_str()) {
        Some("Unconfined") => Seccomp::Unconfined,
        Some("Localhost") => match profile.and_then(|profile| profile.localhost_profile.clone()) {
            Some(path) => Seccomp::Path(Path::new("/var/lib/kubelet/seccomp").join(path)),
            None => Seccomp::Default,
        },
        _ => Seccomp::Default,
    }
}

/// Upstream's scores: who asked for least goes first when memory runs out.
fn oom_score(spec: &PodSpec, container: &Container) -> i32 {
    if qos_class(spec) == "Guaranteed" {
        return -997;
    }
    let resources = container.resources.clone().unwrap_or_default();
    let request = resources.requests.and_then(|requests| requests.get("memory").cloned());
    let (_, capacity) = crate::usage::capacity();
    match request.and_then(|request| quantity::bytes(&request).ok()) {
        Some(bytes) if capacity > 0 => (1_000 - (1_000 * bytes as i128 / i128::from(capacity)) as i32).clamp(3, 999),
        _ => 1_000,
    }
}

/// The user of the container: the Pod's word before the image's, names looked up in the image.
fn user(
    context: &SecurityContext,
    pod: &PodSecurityContext,
    image_user: &str,
    rootfs: &Path,
) -> Result<User, SourceError> {
    let (name, group) = image_user.split_once(':').map_or((image_user, None), |(user, group)| (user, Some(group)));
    let from_image = named_user(name, rootfs);
    let uid = match context.run_as_user.or(pod.run_as_user) {
        Some(uid) => id(uid)?,
        None => from_image
            .map(|(uid, _)| uid)
            .ok_or_else(|| SourceError(format!("unable to find user {name}: no matching entries in passwd file")))?,
    };
    let gid = match (context.run_as_group.or(pod.run_as_group), group) {
        (Some(gid), _) => id(gid)?,
        (None, Some(group)) => named_group(group, rootfs)
            .ok_or_else(|| SourceError(format!("unable to find group {group}: no matching entries in group file")))?,
        (None, None) => from_image.filter(|(from, _)| *from == uid).map_or(0, |(_, gid)| gid),
    };
    let mut additional: Vec<u32> = Vec::new();
    for group in pod.supplemental_groups.iter().flatten().chain(&pod.fs_group) {
        additional.push(id(*group)?);
    }
    additional.extend(member_of(uid, rootfs));
    additional.sort_unstable();
    additional.dedup();
    Ok(User { uid, gid, additional_gids: additional })
}

fn id(id: i64) -> Result<u32, SourceError> {
    u32::try_from(id).map_err(|_| SourceError(format!("{id} is not a user or group id")))
}

/// The largest passwd or group file of an image that is read.
const MAX_DATABASE_BYTES: u64 = 1024 * 1024;

/// A file of the image, never through a link that leads out of it.
fn database(rootfs: &Path, file: &str) -> String {
    let path = rootfs.join("etc").join(file);
    let etc = rootfs.join("etc");
    let plain = fs::symlink_metadata(&etc).is_ok_and(|meta| meta.is_dir())
        && fs::symlink_metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() <= MAX_DATABASE_BYTES);
    if plain {
        fs::read(&path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default()
    } else {
        String::new()
    }
}

fn named_user(name: &str, rootfs: &Path) -> Option<(u32, u32)> {
    let passwd = database(rootfs, "passwd");
    let entries = passwd.lines().map(|line| line.split(':').collect::<Vec<_>>()).filter(|fields| fields.len() >= 4);
    let number: Option<u32> = if name.is_empty() { Some(0) } else { name.parse().ok() };
    for fields in entries {
        let (Ok(uid), Ok(gid)) = (fields[2].parse::<u32>(), fields[3].parse::<u32>()) else { continue };
        if fields[0] == name || Some(uid) == number {
            return Some((uid, gid));
        }
    }
    number.map(|uid| (uid, 0))
}

fn named_group(name: &str, rootfs: &Path) -> Option<u32> {
    let groups = database(rootfs, "group");
    let found = groups.lines().map(|line| line.split(':').collect::<Vec<_>>()).find(|fields| fields[0] == name);
    found.and_then(|fields| fields.get(2)?.parse().ok()).or_else(|| name.parse().ok())
}

/// The groups that list the user among their members.
fn member_of(uid: u32, rootfs: &Path) -> Vec<u32> {
    let passwd = database(rootfs, "passwd");
    let name = passwd.lines().find_map(|line| {
        let fields: Vec<_> = line.split(':').collect();
        (fields.get(2)?.parse::<u32>().ok()? == uid).then(|| fields[0].to_owned())
    });
    let Some(name) = name else { return Vec::new() };
    let groups = database(rootfs, "group");
    let lists = |line: &str| {
        let fields: Vec<_> = line.split(':').collect();
        let gid = fields.get(2)?.parse().ok()?;
        fields.get(3)?.split(',').any(|member| member == name).then_some(gid)
    };
    groups.lines().filter_map(lists).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn a_container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn command_and_args_combine_as_documented() {
        let entrypoint = ["e".to_owned()];
        let cmd = ["c".to_owned()];
        let run = |value| command(&a_container(value), &entrypoint, &cmd, &[("A".into(), "1".into())]).unwrap();
        assert_eq!(run(json!({"name": "x"})), ["e", "c"]);
        assert_eq!(run(json!({"name": "x", "args": ["$(A)"]})), ["e", "1"]);
        assert_eq!(run(json!({"name": "x", "command": ["k"]})), ["k"]);
        assert_eq!(run(json!({"name": "x", "command": ["k"], "args": ["a"]})), ["k", "a"]);
        assert!(command(&a_container(json!({"name": "x"})), &[], &[], &[]).is_err());
    }

    #[test]
    fn quantities_become_limits() {
        let container = a_container(json!({"name": "x", "resources":
            {"requests": {"cpu": "250m"}, "limits": {"cpu": "1500m", "memory": "64Mi"}}}));
        let limits = limits(container.resources.as_ref());
        assert_eq!(
            (limits.cpu_shares, limits.cpu_quota_us, limits.memory_bytes),
            (Some(256), Some(150_000), Some(64 << 20))
        );
    }

    #[test]
    fn a_pod_says_what_its_containers_may_take_together() {
        let spec = serde_json::from_value(json!({
            "resources": {"limits": {"cpu": "1", "memory": "100Mi"}, "requests": {"cpu": "500m"}},
            "initContainers": [{"name": "i"}],
            "containers": [{"name": "x"}, {"name": "y", "resources": {"limits": {"memory": "64Mi"}}}],
        }));
        let limits = pod_limits(&spec.unwrap());
        let numbers = (limits.cpu_shares, limits.cpu_quota_us, limits.memory_bytes);
        assert_eq!(numbers, (Some(512), Some(100_000), Some(100 << 20)));
    }

    #[test]
    fn a_pod_adds_to_the_hosts_resolver() {
        let lines = |value| {
            dns(&serde_json::from_value(value).unwrap(), "# x\nnameserver 9.9.9.9\nsearch lan\noptions edns0 ndots:1\n")
        };
        assert_eq!(lines(json!({"containers": []})), [""; 0], "the host's as it is");
        let config = json!({"options": [{"name": "ndots", "value": "2"}, {"name": "rotate"}]});
        let tuned = json!({"containers": [], "dnsPolicy": "ClusterFirst", "dnsConfig": config});
        assert_eq!(lines(tuned), ["nameserver 9.9.9.9", "search lan", "options edns0 ndots:2 rotate"]);
        let config = json!({"nameservers": ["9.9.9.9", "1.1.1.1"], "searches": ["lan", "a.b"]});
        let more = json!({"containers": [], "dnsConfig": config});
        let wanted = ["nameserver 9.9.9.9", "nameserver 1.1.1.1", "search lan a.b", "options edns0 ndots:1"];
        assert_eq!(lines(more), wanted);
        let own = json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"]}});
        assert_eq!(lines(own), ["nameserver 1.1.1.1"]);
    }

    #[test]
    fn what_a_pod_needs_to_be_kept_apart_is_not_dropped() {
        let said = |value| refusal(&serde_json::from_value(value).unwrap()).unwrap_or_default();
        let container = json!({"name": "c", "securityContext": {"appArmorProfile": {"type": "Localhost", "localhostProfile": "p"}}});
        for (spec, words) in [
            (json!({"containers": [], "runtimeClassName": "gvisor"}), "no runtime for RuntimeClass \"gvisor\""),
            (json!({"containers": [], "hostUsers": false}), "user namespaces are not supported"),
            (json!({"containers": [container]}), "AppArmor is not enforced"),
        ] {
            assert!(said(spec.clone()).starts_with(words), "{spec}");
        }
        let profile = json!({"appArmorProfile": {"type": "RuntimeDefault"}});
        assert_eq!(said(json!({"containers": [], "hostUsers": true, "securityContext": profile})), "");
    }

    #[test]
    fn users_are_looked_up_in_the_image() {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        fs::write(rootfs.path().join("etc/passwd"), "root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n").unwrap();
        fs::write(rootfs.path().join("etc/group"), "web:x:44:\nlogs:x:55:web\n").unwrap();
        let lookup = |image_user: &str| {
            user(&SecurityContext::default(), &PodSecurityContext::default(), image_user, rootfs.path())
        };
        assert_eq!(lookup("").unwrap(), User { uid: 0, gid: 0, additional_gids: vec![] });
        assert_eq!(lookup("web").unwrap(), User { uid: 33, gid: 44, additional_gids: vec![55] });
        assert_eq!(lookup("33:logs").unwrap(), User { uid: 33, gid: 55, additional_gids: vec![55] });
        assert_eq!(lookup("1234").unwrap(), User { uid: 1234, gid: 0, additional_gids: vec![] });
        assert!(lookup("nobody").is_err_and(|error| error.0.contains("nobody")));
    }

    #[test]
    fn a_link_out_of_the_image_is_not_followed() {
        let rootfs = tempfile::tempdir().unwrap();
        fs::create_dir(rootfs.path().join("etc")).unwrap();
        std::os::unix::fs::symlink("/etc/passwd", rootfs.path().join("etc/passwd")).unwrap();
        assert_eq!(database(rootfs.path(), "passwd"), "");
    }

    #[test]
    fn what_is_projected_is_read_only() {
        let spec: PodSpec = serde_json::from_value(serde_json::json!({"containers": [], "volumes": [
            {"name": "settings", "configMap": {"name": "s"}}, {"name": "scratch", "emptyDir": {}},
        ]}))
        .unwrap();
        let container: Container = serde_json::from_value(serde_json::json!({"name": "c", "volumeMounts": [
            {"name": "settings", "mountPath": "/s", "readOnly": false}, {"name": "scratch", "mountPath": "/t"},
        ]}))
        .unwrap();
        let volumes = ["settings", "scratch"].map(|name| (name.to_owned(), PathBuf::from("/v").join(name))).into();
        let mounts = mounts(&spec, &container, &volumes, Path::new("/p"), &[]).unwrap();
        assert_eq!(mounts.iter().map(|mount| mount.read_only).collect::<Vec<_>>(), [true, false]);
    }
}
