//! `backup`: the whole store in a file, whole or not at all.

use std::fs::{self, File};
use std::io::{self, IsTerminal, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};

use super::output::{bytes, plain};
use super::session::Session;
use super::{DONE, INTERRUPTED};
use crate::proto::BackupRequest;

const STANDARD_OUTPUT: &str = "-";

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla backup /var/backups/flotilla.backup
  flotilla backup --stale last-words.backup
  flotilla backup - | ssh elsewhere 'cat > flotilla.backup'
  flotilla backup --verify /var/backups/flotilla.backup

To restore it, the cluster's seal key is needed too: keep a copy of a node's identity/seal.key elsewhere, and secret.")]
pub struct BackupArgs {
    /// The file to write; it is replaced only by a whole backup; `-`: standard output
    file: PathBuf,
    /// Write what this node has, without asking the leader; for a cluster that has none
    #[arg(long)]
    stale: bool,
    /// Write nothing: see whether the file is a whole backup
    #[arg(long, conflicts_with = "stale")]
    pub verify: bool,
}

pub async fn backup(session: &Session, args: &BackupArgs) -> anyhow::Result<u8> {
    if args.file == Path::new(STANDARD_OUTPUT) {
        return to_standard_output(session, args.stale).await;
    }
    let target = target(&args.file)?;
    // From before there is a draft, so that none is left behind.
    let mut ends = Ends::watch()?;
    let mut draft = Draft::create(&target)?;
    let mut client = session.cluster();
    let mut stream = tokio::select! {
        answered = client.backup(BackupRequest { stale: args.stale }) => answered?.into_inner(),
        () = ends.asked() => return Ok(INTERRUPTED),
    };
    let mut line = session.progress();
    let mut size_bytes = 0;
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            () = ends.asked() => return Ok(INTERRUPTED),
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
    draft.publish(&target)?;
    line.finish(&plain(&words(&args.file, &info)))?;
    Ok(DONE)
}

/// Reads a backup as `restore` would, and changes nothing. No daemon is needed for it.
///
/// # Errors
/// If it is none, or is not whole.
pub fn verify(args: &BackupArgs) -> anyhow::Result<u8> {
    let info = flotilla_raft::verify_backup(&args.file)?;
    writeln!(io::stdout(), "{}", plain(&words(&args.file, &info)))?;
    Ok(DONE)
}

fn words(file: &Path, info: &flotilla_raft::BackupInfo) -> String {
    format!(
        "{}: revision {} of cluster {}, {} objects, {}",
        file.display(),
        info.revision,
        info.cluster,
        info.objects,
        bytes(info.size_bytes)
    )
}

/// Nothing is left behind there, so signals end it as they end any program. What arrived whole, `--verify` tells.
async fn to_standard_output(session: &Session, stale: bool) -> anyhow::Result<u8> {
    let mut out = io::stdout();
    if out.is_terminal() {
        bail!("a backup is no text for a terminal: name a file, or write it into a pipe");
    }
    let mut stream = session.cluster().backup(BackupRequest { stale }).await?.into_inner();
    let mut size_bytes = 0;
    while let Some(chunk) = stream.message().await? {
        out.write_all(&chunk.data).context("cannot write to standard output")?;
        size_bytes += chunk.data.len() as u64;
    }
    out.flush().context("cannot write to standard output")?;
    eprintln!("{} written; 'flotilla backup --verify FILE' tells whether they arrived whole", bytes(size_bytes));
    Ok(DONE)
}

/// The file that is replaced: what a link leads to, and never a device or a pipe.
fn target(file: &Path) -> anyhow::Result<PathBuf> {
    match fs::metadata(file) {
        Ok(found) if found.is_dir() => bail!("{} is a directory; name a file", file.display()),
        Ok(found) if !found.is_file() => bail!(
            "{} is no regular file, and is left as it is; name a file, or '-' to write to standard output",
            file.display()
        ),
        Ok(_) => fs::canonicalize(file).with_context(|| format!("cannot write {}", file.display())),
        Err(error) if error.kind() == io::ErrorKind::NotFound && file.is_symlink() => {
            bail!("{} is a link that leads nowhere; name a file", file.display())
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(file.to_owned()),
        Err(error) => Err(error).with_context(|| format!("cannot write {}", file.display())),
    }
}

/// The signals that end a command, and leave no draft behind.
struct Ends {
    interrupt: Signal,
    terminate: Signal,
    /// `None`: `nohup` has it ignored, and is obeyed.
    hangup: Option<Signal>,
}

impl Ends {
    fn watch() -> io::Result<Self> {
        let hangup = if is_hangup_ignored() { None } else { Some(signal(SignalKind::hangup())?) };
        Ok(Self { interrupt: signal(SignalKind::interrupt())?, terminate: signal(SignalKind::terminate())?, hangup })
    }

    async fn asked(&mut self) {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
            _ = hangup => {}
        }
    }
}

fn is_hangup_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let ignored = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    ignored.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_regular_file_is_replaced_and_a_link_is_followed() {
        let dir = tempfile::tempdir().unwrap();
        let place = dir.path().canonicalize().unwrap();
        let (file, link, lost, pipe) = (place.join("file"), place.join("link"), place.join("lost"), place.join("pipe"));
        assert_eq!(target(&file).unwrap(), file);
        fs::write(&file, "old").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        std::os::unix::fs::symlink("nothing", &lost).unwrap();
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        assert_eq!(target(&link).unwrap(), file);
        for (refused, why) in [
            (&*place, "is a directory"),
            (&*lost, "leads nowhere"),
            (&*pipe, "is no regular file"),
            (Path::new("/dev/null"), "is no regular file"),
        ] {
            assert!(target(refused).unwrap_err().to_string().contains(why), "{}", refused.display());
        }
        let mut draft = Draft::create(&target(&link).unwrap()).unwrap();
        draft.write(b"new").unwrap();
        draft.publish(&file).unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&link).unwrap(), "new");
    }
}
