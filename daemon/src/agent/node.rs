//! What this node says about itself: capacity, addresses, versions, readiness; and its use, with each heartbeat.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use flotilla_api::admit::Subresource;
use flotilla_api::{Builtin, Key, Status, object};
use flotilla_raft::WatchItem;
use flotilla_runtime::images::Image;
use jiff::{SignedDuration, Timestamp};
use nix::sys::statvfs::statvfs;
use serde_json::{Value, json};
use tracing::{debug, info, warn};

use crate::VERSION;
use crate::gate::WriteOptions;
use crate::members::TOKEN_LABELS_ANNOTATION;
use crate::node::Node;
use crate::trust::arch;
use crate::usage::{self, Meter};

const MANAGER: &str = "flotilla-agent";
/// How many pods a node takes.
const MAX_PODS: u32 = 1_000;
/// Memory that pods cannot have: the daemon's own and some for the kernel.
const RESERVED_MEMORY_BYTES: u64 = 128 * 1024 * 1024;
/// The kubelet's bounds for the images that a Node lists, and for the names of each.
const MAX_IMAGES: usize = 50;
const MAX_IMAGE_NAMES: usize = 5;
/// How often use is measured.
const MEASURE: Duration = Duration::from_secs(2);
/// A daemon that starts again leaves its node as ready as it was for this long: the pods ran on without it.
const STARTING: Duration = Duration::from_secs(10);
/// The kubelet evicts pods when less is free.
const MIN_MEMORY_BYTES: u64 = 100 * 1024 * 1024;
/// Conditions that stay as they are say so again after this, as kubelet's do.
const HEARTBEAT: SignedDuration = SignedDuration::from_secs(300);
/// How often the Node is looked at besides when it changes.
const LOOK: Duration = Duration::from_secs(10);
/// How often the node's own addresses are compared with those in its status.
const ADDRESS_LOOK: Duration = Duration::from_millis(500);

/// Keeps the Node's status and the heartbeats' payload right.
pub async fn publish(node: &Node) {
    tokio::join!(measure(node), keep_status(node));
}

async fn measure(node: &Node) {
    let mut meter = Meter::default();
    loop {
        let usage = meter.read();
        node.local.set_usage(usage);
        if let Err(error) = node.net.set_beat_payload(usage.encode().into()) {
            debug!(error = &error as &dyn std::error::Error, "use is not told");
        }
        tokio::time::sleep(MEASURE).await;
    }
}

async fn keep_status(node: &Node) {
    let key = own_key(node);
    let begun = Instant::now();
    loop {
        let told = addresses(node);
        if let Err(status) = put_status(node, begun.elapsed() < STARTING).await {
            debug!(error = status.message, "the node's status is not published yet");
            tokio::time::sleep(Duration::from_millis(200)).await;
            continue;
        }
        let Ok(mut watch) = node.gate.store().watch(key.as_str(), 0).await else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        // Somebody may have judged this node while it could not answer.
        let judged = async { while !matches!(watch.next().await, Some(WatchItem::Events(..)) | None) {} };
        let looked = async {
            tokio::select! {
                () = judged => {}
                () = moved(node, &told) => {}
                () = filled(node) => {}
            }
        };
        _ = tokio::time::timeout(LOOK, looked).await;
    }
}

/// Waits until this node is found elsewhere.
async fn moved(node: &Node, told: &[SocketAddr]) {
    while addresses(node) == told {
        tokio::time::sleep(ADDRESS_LOOK).await;
    }
}

/// Waits until the store's disk becomes nearly full, or has room again.
async fn filled(node: &Node) {
    let mut status = node.gate.store().status();
    let was = status.borrow_and_update().low_space;
    _ = status.wait_for(|status| status.low_space != was).await;
}

/// Where this node says it is found.
fn addresses(node: &Node) -> Vec<SocketAddr> {
    node.net.advertised()
}

