//! How much of a node is in use, as its heartbeats say.

use serde::{Deserialize, Serialize};

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Thousandths of a core.
    pub cpu_millis: u64,
    pub memory_bytes: u64,
}

impl Usage {
    pub fn encode(&self) -> Vec<u8> {
        flotilla_net::codec::encode(self).unwrap_or_default()
    }

    /// What a peer sent; `None` if it is not this.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        flotilla_net::codec::decode(bytes).ok()
    }
}

/// Reads the machine's use from `/proc`.
#[derive(Default)]
pub struct Meter {
    last: Option<(u64, u64)>,
}

impl Meter {
    /// CPU since the last reading, memory now.
    pub fn read(&mut self) -> Usage {
        let stat = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
        let cpu_millis = match (self.last, cpu_ticks(&stat)) {
            (Some((busy, all)), Some((busy_now, all_now))) if all_now > all => {
                let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
                (busy_now.saturating_sub(busy)) * 1_000 * cores / (all_now - all)
            }
            _ => 0,
        };
        self.last = cpu_ticks(&stat).or(self.last);
        Usage { cpu_millis, memory_bytes: memory_used(&meminfo).unwrap_or_default() }
    }
}

/// Busy and total ticks of all processors.
fn cpu_ticks(stat: &str) -> Option<(u64, u64)> {
    let line = stat.lines().find(|line| line.starts_with("cpu "))?;
    let ticks: Vec<u64> = line.split_whitespace().skip(1).take(8).filter_map(|n| n.parse().ok()).collect();
    let all: u64 = ticks.iter().sum();
    let idle = ticks.get(3)? + ticks.get(4)?;
    Some((all - idle, all))
}

fn memory_used(meminfo: &str) -> Option<u64> {
    Some(memory_field(meminfo, "MemTotal:")?.saturating_sub(memory_field(meminfo, "MemAvailable:")?))
}

fn memory_field(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find(|line| line.starts_with(name))?;
    line.split_whitespace().nth(1)?.parse::<u64>().ok().map(|kib| kib * 1024)
}

/// The memory that programs could still be given; `None` if the machine does not say.
pub fn free_memory_bytes() -> Option<u64> {
    memory_field(&std::fs::read_to_string("/proc/meminfo").ok()?, "MemAvailable:")
}

/// The machine's processors in thousandths, and its memory in bytes.
pub fn capacity() -> (u64, u64) {
    let cores = std::thread::available_parallelism().map_or(1, usize::from) as u64;
    let meminfo = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = meminfo.lines().find(|line| line.starts_with("MemTotal:"));
    let kib = total.and_then(|line| line.split_whitespace().nth(1)).and_then(|n| n.parse::<u64>().ok());
    (cores * 1_000, kib.unwrap_or_default() * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_and_memory_are_read() {
        assert_eq!(cpu_ticks("cpu  10 0 20 60 10 0 0 0 0 0\ncpu0 1 1 1 1\n"), Some((30, 100)));
        assert_eq!(cpu_ticks("nothing"), None);
        assert_eq!(memory_used("MemTotal: 100 kB\nMemFree: 1 kB\nMemAvailable: 60 kB\n"), Some(40 * 1024));
    }

    #[test]
    fn usage_survives_the_wire() {
        let usage = Usage { cpu_millis: 250, memory_bytes: 1 << 30 };
        assert_eq!(Usage::decode(&usage.encode()), Some(usage));
        assert_eq!(Usage::decode(b"something else"), None);
    }
}
