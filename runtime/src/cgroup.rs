//! Control groups: the pod's own limits, what a pod uses, who was killed for memory, and how to kill all of it.
//!
//! Engines make and fill the container's group; this module makes the pod's group around it and reads both. It speaks
//! cgroup v1 (one hierarchy a controller) and v2 (one for all), decided by what is mounted at `/sys/fs/cgroup`.
//!
//! Invariant: a path is absolute, clean and below `/sys/fs/cgroup`; nothing outside a pod's group is written or killed.
//! Invariant: a missing file reads as zero: a group may vanish between any two reads.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::{Deserialize, Serialize};

const ROOT: &str = "/sys/fs/cgroup";
const CGROUP2_MAGIC: i64 = 0x6367_7270;
/// Groups nested deeper than this are not walked.
const MAX_DEPTH: usize = 8;
/// What a pod is limited by.
const CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];
const KILL_PAUSE: Duration = Duration::from_millis(5);

#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    #[error("cgroup path {0:?} is not absolute and clean")]
    BadPath(String),
    #[error(
        "this machine has no cgroup controller for {0}, which limit what pods use: mount them below /sys/fs/cgroup, or start \
         the kernel with them (cgroup_enable=memory on some boards)"
    )]
    Missing(String),
    #[error("cgroup {path}: cannot {action}")]
    Io { path: PathBuf, action: &'static str, source: io::Error },
}

/// What a pod or container may use. `None` leaves the kernel's default, which is no limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Limits {
    /// Relative weight, as in cgroup v1's `cpu.shares` (1024 is one CPU's worth).
    pub cpu_shares: Option<u64>,
    /// CPU time allowed each period.
    pub cpu_quota_us: Option<i64>,
    pub cpu_period_us: Option<u64>,
    pub memory_bytes: Option<i64>,
    pub pids: Option<i64>,
}

/// What a group has used.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// CPU time since the group was made.
    pub cpu_ns: u64,
    /// Memory that cannot be reclaimed at once: usage without inactive file pages.
    pub memory_working_set_bytes: u64,
    pub memory_usage_bytes: u64,
    pub pids: u64,
}

#[derive(Debug)]
enum Layout {
    V2,
    /// Mount point and controllers of each hierarchy.
    V1(Vec<(PathBuf, Vec<String>)>),
}

fn layout() -> &'static Layout {
    static LAYOUT: OnceLock<Layout> = OnceLock::new();
    LAYOUT.get_or_init(|| match nix::sys::statfs::statfs(ROOT) {
        Ok(found) if found.filesystem_type().0 == CGROUP2_MAGIC => Layout::V2,
        _ => Layout::V1(v1_hierarchies(&fs::read_to_string("/proc/self/mountinfo").unwrap_or_default())),
    })
}

/// Whether this machine runs on cgroup v2 alone.
pub fn is_v2() -> bool {
    matches!(layout(), Layout::V2)
}

/// Whether a swap limit can be set beside a memory limit.
pub fn counts_swap() -> bool {
    match layout() {
        Layout::V2 => true,
        Layout::V1(_) => controller_root("memory").is_some_and(|m| m.join("memory.memsw.limit_in_bytes").exists()),
    }
}

/// Whether pods can be limited on this machine.
///
/// # Errors
/// Which controllers it lacks.
pub fn check() -> Result<(), CgroupError> {
    let v2 = fs::read_to_string(Path::new(ROOT).join("cgroup.controllers")).unwrap_or_default();
    missing(|controller| match layout() {
        Layout::V2 => v2.split_whitespace().any(|one| one == controller),
        Layout::V1(_) => controller_root(controller).is_some(),
    })
}

fn missing(has: impl Fn(&str) -> bool) -> Result<(), CgroupError> {
    let missing: Vec<&str> = CONTROLLERS.into_iter().filter(|controller| !has(controller)).collect();
    if missing.is_empty() { Ok(()) } else { Err(CgroupError::Missing(missing.join(", "))) }
}

fn v1_hierarchies(mountinfo: &str) -> Vec<(PathBuf, Vec<String>)> {
    let mut found: Vec<(PathBuf, Vec<String>)> = Vec::new();
    for line in mountinfo.lines() {
        let Some((left, right)) = line.split_once(" - ") else { continue };
        let mut right = right.split(' ');
        if right.next() != Some("cgroup") {
            continue;
        }
        let Some(mount_point) = left.split(' ').nth(4) else { continue };
        let options = right.nth(1).unwrap_or_default();
        let path = PathBuf::from(mount_point);
        if path.starts_with(ROOT) && !found.iter().any(|(known, _)| *known == path) {
            found.push((path, options.split(',').map(str::to_owned).collect()));
        }
    }
    found
}

