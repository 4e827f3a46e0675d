//! `backup`: the whole store in a file, whole or not at all.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;

use super::output::{bytes, plain};
use super::session::Session;
use super::{DONE, INTERRUPTED};
use crate::proto::BackupRequest;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla backup /var/backups/flotilla.backup
  flotilla backup --stale last-words.backup

To restore it, the cluster's seal key is needed too: keep a copy of a node's identity/seal.key elsewhere, and secret.")]
pub struct BackupArgs {
    /// The file to write; it is replaced only by a whole backup
    file: PathBuf,
    /// Write what this node has, without asking the leader; for a cluster that has none
    #[arg(long)]
    stale: bool,
}

pub async fn backup(session: &Session, args: &BackupArgs) -> anyhow::Result<u8> {
    let mut draft = Draft::create(&args.file)?;
    let mut stream = session.cluster().backup(BackupRequest { stale: args.stale }).await?.into_inner();
    let mut line = session.progress();
    let mut size_bytes = 0;
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
        };
        let Some(chunk) = message else { break };
        draft.write(&chunk.data)?;
        size_bytes += chunk.data.len() as u64;
        if session.out.terminal {
            line.show(&format!("{}: {}", args.file.display(), bytes(size_bytes)))?;
        }
    }
    draft.sync()?;
    // What the disk gives back counts, not what was sent.
    let info = flotilla_raft::verify_backup(&draft.path)?;
    draft.publish(&args.file)?;
    line.finish(&plain(&format!(
        "{}: revision {} of cluster {}, {} objects, {}",
        args.file.display(),
        info.revision,
        info.cluster,
        info.objects,
        bytes(info.size_bytes)
    )))?;
    Ok(DONE)
}

/// The file under another name until it is whole; removed if it never is.
struct Draft {
    path: PathBuf,
    file: File,
    published: bool,
}

impl Draft {
    fn create(target: &Path) -> anyhow::Result<Self> {
        let Some(name) = target.file_name() else { bail!("{} is not a file's name", target.display()) };
        if target.is_dir() {
            bail!("{} is a directory; name a file", target.display());
        }
        let mut hidden = std::ffi::OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}", std::process::id()));
        let path = target.with_file_name(hidden);
        let file = File::options().write(true).create(true).truncate(true).mode(0o600).open(&path);
        let file = file.with_context(|| format!("cannot write {}", path.display()))?;
        Ok(Self { path, file, published: false })
    }

    fn write(&mut self, data: &[u8]) -> anyhow::Result<()> {
        self.file.write_all(data).with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn sync(&self) -> anyhow::Result<()> {
        self.file.sync_all().with_context(|| format!("cannot write {}", self.path.display()))
    }

    fn publish(&mut self, target: &Path) -> anyhow::Result<()> {
        let dir = match target.parent() {
            Some(dir) if !dir.as_os_str().is_empty() => dir,
            _ => Path::new("."),
        };
        fs::rename(&self.path, target)
            .and_then(|()| File::open(dir)?.sync_all())
            .with_context(|| format!("cannot write {}", target.display()))?;
        self.published = true;
        Ok(())
    }
}

impl Drop for Draft {
    fn drop(&mut self) {
        match fs::remove_file(&self.path) {
            Err(error) if !self.published && error.kind() != io::ErrorKind::NotFound => {
                eprintln!("warning: cannot remove {}: {error}", self.path.display());
            }
            _ => {}
        }
    }
}
