//! Whether a pod keeps to the room that its emptyDirs on disk may take.
//!
//! Defined by the Kubernetes API reference, `EmptyDirVolumeSource`, and by kubelet, which looks as often.
//!
//! Invariant: a look takes bounded time and few open files, whatever a pod puts into its volumes, and never leaves them.

use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, FromRawFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_api::k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use flotilla_api::quantity;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use super::local::Local;

/// How often volumes are measured.
const INTERVAL: Duration = Duration::from_secs(10);
/// Files of a volume that are counted; what is beyond is not.
const MAX_FILES: usize = 200_000;
/// Directories within each other that are looked into.
const MAX_DEPTH: usize = 64;
/// What the file system counts in.
const BLOCK_BYTES: u64 = 512;
/// From here on pods keep the node itself going: kubelet lets them be.
const CRITICAL_PRIORITY: i32 = 2_000_000_000;

#[derive(Default)]
pub struct Room {
    excess: Option<String>,
    looking: JoinSet<Option<String>>,
    /// `None`: there is nothing to look at.
    due: Option<Instant>,
}

impl Room {
    /// What the pod took too much of, in kubelet's words. Once said, it stays said.
    pub fn excess(&self) -> Option<&str> {
        self.excess.as_deref()
    }

    /// Waits until a look has found too much or is due; for ever while there is nothing to look at.
    pub async fn next(&mut self) {
        let due = self.due.filter(|_| self.looking.is_empty());
        let is_due = async move {
            match due {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            Some(looked) = self.looking.join_next() => match looked {
                Ok(found) => self.excess = found,
                Err(error) => debug!(%error, "the volumes of a pod are not measured"),
            },
            () = is_due => {}
        }
    }

    /// Begins a look when one is due, for as long as the pod runs.
    pub fn follow(&mut self, local: &Local, uid: &str, pod: &Pod, runs: bool) {
        let limits = if runs && self.excess.is_none() { limits(pod) } else { Vec::new() };
        if limits.is_empty() {
            self.due = None;
            return;
        }
        let now = Instant::now();
        if self.looking.is_empty() && *self.due.get_or_insert(now + INTERVAL) <= now {
            self.due = Some(now + INTERVAL);
            let (local, dir) = (local.clone(), local.volume_dir(uid));
            self.looking.spawn(async move {
                let _turn = local.measure().await?;
                let looked = tokio::task::spawn_blocking(move || exceeded(&dir, &limits));
                looked.await.ok().flatten()
            });
        }
    }
}

/// A volume's name, how much it may hold, and how the Pod says that.
type Limit = (String, u64, String);

/// What the emptyDirs on disk may hold. One in memory has its bound in the kernel.
fn limits(pod: &Pod) -> Vec<Limit> {
    let Some(spec) = pod.spec.as_ref().filter(|spec| spec.priority.unwrap_or(0) < CRITICAL_PRIORITY) else {
        return Vec::new();
    };
    let limit = |name: &str, size: &Quantity| {
        let bytes = u64::try_from(quantity::bytes(size).ok()?).ok().filter(|bytes| *bytes > 0)?;
        Some((name.to_owned(), bytes, size.0.clone()))
    };
    let empty = spec.volumes.iter().flatten().filter_map(|volume| Some((&volume.name, volume.empty_dir.as_ref()?)));
    let on_disk = empty.filter(|(_, empty)| empty.medium.as_deref().unwrap_or_default().is_empty());
    on_disk.filter_map(|(name, empty)| limit(name, empty.size_limit.as_ref()?)).collect()
}

/// The first volume that holds more than it may.
fn exceeded(dir: &Path, limits: &[Limit]) -> Option<String> {
    let is_exceeded = |(name, bytes, _): &&Limit| held_bytes(&dir.join(name), *bytes).unwrap_or(0) > *bytes;
    let (name, _, size) = limits.iter().find(is_exceeded)?;
    Some(format!("Usage of EmptyDir volume \"{name}\" exceeds the limit \"{size}\". "))
}

/// What lies in a directory, on disk; not counted further once it is more than `enough_bytes`.
fn held_bytes(path: &Path, enough_bytes: u64) -> io::Result<u64> {
    let root = OpenOptions::new().read(true).custom_flags(FLAGS.bits()).open(path)?;
    let of_root = root.metadata()?;
    let mut walk = Walk { device: of_root.dev(), enough_bytes, bytes: 0, files: 0, linked: HashSet::new() };
    walk.count(&of_root);
    walk.look_into(&root, 0);
    Ok(walk.bytes)
}

const FLAGS: OFlag = OFlag::O_DIRECTORY.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

struct Walk {
    device: u64,
    enough_bytes: u64,
    bytes: u64,
    files: usize,
    /// Files that were counted and have more names.
    linked: HashSet<u64>,
}

impl Walk {
    fn is_over(&self) -> bool {
        self.bytes > self.enough_bytes || self.files >= MAX_FILES
    }

