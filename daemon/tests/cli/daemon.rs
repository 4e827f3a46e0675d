//! A gRPC server with a few jobs and pods in it, for the command line to talk to over a real socket.

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use flotilla::proto::cluster_server::{Cluster, ClusterServer};
use flotilla::proto::exec_input::Input;
use flotilla::proto::exec_output::Output;
use flotilla::proto::images_server::ImagesServer;
use flotilla::proto::jobs_server::{Jobs, JobsServer};
use flotilla::proto::objects_server::ObjectsServer;
use flotilla::proto::pods_server::{Pods, PodsServer};
use flotilla::proto::*;
use flotilla_api::Cause;
use futures::{Stream, StreamExt, stream};
use tempfile::TempDir;
use tokio::net::UnixListener;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::metadata::{MetadataMap, MetadataValue};
use tonic::service::Routes;
use tonic::{Code, Request, Response, Status, Streaming};

pub type Answer<T> = Pin<Box<dyn Stream<Item = Result<T, Status>> + Send>>;

/// The daemon, gone when dropped.
pub struct Daemon {
    pub socket: PathBuf,
    _dir: TempDir,
    task: JoinHandle<()>,
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Daemon {
    pub fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("flotilla.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let serve = tonic::transport::Server::builder()
            .add_routes(routes())
            .serve_with_incoming(UnixListenerStream::new(listener));
        let task = tokio::spawn(async move { serve.await.unwrap() });
        Self { socket, _dir: dir, task }
    }

    pub fn socket(&self) -> &Path {
        &self.socket
    }
}

/// The services, for a listener of the caller's.
pub fn routes() -> Routes {
    let world = World::default();
    Routes::new(JobsServer::new(world.clone()))
        .add_service(PodsServer::new(world.clone()))
        .add_service(ObjectsServer::new(world.clone()))
        .add_service(ImagesServer::new(world.clone()))
        .add_service(ClusterServer::new(world))
}

#[derive(Clone, Default)]
pub struct World {
    /// How often `flaky` was watched.
    watches: Arc<AtomicUsize>,
}

fn pod(name: &str) -> PodSummary {
    PodSummary { name: name.into(), status: "Running".into(), ready: "1/1".into(), ..PodSummary::default() }
}

fn status(name: &str, phase: &str, ready: i32, message: &str) -> JobStatus {
    let container = Container { name: "main".into(), image: "nginx".into(), ..Container::default() };
    let job = Job { name: name.into(), namespace: "default".into(), containers: vec![container], ..Job::default() };
    JobStatus {
        job: Some(job),
        phase: phase.into(),
        message: message.into(),
        desired: 2,
        ready,
        pods: vec![pod("web-a"), pod("web-b")],
        revision: 5,
        ..JobStatus::default()
    }
}

pub fn refuse(answer: flotilla_api::Status, code: Code) -> Status {
    let mut metadata = MetadataMap::new();
    let json = serde_json::to_vec(&answer).unwrap();
    metadata.insert_bin("flotilla-status-bin", MetadataValue::from_bytes(&json));
    Status::with_metadata(code, answer.message, metadata)
}

fn missing(name: &str) -> Status {
    refuse(flotilla_api::Status::not_found("jobs", name), Code::NotFound)
}

pub fn nothing<T>() -> Result<T, Status> {
    Err(Status::unimplemented("not in this world"))
}

#[tonic::async_trait]
impl Jobs for World {
    async fn submit(&self, request: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        let job = request.into_inner().job.unwrap();
        let cause = |field: &str, message: &str| Cause {
            reason: "FieldValueInvalid".into(),
            message: message.into(),
            field: field.into(),
        };
        if job.count < Some(0) {
            let causes = vec![
                cause("count", "Invalid value: -1: must be 0 or more"),
                cause("containers[0].image", "Required value"),
            ];
            return Err(refuse(flotilla_api::Status::invalid("Job", &job.name, causes), Code::InvalidArgument));
        }
        let status = status(&job.name, "Pending", 0, "");
        Ok(Response::new(SubmitJobResponse { status: Some(status), result: "created".into() }))
    }

