//! `restore` and `recover`: a new epoch of the cluster, begun on this machine while its daemon is stopped.

use std::io::{self, BufRead, Write};
use std::path::PathBuf;

use anyhow::bail;
use clap::{Arg, Args};
use flotilla_raft::Remains;
use jiff::Timestamp;

use super::DONE;
use super::failure::FAILED;
use super::up::PlaceArgs;
use crate::{data_dir, revive};

/// The options of `up` that have a say in what is restored; others may be given and are not shown.
const RESTORE_OPTIONS: [&str; 6] = ["file", "seal_key", "config", "data_dir", "name", "advertise"];
/// The same for what is recovered: where it is.
const RECOVER_OPTIONS: [&str; 3] = ["yes", "config", "data_dir"];

/// Hides what is not of use, so that the rest is found.
fn only(shown: &[&str], argument: Arg) -> Arg {
    let is_shown = shown.contains(&argument.get_id().as_str());
    argument.hide(!is_shown)
}

#[derive(Debug, Args)]
#[command(mut_args(|argument| only(&RESTORE_OPTIONS, argument)))]
#[command(after_help = "\
The steps, on a machine with an empty data directory:
  1. flotilla restore flotilla.backup --seal-key seal.key
  2. systemctl start flotilla
  3. flotilla nodes
  4. flotilla delete node machine-1
  5. flotilla token create

Give the options that 'flotilla up' will have, or the same configuration file. Step 4 is for each
machine that is gone; with the token of step 5 further machines join. A restore that was
interrupted is run again as before. Who may do what is as it was when the backup was made.

Examples:
  flotilla restore flotilla.backup --seal-key seal.key
  flotilla restore flotilla.backup --seal-key seal.key --data-dir /srv/flotilla --name machine-9

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
#[command(mut_args(|argument| only(&RECOVER_OPTIONS, argument)))]
#[command(after_help = "\
The steps, on the machine with the highest revision:
  1. systemctl stop flotilla
  2. flotilla recover
  3. systemctl start flotilla
  4. flotilla delete node machine-1
  5. flotilla token create

Step 2 tells the revision and asks before it does anything, so that machines can be compared.
Step 4 is for each machine that is gone; with the token of step 5 others join anew.

Examples:
  flotilla recover
  flotilla recover --yes --data-dir /srv/flotilla

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
    if data_dir::finish_restore(&config.data_dir)? {
        println!("The restore that was interrupted here is complete now. Start the daemon, then see 'flotilla nodes'.");
        return Ok(DONE);
    }
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
    if !args.yes && !agreed(&mut io::stdin().lock())? {
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

/// Asks, and takes the answer from a terminal or a pipe.
fn agreed(answers: &mut impl BufRead) -> anyhow::Result<bool> {
    print!("Go on with this machine alone? [y/N] ");
    io::stdout().flush()?;
    let mut answer = String::new();
    if answers.read_line(&mut answer)? == 0 {
        println!();
        bail!("nothing was changed, since nobody answered: say --yes if that is what you want");
    }
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}

fn time(ms: u64) -> String {
    let time = i64::try_from(ms).ok().and_then(|ms| Timestamp::from_millisecond(ms).ok());
    time.map_or_else(|| "at an unknown time".into(), |time| time.strftime("%Y-%m-%d %H:%M:%S UTC").to_string())
}

#[cfg(test)]
mod tests {
    use flotilla_raft::EpochId;

    use super::*;

    #[test]
    fn what_may_be_lost_is_told_before_it_is() {
        let remains = Remains {
            epoch: EpochId::FIRST,
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

    #[test]
    fn an_answer_may_come_from_a_pipe_but_silence_is_none() {
        assert!(agreed(&mut &b"y\n"[..]).unwrap());
        assert!(!agreed(&mut &b"n\n"[..]).unwrap());
        assert!(agreed(&mut &b""[..]).unwrap_err().to_string().contains("say --yes"));
    }

    #[test]
    fn only_the_options_that_matter_are_shown() {
        let command = RecoverArgs::augment_args(clap::Command::new("recover"));
        let shown: Vec<_> = command.get_arguments().filter(|a| !a.is_hide_set()).map(|a| a.get_id().as_str()).collect();
        assert_eq!(shown, RECOVER_OPTIONS);
        let command = RestoreArgs::augment_args(clap::Command::new("restore"));
        let shown: Vec<_> = command.get_arguments().filter(|a| !a.is_hide_set()).map(|a| a.get_id().as_str()).collect();
        assert_eq!(shown, RESTORE_OPTIONS);
    }
}
