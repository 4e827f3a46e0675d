//! What the figures were taken on: the machine, what else it was doing, and the versions of what was measured.

use std::fs;
use std::process::Command;

use anyhow::Context;

use crate::etcd::ETCD;
use crate::examples::RUNC;

/// The number of runnable processes over the last minute.
pub fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or("?").to_owned()
}

/// Resident memory of a process.
///
/// # Errors
/// If there is no such process.
pub fn rss_mb(pid: u32) -> anyhow::Result<f64> {
    status_mb(pid, "VmRSS:")
}

/// What of it is not of files, such as the program's own, which the kernel drops when it needs room.
///
/// # Errors
/// If there is no such process.
pub fn anonymous_mb(pid: u32) -> anyhow::Result<f64> {
    status_mb(pid, "RssAnon:")
}

fn status_mb(pid: u32, field: &str) -> anyhow::Result<f64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix(field)).with_context(|| format!("no {field}"))?;
    let kib: f64 = line.trim().trim_end_matches("kB").trim().parse()?;
    Ok(kib * 1024.0 / 1e6)
}

/// Machine and versions in words; `load_before` is the load average at the start of the run.
pub fn describe(load_before: &str) -> String {
    let build = if cfg!(debug_assertions) { "NOT OPTIMIZED: the figures say little" } else { "optimized" };
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    let lines = [
        format!("Flotilla {} ({build}), {}, {}", flotilla::VERSION, version(ETCD), version(RUNC)),
        format!(
            "{cores} cores ({}), {} GiB memory, Linux {}",
            field("/proc/cpuinfo", "model name"),
            memory_gib(),
            line("/proc/sys/kernel/osrelease")
        ),
        format!("data on {}; load average {load_before} before, {} after", file_system(), load_average()),
    ];
    lines.map(|line| line + "\n").concat()
}

fn version(program: &str) -> String {
    let said = Command::new(program).arg("--version").output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.lines().next().unwrap_or("nothing of that name").to_owned()
}

fn field(file: &str, name: &str) -> String {
    let text = fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find(|line| line.starts_with(name)).unwrap_or_default();
    line.split_once(':').map_or("unknown", |(_, value)| value.trim()).to_owned()
}

fn line(file: &str) -> String {
    fs::read_to_string(file).unwrap_or_default().trim().to_owned()
}

fn memory_gib() -> u64 {
    let total = field("/proc/meminfo", "MemTotal");
    total.split(' ').next().and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default() >> 20
}

fn file_system() -> String {
    let said = Command::new("df").args(["--output=fstype", crate::etcd::DISK]).output();
    let said = said.map(|output| String::from_utf8_lossy(&output.stdout).into_owned()).unwrap_or_default();
    said.lines().nth(1).unwrap_or("an unknown file system").trim().to_owned()
}
