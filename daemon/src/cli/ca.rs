//! `ca rotate|status`: the cluster's certificate authority.

use clap::{Args, Subcommand};

use super::DONE;
use super::output::{Cell, Format, Table, parse_duration};
use super::session::{Session, ask};
use super::views::CaView;
use crate::proto::{CaStatus, CaStatusRequest, RotateCaRequest};

/// Of a fingerprint, in tables.
const SHOWN_DIGITS: usize = 16;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla ca rotate
  flotilla ca rotate --overlap 0s
  flotilla ca status")]
pub struct CaArgs {
    #[command(subcommand)]
    command: CaCommand,
}

#[derive(Debug, Subcommand)]
enum CaCommand {
    /// Replace the certificate authority while everything goes on
    Rotate(RotateArgs),
    /// Show the certificate authority, and how far its replacement has come
    Status(StatusArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Join tokens and client credentials that were made before stop working when the old authority is dropped: when every node
has a certificate of the new one, and the overlap is over.

Examples:
  flotilla ca rotate
  flotilla ca rotate --overlap 7d
  flotilla ca rotate --overlap 0s")]
struct RotateArgs {
    /// How long tokens and credentials of the old authority go on working; 0s if its key may be in wrong hands, also
    /// while it is being replaced already [default: 1d]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = parse_duration)]
    overlap: Option<u64>,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla ca status -o yaml")]
struct StatusArgs {
    /// How to write the status
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

pub async fn ca(session: &Session, args: &CaArgs) -> anyhow::Result<u8> {
    match &args.command {
        CaCommand::Rotate(args) => rotate(session, args).await,
        CaCommand::Status(args) => status(session, args).await,
    }
}

async fn rotate(session: &Session, args: &RotateArgs) -> anyhow::Result<u8> {
    let request = RotateCaRequest { overlap_seconds: args.overlap };
    let status = session.cluster().rotate_ca(ask(request)).await?.into_inner();
    session.say(format!("the certificate authority {} is being replaced", shown(&status.fingerprint)))?;
    eprintln!(
        "'flotilla ca status' tells how far it is. Join tokens and client credentials made before now stop working at its \
         end: make new ones with 'flotilla token create' and 'flotilla credentials'."
    );
    Ok(DONE)
}

async fn status(session: &Session, args: &StatusArgs) -> anyhow::Result<u8> {
    let status = session.cluster().get_ca_status(ask(CaStatusRequest {})).await?.into_inner();
    if args.output == Format::Table {
        session.say(words(&status))?;
    }
    session.out.show(args.output, &CaView::from(&status), || table(&status))?;
    Ok(DONE)
}

fn words(status: &CaStatus) -> String {
    let signs = format!("{} signs, until {}", shown(&status.fingerprint), status.expires);
    let other = shown(&status.other_fingerprint);
    match status.phase.as_str() {
        "spreading" => {
            format!("{signs}; the nodes learn to trust {other}{}", latest(", until", " at the latest", status))
        }
        "renewing" => {
            format!("{signs}; {other} is trusted until all have renewed{}", latest(", and dropped by", "", status))
        }
        _ => signs,
    }
}

/// When a phase ends at the latest, unless it ends just now: then there is no such time.
fn latest(before: &str, after: &str, status: &CaStatus) -> String {
    if status.until.is_empty() { String::new() } else { format!("{before} {}{after}", status.until) }
}

fn table(status: &CaStatus) -> Table {
    let mut table = Table::new(["NODE", "CERTIFIED BY", "WAITED FOR"]);
    for node in &status.nodes {
        let waited_for = if node.waited_for { "yes" } else { "no" };
        table.row([Cell::from(&node.name), Cell::from(shown(&node.certified_by)), Cell::from(waited_for)]);
    }
    table
}

fn shown(fingerprint: &str) -> &str {
    fingerprint.get(..SHOWN_DIGITS).unwrap_or(fingerprint)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_that_is_not_known_is_not_told() {
        let status = |phase: &str, until: &str| CaStatus {
            phase: phase.into(),
            fingerprint: "aa".into(),
            other_fingerprint: "bb".into(),
            expires: "2030".into(),
            until: until.into(),
            ..CaStatus::default()
        };
        assert_eq!(words(&status("spreading", "")), "aa signs, until 2030; the nodes learn to trust bb");
        assert!(words(&status("spreading", "2029")).ends_with("to trust bb, until 2029 at the latest"));
        assert!(words(&status("renewing", "")).ends_with("bb is trusted until all have renewed"));
        assert!(words(&status("renewing", "2029")).ends_with("have renewed, and dropped by 2029"));
    }
}
