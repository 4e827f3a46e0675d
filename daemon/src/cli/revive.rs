//! `restore` and `recover`: a new epoch of the cluster, begun on this machine while its daemon is stopped.

use std::io::{self, IsTerminal, Write};
use std::path::PathBuf;

use anyhow::bail;
use clap::Args;
use flotilla_raft::Remains;
use jiff::Timestamp;

use super::DONE;
use super::failure::FAILED;
use super::up::PlaceArgs;
use crate::revive;

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  flotilla restore flotilla.backup --seal-key seal.key
  flotilla up

The machines of the cluster that the backup is of must be off, or belong to it no more. Their Nodes stay listed until you
delete them; the machines join the restored cluster with new tokens and empty data directories.")]
pub struct RestoreArgs {
    /// What 'flotilla backup' wrote
    file: PathBuf,
    /// The identity/seal.key of a node of that cluster
    #[arg(long, value_name = "FILE")]
    seal_key: PathBuf,
    #[command(flatten)]
    place: PlaceArgs,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Example:
  systemctl stop flotilla
  flotilla recover
  systemctl start flotilla

Only for when most voters are gone for good: what they acknowledged and this machine has not heard of is lost, and the
other machines of the cluster, should they come back, have to join anew with empty data directories.")]
pub struct RecoverArgs {
    /// Do it without asking
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    place: PlaceArgs,
}

/// # Errors
/// If the backup cannot be restored here.
pub fn restore(args: RestoreArgs) -> anyhow::Result<u8> {
    let config = args.place.load()?;
    let info = revive::restore(&config, &args.file, &args.seal_key)?;
    println!(
        "Restored {} objects of cluster {} as of {} (revision {}), as its epoch {}.\n\
         Start the daemon, then see 'flotilla nodes', and delete the nodes that are gone.",
        info.objects,
        info.cluster,
        time(info.taken_ms),
        info.revision,
        info.epoch
    );
    Ok(DONE)
}

/// # Errors
/// If nothing can be recovered here, or nobody has agreed to it.
pub fn recover(args: RecoverArgs) -> anyhow::Result<u8> {
    let config = args.place.load()?;
    println!("{}", warning(&revive::remains(&config)?));
    if !args.yes && !agreed()? {
        println!("Nothing was changed.");
        return Ok(FAILED);
    }
    let begun = revive::recover(&config)?;
    println!(
        "This machine is the only voter of epoch {}, which begins at revision {}. Start the daemon, delete the nodes that \
         are gone, and let others join with new tokens.",
        begun.epoch, begun.revision
    );
    Ok(DONE)
}

fn warning(remains: &Remains) -> String {
    format!(
        "This replica has everything up to revision {} of epoch {}, last written {}; {} voters belonged to it.\n\
         Writes that the others acknowledged after that are lost, and none of them can come back: their replicas are\n\
         refused, and their machines have to join anew with empty data directories. Do this only if more than half of the\n\
         voters are gone for good, and only on the machine with the highest revision.",
        remains.revision,
        remains.epoch,
        time(remains.last_write_ms),
        remains.voters.len()
    )
}

fn agreed() -> anyhow::Result<bool> {
    if !io::stdin().is_terminal() {
        bail!("nothing was changed: say --yes if that is what you want");
    }
    print!("Go on with this machine alone? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    io::stdin().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "at an unknown time".into(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_may_be_lost_is_told_before_it_is() {
        let remains = Remains {
            epoch: 1,
            revision: 42,
            voters: [1, 2, 3].into(),
            last_write_ms: 1_700_000_000_000,
            ..Remains::default()
        };
        let text = warning(&remains);
        assert!(text.starts_with(
            "This replica has everything up to revision 42 of epoch 1, last written 2023-11-14 22:13:20 UTC; 3 voters"
        ));
        assert!(text.contains("are lost"));
        assert_eq!(time(u64::MAX), "at an unknown time");
    }
}
