//! `flotilla dev`: the commands around a cluster in a box.

use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Instant;

use anyhow::Context;
use clap::{Args, Subcommand};

use crate::client::DEFAULT_SOCKET;

use super::{Cluster, DEFAULT_ROOT, DevError, NodeState, Options, Subnet};

/// A cluster in a box: each node with an address of its own, on this machine
#[derive(Debug, Args)]
#[command(args_conflicts_with_subcommands = true)]
#[command(after_help = "Examples:\n  \
    flotilla dev --nodes 3\n  \
    flotilla dev status\n  \
    flotilla dev exec node-2 -- ip address\n  \
    flotilla dev kill node-3 --everything\n  \
    flotilla dev down\n\n\
    A registry on this machine is reached at the gateway's address, which 'flotilla dev status' shows; on port 5000 \
    it needs no TLS unless --config says otherwise.")]
pub struct DevArgs {
    #[command(subcommand)]
    action: Option<Action>,
    #[command(flatten)]
    up: Up,
}

#[derive(Debug, Args)]
struct Up {
    /// How many nodes the cluster is to have; adds to one that exists
    #[arg(long, value_name = "COUNT", default_value_t = 3)]
    nodes: usize,
    #[command(flatten)]
    which: Which,
    /// The network of the nodes, such as 10.99.7.0/24 [default: the first of 10.99.0.0/16 that is free]
    #[arg(long, value_name = "CIDR")]
    subnet: Option<Subnet>,
    /// A configuration file for every daemon
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
}

#[derive(Debug, Args)]
struct Which {
    /// The cluster, if there is more than one
    #[arg(long, value_name = "NAME", default_value = "dev")]
    name: String,
    #[arg(long, hide = true, default_value = DEFAULT_ROOT)]
    root: PathBuf,
}

impl Which {
    fn open(&self) -> Result<Cluster, DevError> {
        Cluster::open(&self.root, &self.name)
    }
}

#[derive(Debug, Subcommand)]
enum Action {
    /// Stop everything and remove it
    #[command(after_help = "Example:\n  flotilla dev down")]
    Down {
        #[command(flatten)]
        which: Which,
    },
    /// Show the nodes, their addresses, sockets and logs
    #[command(after_help = "Example:\n  flotilla dev status -o json")]
    Status {
        #[command(flatten)]
        which: Which,
        #[arg(short, long, value_name = "FORMAT", default_value = "table")]
        output: Output,
    },
    /// Run a command on a node
    #[command(after_help = "Example:\n  flotilla dev exec node-2 -- flotilla image ls")]
    Exec {
        node: String,
        #[command(flatten)]
        which: Which,
        #[arg(last = true, required = true, value_name = "COMMAND")]
        command: Vec<String>,
    },
    /// Kill a node's daemon with SIGKILL, or pull the node's plug
    #[command(after_help = "Example:\n  flotilla dev kill node-3 --everything")]
    Kill {
        node: String,
        /// The cable, then every process: a dead machine
        #[arg(long)]
        everything: bool,
        #[command(flatten)]
        which: Which,
    },
    /// Start a node's daemon again, and the node if it is off
    #[command(after_help = "Example:\n  flotilla dev restart node-3")]
    Restart {
        node: String,
        #[command(flatten)]
        which: Which,
    },
    /// Pull a node's network cable out
    #[command(after_help = "Example:\n  flotilla dev cut node-2")]
    Cut {
        node: String,
        #[command(flatten)]
        which: Which,
    },
    /// Put a node's network cable back
    #[command(after_help = "Example:\n  flotilla dev heal node-2")]
    Heal {
        node: String,
        #[command(flatten)]
        which: Which,
    },
}

#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Carries a `flotilla dev` command out.
///
/// # Errors
/// What went wrong, for people.
pub async fn run(args: DevArgs) -> anyhow::Result<ExitCode> {
    let Some(action) = args.action else { return up(args.up).await };
    match action {
        Action::Down { which } => down(&which)?,
        Action::Status { which, output } => status(&which.open()?, output)?,
        Action::Exec { node, which, command } => return exec(&which.open()?, &node, &command),
        Action::Kill { node, everything, which } => kill(&which.open()?, &node, everything)?,
        Action::Restart { node, which } => restart(&mut which.open()?, &node).await?,
        Action::Cut { node, which } => {
            which.open()?.cut(&node)?;
            say(&format!("{node} is cut off"));
        }
        Action::Heal { node, which } => {
            which.open()?.heal(&node)?;
            say(&format!("{node} is linked"));
        }
    }
    Ok(ExitCode::SUCCESS)
}