    fn count(&mut self, found: &Metadata) {
        self.files += 1;
        if found.nlink() < 2 || found.is_dir() || self.linked.insert(found.ino()) {
            self.bytes += found.blocks() * BLOCK_BYTES;
        }
    }

    /// Each name is looked up in the open directory, never along a path: the pod may put a link into one meanwhile.
    fn look_into(&mut self, dir: &File, depth: usize) {
        let Ok(entries) = fs::read_dir(format!("/proc/self/fd/{}", dir.as_raw_fd())) else { return };
        for entry in entries.map_while(Result::ok) {
            if self.is_over() {
                return;
            }
            // What went meanwhile takes no room, and what is mounted there is not the volume's.
            let Some(found) = entry.metadata().ok().filter(|found| found.dev() == self.device) else { continue };
            self.count(&found);
            if found.is_dir()
                && depth < MAX_DEPTH
                && let Ok(inner) = open_in(dir, &entry.file_name())
            {
                self.look_into(&inner, depth + 1);
            }
        }
    }
}

fn open_in(dir: &File, name: &OsStr) -> nix::Result<File> {
    let opened = openat(Some(dir.as_raw_fd()), name, OFlag::O_RDONLY | FLAGS, Mode::empty())?;
    // SAFETY: it was opened just now, and nobody else has it.
    Ok(unsafe { File::from_raw_fd(opened) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn only_what_is_on_disk_and_has_a_limit_is_measured() {
        let volumes = json!([{"name": "a", "emptyDir": {"sizeLimit": "1Mi"}}, {"name": "b", "emptyDir": {}},
            {"name": "c", "emptyDir": {"sizeLimit": "1Mi", "medium": "Memory"}},
            {"name": "d", "emptyDir": {"sizeLimit": "0"}}]);
        let mut pod: Pod = serde_json::from_value(json!({"spec": {"containers": [], "volumes": volumes}})).unwrap();
        assert_eq!(limits(&pod), [("a".to_owned(), 1 << 20, "1Mi".to_owned())]);
        pod.spec.as_mut().unwrap().priority = Some(CRITICAL_PRIORITY);
        assert!(limits(&pod).is_empty());
    }

    #[test]
    fn a_volume_holds_what_lies_in_it_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("x/y")).unwrap();
        let held = || held_bytes(&volume, u64::MAX).unwrap();
        let empty = held();
        std::fs::write(volume.join("x/y/file"), vec![1; 1 << 20]).unwrap();
        let full = held();
        assert!(full >= empty + (1 << 20), "{empty} {full}");
        std::fs::hard_link(volume.join("x/y/file"), volume.join("again")).unwrap();
        std::fs::write(dir.path().join("outside"), vec![1; 1 << 20]).unwrap();
        std::os::unix::fs::symlink(dir.path(), volume.join("link")).unwrap();
        assert!(held() < full + (1 << 19), "one file is counted once, and no link is followed");
        let limit = |bytes| [("v".to_owned(), bytes, "1Mi".to_owned())];
        let words = "Usage of EmptyDir volume \"v\" exceeds the limit \"1Mi\". ";
        assert_eq!(exceeded(dir.path(), &limit(1 << 20)).as_deref(), Some(words));
        assert_eq!(exceeded(dir.path(), &limit(4 << 20)), None);
        assert_eq!(exceeded(&dir.path().join("gone"), &limit(1)), None);
    }
}
