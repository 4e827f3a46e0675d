//! Removes the control groups that a cluster leaves behind, in whatever hierarchies the machine has.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::error::{DevError, Doing};

const ROOT: &str = "/sys/fs/cgroup";

/// Every process in the group and below it, in any hierarchy, by the id it has here.
#[must_use]
pub fn processes(group: &str) -> Vec<i32> {
    let mut found = Vec::new();
    for top in directories(group) {
        collect(&top, &mut found);
    }
    found.sort_unstable();
    found.dedup();
    found
}

/// Removes the group and those below it; their processes must have ended.
pub(crate) fn remove(group: &str) -> Result<(), DevError> {
    for top in directories(group) {
        remove_tree(&top).doing(|| format!("cannot remove the control group {}", top.display()))?;
    }
    Ok(())
}

/// Removes the group itself unless something is left in it.
pub(crate) fn remove_if_empty(group: &str) {
    for top in directories(group) {
        let _ = fs::remove_dir(top);
    }
}

/// Where the group lies: in the one hierarchy of cgroup v2, and in each of v1.
fn directories(group: &str) -> Vec<PathBuf> {
    let group = group.trim_start_matches('/');
    let hierarchies = fs::read_dir(ROOT).into_iter().flatten().flatten().map(|entry| entry.path());
    let tops = hierarchies.chain([PathBuf::from(ROOT)]).map(|hierarchy| hierarchy.join(group));
    // Some v1 hierarchies are symbolic links to others; the second visit finds nothing left.
    tops.filter(|top| top.join("cgroup.procs").is_file()).collect()
}

fn collect(dir: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(dir.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()));
    for child in children(dir) {
        collect(&child, found);
    }
}

fn children(dir: &Path) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir())).map(|entry| entry.path()).collect()
}

fn remove_tree(dir: &Path) -> io::Result<()> {
    for child in children(dir) {
        remove_tree(&child)?;
    }
    remove_one(dir)
}

/// A group stays busy for a moment after its last process has gone.
fn remove_one(dir: &Path) -> io::Result<()> {
    const ATTEMPTS: u32 = 200;
    let mut last = Ok(());
    for _ in 0..ATTEMPTS {
        last = match fs::remove_dir(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy => Err(error),
            other => return other,
        };
        std::thread::sleep(super::process::POLL);
    }
    last
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_groups_go_away() {
        let group = format!("flotilla-dev-test-{}", std::process::id());
        let hierarchies: Vec<_> = ["pids", "memory", "."].map(|kind| Path::new(ROOT).join(kind)).into();
        let mut made = 0;
        for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.join("cgroup.procs").is_file()) {
            fs::create_dir_all(hierarchy.join(&group).join("node-1/pod")).unwrap();
            made += 1;
        }
        assert!(made > 0);
        assert_eq!(processes(&group), Vec::<i32>::new());
        remove(&format!("/{group}")).unwrap();
        assert!(directories(&group).is_empty());
    }
}
