//! The processes of containers, seen from the machine on which all nodes run.

use std::collections::BTreeMap;
use std::fs;

use crate::Cluster;

/// The first process of each container of a node, by the container's host name and its id on this machine.
///
/// Containers have process ids of their own, in which the first is 1.
#[must_use]
pub fn first_processes(cluster: &Cluster, node: &str) -> BTreeMap<i32, String> {
    let processes = cluster.container_processes(node).into_iter();
    processes.filter(|pid| is_first(*pid)).map(|pid| (pid, host_name(pid))).collect()
}

fn is_first(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:")).unwrap_or_default();
    ids.split_ascii_whitespace().next_back() == Some("1")
}

fn host_name(pid: i32) -> String {
    fs::read_to_string(format!("/proc/{pid}/root/etc/hostname")).unwrap_or_default().trim().to_owned()
}

/// What a process holds in memory.
///
/// # Errors
/// If it is gone.
pub fn memory_bytes(pid: i32) -> std::io::Result<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    let kib = line.split_ascii_whitespace().next().and_then(|number| number.parse::<u64>().ok());
    kib.map(|kib| kib << 10).ok_or_else(|| std::io::Error::other("no VmRSS"))
}
