//! The command line: what people type, one family of commands a file.
//!
//! Every command but `up` is a client of the gRPC API and can do nothing that another client could not.
//!
//! Invariant: results go to standard output, what went wrong to standard error; the exit code is 0 only if everything
//! asked for was done, 2 if the command line made no sense, 3 if a daemon is not to be started again before somebody has
//! looked at its machine, and that of the command under `exec`.

mod accounts;
mod apply;
mod backup;
mod ca;
mod cluster;
mod completion;
mod credentials;
mod delete;
mod exec;
mod failure;
mod follow;
mod get;
mod image;
mod job_logs;
mod jobs;
mod kubeconfig;
mod listing;
mod logs;
mod manifest;
mod nodes;
mod output;
mod revive;
mod secrets;
mod session;
mod stop;
mod submit;
mod terminal;
mod token;
mod up;
mod version;
mod views;
mod wait;
mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::client::DEFAULT_SOCKET;
use crate::config::Config;
use crate::dev::{self, DevArgs};
use crate::serve::Ended;
use session::Session;

/// Success; everything else is in [`failure`].
pub(crate) const DONE: u8 = 0;

/// The user pressed Ctrl-C, as a shell counts it.
pub(crate) const INTERRUPTED: u8 = 130;

/// Flotilla runs containers on a fleet of equal machines.
#[derive(Debug, Parser)]
#[command(name = "flotilla", version, max_term_width = 110, after_help = ABOUT)]
pub struct Cli {
    #[command(flatten)]
    global: Global,
    #[command(subcommand)]
    command: Command,
}

const ABOUT: &str = "\
Examples:
  flotilla up
  flotilla nodes
  flotilla run web --image nginx --replicas 3 --port 80
  flotilla status web

Each command tells more with --help.";

/// Which daemon to talk to, and about which namespace.
#[derive(Clone, Debug, Args)]
pub struct Global {
    /// Talk to the daemon of another machine, over TLS
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_SERVER",
        hide_env_values = true,
        value_name = "HOST:PORT",
        help_heading = "Connection"
    )]
    server: Option<String>,
    /// Key, certificate and CA for --server, as 'flotilla credentials' prints them
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_CREDENTIALS",
        hide_env_values = true,
        value_name = "FILE",
        help_heading = "Connection"
    )]
    credentials: Option<PathBuf>,
    /// The socket of this machine's daemon
    #[arg(
        long,
        global = true,
        env = "FLOTILLA_SOCKET",
        hide_env_values = true,
        value_name = "PATH",
        default_value = DEFAULT_SOCKET,
        help_heading = "Connection"
    )]
    socket: PathBuf,
    /// The namespace of jobs, pods and objects
    #[arg(
        short,
        long,
        global = true,
        env = "FLOTILLA_NAMESPACE",
        hide_env_values = true,
        default_value = "default",
        help_heading = "Connection"
    )]
    namespace: String,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Run the daemon: make a cluster, or join one
    Up(Box<up::UpArgs>),
    /// List the machines of the cluster
    Nodes(nodes::NodesArgs),
    /// Run the job of a file, or update it
    Submit(submit::SubmitArgs),
    /// Run a container image as a job, without a file
    Run(submit::RunArgs),
    /// List jobs
    Jobs(jobs::JobsArgs),
    /// Show a job and its pods, or how the cluster is
    Status(jobs::StatusArgs),
    /// List pods
    Pods(get::PodsArgs),
    /// Show objects of any kind
    Get(get::GetArgs),
    /// Show what a job or a pod writes
    Logs(logs::LogsArgs),
    /// Run a command in a container
    Exec(exec::ExecArgs),
    /// Set how many replicas of a job run
    Scale(submit::ScaleArgs),
    /// End a job
    Stop(stop::StopArgs),
    /// Create or change the objects of Kubernetes manifests
    Apply(apply::ApplyArgs),
    /// Delete objects
    Delete(delete::DeleteArgs),
    /// Make, list and revoke the tokens with which machines join
    Token(token::TokenArgs),
    /// See and rotate the keys that secrets are sealed with
    Secrets(secrets::SecretsArgs),
    /// See and rotate the keys that sign the tokens of service accounts
    Accounts(accounts::AccountsArgs),
    /// Put no new pods on a machine
    Cordon(nodes::CordonArgs),
    /// Put pods on a machine again
    Uncordon(nodes::UncordonArgs),
    /// Move all pods off a machine
    Drain(nodes::DrainArgs),
    /// Take the machine that answers out of the cluster
    Leave(nodes::LeaveArgs),
    /// Pull, import, list and remove images of one machine
    Image(image::ImageArgs),
    /// Write the whole store to a file, while the cluster runs
    Backup(backup::BackupArgs),
    /// Make this machine the first node of the cluster that a backup is of
    Restore(Box<revive::RestoreArgs>),
    /// Go on with this machine alone, when most voters are gone for good
    Recover(Box<revive::RecoverArgs>),
    /// Make a key and a certificate for --server, or revoke them
    Credentials(credentials::CredentialsArgs),
    /// Print what kubectl needs to talk to this cluster
    Kubeconfig(kubeconfig::KubeconfigArgs),
    /// Replace the cluster's certificate authority, or look at it
    Ca(ca::CaArgs),
    /// Print a script that completes commands in a shell
    Completion(completion::CompletionArgs),
    /// Make a cluster of several nodes on this machine, to try things out
    Dev(DevArgs),
    /// Print the versions of this program and of the daemon
    Version(version::VersionArgs),
}

