//! What pods and the node use.

use std::fs;

use serde::{Deserialize, Serialize};

use super::PodsError;
use super::sandbox::Sandbox;
use crate::cgroup::{Cgroup, Usage};

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct SandboxUsage {
    pub pod: Usage,
    pub containers: Vec<ContainerUsage>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerUsage {
    pub name: String,
    pub attempt: u32,
    pub usage: Usage,
}

/// The machine as a whole.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NodeUsage {
    /// CPU time that was not idle, since boot.
    pub cpu_ns: u64,
    pub memory_total_bytes: u64,
    /// Memory that is free or can be reclaimed.
    pub memory_available_bytes: u64,
    pub cpus: u64,
}

pub fn of(sandbox: &Sandbox) -> Result<SandboxUsage, PodsError> {
    let pod = Cgroup::new(&sandbox.record.cgroup)?;
    let running = sandbox.state().containers.into_iter().filter(|c| c.phase.exit().is_none());
    let containers = running
        .map(|c| Ok(ContainerUsage { usage: pod.child(&c.key())?.usage(), name: c.name, attempt: c.attempt }))
        .collect::<Result<_, PodsError>>()?;
    Ok(SandboxUsage { pod: pod.usage(), containers })
}

pub fn node() -> NodeUsage {
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let (total, available) = memory(&meminfo);
    NodeUsage {
        cpu_ns: busy_ticks(&stat).saturating_mul(1_000_000_000 / ticks_per_second()),
        memory_total_bytes: total,
        memory_available_bytes: available,
        cpus: std::thread::available_parallelism().map_or(1, |cpus| cpus.get() as u64),
    }
}

fn memory(meminfo: &str) -> (u64, u64) {
    let bytes = |key: &str| {
        let line = meminfo.lines().find_map(|line| line.strip_prefix(key)).unwrap_or_default();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap_or(0) * 1024
    };
    (bytes("MemTotal:"), bytes("MemAvailable:"))
}

/// The first line's user, nice, system, irq, softirq and steal; not idle and iowait, nor guests, which user counts.
fn busy_ticks(stat: &str) -> u64 {
    let fields = stat.lines().next().unwrap_or_default().split_ascii_whitespace().skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    [0, 1, 2, 5, 6, 7].iter().filter_map(|index| ticks.get(*index)).sum()
}

fn ticks_per_second() -> u64 {
    // SAFETY: asks for a number.
    u64::try_from(unsafe { libc::sysconf(libc::_SC_CLK_TCK) }).unwrap_or(100).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_tables_are_read() {
        assert_eq!(memory("MemTotal:       100 kB\nMemAvailable:    40 kB\n"), (102_400, 40_960));
        assert_eq!(busy_ticks("cpu  1 2 3 100 200 4 5 6 7 8\n"), 21);
        assert!(node().memory_total_bytes > 0);
    }
}