fn controller_root(controller: &str) -> Option<PathBuf> {
    match layout() {
        Layout::V2 => Some(PathBuf::from(ROOT)),
        Layout::V1(all) => all.iter().find(|(_, has)| has.iter().any(|c| c == controller)).map(|(p, _)| p.clone()),
    }
}

/// One group, by its path below the root of every hierarchy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cgroup {
    path: PathBuf,
}

impl Cgroup {
    pub fn new(path: &str) -> Result<Self, CgroupError> {
        let clean = path.starts_with('/')
            && path.len() > 1
            && path[1..].split('/').all(|part| !part.is_empty() && part != "." && part != ".." && !part.contains('\0'));
        if clean { Ok(Self { path: PathBuf::from(path) }) } else { Err(CgroupError::BadPath(path.into())) }
    }

    pub fn child(&self, name: &str) -> Result<Self, CgroupError> {
        Self::new(&format!("{}/{name}", self.path.display()))
    }

    /// The path as an OCI specification's `cgroupsPath` wants it.
    pub fn path(&self) -> &Path {
        &self.path
    }

    fn below(&self, root: &Path) -> PathBuf {
        root.join(self.path.strip_prefix("/").unwrap_or(&self.path))
    }

    fn dir(&self, controller: &str) -> Option<PathBuf> {
        controller_root(controller).map(|root| self.below(&root))
    }

    fn dirs(&self) -> Vec<PathBuf> {
        match layout() {
            Layout::V2 => vec![self.below(Path::new(ROOT))],
            Layout::V1(all) => all.iter().map(|(root, _)| self.below(root)).collect(),
        }
    }

    pub fn exists(&self) -> bool {
        self.dirs().iter().any(|dir| dir.exists())
    }

    /// Makes the group with its limits, or gives a present one these limits.
    pub fn create(&self, limits: &Limits) -> Result<(), CgroupError> {
        match layout() {
            Layout::V2 => self.create_v2(limits),
            Layout::V1(_) => self.create_v1(limits),
        }
    }

    fn create_v1(&self, limits: &Limits) -> Result<(), CgroupError> {
        for controller in ["cpu", "cpuacct", "memory", "pids"] {
            if let Some(dir) = self.dir(controller) {
                make(&dir)?;
            }
        }
        let set = |controller: &str, file: &str, value: Option<String>| match (self.dir(controller), value) {
            (Some(dir), Some(value)) => write(&dir.join(file), &value),
            _ => Ok(()),
        };
        set("cpu", "cpu.shares", limits.cpu_shares.map(|v| v.to_string()))?;
        set("cpu", "cpu.cfs_period_us", limits.cpu_period_us.map(|v| v.to_string()))?;
        set("cpu", "cpu.cfs_quota_us", limits.cpu_quota_us.map(|v| v.to_string()))?;
        set("memory", "memory.limit_in_bytes", limits.memory_bytes.map(|v| v.to_string()))?;
        set("pids", "pids.max", limits.pids.map(|v| v.to_string()))
    }

    fn create_v2(&self, limits: &Limits) -> Result<(), CgroupError> {
        let dir = self.below(Path::new(ROOT));
        make(&dir)?;
        let mut ancestors: Vec<&Path> = dir.ancestors().take_while(|a| a.starts_with(ROOT)).collect();
        ancestors.reverse();
        for ancestor in ancestors {
            for controller in ["+cpu", "+memory", "+pids"] {
                // A controller that the machine lacks is noticed below, and only if a limit needs it.
                let _ = fs::write(ancestor.join("cgroup.subtree_control"), controller);
            }
        }
        let set = |file: &str, value: Option<String>| value.map_or(Ok(()), |value| write(&dir.join(file), &value));
        set("cpu.weight", limits.cpu_shares.map(|shares| weight_of_shares(shares).to_string()))?;
        let period_us = limits.cpu_period_us.unwrap_or(100_000);
        set("cpu.max", limits.cpu_quota_us.map(|quota_us| cpu_max(quota_us, period_us)))?;
        set("memory.max", limits.memory_bytes.map(max_or))?;
        set("pids.max", limits.pids.map(max_or))
    }