/// Runs the command line of this process; `up` is left to `daemon`.
pub fn main(daemon: impl FnOnce(Config) -> anyhow::Result<Ended>) -> ExitCode {
    let matches = without_empty_variables(Cli::command()).get_matches();
    let cli = Cli::from_arg_matches(&matches).unwrap_or_else(|error| error.exit());
    let result = match cli.command {
        Command::Up(args) => up::start(*args, daemon).map(ExitCode::from),
        Command::Restore(args) => revive::restore(*args).map(ExitCode::from),
        Command::Recover(args) => revive::recover(*args).map(ExitCode::from),
        Command::Completion(args) => completion::print(&args).map(ExitCode::from),
        Command::Dev(args) => on_one_thread(dev::run(args)),
        Command::Backup(args) if args.verify => backup::verify(&args).map(ExitCode::from),
        command => on_one_thread(dispatch(cli.global, command)).map(ExitCode::from),
    };
    let code = result.unwrap_or_else(|error| failure::report(&error).into());
    match io::stdout().flush() {
        Err(_) if code == ExitCode::SUCCESS => failure::FAILED.into(),
        _ => code,
    }
}

/// A variable that is empty counts as not set, as everywhere in a shell.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    let is_empty = |arg: &clap::Arg| arg.get_env().and_then(std::env::var_os).is_some_and(|value| value.is_empty());
    let reset = |arg: clap::Arg| if is_empty(&arg) { arg.env(clap::builder::Resettable::Reset) } else { arg };
    command.mut_args(reset).mut_subcommands(without_empty_variables)
}

fn on_one_thread<T>(work: impl Future<Output = anyhow::Result<T>>) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let result = runtime.block_on(work);
    // A read of standard input cannot be called back; nobody waits for it.
    runtime.shutdown_background();
    result
}

async fn dispatch(global: Global, command: Command) -> anyhow::Result<u8> {
    if let Command::Version(args) = command {
        return version::print(&global, &args).await;
    }
    let session = Session::open(&global).await?;
    match command {
        Command::Nodes(args) => nodes::list(&session, &args).await,
        Command::Submit(args) => submit::submit(&session, &args).await,
        Command::Run(args) => submit::run(&session, &args).await,
        Command::Jobs(args) => jobs::list(&session, &args).await,
        Command::Status(args) => jobs::status(&session, &args).await,
        Command::Pods(args) => get::pods(&session, &args).await,
        Command::Get(args) => get::get(&session, &args).await,
        Command::Logs(args) => logs::logs(&session, &args).await,
        Command::Exec(args) => exec::exec(&session, &args).await,
        Command::Scale(args) => submit::scale(&session, &args).await,
        Command::Stop(args) => stop::stop(&session, &args).await,
        Command::Apply(args) => apply::apply(&session, &args).await,
        Command::Delete(args) => delete::delete(&session, &args).await,
        Command::Token(args) => token::token(&session, &args).await,
        Command::Secrets(args) => secrets::secrets(&session, &args).await,
        Command::Accounts(args) => accounts::accounts(&session, &args).await,
        Command::Cordon(args) => nodes::cordon(&session, &args.node, true).await,
        Command::Uncordon(args) => nodes::cordon(&session, &args.node, false).await,
        Command::Drain(args) => nodes::drain(&session, &args).await,
        Command::Leave(args) => nodes::leave(&session, &args).await,
        Command::Image(args) => image::image(&session, &args).await,
        Command::Backup(args) => backup::backup(&session, &args).await,
        Command::Credentials(args) => credentials::make(&session, &args).await,
        Command::Kubeconfig(args) => kubeconfig::print(&session, &args).await,
        Command::Ca(args) => ca::ca(&session, &args).await,
        Command::Restore(_) | Command::Recover(_) => Ok(DONE),
        Command::Up(_) | Command::Version(_) | Command::Completion(_) | Command::Dev(_) => Ok(DONE),
    }
}

#[cfg(test)]
mod tests;
