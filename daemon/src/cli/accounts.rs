//! `accounts status|rotate-key`: the keys that sign the tokens of service accounts.

use clap::{Args, Subcommand};

use super::DONE;
use super::output::{Cell, Format, Table, age_of};
use super::session::{Session, ask, now};
use super::views::AccountKeyView;
use crate::proto::{AccountKey, AccountKeysRequest, RotateAccountKeyRequest};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla accounts status
  flotilla accounts rotate-key")]
pub struct AccountsArgs {
    #[command(subcommand)]
    command: AccountsCommand,
}

#[derive(Debug, Subcommand)]
enum AccountsCommand {
    /// List the keys that tokens are, or were, signed with
    Status(StatusArgs),
    /// Make a new key that signs from now on
    RotateKey(RotateArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla accounts status -o json")]
struct StatusArgs {
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Tokens of the old key stay good until they end. With --end-tokens they are worth nothing at once; pods get new ones within
about a minute, and programs outside need new ones.

Examples:
  flotilla accounts rotate-key
  flotilla accounts rotate-key --end-tokens")]
struct RotateArgs {
    /// Take no token any more that was signed before
    #[arg(long)]
    end_tokens: bool,
}

pub async fn accounts(session: &Session, args: &AccountsArgs) -> anyhow::Result<u8> {
    match &args.command {
        AccountsCommand::Status(args) => status(session, args).await,
        AccountsCommand::RotateKey(args) => rotate(session, args).await,
    }
}

async fn status(session: &Session, args: &StatusArgs) -> anyhow::Result<u8> {
    let keys = session.secrets().account_keys(ask(AccountKeysRequest {})).await?.into_inner().keys;
    let views: Vec<AccountKeyView> = keys.iter().map(AccountKeyView::from).collect();
    session.out.show(args.output, &views, || table(&keys))?;
    Ok(DONE)
}

fn table(keys: &[AccountKey]) -> Table {
    let mut table = Table::new(["KEY", "STATE", "ENDS", "AGE"]);
    for key in keys {
        table.row([
            Cell::from(&key.id),
            Cell::from(state(key)),
            Cell::from(if key.ends.is_empty() { "-" } else { &key.ends }),
            Cell::from(age_of(&key.created, now())),
        ]);
    }
    table
}

/// What the key is there for.
pub fn state(key: &AccountKey) -> &'static str {
    if key.signs { "signs" } else { "verifies" }
}

async fn rotate(session: &Session, args: &RotateArgs) -> anyhow::Result<u8> {
    let asked = RotateAccountKeyRequest { end_tokens: args.end_tokens };
    let id = session.secrets().rotate_account_key(ask(asked)).await?.into_inner().id;
    session.out.line(format!("tokens are signed with key {id}"))?;
    Ok(DONE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_row() {
        let key =
            |signs, ends: &str| AccountKey { id: "0a1b".into(), signs, ends: ends.into(), ..AccountKey::default() };
        assert_eq!(
            table(&[key(true, ""), key(false, "2027-01-02T03:04:05Z")]).render(false),
            "KEY    STATE      ENDS                   AGE\n\
             0a1b   signs      -                      -\n\
             0a1b   verifies   2027-01-02T03:04:05Z   -\n"
        );
    }
}
