//! `version`: of this program, and of the daemon if it answers.

use clap::Args;
use serde::Serialize;

use super::output::{Format, Out, Table};
use super::session::{Session, ask};
use super::{DONE, Global};
use crate::VERSION;
use crate::proto::ClusterStatusRequest;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla version
  flotilla version --client")]
pub struct VersionArgs {
    /// Do not ask the daemon
    #[arg(long)]
    client: bool,
    /// How to write the versions
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Serialize)]
struct VersionView {
    client: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<String>,
    /// The node that answered.
    #[serde(skip_serializing_if = "Option::is_none")]
    node: Option<String>,
}

pub async fn print(global: &Global, args: &VersionArgs) -> anyhow::Result<u8> {
    let out = Out::detect();
    let mut view = VersionView { client: VERSION, server: None, node: None };
    if args.output == Format::Table {
        out.line(format!("client {VERSION}"))?;
    }
    if !args.client {
        let session = Session::open(global).await?;
        let status = session.cluster().status(ask(ClusterStatusRequest {})).await?.into_inner();
        if args.output == Format::Table {
            out.line(format!("server {} ({})", status.version, status.node))?;
        }
        (view.server, view.node) = (Some(status.version), Some(status.node));
    }
    if args.output != Format::Table {
        out.show(args.output, &view, Table::default)?;
    }
    Ok(DONE)
}