async fn up(up: Up) -> anyhow::Result<ExitCode> {
    let began = Instant::now();
    let config = match &up.config {
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?),
        None => None,
    };
    let (mut cluster, is_new) = match up.which.open() {
        Ok(cluster) => (cluster, false),
        Err(DevError::Missing { .. }) => (make(&up)?, true),
        Err(error) => return Err(error.into()),
    };
    if let Some(config) = config {
        cluster.configure(&config)?;
    }
    if let Err(error) = cluster.grow_to(up.nodes, &mut say).await {
        if let Some(tail) = error.log_tail() {
            eprintln!("{tail}");
        }
        if is_new {
            match cluster.keep_logs() {
                Ok(Some(kept)) => say(&format!("the nodes' logs are kept in {}", kept.display())),
                Ok(None) => {}
                Err(error) => say(&format!("the nodes' logs cannot be kept: {error}")),
            }
            say("taking it down again");
            Cluster::down(&up.which.root, &up.which.name)?;
        } else {
            say(&format!("the nodes' logs are in {}", cluster.places().dir().display()));
        }
        return Err(error.into());
    }
    say(&format!("cluster {} is ready after {:.1} s", up.which.name, began.elapsed().as_secs_f64()));
    introduce(&mut cluster)?;
    Ok(ExitCode::SUCCESS)
}

fn make(up: &Up) -> anyhow::Result<Cluster> {
    let binary = std::env::current_exe().context("cannot find the flotilla program")?;
    let options = Options { root: up.which.root.clone(), name: up.which.name.clone(), binary, subnet: up.subnet };
    let cluster = Cluster::create(&options)?;
    say(&format!("network {} with this machine at {}", cluster.subnet(), cluster.gateway()));
    Ok(cluster)
}

/// Says how to reach the cluster.
fn introduce(cluster: &mut Cluster) -> Result<(), DevError> {
    let socket = cluster.states().into_iter().next().map(|node| node.socket).unwrap_or_default();
    let is_default = cluster.link_socket(Path::new(DEFAULT_SOCKET))?
        || std::fs::read_link(DEFAULT_SOCKET).is_ok_and(|target| target == socket);
    if is_default {
        say("next: flotilla nodes");
    } else {
        say("another daemon answers on this machine, so first:");
        say(&format!("  export FLOTILLA_SOCKET={}", socket.display()));
    }
    Ok(())
}

fn down(which: &Which) -> Result<(), DevError> {
    let name = &which.name;
    if Cluster::down(&which.root, name)? {
        say(&format!("cluster {name} is gone"));
    } else {
        say(&format!("there is no cluster {name}"));
    }
    Ok(())
}

fn status(cluster: &Cluster, output: Output) -> anyhow::Result<()> {
    let states = cluster.states();
    match output {
        Output::Json => {
            let all = serde_json::json!({
                "name": cluster.places().name(),
                "subnet": cluster.subnet(),
                "gateway": cluster.gateway(),
                "nodes": states,
            });
            say(&serde_json::to_string_pretty(&all)?);
        }
        Output::Table => {
            say(&format!("network {} with this machine at {}", cluster.subnet(), cluster.gateway()));
            states.iter().map(row).for_each(|row| say(&row));
        }
    }
    Ok(())
}

fn row(node: &NodeState) -> String {
    let link = if node.linked { "linked" } else { "cut off" };
    let (address, socket, log) = (node.address.to_string(), node.socket.display(), node.log.display());
    format!("{:<9} {:<8} {link:<8} {address:<13} {socket} {log}", node.name, node.state)
}

/// The command speaks to the node's own daemon unless it is told otherwise.
fn exec(cluster: &Cluster, node: &str, command: &[String]) -> anyhow::Result<ExitCode> {
    let (program, arguments) = command.split_first().context("name a command")?;
    let mut command = cluster.space(node)?.command(program)?;
    command.args(arguments).env("FLOTILLA_SOCKET", cluster.places().socket(node));
    let status = command.status().with_context(|| format!("cannot run {program} on {node}"))?;
    Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX)))
}

fn kill(cluster: &Cluster, node: &str, everything: bool) -> Result<(), DevError> {
    if everything {
        cluster.pull_plug(node)?;
        say(&format!("{node} is off"));
    } else {
        cluster.kill_daemon(node)?;
        say(&format!("the daemon of {node} is killed"));
    }
    Ok(())
}

async fn restart(cluster: &mut Cluster, node: &str) -> Result<(), DevError> {
    if cluster.daemon(node).is_ok() {
        cluster.stop_daemon(node)?;
    }
    cluster.start(node, None)?;
    cluster.wait_answering(node).await?;
    say(&format!("{node} is up"));
    Ok(())
}

/// Standard output may be closed; that is no reason to stop halfway.
fn say(line: &str) {
    let _ = writeln!(io::stdout(), "{line}");
}
