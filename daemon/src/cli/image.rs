//! `image pull|import|ls|rm`: the images of the machine that answers.

use std::io;

use anyhow::Context;
use clap::{Args, Subcommand};
use futures::stream;
use tokio::fs::File;
use tokio::io::{AsyncRead, AsyncReadExt};

use super::manifest::STDIN;
use super::output::{Cell, Format, Table, age_of, bytes, plain};
use super::session::{Session, ask, now};
use super::views::ImageView;
use super::{DONE, INTERRUPTED, failure};
use crate::proto::{ImageSummary, ImportChunk, ListImagesRequest, PullImageRequest, PullProgress, RemoveImageRequest};

const CHUNK_BYTES: usize = 256 << 10;

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla image pull nginx:1.27
  flotilla image import web.tar
  flotilla image ls
  flotilla image rm nginx:1.27")]
pub struct ImageArgs {
    #[command(subcommand)]
    command: ImageCommand,
}

#[derive(Debug, Subcommand)]
enum ImageCommand {
    /// Fetch an image from its registry
    Pull(PullArgs),
    /// Take in an OCI layout or 'docker save' archive
    Import(ImportArgs),
    /// List images
    #[command(visible_alias = "list")]
    Ls(ListArgs),
    /// Remove images
    #[command(visible_alias = "remove")]
    Rm(RemoveArgs),
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla image pull registry.example:5000/web:v2")]
struct PullArgs {
    /// The image's name: nginx, nginx:1.27, registry.example:5000/web@sha256:…
    reference: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla image import web.tar
  docker save web | flotilla image import -")]
struct ImportArgs {
    /// The archive, plain or gzip; - reads standard input
    file: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Examples:\n  flotilla image ls -o json\n  flotilla image ls --peers")]
struct ListArgs {
    /// Tell which nodes hold all of each image
    #[arg(long)]
    peers: bool,
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla image rm nginx:1.27 web:v2")]
struct RemoveArgs {
    /// The images' names
    #[arg(required = true)]
    references: Vec<String>,
}

pub async fn image(session: &Session, args: &ImageArgs) -> anyhow::Result<u8> {
    match &args.command {
        ImageCommand::Pull(args) => pull(session, &args.reference).await,
        ImageCommand::Import(args) => import(session, &args.file).await,
        ImageCommand::Ls(args) => list(session, args).await,
        ImageCommand::Rm(args) => remove(session, &args.references).await,
    }
}

async fn pull(session: &Session, reference: &str) -> anyhow::Result<u8> {
    let request = PullImageRequest { reference: reference.into() };
    let mut stream = session.images().pull(request).await?.into_inner();
    let mut line = session.progress();
    let mut image = None;
    loop {
        let message = tokio::select! {
            message = stream.message() => message?,
            _ = tokio::signal::ctrl_c() => return Ok(INTERRUPTED),
        };
        let Some(mut progress) = message else { break };
        line.show(&pull_words(reference, &progress, session.out.terminal))?;
        image = progress.image.take().or(image);
    }
    let image = image.with_context(|| format!("the daemon broke off pulling {reference}"))?;
    line.finish(&format!("{reference}: {} ({})", short(&image.id), bytes(image.size_bytes)))?;
    Ok(DONE)
}

/// `nginx: downloading 12Mi/40Mi`; a pipe gets a line a phase rather than a line a chunk.
fn pull_words(reference: &str, progress: &PullProgress, terminal: bool) -> String {
    let phase = &progress.phase;
    match (progress.done_bytes, progress.total_bytes) {
        (0, 0) => format!("{reference}: {phase}"),
        (done, 0) if terminal => format!("{reference}: {phase} {}", bytes(done)),
        (_, 0) => format!("{reference}: {phase}"),
        (done, total) if terminal => format!("{reference}: {phase} {}/{}", bytes(done), bytes(total)),
        (_, total) => format!("{reference}: {phase} {}", bytes(total)),
    }
}

async fn import(session: &Session, file: &str) -> anyhow::Result<u8> {
    let source: Box<dyn AsyncRead + Send + Unpin> = if file == STDIN {
        Box::new(tokio::io::stdin())
    } else {
        Box::new(File::open(file).await.with_context(|| format!("cannot read {file}"))?)
    };
    let (failed, failure) = tokio::sync::oneshot::channel();
    let request = stream::unfold((source, Some(failed)), next_chunk);
    let answer = session.images().import(request).await;
    // A file that cannot be read ends the stream early: its error explains the daemon's.
    if let Ok(error) = { failure }.try_recv() {
        return Err(error).with_context(|| format!("cannot read {file}"));
    }
    for image in answer?.into_inner().images {
        session.say(format!("{} {} ({})", names(&image), short(&image.id), bytes(image.size_bytes)))?;
    }
    Ok(DONE)
}

type Source = (Box<dyn AsyncRead + Send + Unpin>, Option<tokio::sync::oneshot::Sender<io::Error>>);

async fn next_chunk((mut source, mut failed): Source) -> Option<(ImportChunk, Source)> {
    let mut data = Vec::with_capacity(CHUNK_BYTES);
    match (&mut source).take(CHUNK_BYTES as u64).read_to_end(&mut data).await {
        Ok(0) => None,
        Ok(_) => Some((ImportChunk { data }, (source, failed))),
        Err(error) => {
            // Nobody listens only if the call is over already.
            let _ = failed.take().map(|failed| failed.send(error));
            None
        }
    }
}

async fn list(session: &Session, args: &ListArgs) -> anyhow::Result<u8> {
    let request = ListImagesRequest { peers: args.peers };
    let images = session.images().list(ask(request)).await?.into_inner().images;
    let views: Vec<ImageView> = images.iter().map(ImageView::from).collect();
    session.out.show(args.output, &views, || table(&images, args.peers))?;
    Ok(DONE)
}

fn table(images: &[ImageSummary], peers: bool) -> Table {
    let columns = ["IMAGE", "ID", "SIZE", "AGE", "NODES"];
    let shown = if peers { columns.len() } else { columns.len() - 1 };
    let mut table = Table::new(columns.into_iter().take(shown));
    for image in images {
        let nameless = [String::new()];
        let references = if image.references.is_empty() { &nameless } else { image.references.as_slice() };
        for reference in references {
            let cells = [
                Cell::from(reference),
                Cell::from(short(&image.id)),
                Cell::from(bytes(image.size_bytes)),
                Cell::from(age_of(&image.created, now())),
                Cell::from(image.nodes.join(",")),
            ];
            table.row(cells.into_iter().take(shown));
        }
    }
    table
}

fn names(image: &ImageSummary) -> String {
    if image.references.is_empty() { "(no name)".into() } else { plain(&image.references.join(", ")) }
}

/// The first twelve digits of a digest, which tell images apart.
fn short(id: &str) -> String {
    const DIGITS: usize = 12;
    plain(id.strip_prefix("sha256:").unwrap_or(id)).chars().take(DIGITS).collect()
}

async fn remove(session: &Session, references: &[String]) -> anyhow::Result<u8> {
    let mut code = DONE;
    for reference in references {
        match session.images().remove(ask(RemoveImageRequest { reference: reference.clone() })).await {
            Ok(answer) => {
                session.say(format!("{reference} removed, {} freed", bytes(answer.into_inner().freed_bytes)))?
            }
            Err(status) => code = failure::report(&status.into()),
        }
    }
    Ok(code)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pulls_are_told_in_bytes() {
        let progress =
            PullProgress { phase: "downloading".into(), done_bytes: 12 << 20, total_bytes: 40 << 20, image: None };
        assert_eq!(pull_words("nginx", &progress, true), "nginx: downloading 12Mi/40Mi");
        assert_eq!(pull_words("nginx", &progress, false), "nginx: downloading 40Mi");
        let resolving = PullProgress { phase: "resolving".into(), ..PullProgress::default() };
        assert_eq!(pull_words("nginx", &resolving, true), "nginx: resolving");
    }

    #[test]
    fn an_image_has_a_row_for_each_name() {
        let image = ImageSummary {
            references: vec!["a:1".into(), "b:2".into()],
            id: "sha256:0123456789abcdef".into(),
            size_bytes: 5 << 20,
            created: String::new(),
            nodes: vec!["n1".into(), "n2".into()],
        };
        assert_eq!(
            table(std::slice::from_ref(&image), true).render(false).lines().last(),
            Some("b:2     0123456789ab   5Mi    -     n1,n2")
        );
        assert_eq!(
            table(&[image], false).render(false),
            "IMAGE   ID             SIZE   AGE\na:1     0123456789ab   5Mi    -\nb:2     0123456789ab   5Mi    -\n"
        );
    }
}
