//! `secrets status|rotate-key`: the keys that the store's secrets are sealed with.

use clap::{Args, Subcommand};

use super::DONE;
use super::nodes::tell;
use super::output::{Cell, Format, Table, age_of};
use super::session::{Session, ask, now};
use super::views::SecretsKeyView;
use crate::proto::{RotateSecretsKeyRequest, SecretsKey, SecretsStatusRequest};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla secrets status
  flotilla secrets rotate-key")]
pub struct SecretsArgs {
    #[command(subcommand)]
    command: SecretsCommand,
}

#[derive(Debug, Subcommand)]
enum SecretsCommand {
    /// List the keys, and how many objects are sealed with each
    Status(StatusArgs),
    /// Make a new key and seal every secret anew with it
    RotateKey(RotateArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla secrets status -o json")]
struct StatusArgs {
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "\
The old key stays until no history needs it, a few minutes; 'flotilla secrets status' shows when it is gone.

Example:
  flotilla secrets rotate-key")]
struct RotateArgs {}

pub async fn secrets(session: &Session, args: &SecretsArgs) -> anyhow::Result<u8> {
    match &args.command {
        SecretsCommand::Status(args) => status(session, args).await,
        SecretsCommand::RotateKey(_) => rotate(session).await,
    }
}

async fn status(session: &Session, args: &StatusArgs) -> anyhow::Result<u8> {
    let keys = session.secrets().status(ask(SecretsStatusRequest {})).await?.into_inner().keys;
    let views: Vec<SecretsKeyView> = keys.iter().map(SecretsKeyView::from).collect();
    session.out.show(args.output, &views, || table(&keys))?;
    Ok(DONE)
}

fn table(keys: &[SecretsKey]) -> Table {
    let mut table = Table::new(["KEY", "STATE", "OBJECTS", "AGE"]);
    for key in keys {
        table.row([
            Cell::from(&key.id),
            Cell::from(state(key)),
            Cell::from(key.objects.to_string()),
            Cell::from(age_of(&key.created, now())),
        ]);
    }
    table
}

/// What the key is there for.
pub fn state(key: &SecretsKey) -> &'static str {
    match (key.primary, key.objects) {
        (true, _) => "primary",
        (false, 0) => "history only",
        (false, _) => "in use",
    }
}

async fn rotate(session: &Session) -> anyhow::Result<u8> {
    let stream = session.secrets().rotate_key(RotateSecretsKeyRequest {}).await?.into_inner();
    let on_interrupt = "the rotation goes on: see 'flotilla secrets status'";
    tell(session, stream, "every secret is sealed with the new key", on_interrupt).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_a_row() {
        let key = |primary, objects| SecretsKey { id: "0a1b".into(), primary, objects, ..SecretsKey::default() };
        assert_eq!(
            table(&[key(true, 3), key(false, 1), key(false, 0)]).render(false),
            "KEY    STATE          OBJECTS   AGE\n\
             0a1b   primary        3         -\n\
             0a1b   in use         1         -\n\
             0a1b   history only   0         -\n"
        );
    }
}
