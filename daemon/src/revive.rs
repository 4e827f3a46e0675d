//! Beginning a new epoch of a cluster on this machine: from a backup, or from what its data directory still holds.
//!
//! Both work on a data directory that no daemon uses; `flotilla up` goes on from there. The cluster keeps its id and its
//! authority, so that certificates and tokens remain what they were; the epoch keeps out who belongs to the one before.
//!
//! Invariant: what cannot be restored whole leaves no trace that a node could be made of, and what is there is never
//! overwritten but for what an interrupted restore has left.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use flotilla_api::kinds::cluster::{self, ClusterObject};
use flotilla_api::{Builtin, Key, object};
use flotilla_net::{Authority, Identity, SealKey};
use flotilla_raft::{BackupInfo, Remains};

use crate::config::Config;
use crate::{addresses, data_dir, enrol, serve};

const SEAL_KEY: &str = "seal.key";

/// Makes the data directory that of the first node of a restored cluster.
///
/// # Errors
/// If there is a node already, or backup and seal key cannot be used, or do not belong together.
pub fn restore(config: &Config, backup: &Path, seal_key: &Path) -> anyhow::Result<BackupInfo> {
    if config.join.is_some() || config.join_file.is_some() {
        bail!("a machine that restores a cluster does not join one: leave the token away");
    }
    serve::prepare_directories(config)?;
    let _lock = serve::lock(&config.data_dir)?;
    data_dir::prepare_restore(&config.data_dir)?;
    let staging = Staging::new(config.data_dir.join(data_dir::RESTORING))?;
    let id = enrol::new_id();
    let cluster_key = Key::new(&Builtin::Cluster.collection(), "", cluster::NAME);
    let mut cluster = None;
    let info = flotilla_raft::restore(backup, &staging.dir.join(data_dir::STORE), id, &mut |key, value| {
        if *key == cluster_key {
            cluster = Some(value.clone());
        }
    })?;
    let cluster = cluster.context("the backup holds no cluster")?;
    let cluster: ClusterObject = object::decode(&cluster, info.revision).context("the backup's cluster is damaged")?;

    let identity = staging.dir.join(data_dir::IDENTITY);
    fs::DirBuilder::new().mode(0o700).create(&identity)?;
    copy_private(seal_key, &identity.join(SEAL_KEY))
        .with_context(|| format!("cannot use the seal key {}", seal_key.display()))?;
    let key = SealKey::load(&identity).with_context(|| format!("cannot use the seal key {}", seal_key.display()))?;
    let key = key.context("the seal key is empty")?;
    let authority = Authority::unseal(&key, &cluster.spec.sealed_ca.0)
        .context("the cluster's authority cannot be opened; give the identity/seal.key of a node of this cluster")?;
    enrol::settle(config, &identity, id, &authority, &addresses::advertised(config)?)?;
    staging.take_place(&config.data_dir)?;
    Ok(info)
}

/// What the store of this machine, which no daemon uses, knows of its cluster.
///
/// # Errors
/// If there is none, a daemon uses it, or it is damaged.
pub fn remains(config: &Config) -> anyhow::Result<Remains> {
    let (_lock, node) = stopped_node(config)?;
    Ok(flotilla_raft::inspect(&store(config), &node.cluster().to_string(), node.id())?)
}

/// Makes this machine the sole voter of the cluster's next epoch.
///
/// # Errors
/// As for [`remains`], or if it cannot be written; everything is then as it was.
pub fn recover(config: &Config) -> anyhow::Result<Remains> {
    let (_lock, node) = stopped_node(config)?;
    Ok(flotilla_raft::recover(&store(config), &node.cluster().to_string(), node.id())?)
}

fn store(config: &Config) -> PathBuf {
    config.data_dir.join(data_dir::STORE)
}

fn stopped_node(config: &Config) -> anyhow::Result<(impl Drop + use<>, Identity)> {
    let identity = Identity::load(&enrol::directory(config)).context("the node's identity cannot be read")?;
    let Some(identity) = identity else {
        bail!("{} holds no node; choose another --data-dir", config.data_dir.display());
    };
    let lock = serve::lock(&config.data_dir).context("recovering takes a daemon that is stopped; containers go on")?;
    Ok((lock, identity))
}

fn copy_private(from: &Path, to: &Path) -> io::Result<()> {
    let mut source = File::open(from)?;
    let mut target = File::options().write(true).create_new(true).mode(0o600).open(to)?;
    io::copy(&mut source, &mut target)?;
    target.sync_all()
}

/// A directory that goes when it is dropped.
struct Staging {
    dir: PathBuf,
}

impl Staging {
    /// Makes it anew, whatever an earlier attempt has left of it.
    fn new(dir: PathBuf) -> anyhow::Result<Self> {
        match fs::remove_dir_all(&dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => fs::DirBuilder::new().mode(0o700).create(&dir),
        }
        .with_context(|| format!("cannot make {}", dir.display()))?;
        Ok(Self { dir })
    }

    /// Moves store and identity to where the daemon looks for them; the identity, which makes a node, comes last.
    fn take_place(self, data_dir: &Path) -> anyhow::Result<()> {
        for name in [data_dir::STORE, data_dir::IDENTITY] {
            fs::rename(self.dir.join(name), data_dir.join(name))
                .and_then(|()| File::open(data_dir)?.sync_all())
                .with_context(|| format!("cannot make {}", data_dir.join(name).display()))?;
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_dir_all(&self.dir) {
            tracing::warn!(path = %self.dir.display(), %error, "cannot remove what a restore was made in");
        }
    }
}
