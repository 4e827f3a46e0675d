//! `nodes`, `cordon`, `uncordon`, `drain`, `leave`: the machines.

use clap::Args;
use tonic::Streaming;

use super::failure::is_broken;
use super::output::{Cell, Format, Table, age_of, bytes, cores, duration_seconds};
use super::session::{Session, ask, now};
use super::views::NodeView;
use super::{DONE, INTERRUPTED};
use crate::proto::{CordonRequest, DrainRequest, LeaveRequest, NodeSummary, NodesRequest, Progress};

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla nodes
  flotilla nodes -o json")]
pub struct NodesArgs {
    /// How to write the list
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla cordon node-2")]
pub struct CordonArgs {
    /// The node's name
    pub node: String,
}

#[derive(Debug, Args)]
#[command(after_help = "Example:\n  flotilla uncordon node-2")]
pub struct UncordonArgs {
    /// The node's name
    pub node: String,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla drain node-2
  flotilla drain node-2 --timeout 10m --grace-period 30s
  flotilla drain node-2 --force")]
pub struct DrainArgs {
    /// The node's name
    node: String,
    /// Give up after this long [default: 5m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    timeout: Option<u32>,
    /// How long containers get to end, instead of what each pod says
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    grace_period: Option<u32>,
    /// Also delete pods that no controller makes anew
    #[arg(long)]
    force: bool,
}

#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  flotilla leave
  flotilla leave --force --timeout 1m")]
pub struct LeaveArgs {
    /// Leave even if the pods cannot be moved, or no controller makes them anew
    #[arg(long)]
    force: bool,
    /// Give up after this long [default: 5m]
    #[arg(long, value_name = "DURATION", allow_hyphen_values = true, value_parser = duration_seconds)]
    timeout: Option<u32>,
}

pub async fn list(session: &Session, args: &NodesArgs) -> anyhow::Result<u8> {
    let nodes = session.cluster().nodes(ask(NodesRequest {})).await?.into_inner().nodes;
    let views: Vec<NodeView> = nodes.iter().map(NodeView::from).collect();
    session.out.show(args.output, &views, || table(&nodes))?;
    Ok(DONE)
}

fn table(nodes: &[NodeSummary]) -> Table {
    let telling = nodes.iter().any(|node| !node.message.is_empty());
    let header = ["NAME", "ROLE", "STATUS", "ADDRESS", "VERSION", "CPU", "MEMORY", "PODS", "AGE"];
    let mut table = Table::new(header.into_iter().chain(telling.then_some("MESSAGE")));
    for node in nodes {
        let mut cells = row(node).to_vec();
        cells.extend(telling.then(|| Cell::from(&node.message)));
        table.row(cells);
    }
    table
}

fn row(node: &NodeSummary) -> [Cell; 9] {
    let cpu = format!("{}/{}", cores(node.cpu_used_millis), cores(node.cpu_capacity_millis));
    let memory = format!("{}/{}", size(node.memory_used_bytes), size(node.memory_capacity_bytes));
    [
        Cell::from(&node.name),
        Cell::from(&node.role),
        Cell::status(&node.status),
        Cell::from(&node.address),
        Cell::from(&node.version),
        Cell::from(cpu),
        Cell::from(memory),
        Cell::from(node.pods.to_string()),
        Cell::from(age_of(&node.created, now())),
    ]
}

fn size(count: i64) -> String {
    bytes(count.try_into().unwrap_or(0))
}

pub async fn cordon(session: &Session, node: &str, cordon: bool) -> anyhow::Result<u8> {
    let request = CordonRequest { node: node.into(), cordon };
    let changed = session.cluster().cordon(ask(request)).await?.into_inner().changed;
    let word = if cordon { "cordoned" } else { "uncordoned" };
    let already = if changed { "" } else { "already " };
    session.say(format!("node {node} {already}{word}"))?;
    Ok(DONE)
}

pub async fn drain(session: &Session, args: &DrainArgs) -> anyhow::Result<u8> {
    let request = DrainRequest {
        node: args.node.clone(),
        timeout_seconds: args.timeout.unwrap_or(0),
        grace_period_seconds: args.grace_period.map(|seconds| seconds.try_into().unwrap_or(i32::MAX)),
        force: args.force,
    };
    let stream = session.cluster().drain(request).await?.into_inner();
    let on_interrupt = format!("{} stays cordoned: pods go back with 'flotilla uncordon {0}'", args.node);
    tell(session, stream, &format!("node {} drained", args.node), &on_interrupt).await
}

pub async fn leave(session: &Session, args: &LeaveArgs) -> anyhow::Result<u8> {
    let request = LeaveRequest { force: args.force, timeout_seconds: args.timeout.unwrap_or(0) };
    let stream = session.cluster().leave(request).await?.into_inner();
    tell(
        session,
        stream,
        "the node has left the cluster",
        "the node goes on leaving: 'flotilla nodes' on another node shows when it is gone",
    )
    .await
}

/// Shows how far the daemon is until it is done.
pub async fn tell(
    session: &Session,
    mut stream: Streaming<Progress>,
    at_the_end: &str,
    on_interrupt: &str,
) -> anyhow::Result<u8> {
    let mut line = session.progress();
    loop {
        let message = tokio::select! {
            message = stream.message() => message.inspect_err(|status| {
                if is_broken(status) {
                    eprintln!("the connection broke; {on_interrupt}");
                }
            })?,
            _ = tokio::signal::ctrl_c() => {
                drop(line);
                eprintln!("{on_interrupt}");
                return Ok(INTERRUPTED);
            }
        };
        match message {
            Some(progress) => line.show(&progress_words(&progress))?,
            None => {
                line.finish(at_the_end)?;
                return Ok(DONE);
            }
        }
    }
}

fn progress_words(progress: &Progress) -> String {
    match progress.total {
        0 => progress.message.clone(),
        total => format!("{}/{total} {}", progress.done, progress.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_node_is_a_row() {
        let node = NodeSummary {
            name: "node-1".into(),
            role: "leader".into(),
            status: "Ready".into(),
            address: "10.0.0.1:6443".into(),
            version: "0.1.0".into(),
            cpu_used_millis: 120,
            cpu_capacity_millis: 2000,
            memory_used_bytes: 312 << 20,
            memory_capacity_bytes: 4 << 30,
            pods: 7,
            created: String::new(),
            message: String::new(),
            id: 1,
        };
        assert_eq!(
            table(std::slice::from_ref(&node)).render(false),
            "NAME     ROLE     STATUS   ADDRESS         VERSION   CPU      MEMORY      PODS   AGE\n\
             node-1   leader   Ready    10.0.0.1:6443   0.1.0     0.12/2   312Mi/4Gi   7      -\n"
        );
        let silent = NodeSummary { message: "silent for 4 s".into(), ..node };
        assert!(table(&[silent]).render(false).ends_with("silent for 4 s\n"));
    }
}
