//! `apply`: the objects of Kubernetes manifests, created or changed.

use anyhow::Context;
use clap::Args;

use super::output::plain;
use super::session::{Session, ask};
use super::{DONE, failure, manifest};
use crate::proto::ApplyRequest;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla apply -f web.yaml
  flotilla apply -f namespace.yaml -f web.yaml --dry-run
  cat web.yaml | flotilla apply -f -")]
pub struct ApplyArgs {
    /// A manifest, a folder of manifests, or - for standard input; may be given again
    #[arg(short, long = "filename", required = true, value_name = "FILE")]
    files: Vec<String>,
    /// Check everything, change nothing
    #[arg(long)]
    dry_run: bool,
}

/// Applies file after file; one that is refused does not keep the others back.
pub async fn apply(session: &Session, args: &ApplyArgs) -> anyhow::Result<u8> {
    let mut code = DONE;
    for file in manifest::expand(&args.files)? {
        if let Err(error) = apply_one(session, &file, args.dry_run).await.with_context(|| file.clone()) {
            code = failure::report(&error);
        }
    }
    Ok(code)
}

async fn apply_one(session: &Session, file: &str, dry_run: bool) -> anyhow::Result<()> {
    let request = ApplyRequest {
        manifest: manifest::read(file)?,
        namespace: session.namespace.clone(),
        dry_run,
        ..ApplyRequest::default()
    };
    let applied = session.objects().apply(ask(request)).await?.into_inner().applied;
    let dry = if dry_run { " (dry run)" } else { "" };
    for one in applied {
        session.say(format!("{} {}{dry}", plain(&one.object), plain(&one.result)))?;
    }
    Ok(())
}