    /// Gives a present group these limits. Those that are `None` stay as they are.
    ///
    /// # Errors
    /// If the kernel refuses, or more memory is in use than the new limit: lowering it would kill.
    pub fn update(&self, limits: &Limits) -> Result<(), CgroupError> {
        if let Some(limit_bytes) = limits.memory_bytes.filter(|limit| *limit >= 0)
            && self.usage().memory_working_set_bytes > limit_bytes as u64
        {
            let path = self.path.clone();
            let source = io::Error::other("more memory is in use than the new limit");
            return Err(CgroupError::Io { path, action: "lower the memory limit", source });
        }
        self.set_memory(limits.memory_bytes)?;
        let set = |file: &str, value: Option<String>| match (self.dir("cpu"), value) {
            (Some(dir), Some(value)) => write(&dir.join(file), &value),
            _ => Ok(()),
        };
        let period_us = limits.cpu_period_us.unwrap_or(100_000);
        if is_v2() {
            set("cpu.weight", limits.cpu_shares.map(|shares| weight_of_shares(shares).to_string()))?;
            return set("cpu.max", limits.cpu_quota_us.map(|quota_us| cpu_max(quota_us, period_us)));
        }
        set("cpu.shares", limits.cpu_shares.map(|v| v.to_string()))?;
        set("cpu.cfs_period_us", limits.cpu_period_us.map(|v| v.to_string()))?;
        set("cpu.cfs_quota_us", limits.cpu_quota_us.map(|v| v.to_string()))
    }

    /// Lifts those of the limits that are about to change, so that what is below may grow.
    pub fn lift(&self, limits: &Limits) -> Result<(), CgroupError> {
        self.update(&Limits {
            memory_bytes: limits.memory_bytes.map(|_| -1),
            cpu_quota_us: limits.cpu_quota_us.map(|_| -1),
            ..Limits::default()
        })
    }

    fn set_memory(&self, limit_bytes: Option<i64>) -> Result<(), CgroupError> {
        let (Some(dir), Some(limit_bytes)) = (self.dir("memory"), limit_bytes) else { return Ok(()) };
        if is_v2() {
            return write(&dir.join("memory.max"), &max_or(limit_bytes));
        }
        let (limit, with_swap) = (dir.join("memory.limit_in_bytes"), dir.join("memory.memsw.limit_in_bytes"));
        let value = limit_bytes.to_string();
        if !with_swap.exists() || number(&with_swap) > i64::MAX as u64 / 2 {
            return write(&limit, &value);
        }
        // Memory with swap must never be less than memory alone.
        let grows = limit_bytes < 0 || limit_bytes as u64 > number(&limit);
        let order = if grows { [with_swap, limit] } else { [limit, with_swap] };
        order.iter().try_for_each(|file| write(file, &value))
    }

    /// Moves a process into the group.
    ///
    /// # Errors
    /// If the kernel refuses.
    pub fn take(&self, pid: i32) -> Result<(), CgroupError> {
        self.dirs()
            .iter()
            .filter(|dir| dir.exists())
            .try_for_each(|dir| write(&dir.join("cgroup.procs"), &pid.to_string()))
    }

    /// Every process in the group and below.
    pub fn pids(&self) -> Vec<i32> {
        let mut pids = Vec::new();
        for dir in self.dirs() {
            walk(&dir, MAX_DEPTH, &mut |group| {
                let procs = fs::read_to_string(group.join("cgroup.procs")).unwrap_or_default();
                pids.extend(procs.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
            });
        }
        pids.sort_unstable();
        pids.dedup();
        pids
    }

    /// Kills every process in the group and below; `true` when none is left before `within` has passed.
    pub fn kill_all(&self, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        loop {
            if is_v2() {
                let _ = fs::write(self.below(Path::new(ROOT)).join("cgroup.kill"), "1");
            }
            let pids: Vec<i32> = self.pids().into_iter().filter(|pid| !is_zombie(*pid)).collect();
            if pids.is_empty() {
                return true;
            }
            for pid in pids {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
            if Instant::now() >= deadline {
                return false;
            }
            std::thread::sleep(KILL_PAUSE);
        }
    }

    /// Removes the group and all below it. A group that is not there is removed already.
    pub fn remove(&self, within: Duration) -> Result<(), CgroupError> {
        let deadline = Instant::now() + within;
        for dir in self.dirs() {
            while let Err(source) = remove_tree(&dir, MAX_DEPTH) {
                if Instant::now() >= deadline {
                    return Err(CgroupError::Io { path: dir, action: "remove", source });
                }
                std::thread::sleep(KILL_PAUSE);
            }
        }
        Ok(())
    }

    /// Processes of this group, and on v2 of all below, that the kernel killed for memory.
    pub fn oom_kills(&self) -> u64 {
        let Some(dir) = self.dir("memory") else { return 0 };
        let file = if is_v2() { "memory.events" } else { "memory.oom_control" };
        keyed(&dir.join(file), "oom_kill")
    }

    pub fn usage(&self) -> Usage {
        let read = |controller: &str, file: &str| self.dir(controller).map_or(0, |dir| number(&dir.join(file)));
        let keyed_in =
            |controller: &str, file: &str, key: &str| self.dir(controller).map_or(0, |dir| keyed(&dir.join(file), key));
        let (cpu_ns, usage, inactive) = if is_v2() {
            (
                keyed_in("cpu", "cpu.stat", "usage_usec").saturating_mul(1000),
                read("memory", "memory.current"),
                keyed_in("memory", "memory.stat", "inactive_file"),
            )
        } else {
            (
                read("cpuacct", "cpuacct.usage"),
                read("memory", "memory.usage_in_bytes"),
                keyed_in("memory", "memory.stat", "total_inactive_file"),
            )
        };
        Usage {
            cpu_ns,
            memory_usage_bytes: usage,
            memory_working_set_bytes: usage.saturating_sub(inactive),
            pids: read("pids", "pids.current"),
        }
    }
}

fn make(dir: &Path) -> Result<(), CgroupError> {
    fs::create_dir_all(dir).map_err(|source| CgroupError::Io { path: dir.into(), action: "create", source })
}

fn write(file: &Path, value: &str) -> Result<(), CgroupError> {
    fs::write(file, value).map_err(|source| CgroupError::Io { path: file.into(), action: "write", source })
}

fn number(file: &Path) -> u64 {
    fs::read_to_string(file).ok().and_then(|text| text.trim().parse().ok()).unwrap_or(0)
}

fn keyed(file: &Path, key: &str) -> u64 {
    let text = fs::read_to_string(file).unwrap_or_default();
    text.lines()
        .filter_map(|line| line.split_once(' '))
        .find(|(k, _)| *k == key)
        .and_then(|(_, v)| v.trim().parse().ok())
        .unwrap_or(0)
}

fn walk(dir: &Path, depth: usize, visit: &mut impl FnMut(&Path)) {
    visit(dir);
    if depth == 0 {
        return;
    }
    for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            walk(&entry.path(), depth - 1, visit);
        }
    }
}

