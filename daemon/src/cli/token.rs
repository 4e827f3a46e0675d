//! `token create|list|revoke`: what a machine needs to join.

use anyhow::bail;
use clap::{Args, Subcommand};
use serde::Serialize;

use super::DONE;
use super::output::{Cell, Format, Table, age_of, parse_lifetime};
use super::session::{Session, ask, now};
use super::views::TokenView;
use crate::proto::{CreateTokenRequest, CreateTokenResponse, ListTokensRequest, RevokeTokenRequest, TokenSummary};

/// A whole id.
const TOKEN_ID_DIGITS: usize = 16;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla token create --ttl 1h
  flotilla token list
  flotilla token revoke 4f1c2a")]
pub struct TokenArgs {
    #[command(subcommand)]
    command: TokenCommand,
}

#[derive(Debug, Subcommand)]
enum TokenCommand {
    /// Make a token; it is shown once
    Create(CreateArgs),
    /// List tokens, without their secrets
    #[command(visible_alias = "ls")]
    List(ListArgs),
    /// Let nobody join with a token any more; machines that joined stay
    Revoke(RevokeArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla token create
  flotilla token create --ttl 1h --uses 1
  flotilla token create --label zone=a --taint dedicated=db:NoSchedule
  flotilla token create -o json")]
struct CreateArgs {
    /// How long machines may join with it
    #[arg(long, value_name = "DURATION", default_value = "1d", allow_hyphen_values = true, value_parser = parse_lifetime)]
    ttl: u64,
    /// How many machines may join with it; 0: any number
    #[arg(long, default_value_t = 0, value_name = "NUMBER")]
    uses: u32,
    /// A label that nodes get which join with it; may be repeated
    #[arg(long = "label", value_name = "KEY=VALUE", value_parser = parse_label)]
    labels: Vec<(String, String)>,
    /// A taint that nodes get which join with it; may be repeated
    #[arg(long = "taint", value_name = "KEY[=VALUE]:EFFECT")]
    taints: Vec<String>,
    /// How to write the token
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla token list -o yaml")]
struct ListArgs {
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla token revoke 4f1c2a")]
struct RevokeArgs {
    /// The token's id as the list shows it, or as much of its beginning as no other has
    id: String,
}

#[derive(Serialize)]
struct CreatedView<'a> {
    id: &'a str,
    token: &'a str,
    expires: &'a str,
}

pub async fn token(session: &Session, args: &TokenArgs) -> anyhow::Result<u8> {
    match &args.command {
        TokenCommand::Create(args) => create(session, args).await,
        TokenCommand::List(args) => list(session, args).await,
        TokenCommand::Revoke(args) => revoke(session, &args.id).await,
    }
}

async fn create(session: &Session, args: &CreateArgs) -> anyhow::Result<u8> {
    check_labels(&args.labels)?;
    let request = CreateTokenRequest {
        ttl_seconds: args.ttl,
        uses: args.uses,
        labels: args.labels.iter().cloned().collect(),
        taints: args.taints.clone(),
    };
    let created = session.cluster().create_token(ask(request)).await?.into_inner();
    if args.output == Format::Table {
        session.say(&created.token)?;
        eprintln!("{}", join_words(&created, args.uses));
    } else {
        let view = CreatedView { id: &created.id, token: &created.token, expires: &created.expires };
        session.out.show(args.output, &view, Table::default)?;
    }
    Ok(DONE)
}

fn parse_label(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or_else(|| format!("{text:?} is not a label: write KEY=VALUE"))?;
    Ok((key.to_owned(), value.to_owned()))
}

/// A label has one value: which of two was meant is not guessed.
fn check_labels(labels: &[(String, String)]) -> anyhow::Result<()> {
    for (at, (key, _)) in labels.iter().enumerate() {
        if labels.iter().take(at).any(|(earlier, _)| earlier == key) {
            bail!("label {key:?} is given twice; give it once");
        }
    }
    Ok(())
}

fn join_words(created: &CreateTokenResponse, uses: u32) -> String {
    let machines = match uses {
        0 => "any number of machines".to_owned(),
        1 => "one machine".to_owned(),
        uses => format!("{uses} machines"),
    };
    format!(
        "good for {machines} until {}; on each run: flotilla up --join-file FILE, with the token in it",
        created.expires
    )
}

async fn list(session: &Session, args: &ListArgs) -> anyhow::Result<u8> {
    let tokens = session.cluster().list_tokens(ask(ListTokensRequest {})).await?.into_inner().tokens;
    let views: Vec<TokenView> = tokens.iter().map(TokenView::from).collect();
    session.out.show(args.output, &views, || table(&tokens))?;
    Ok(DONE)
}

fn table(tokens: &[TokenSummary]) -> Table {
    let mut table = Table::new(["ID", "STATE", "USES", "EXPIRES", "AGE", "LABELS", "TAINTS"]);
    for token in tokens {
        let mut labels: Vec<String> = token.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort_unstable();
        let uses = match token.max_uses {
            0 => format!("{}/any", token.uses),
            max => format!("{}/{max}", token.uses),
        };
        table.row([
            Cell::from(&token.id),
            Cell::status(&token.state),
            Cell::from(uses),
            Cell::from(&token.expires),
            Cell::from(age_of(&token.created, now())),
            Cell::from(list_words(labels)),
            Cell::from(list_words(token.taints.clone())),
        ]);
    }
    table
}

fn list_words(words: Vec<String>) -> String {
    if words.is_empty() { "-".into() } else { words.join(",") }
}

async fn revoke(session: &Session, id: &str) -> anyhow::Result<u8> {
    let id = match id.len() {
        TOKEN_ID_DIGITS => id.to_owned(),
        _ => {
            let tokens = session.cluster().list_tokens(ask(ListTokensRequest {})).await?.into_inner().tokens;
            meant(&tokens, id)?.to_owned()
        }
    };
    session.cluster().revoke_token(ask(RevokeTokenRequest { id: id.clone() })).await?;
    session.say(format!("token {id} revoked"))?;
    Ok(DONE)
}

/// The one token whose id begins so.
fn meant<'a>(tokens: &'a [TokenSummary], beginning: &str) -> anyhow::Result<&'a str> {
    if beginning.is_empty() {
        bail!("name a token by its id: 'flotilla token list' shows them");
    }
    let found: Vec<&str> = tokens.iter().map(|token| &*token.id).filter(|id| id.starts_with(beginning)).collect();
    match found.as_slice() {
        [id] => Ok(id),
        [] => bail!("no token's id begins with {beginning:?}: see 'flotilla token list'"),
        several => bail!("the ids of {} tokens begin with {beginning:?}: {}", several.len(), several.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(id: &str) -> TokenSummary {
        TokenSummary {
            id: id.into(),
            state: "valid".into(),
            uses: 2,
            expires: "soon".into(),
            ..TokenSummary::default()
        }
    }

    #[test]
    fn a_token_is_a_row_with_what_it_gives_to_nodes() {
        let limited = TokenSummary {
            max_uses: 3,
            labels: [("zone", "a"), ("disk", "ssd")].map(|(key, value)| (key.into(), value.into())).into(),
            taints: vec!["dedicated=db:NoSchedule".into()],
            ..token("0b")
        };
        assert_eq!(
            table(&[token("0a"), limited]).render(false),
            "ID   STATE   USES    EXPIRES   AGE   LABELS            TAINTS\n\
             0a   valid   2/any   soon      -     -                 -\n\
             0b   valid   2/3     soon      -     disk=ssd,zone=a   dedicated=db:NoSchedule\n"
        );
    }

    #[test]
    fn a_label_is_given_once() {
        let labels = |all: &[&str]| all.iter().map(|text| parse_label(text).unwrap()).collect::<Vec<_>>();
        check_labels(&labels(&["a=b", "c=b"])).unwrap();
        let error = check_labels(&labels(&["a=b", "a=c"])).unwrap_err().to_string();
        assert_eq!(error, "label \"a\" is given twice; give it once");
    }

    #[test]
    fn a_token_is_meant_by_the_beginning_of_its_id_if_no_other_is() {
        let tokens = [token("4f1c2a0000000000"), token("4f1d000000000000"), token("aa00000000000000")];
        assert_eq!(meant(&tokens, "4f1c").unwrap(), "4f1c2a0000000000");
        let words = |beginning| meant(&tokens, beginning).unwrap_err().to_string();
        assert_eq!(words("4f1"), "the ids of 2 tokens begin with \"4f1\": 4f1c2a0000000000, 4f1d000000000000");
        assert_eq!(words("b"), "no token's id begins with \"b\": see 'flotilla token list'");
        assert!(words("").starts_with("name a token"));
    }
}