/// Says at once how the node is; if that fails, [`publish`] says it later.
pub async fn announce(node: &Node) {
    if let Err(status) = put_status(node, false).await {
        debug!(error = status.message, "the node's status is not published yet");
    }
}

/// Puts the labels of this node's configuration on its Node, but for those that its token decided.
pub async fn label(node: &Node) {
    if node.config.labels.is_empty() {
        return;
    }
    let user = crate::gate::User::node(node.members.own_name());
    let labelled = async {
        let kind = node.gate.built_in(Builtin::Node)?;
        let (target, options) = (("", node.members.own_name()), WriteOptions::by(MANAGER));
        node.gate
            .update(&user, &kind, target, Subresource::None, &options, |object| {
                if !object["metadata"]["labels"].is_object() {
                    object["metadata"]["labels"] = json!({});
                }
                let given = object["metadata"]["annotations"][TOKEN_LABELS_ANNOTATION].as_str().unwrap_or_default();
                let given: Vec<String> = given.split(',').map(str::to_owned).collect();
                for (key, value) in node.config.labels.iter().filter(|(key, _)| !given.contains(key)) {
                    object["metadata"]["labels"][key] = json!(value);
                }
                Ok(())
            })
            .await
    };
    if let Err(status) = labelled.await {
        warn!(error = status.message, "the configured labels are not on the node");
    }
}

/// Says how the node is, if the store says something else.
async fn put_status(node: &Node, starting: bool) -> Result<(), Status> {
    let addresses = addresses(node);
    let readiness = node.local.readiness();
    let user = crate::gate::User::node(node.members.own_name());
    let kind = node.gate.built_in(Builtin::Node)?;
    let options = WriteOptions::by(MANAGER);
    let now = Timestamp::now();
    let disk_bytes = disk_bytes(&node.config.data_dir);
    let low_space = node.gate.store().status().borrow().low_space;
    let images = images(node.local.images().list());
    let short_of_memory = usage::free_memory_bytes().is_some_and(|bytes| bytes < MIN_MEMORY_BYTES);
    node.gate
        .update(&user, &kind, ("", node.members.own_name()), Subresource::Status, &options, |object| {
            let mut status = object.get("status").cloned().unwrap_or_else(|| json!({}));
            let (cpu_millis, memory_bytes) = usage::capacity();
            let allocatable = memory_bytes.saturating_sub(RESERVED_MEMORY_BYTES);
            let pods = max_pods(object.pointer("/spec/podCIDR").and_then(Value::as_str));
            let known = status["capacity"].take();
            status["capacity"] = with_others(resources(cpu_millis, memory_bytes, disk_bytes, pods), &known);
            status["allocatable"] = with_others(resources(cpu_millis, allocatable, disk_bytes, pods), &known);
            status["addresses"] = listed(&addresses, node.members.own_name());
            status["nodeInfo"] = node_info();
            // A full disk takes nothing that grows, and must not keep the rest from being said.
            if !low_space {
                set_images(&mut status, &images);
            }
            status["daemonEndpoints"] = json!({"kubeletEndpoint": {"Port": node.config.listen.port()}});
            if readiness.is_ok() || !(starting && is_ready(&status)) {
                set_ready(&mut status, readiness, now);
            }
            for (kind, pressed) in
                [("MemoryPressure", short_of_memory), ("DiskPressure", low_space), ("PIDPressure", false)]
            {
                set_pressure(&mut status, kind, pressed, now);
            }
            object["status"] = status;
            Ok(())
        })
        .await
        .map(|_| ())
}

fn resources(cpu_millis: u64, memory_bytes: u64, disk_bytes: u64, pods: u32) -> Value {
    json!({
        "cpu": format!("{cpu_millis}m"),
        "memory": format!("{}Ki", memory_bytes / 1024),
        "ephemeral-storage": format!("{}Ki", disk_bytes / 1024),
        "pods": pods.to_string(),
    })
}

