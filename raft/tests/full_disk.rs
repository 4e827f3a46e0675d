//! A disk that somebody else fills to the last byte: growth is refused, deletions go on from the reserve, and all is well
//! again once there is room.

mod cluster;

use std::fs::{self, File};
use std::os::fd::AsRawFd;
use std::path::Path;

use cluster::{Cluster, insist, key, put, until};
use flotilla_api::Change;
use flotilla_raft::{Options, ProposeError, Store};
use nix::fcntl::posix_fallocate;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

const MIB: u64 = 1 << 20;
const DISK_BYTES: u64 = 96 * MIB;
const RESERVE_BYTES: u64 = 16 * MIB;

fn small(options: &mut Options) {
    options.space_floor.min_bytes = 24 * MIB;
    options.space_floor.reserve_bytes = RESERVE_BYTES;
}

/// A disk in memory, for as long as it lives.
struct SmallDisk(tempfile::TempDir);

impl SmallDisk {
    fn new() -> Self {
        let dir = tempfile::TempDir::new().unwrap();
        let options = format!("size={DISK_BYTES},mode=700");
        mount(Some("tmpfs"), dir.path(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
        Self(dir)
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn free_bytes(&self) -> u64 {
        let found = statvfs(self.path()).unwrap();
        found.blocks_available() * found.fragment_size()
    }

    fn fill(&self, left_bytes: u64) {
        let ballast = File::create(self.path().join("ballast")).unwrap();
        let length = i64::try_from(self.free_bytes().saturating_sub(left_bytes)).unwrap();
        posix_fallocate(ballast.as_raw_fd(), 0, length).unwrap();
    }

    fn empty(&self) {
        fs::remove_file(self.path().join("ballast")).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = umount2(self.path(), MntFlags::MNT_DETACH);
    }
}

fn remove(name: &str) -> Change {
    Change::new("test", "test").delete(key(name))
}

async fn refuses_growth(store: &Store) {
    let refused = store.propose(put("more", &"x".repeat(10_000))).await;
    assert!(matches!(refused, Err(ProposeError::NoSpace)), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_go_on_from_the_reserve() {
    if !nix::unistd::geteuid().is_root() {
        println!("not run: mounting a disk takes root");
        return;
    }
    let disk = SmallDisk::new();
    let reserve = disk.path().join("replica/reserve");
    let mut cluster = Cluster::new(small);
    let store = cluster.start_in(1, disk.path()).await;
    store.bootstrap().await.unwrap();
    cluster.leader(&[1]).await;
    for i in 0..200 {
        insist(&store, put(&format!("k{i}"), &"x".repeat(1000))).await;
    }
    until("the reserve is there", || reserve.metadata().is_ok_and(|found| found.len() == RESERVE_BYTES)).await;

    disk.fill(2 * MIB);
    until("the disk counts as nearly full", || cluster.status(1).low_space).await;
    until("the reserve is given up", || !reserve.exists()).await;
    refuses_growth(&store).await;
    for i in 0..100 {
        insist(&store, remove(&format!("k{i}"))).await;
    }
    // What marks an object for deletion is let through; what is new is not.
    insist(&store, put("k100", &"x".repeat(1200))).await;
    // What planners and nodes write is, up to a bound.
    let own = |name: &str, bytes: usize| Change { user: "system:node:n1".into(), ..put(name, &"x".repeat(bytes)) };
    insist(&store, own("own", 1000)).await;
    let mut granted_bytes = 0;
    while store.propose(own(&format!("own{granted_bytes}"), 100_000)).await.is_ok() {
        granted_bytes += 100_000;
    }
    assert!((900_000..=RESERVE_BYTES / 16 + 100_000).contains(&granted_bytes), "{granted_bytes}");
    assert!(matches!(store.propose(own("more", 1000)).await, Err(ProposeError::NoSpace)));

    // A replica that starts on a full disk finds room too.
    disk.empty();
    until("the reserve is back", || reserve.exists()).await;
    drop(store);
    cluster.stop(1).await;
    disk.fill(0);
    let store = cluster.start(1).await;
    assert!(!reserve.exists());
    cluster.leader(&[1]).await;
    refuses_growth(&store).await;
    insist(&store, remove("k101")).await;

    disk.empty();
    until("there is room again", || !cluster.status(1).low_space).await;
    insist(&store, put("more", &"x".repeat(10_000))).await;
    until("the reserve is back", || reserve.exists()).await;
    drop(store);
    cluster.stop_all().await;
}
