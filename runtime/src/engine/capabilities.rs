//! Which capabilities a container gets.
//!
//! Invariant: a container is never promised more than this process may itself give; what is missing is left out with a
//! warning rather than failing the container.

use std::collections::BTreeSet;
use std::fs;

/// What containers get unless they say otherwise: the set that containerd and Docker give.
const DEFAULT: [&str; 14] = [
    "CAP_AUDIT_WRITE",
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_MKNOD",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_RAW",
    "CAP_SETFCAP",
    "CAP_SETGID",
    "CAP_SETPCAP",
    "CAP_SETUID",
    "CAP_SYS_CHROOT",
];

/// All capabilities in the order of their numbers in `linux/capability.h`.
const ALL: [&str; 41] = [
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_DAC_READ_SEARCH",
    "CAP_FOWNER",
    "CAP_FSETID",
    "CAP_KILL",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETPCAP",
    "CAP_LINUX_IMMUTABLE",
    "CAP_NET_BIND_SERVICE",
    "CAP_NET_BROADCAST",
    "CAP_NET_ADMIN",
    "CAP_NET_RAW",
    "CAP_IPC_LOCK",
    "CAP_IPC_OWNER",
    "CAP_SYS_MODULE",
    "CAP_SYS_RAWIO",
    "CAP_SYS_CHROOT",
    "CAP_SYS_PTRACE",
    "CAP_SYS_PACCT",
    "CAP_SYS_ADMIN",
    "CAP_SYS_BOOT",
    "CAP_SYS_NICE",
    "CAP_SYS_RESOURCE",
    "CAP_SYS_TIME",
    "CAP_SYS_TTY_CONFIG",
    "CAP_MKNOD",
    "CAP_LEASE",
    "CAP_AUDIT_WRITE",
    "CAP_AUDIT_CONTROL",
    "CAP_SETFCAP",
    "CAP_MAC_OVERRIDE",
    "CAP_MAC_ADMIN",
    "CAP_SYSLOG",
    "CAP_WAKE_ALARM",
    "CAP_BLOCK_SUSPEND",
    "CAP_AUDIT_READ",
    "CAP_PERFMON",
    "CAP_BPF",
    "CAP_CHECKPOINT_RESTORE",
];

/// The capabilities that this process holds and may pass on.
#[derive(Debug, Clone)]
pub struct Held(BTreeSet<&'static str>);

impl Held {
    pub fn now() -> Self {
        let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
        let mask = |key: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap_or("0");
            u64::from_str_radix(line.trim(), 16).unwrap_or(0)
        };
        Self::from_mask(mask("CapPrm:") & mask("CapBnd:"))
    }

    fn from_mask(mask: u64) -> Self {
        Self(ALL.iter().enumerate().filter(|(bit, _)| mask & (1 << bit) != 0).map(|(_, name)| *name).collect())
    }

    pub fn contains(&self, name: &str) -> bool {
        self.0.contains(name)
    }
}

/// The container's set, sorted. Names may lack `CAP_` and be of any case; `ALL` means all. Unknown names are an error.
pub fn resolve(add: &[String], drop: &[String], privileged: bool, held: &Held) -> Result<Vec<&'static str>, String> {
    let mut set: BTreeSet<&'static str> = if privileged { ALL.into() } else { DEFAULT.into() };
    let (add, drop) = (named(add)?, named(drop)?);
    // Kubernetes' order: an `ALL` comes before single names, so that "drop ALL, add NET_BIND_SERVICE" means what it says.
    if drop.len() == ALL.len() {
        set.clear();
    }
    if add.len() == ALL.len() {
        set = ALL.into();
    }
    if drop.len() < ALL.len() {
        set.retain(|name| !drop.contains(name));
    }
    if add.len() < ALL.len() {
        set.extend(add.iter().filter(|name| drop.len() == ALL.len() || !drop.contains(*name)));
    }
    let (given, missing): (Vec<_>, Vec<_>) = set.into_iter().partition(|name| held.contains(name));
    if !missing.is_empty() {
        tracing::debug!(?missing, "this node cannot grant these capabilities");
    }
    Ok(given)
}

fn named(names: &[String]) -> Result<BTreeSet<&'static str>, String> {
    let mut set = BTreeSet::new();
    for name in names {
        let upper = name.to_ascii_uppercase();
        let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
        if full == "CAP_ALL" {
            return Ok(ALL.into());
        }
        set.insert(*ALL.iter().find(|known| **known == full).ok_or_else(|| format!("unknown capability {name:?}"))?);
    }
    Ok(set)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(add: &[&str], drop: &[&str], privileged: bool, mask: u64) -> Result<Vec<&'static str>, String> {
        let own = |list: &[&str]| list.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        resolve(&own(add), &own(drop), privileged, &Held::from_mask(mask))
    }

    #[test]
    fn defaults_are_the_fourteen() {
        assert_eq!(names(&[], &[], false, u64::MAX).unwrap(), DEFAULT);
    }

    #[test]
    fn drop_all_then_add_leaves_what_was_added() {
        assert_eq!(names(&["net_bind_service"], &["ALL"], false, u64::MAX).unwrap(), ["CAP_NET_BIND_SERVICE"]);
        let all_but_one = names(&["ALL"], &["CHOWN"], false, u64::MAX).unwrap();
        assert_eq!(all_but_one.len(), ALL.len() - 1);
    }

    #[test]
    fn what_the_node_lacks_is_left_out() {
        let without_sys_resource = !(1 << 24);
        let got = names(&[], &[], true, without_sys_resource).unwrap();
        assert_eq!(got.len(), ALL.len() - 1);
        assert!(!got.contains(&"CAP_SYS_RESOURCE"));
    }

    #[test]
    fn an_unknown_name_is_refused() {
        assert!(names(&["CAP_FLY"], &[], false, u64::MAX).unwrap_err().contains("CAP_FLY"));
    }
}