/// The size of the file system that images, logs and volumes are on; 0 if it does not say.
fn disk_bytes(directory: &Path) -> u64 {
    statvfs(directory).map_or(0, |disk| disk.blocks() * disk.fragment_size())
}

/// Keeps what others advertise on the node, such as devices. Defined by Kubernetes' documentation, "Extended Resources":
/// all of it may be given to pods.
fn with_others(mut own: Value, known: &Value) -> Value {
    for (name, amount) in known.as_object().into_iter().flatten() {
        if own.get(name).is_none() {
            own[name] = amount.clone();
        }
    }
    own
}

/// No more pods than addresses: the network's own, the bridge's and the broadcast address are nobody's.
fn max_pods(pod_cidr: Option<&str>) -> u32 {
    let prefix = pod_cidr.and_then(|cidr| cidr.split_once('/')).and_then(|(_, prefix)| prefix.parse::<u32>().ok());
    let addresses =
        prefix.map_or(u32::MAX, |prefix| 1_u32.checked_shl(32_u32.saturating_sub(prefix)).unwrap_or(u32::MAX));
    addresses.saturating_sub(3).min(MAX_PODS)
}

fn listed(addresses: &[SocketAddr], name: &str) -> Value {
    let mut listed: Vec<Value> = Vec::new();
    for address in addresses {
        let one = json!({"type": "InternalIP", "address": address.ip().to_string()});
        if !listed.contains(&one) {
            listed.push(one);
        }
    }
    listed.push(json!({"type": "Hostname", "address": name}));
    Value::Array(listed)
}

/// The largest images, with some of the names of each; as many as the kubelet lists.
fn images(mut images: Vec<Image>) -> Vec<Value> {
    images.sort_by(|one, other| (other.size_bytes, &one.digest).cmp(&(one.size_bytes, &other.digest)));
    let listed = images.into_iter().take(MAX_IMAGES).map(|image| {
        let names: Vec<String> = image.repo_digests.into_iter().chain(image.references).take(MAX_IMAGE_NAMES).collect();
        json!({"names": names, "sizeBytes": image.size_bytes})
    });
    listed.collect()
}

/// A node without images lists none: an empty list would be taken for a change each time.
fn set_images(status: &mut Value, images: &[Value]) {
    match status.as_object_mut() {
        Some(status) if images.is_empty() => _ = status.remove("images"),
        _ => status["images"] = json!(images),
    }
}

/// What the machine is called by its maker, or by its hypervisor; else by its system.
fn system_uuid(read: impl Fn(&str) -> String) -> String {
    let places = [
        "/sys/class/dmi/id/product_uuid",
        "/proc/device-tree/system-id",
        "/proc/device-tree/vm,uuid",
        "/etc/machine-id",
    ];
    places.into_iter().map(read).find(|id| !id.is_empty()).unwrap_or_default()
}

fn node_info() -> Value {
    let read = |path: &str| {
        std::fs::read_to_string(path)
            .unwrap_or_default()
            .trim_matches(|c: char| c.is_whitespace() || c == '\0')
            .to_owned()
    };
    let machine_id = ["/etc/machine-id", "/var/lib/dbus/machine-id"].into_iter().map(read).find(|id| !id.is_empty());
    let os = read("/etc/os-release");
    let os =
        os.lines().find_map(|line| line.strip_prefix("PRETTY_NAME=")).unwrap_or("Linux").trim_matches('"').to_owned();
    json!({
        "machineID": machine_id.unwrap_or_default(),
        "systemUUID": system_uuid(read),
        "bootID": read("/proc/sys/kernel/random/boot_id"),
        "kernelVersion": read("/proc/sys/kernel/osrelease"),
        "osImage": os,
        "containerRuntimeVersion": format!("flotilla://{VERSION}"),
        "kubeletVersion": format!("v{VERSION}"),
        "kubeProxyVersion": "",
        "operatingSystem": "linux",
        "architecture": arch(),
    })
}

fn is_ready(status: &Value) -> bool {
    let conditions = status["conditions"].as_array();
    conditions.is_some_and(|all| all.iter().any(|one| one["type"] == "Ready" && one["status"] == "True"))
}