    async fn get(&self, request: Request<GetJobRequest>) -> Result<Response<JobStatus>, Status> {
        match request.into_inner().name.as_str() {
            "web" => Ok(Response::new(status("web", "Updating", 0, "pulling image on node-2"))),
            "done" => Ok(Response::new(status("done", "Running", 2, ""))),
            "flaky" => Ok(Response::new(status("flaky", "Pending", 0, ""))),
            "broken" => Ok(Response::new(status("broken", "Failed", 0, "no progress for 600 s"))),
            name => Err(missing(name)),
        }
    }

    async fn list(&self, _: Request<ListJobsRequest>) -> Result<Response<ListJobsResponse>, Status> {
        Ok(Response::new(ListJobsResponse { jobs: vec![status("web", "Running", 2, "")] }))
    }

    type WatchStream = Answer<JobEvent>;

    async fn watch(&self, request: Request<WatchJobsRequest>) -> Result<Response<Self::WatchStream>, Status> {
        let name = request.into_inner().name;
        let event = |phase: &str, ready| {
            Ok(JobEvent { r#type: "updated".into(), status: Some(status(&name, phase, ready, "")) })
        };
        let events = match name.as_str() {
            "flaky" if self.watches.fetch_add(1, Ordering::Relaxed) == 0 => vec![Err(Status::unavailable("no leader"))],
            "done" => vec![event("Complete", 0)],
            _ => vec![event("Updating", 1), event("Running", 2)],
        };
        Ok(Response::new(Box::pin(stream::iter(events).chain(stream::pending()))))
    }

    async fn scale(&self, _: Request<ScaleJobRequest>) -> Result<Response<JobStatus>, Status> {
        nothing()
    }

    async fn stop(&self, _: Request<StopJobRequest>) -> Result<Response<StopJobResponse>, Status> {
        nothing()
    }
}

#[tonic::async_trait]
impl Pods for World {
    type LogsStream = Answer<LogChunk>;

    async fn logs(&self, request: Request<LogsRequest>) -> Result<Response<Self::LogsStream>, Status> {
        let request = request.into_inner();
        let chunks = [format!("first of {}\nsec", request.pod), "ond\n".to_owned()];
        let chunks = chunks.map(|text| Ok(LogChunk { data: text.into_bytes() }));
        Ok(Response::new(Box::pin(stream::iter(chunks))))
    }

    type ExecStream = Answer<ExecOutput>;

    /// `exit N` ends with N; `size` says the terminal's; `cat` gives back what it gets, until its end or Ctrl-D.
    async fn exec(&self, request: Request<Streaming<ExecInput>>) -> Result<Response<Self::ExecStream>, Status> {
        let mut input = request.into_inner();
        let Some(Input::Start(start)) = input.message().await?.and_then(|message| message.input) else {
            return Err(Status::invalid_argument("no start"));
        };
        let words: Vec<&str> = start.command.iter().map(String::as_str).collect();
        let output = |output| Ok(ExecOutput { output: Some(output) });
        let answer: Answer<ExecOutput> = match words.as_slice() {
            ["exit", code] => {
                let text = output(Output::Stderr(b"leaving\n".to_vec()));
                Box::pin(stream::iter([text, output(Output::ExitCode(code.parse().unwrap()))]))
            }
            ["size"] => {
                let size = start.size.unwrap_or_default();
                let text = format!("{}x{}\n", size.columns, size.rows);
                Box::pin(stream::iter([output(Output::Stdout(text.into_bytes())), output(Output::ExitCode(0))]))
            }
            _ => Box::pin(stream::unfold(Some(input), cat)),
        };
        Ok(Response::new(answer))
    }
}

async fn cat(
    input: Option<Streaming<ExecInput>>,
) -> Option<(Result<ExecOutput, Status>, Option<Streaming<ExecInput>>)> {
    const CTRL_D: u8 = 4;
    let mut input = input?;
    let (output, more) = loop {
        match input.message().await {
            Ok(Some(ExecInput { input: Some(Input::Stdin(data)) })) if data.contains(&CTRL_D) => {
                break (Output::ExitCode(0), None);
            }
            Ok(Some(ExecInput { input: Some(Input::Stdin(data)) })) => break (Output::Stdout(data), Some(input)),
            Ok(Some(ExecInput { input: Some(Input::Resize(_)) })) => {}
            _ => break (Output::ExitCode(0), None),
        }
    };
    Some((Ok(ExecOutput { output: Some(output) }), more))
}

#[tonic::async_trait]
impl Cluster for World {
    async fn status(&self, _: Request<ClusterStatusRequest>) -> Result<Response<ClusterStatus>, Status> {
        let status = ClusterStatus { node: "node-1".into(), version: "9.9.9".into(), ..ClusterStatus::default() };
        Ok(Response::new(status))
    }

    async fn nodes(&self, _: Request<NodesRequest>) -> Result<Response<NodesResponse>, Status> {
        let node = NodeSummary {
            name: "node-1".into(),
            role: "leader".into(),
            status: "Ready".into(),
            cpu_capacity_millis: 2_000,
            ..NodeSummary::default()
        };
        Ok(Response::new(NodesResponse { nodes: vec![node] }))
    }

    async fn create_token(
        &self,
        request: Request<CreateTokenRequest>,
    ) -> Result<Response<CreateTokenResponse>, Status> {
        let token = format!("flt1.{}.{}", request.get_ref().ttl_seconds, request.get_ref().uses);
        Ok(Response::new(CreateTokenResponse { id: "4f1c2a".into(), token, expires: "soon".into() }))
    }

    async fn list_tokens(&self, _: Request<ListTokensRequest>) -> Result<Response<ListTokensResponse>, Status> {
        nothing()
    }

    async fn revoke_token(&self, _: Request<RevokeTokenRequest>) -> Result<Response<RevokeTokenResponse>, Status> {
        nothing()
    }

    async fn cordon(&self, _: Request<CordonRequest>) -> Result<Response<CordonResponse>, Status> {
        nothing()
    }

    type DrainStream = Answer<Progress>;

    async fn drain(&self, _: Request<DrainRequest>) -> Result<Response<Self::DrainStream>, Status> {
        let progress = |done| Ok(Progress { message: "pods moved".into(), done, total: 2 });
        Ok(Response::new(Box::pin(stream::iter([progress(0), progress(1), progress(2)]))))
    }

    type LeaveStream = Answer<Progress>;

    async fn leave(&self, _: Request<LeaveRequest>) -> Result<Response<Self::LeaveStream>, Status> {
        nothing()
    }

    type BackupStream = Answer<BackupChunk>;

    /// Breaks off, as a daemon does that is stopped: a stream that ends in order may still not be a whole backup.
    async fn backup(&self, _: Request<BackupRequest>) -> Result<Response<Self::BackupStream>, Status> {
        Ok(Response::new(Box::pin(stream::iter([Ok(BackupChunk { data: b"FLOTBKUP".to_vec() })]))))
    }

    async fn issue_certificate(
        &self,
        _: Request<IssueCertificateRequest>,
    ) -> Result<Response<IssueCertificateResponse>, Status> {
        nothing()
    }

    async fn revoke_user(&self, _: Request<RevokeUserRequest>) -> Result<Response<RevokeUserResponse>, Status> {
        nothing()
    }

    async fn rotate_ca(&self, _: Request<RotateCaRequest>) -> Result<Response<CaStatus>, Status> {
        nothing()
    }

    async fn get_ca_status(&self, _: Request<CaStatusRequest>) -> Result<Response<CaStatus>, Status> {
        nothing()
    }
}
