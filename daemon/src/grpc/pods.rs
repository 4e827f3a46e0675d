//! Logs and exec, bridged to the node that runs the pod.

use flotilla_api::Status;
use serde_json::Value;
use tonic::{Request, Response, Streaming};

use super::watch::{Answer, Sender, stream};
use super::{refuse, user};
use crate::node::Node;
use crate::pods;
use crate::proto::{self, pods_server::Pods};
use crate::streams::{Connection, Exec, FromPod, Logs, Size, StreamRequest, ToPod};

/// Input for a command in one frame.
const MAX_STDIN_BYTES: usize = 64 * 1024;

pub struct Service {
    node: Node,
}

impl Service {
    pub fn new(node: &Node) -> Self {
        Self { node: node.clone() }
    }
}

#[tonic::async_trait]
impl Pods for Service {
    type LogsStream = Answer<proto::LogChunk>;

    async fn logs(&self, request: Request<proto::LogsRequest>) -> Result<Response<Self::LogsStream>, tonic::Status> {
        let user = user(&request)?;
        let request = request.into_inner();
        let pod = self.node.gate.connect(&user, "log", &request.namespace, &request.pod).await.map_err(refuse)?;
        let logs = Logs {
            pod: pods::reference(&pod),
            container: pods::container(&pod, &request.container).map_err(refuse)?,
            follow: request.follow,
            previous: request.previous,
            tail_lines: request.tail_lines.map(|lines| lines.max(0) as u64),
            since_seconds: request.since_seconds.map(|seconds| seconds.max(0) as u64),
            timestamps: request.timestamps,
            limit_bytes: request.limit_bytes.map(|bytes| bytes.max(0) as u64),
        };
        let mut connection = connect(&self.node, &pod, StreamRequest::Logs(logs)).await.map_err(refuse)?;
        Ok(Response::new(stream(|send| async move {
            while let Some(message) = connection.next().await.map_err(refuse)? {
                let data = match message {
                    FromPod::Stdout(data) | FromPod::Stderr(data) => data.to_vec(),
                    FromPod::Exit(_) => return Ok(()),
                    FromPod::Failed(status) => return Err(refuse(status)),
                };
                if send.send(Ok(proto::LogChunk { data })).await.is_err() {
                    return Ok(());
                }
            }
            Ok(())
        })))
    }

    type ExecStream = Answer<proto::ExecOutput>;

    async fn exec(
        &self,
        request: Request<Streaming<proto::ExecInput>>,
    ) -> Result<Response<Self::ExecStream>, tonic::Status> {
        let user = user(&request)?;
        let mut input = request.into_inner();
        let start = match input.message().await?.and_then(|message| message.input) {
            Some(proto::exec_input::Input::Start(start)) => start,
            _ => return Err(refuse(Status::bad_request("the first message must be `start`"))),
        };
        if start.command.is_empty() {
            return Err(refuse(Status::bad_request("start.command: Required value: name what to run")));
        }
        let pod = self.node.gate.connect(&user, "exec", &start.namespace, &start.pod).await.map_err(refuse)?;
        let exec = Exec {
            pod: pods::reference(&pod),
            container: pods::container(&pod, &start.container).map_err(refuse)?,
            command: start.command,
            tty: start.tty,
            stdin: start.stdin,
            size: start.size.map(size),
        };
        let connection = connect(&self.node, &pod, StreamRequest::Exec(exec)).await.map_err(refuse)?;
        Ok(Response::new(stream(|send| bridge(connection, input, send))))
    }
}

/// Carries input in and output out until the command ends.
async fn bridge(
    connection: Connection,
    mut input: Streaming<proto::ExecInput>,
    send: Sender<proto::ExecOutput>,
) -> Result<(), tonic::Status> {
    use proto::exec_input::Input;
    use proto::exec_output::Output;
    let (mut writer, mut reader) = connection.split();
    let inward = async {
        while let Ok(Some(message)) = input.message().await {
            let message = match message.input {
                // A frame between nodes holds less than a client's message may.
                Some(Input::Stdin(data)) => {
                    for part in data.chunks(MAX_STDIN_BYTES) {
                        if writer.send(ToPod::Stdin(part.to_vec().into())).await.is_err() {
                            return;
                        }
                    }
                    continue;
                }
                Some(Input::Resize(to)) => ToPod::Resize(size(to)),
                Some(Input::Eof(_)) => ToPod::Eof,
                Some(Input::Start(_)) | None => continue,
            };
            if writer.send(message).await.is_err() {
                return;
            }
        }
        _ = writer.send(ToPod::Eof).await;
        // What comes out is what ends a session, not what went in.
        std::future::pending::<()>().await;
    };
    let outward = async {
        while let Some(message) = reader.next().await.map_err(refuse)? {
            let output = match message {
                FromPod::Stdout(data) => Output::Stdout(data.to_vec()),
                FromPod::Stderr(data) => Output::Stderr(data.to_vec()),
                FromPod::Exit(code) => Output::ExitCode(code),
                FromPod::Failed(status) => return Err(refuse(status)),
            };
            let ended = matches!(output, Output::ExitCode(_));
            if send.send(Ok(proto::ExecOutput { output: Some(output) })).await.is_err() || ended {
                return Ok(());
            }
        }
        Err(tonic::Status::unavailable("the node that runs the pod hung up before the command ended"))
    };
    tokio::select! {
        result = outward => result,
        () = inward => Ok(()),
    }
}

async fn connect(node: &Node, pod: &Value, request: StreamRequest) -> Result<Connection, Status> {
    node.streams.connect(&pods::host(pod)?, request).await
}

fn size(size: proto::TerminalSize) -> Size {
    let bounded = |n: u32| n.min(u16::MAX.into()) as u16;
    Size { columns: bounded(size.columns), rows: bounded(size.rows) }
}
