//! `token create|list|revoke`: what a machine needs to join.

use clap::{Args, Subcommand};
use serde::Serialize;

use super::DONE;
use super::output::{Cell, Format, Table, age_of, parse_duration};
use super::session::{Session, ask, now};
use super::views::TokenView;
use crate::proto::{CreateTokenRequest, CreateTokenResponse, ListTokensRequest, RevokeTokenRequest, TokenSummary};

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
    #[arg(long, value_name = "DURATION", default_value = "1d", value_parser = parse_duration)]
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
    /// The token's id, as the list shows it
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

fn join_words(created: &CreateTokenResponse, uses: u32) -> String {
    let machines = match uses {
        0 => "any number of machines".to_owned(),
        1 => "one machine".to_owned(),
        uses => format!("{uses} machines"),
    };
    format!("good for {machines} until {}; on each run: flotilla up --join TOKEN", created.expires)
}

async fn list(session: &Session, args: &ListArgs) -> anyhow::Result<u8> {
    let tokens = session.cluster().list_tokens(ask(ListTokensRequest {})).await?.into_inner().tokens;
    let views: Vec<TokenView> = tokens.iter().map(TokenView::from).collect();
    session.out.show(args.output, &views, || table(&tokens))?;
    Ok(DONE)
}

fn table(tokens: &[TokenSummary]) -> Table {
    let mut table = Table::new(["ID", "STATE", "USES", "EXPIRES", "AGE"]);
    for token in tokens {
        let uses = match token.max_uses {
            0 => token.uses.to_string(),
            max => format!("{}/{max}", token.uses),
        };
        table.row([
            Cell::from(&token.id),
            Cell::status(&token.state),
            Cell::from(uses),
            Cell::from(&token.expires),
            Cell::from(age_of(&token.created, now())),
        ]);
    }
    table
}

async fn revoke(session: &Session, id: &str) -> anyhow::Result<u8> {
    session.cluster().revoke_token(ask(RevokeTokenRequest { id: id.into() })).await?;
    session.say(format!("token {id} revoked"))?;
    Ok(DONE)
}