fn remove_tree(dir: &Path, depth: usize) -> io::Result<()> {
    if depth > 0 {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                remove_tree(&entry.path(), depth - 1)?;
            }
        }
    }
    match fs::remove_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

fn is_zombie(pid: i32) -> bool {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The state follows the command, which is in parentheses and may itself hold any character.
    stat.is_empty() || stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('Z'))
}

/// The OCI runtime specification's conversion from `cpu.shares` (2–262144) to `cpu.weight` (1–10000).
pub fn weight_of_shares(shares: u64) -> u64 {
    1 + ((shares.clamp(2, 262_144) - 2) * 9_999) / 262_142
}

fn cpu_max(quota_us: i64, period_us: u64) -> String {
    format!("{} {period_us}", max_or(quota_us))
}

fn max_or(limit: i64) -> String {
    if limit < 0 { "max".into() } else { limit.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_that_leave_the_group_are_refused() {
        for bad in ["", "/", "relative", "/a/../b", "/a//b", "/a/./b", "/a/"] {
            assert!(Cgroup::new(bad).is_err(), "{bad:?}");
        }
        assert!(Cgroup::new("/flotilla/pod1").unwrap().child("../x").is_err());
    }

    #[test]
    fn shares_become_weights_at_both_ends() {
        assert_eq!(weight_of_shares(0), 1);
        assert_eq!(weight_of_shares(1024), 39);
        assert_eq!(weight_of_shares(u64::MAX), 10_000);
    }

    #[test]
    fn hierarchies_come_from_mountinfo() {
        let text = "31 28 0:27 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
                    32 28 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n\
                    33 28 0:29 / /elsewhere rw - cgroup cgroup rw,memory\n";
        let found = v1_hierarchies(text);
        assert_eq!(found.len(), 1);
        assert!(found[0].1.contains(&"cpuacct".to_owned()));
    }

    #[test]
    fn what_a_machine_lacks_is_named() {
        check().unwrap();
        let words = missing(|controller| controller == "cpu").unwrap_err().to_string();
        assert!(words.contains("no cgroup controller for memory, pids,"), "{words}");
    }

    #[test]
    fn a_group_is_made_limited_killed_and_removed() {
        let group = Cgroup::new(&format!("/flotilla-test-{}", std::process::id())).unwrap();
        group.create(&Limits { memory_bytes: Some(64 << 20), pids: Some(10), ..Limits::default() }).unwrap();
        assert!(group.exists());
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        // On v2 a group has either processes or groups with controllers below it.
        let member = group.child("member").unwrap();
        member.create(&Limits::default()).unwrap();
        member.take(child.id() as i32).unwrap();
        assert_eq!(group.pids(), vec![child.id() as i32]);
        assert!(group.kill_all(Duration::from_secs(5)));
        child.wait().unwrap();
        group.remove(Duration::from_secs(5)).unwrap();
        assert!(!group.exists());
    }
}