fn set_ready(status: &mut Value, readiness: Result<(), &str>, now: Timestamp) {
    let condition = match readiness {
        Ok(()) => ("True", "FlotillaReady", "flotilla is posting ready status"),
        Err(why) => ("False", "FlotillaNotReady", why),
    };
    set(status, "Ready", condition, now);
}

/// In the kubelet's words. What says that the disk is full is not longer than what says that it is not: a full one takes
/// nothing that grows.
fn set_pressure(status: &mut Value, kind: &str, pressed: bool, now: Timestamp) {
    let (reason, message) = match (kind, pressed) {
        ("MemoryPressure", false) => ("KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
        ("MemoryPressure", true) => ("KubeletHasInsufficientMemory", "kubelet has insufficient memory available"),
        ("DiskPressure", false) => ("KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
        ("DiskPressure", true) => ("KubeletHasDiskPressure", "kubelet has disk pressure"),
        (_, false) => ("KubeletHasSufficientPID", "kubelet has sufficient PID available"),
        (_, true) => ("KubeletHasInsufficientPID", "kubelet has insufficient PID available"),
    };
    set(status, kind, (if pressed { "True" } else { "False" }, reason, message), now);
}

/// Sets a condition; its times move with its status, and now and then so that people see that somebody looks.
fn set(status: &mut Value, kind: &str, (word, reason, message): (&str, &str, &str), now: Timestamp) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(conditions) = status["conditions"].as_array_mut() else { return };
    let mut known = conditions.iter_mut().find(|condition| condition["type"] == kind);
    let at = now.strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
    let is_same = |known: &Value| known["status"] == word && known["reason"] == reason && known["message"] == message;
    if let Some(known) = known.as_mut().filter(|known| is_same(known)) {
        let told = known["lastHeartbeatTime"].as_str().and_then(|told| told.parse::<Timestamp>().ok());
        if told.is_none_or(|told| now.duration_since(told) >= HEARTBEAT) {
            known["lastHeartbeatTime"] = at.into();
        }
        return;
    }
    let since = known.as_ref().filter(|known| known["status"] == word).map(|known| known["lastTransitionTime"].clone());
    let condition = json!({"type": kind, "status": word, "reason": reason, "message": message,
        "lastHeartbeatTime": at, "lastTransitionTime": since.unwrap_or_else(|| at.into())});
    match known {
        Some(known) => *known = condition,
        None => conditions.push(condition),
    }
}

fn own_key(node: &Node) -> Key {
    Key::new(&Builtin::Node.collection(), "", node.members.own_name())
}

/// Waits until the leader has given this node its pod addresses.
pub async fn pod_cidr(node: &Node) -> String {
    let key = own_key(node);
    let mut told = false;
    loop {
        let stored = node.gate.store().get(&key).ok().flatten();
        let cidr = stored.and_then(|kv| {
            let object: Value = object::decode_value(&kv.value, kv.mod_revision).ok()?;
            object.pointer("/spec/podCIDR")?.as_str().map(str::to_owned)
        });
        if let Some(cidr) = cidr {
            return cidr;
        }
        if !told {
            told = true;
            info!("waiting for pod addresses");
        }
        let Ok(mut watch) = node.gate.store().watch(key.as_str(), 0).await else {
            tokio::time::sleep(LOOK).await;
            continue;
        };
        _ = tokio::time::timeout(Duration::from_secs(1), async {
            while !matches!(watch.next().await, Some(WatchItem::Events(..)) | None) {}
        })
        .await;
    }
}

#[cfg(test)]
mod tests {
    use flotilla_runtime::images::{Digest, ImageConfig};

    use super::*;

    #[test]
    fn a_node_has_no_more_pods_than_addresses() {
        assert_eq!(max_pods(Some("10.244.0.0/22")), 1_000);
        assert_eq!(max_pods(Some("10.244.0.0/24")), 253);
        assert_eq!(max_pods(Some("10.244.0.0/30")), 1);
        assert_eq!(max_pods(None), MAX_PODS);
    }

    #[test]
    fn the_largest_images_are_listed() {
        let image = |size_bytes: u64| Image {
            references: (0..9).map(|tag| format!("r/x:{tag}")).collect(),
            repo_digests: vec![format!("r/x@sha256:{size_bytes}")],
            digest: Digest::of(&size_bytes.to_be_bytes()),
            id: Digest::of(b""),
            size_bytes,
            created: None,
            config: ImageConfig::default(),
            layers: Vec::new(),
            used: Timestamp::UNIX_EPOCH,
        };
        let listed = images((1..=60).map(image).collect());
        assert_eq!(listed.len(), MAX_IMAGES);
        let names = ["r/x@sha256:60", "r/x:0", "r/x:1", "r/x:2", "r/x:3"];
        assert_eq!(listed[0], json!({"names": names, "sizeBytes": 60}));
        assert_eq!(listed[49]["sizeBytes"], 11);
        let mut status = json!({});
        set_images(&mut status, &listed[..1]);
        assert_eq!(status, json!({"images": [listed[0]]}));
        set_images(&mut status, &[]);
        assert_eq!(status, json!({}));
    }

    #[test]
    fn a_machine_without_a_makers_id_goes_by_its_own() {
        let only = |place: &'static str| move |path: &str| if path == place { "id".to_owned() } else { String::new() };
        for place in ["/sys/class/dmi/id/product_uuid", "/proc/device-tree/vm,uuid", "/etc/machine-id"] {
            assert_eq!(system_uuid(only(place)), "id");
        }
        assert_eq!(system_uuid(|_| String::new()), "");
    }

    #[test]
    fn what_others_advertise_stays() {
        let known = json!({"cpu": "1", "example.com/dongle": "4"});
        let all = with_others(resources(2_000, 2_048, 4_096, 10), &known);
        assert_eq!(
            all,
            json!({"cpu": "2000m", "memory": "2Ki", "ephemeral-storage": "4Ki", "pods": "10", "example.com/dongle": "4"})
        );
        assert_eq!(with_others(json!({"cpu": "1"}), &Value::Null), json!({"cpu": "1"}));
        assert!(disk_bytes(Path::new("/")) > 0);
    }

    #[test]
    fn the_condition_moves_only_with_its_status() {
        let mut status = json!({});
        set_ready(&mut status, Ok(()), Timestamp::UNIX_EPOCH);
        let first = status.clone();
        let later = Timestamp::UNIX_EPOCH + HEARTBEAT;
        set_ready(&mut status, Ok(()), later - SignedDuration::from_secs(1));
        assert_eq!(status, first);
        set_ready(&mut status, Ok(()), later);
        let condition = &status["conditions"][0];
        assert_eq!(condition["lastHeartbeatTime"], "1970-01-01T00:05:00Z");
        assert_eq!(condition["lastTransitionTime"], first["conditions"][0]["lastTransitionTime"]);
        set_ready(&mut status, Err("not yet"), Timestamp::now());
        assert_eq!(status["conditions"][0]["status"], "False");
        let since = status["conditions"][0]["lastTransitionTime"].clone();
        set_ready(&mut status, Err("never"), Timestamp::now() + HEARTBEAT);
        assert_eq!(status["conditions"][0]["message"], "never");
        assert_eq!(status["conditions"][0]["lastTransitionTime"], since, "it is as ready as it was");
        assert_eq!(status["conditions"].as_array().map(Vec::len), Some(1));
        set_pressure(&mut status, "DiskPressure", false, Timestamp::now());
        let before = status.to_string().len();
        set_pressure(&mut status, "DiskPressure", true, Timestamp::now());
        assert_eq!(status["conditions"][1]["reason"], "KubeletHasDiskPressure");
        assert!(status.to_string().len() <= before);
    }
}
