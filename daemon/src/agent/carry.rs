//! Carrying out what a pod's life asks for.
//!
//! Invariant: each effect can be carried out again after it was cut short anywhere.

use std::sync::Arc;
use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};
use flotilla_control::pod::Effect;
use flotilla_runtime::Pods;
use flotilla_runtime::images::{Credentials, Image, PullProgress};
use flotilla_runtime::pods::ExecSpec;
use flotilla_runtime::state::{Phase, SandboxState, container_key};
use jiff::Timestamp;
use tokio::sync::Mutex;
use tracing::{debug, warn};

use super::local::Local;
use super::lower::{self, Parts};
use super::source::{Place, SourceError, environment};
use super::{probe, subpath, volumes};

/// A hook that does not end by then is left alone.
const MAX_HOOK: Duration = Duration::from_secs(300);

/// One effect of one pod, on its way.
pub struct Carrier {
    pub local: Local,
    pub uid: String,
    /// `None`: the Pod was gone before this daemon saw it.
    pub pod: Option<Arc<Pod>>,
    /// Held by who lays down the pod's volumes.
    pub volumes: Arc<Mutex<()>>,
}

/// An effect that was carried out, or tried.
#[derive(Debug)]
pub struct Done {
    pub effect: Effect,
    pub outcome: Outcome,
}

#[derive(Debug)]
pub enum Outcome {
    Done,
    Pulled(Box<Image>),
    Probed {
        ok: bool,
        message: String,
    },
    /// The effect was carried out, but for a hook of the container.
    HookFailed,
    /// A volume could not be made.
    Unmounted(String),
    Failed {
        reason: String,
        message: String,
    },
}

/// In kubelet's words.
struct Trouble {
    reason: &'static str,
    message: String,
}

/// The reason of trouble with a volume.
const FAILED_MOUNT: &str = "FailedMount";

impl Trouble {
    fn new(reason: &'static str) -> impl Fn(String) -> Self {
        move |message| Self { reason, message }
    }
}

impl Carrier {
    pub async fn carry_out(self, effect: Effect) -> Done {
        let outcome = match self.act(&effect).await {
            Ok(outcome) => outcome,
            Err(Trouble { reason: FAILED_MOUNT, message }) => Outcome::Unmounted(message),
            Err(trouble) => Outcome::Failed { reason: trouble.reason.into(), message: trouble.message },
        };
        Done { effect, outcome }
    }

    async fn act(&self, effect: &Effect) -> Result<Outcome, Trouble> {
        match effect {
            Effect::PullImage { image, .. } => return self.pull(image).await,
            Effect::CreateSandbox => self.create_sandbox().await?,
            Effect::StartContainer { name, attempt, .. } => return self.start(name, *attempt).await,
            Effect::StopContainer { name, attempt, kill_at, .. } => return self.stop(name, *attempt, *kill_at).await,
            Effect::RemoveContainer { name, attempt } => self.remove(name, *attempt).await?,
            // Its exits are published; what remains of the sandbox is only memory.
            Effect::StopSandbox | Effect::RemoveSandbox => self.remove_sandbox().await?,
            Effect::Probe { name, attempt, kind } => {
                let container = self.container(name)?;
                let (ok, message) = probe::run(self.pods()?, &self.uid, &container, *attempt, *kind).await;
                return Ok(Outcome::Probed { ok, message });
            }
        }
        Ok(Outcome::Done)
    }

    fn pods(&self) -> Result<&Pods, Trouble> {
        self.local.pods().ok_or_else(|| Trouble::new("NodeNotReady")("the node has no pod addresses yet".into()))
    }

    fn pod(&self) -> Result<&Arc<Pod>, Trouble> {
        self.pod.as_ref().ok_or_else(|| Trouble::new("PodGone")("the Pod is gone".into()))
    }

    fn container(&self, name: &str) -> Result<Container, Trouble> {
        let found = all_containers(self.pod()?).into_iter().find(|container| container.name == name);
        found.ok_or_else(|| Trouble::new("ContainerGone")(format!("the Pod has no container {name}")))
    }

    async fn pull(&self, reference: &str) -> Result<Outcome, Trouble> {
        let credentials = self.credentials(reference).await?;
        let (progress, _) = tokio::sync::watch::channel(PullProgress::default());
        match self.local.images().pull(reference, credentials.as_ref(), progress).await {
            Ok(image) => Ok(Outcome::Pulled(Box::new(image))),
            Err(error) => {
                let reason = if error.reason() == "InvalidImageName" { "InvalidImageName" } else { "ErrImagePull" };
                Err(Trouble::new(reason)(error.to_string()))
            }
        }
    }

    /// Of the first imagePullSecret that has any for the image's registry.
    async fn credentials(&self, reference: &str) -> Result<Option<Credentials>, Trouble> {
        let pod = self.pod()?;
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let secrets = pod.spec.iter().flat_map(|spec| spec.image_pull_secrets.iter().flatten());
        for secret in secrets {
            let found = self.local.sources().secret(namespace, &secret.name).await;
            let values = found.map_err(|error| Trouble::new("ErrImagePull")(error.0))?.unwrap_or_default();
            let found = [".dockerconfigjson", ".dockercfg"].into_iter().filter_map(|key| values.get(key));
            if let Some(credentials) = found.filter_map(|json| docker_credentials(json, reference)).next() {
                return Ok(Some(credentials));
            }
        }
        Ok(None)
    }

    async fn create_sandbox(&self) -> Result<(), Trouble> {
        let pods = self.pods()?;
        match pods.get(&self.uid) {
            Some(sandbox) if sandbox.ready => return Ok(()),
            Some(_) => self.remove_sandbox().await?,
            None => {}
        }
        let trouble = Trouble::new("FailedCreatePodSandBox");
        let pod = self.pod()?;
        if let Some(why) = pod.spec.as_ref().and_then(lower::refusal) {
            return Err(trouble(why));
        }
        let _turn = self.local.turn().await.ok_or_else(leaving)?;
        pods.create_sandbox(lower::sandbox(pod)).await.map_err(|error| trouble(chain(&error)))?;
        Ok(())
    }

    async fn start(&self, name: &str, attempt: u32) -> Result<Outcome, Trouble> {
        let turn = self.local.turn().await.ok_or_else(leaving)?;
        let pods = self.pods()?;
        let key = container_key(name, attempt);
        let found = pods.get(&self.uid).and_then(|sandbox| sandbox.container(name, attempt).map(|c| c.phase.clone()));
        match found {
            None => self.create(name, attempt).await?,
            Some(Phase::Created) => {}
            Some(_) => return Ok(Outcome::Done),
        }
        let trouble = Trouble::new("RunContainerError");
        if let Err(error) = pods.start_container(&self.uid, &key).await {
            // One that could not start has its exit, with the engine's words.
            let ended = pods.get(&self.uid).and_then(|s| s.container(name, attempt).map(|c| c.phase.exit().is_some()));
            return if ended == Some(true) { Ok(Outcome::Done) } else { Err(trouble(chain(&error))) };
        }
        drop(turn);
        let hook = self.container(name)?.lifecycle.and_then(|lifecycle| lifecycle.post_start);
        if let Some(hook) = &hook
            && let Err(message) = self.run_hook(hook, name, &key, MAX_HOOK).await
        {
            warn!(uid = self.uid, container = name, message, "the postStart hook failed; the container is stopped");
            _ = pods.stop_container(&self.uid, &key, Duration::from_secs(2)).await;
            return Ok(Outcome::HookFailed);
        }
        Ok(Outcome::Done)
    }

    async fn create(&self, name: &str, attempt: u32) -> Result<(), Trouble> {
        let (pod, container, pods) = (self.pod()?.clone(), self.container(name)?, self.pods()?);
        let config_error = Trouble::new("CreateContainerConfigError");
        let create_error = Trouble::new("CreateContainerError");
        let sandbox = pods.get(&self.uid).ok_or_else(|| create_error("the sandbox is gone".into()))?;
        let place = self.place(&sandbox);
        let sources = self.local.sources();
        let of = |error: SourceError| config_error(error.0);
        let volumes = {
            let _laying = self.volumes.lock().await;
            let made = volumes::make(sources, &pod, &place, &self.local.volume_dir(&self.uid)).await;
            made.map_err(|error| Trouble::new(FAILED_MOUNT)(error.0))?
        };
        let environment = environment(sources, &pod, &container, &place).await.map_err(of)?;
        let reference = container.image.clone().unwrap_or_default();
        let image = self.local.images().find(&reference);
        let image = image.ok_or_else(|| create_error(format!("image {reference:?} is no longer on this node")))?;
        let id = self.container_id(&container_key(name, attempt));
        let sub_paths = self.local.sub_paths_dir().join(&id);
        let log_path = self.local.log_dir(&self.uid).join(name).join(format!("{attempt}.log"));
        let local = self.local.clone();
        let prepared = tokio::task::spawn_blocking(move || {
            if let Some(dir) = log_path.parent() {
                std::fs::create_dir_all(dir).map_err(|error| error.to_string())?;
            }
            let rootfs =
                local.images().mount(&image, &id, &local.rootfs_dir(&id)).map_err(|error| error.to_string())?;
            Ok::<_, String>((image, rootfs.path, log_path))
        });
        let (image, rootfs, log_path) =
            prepared.await.map_err(|error| create_error(error.to_string()))?.map_err(&create_error)?;
        let parts = Parts {
            attempt,
            image: &image,
            rootfs,
            environment,
            volumes: &volumes,
            sub_paths: &sub_paths,
            log_path,
            pid_of: self.pid_of(name, &sandbox)?,
        };
        let spec = lower::container(&pod, &container, parts).map_err(of)?;
        if let Err(error) = pods.create_container(&self.uid, spec).await {
            // What the engine refused is recorded as an exit.
            let known = pods.get(&self.uid).is_some_and(|sandbox| sandbox.container(name, attempt).is_some());
            return if known { Ok(()) } else { Err(create_error(chain(&error))) };
        }
        Ok(())
    }

    /// The container whose processes this one is to see, where it was added to look into one.
    fn pid_of(&self, name: &str, sandbox: &SandboxState) -> Result<Option<String>, Trouble> {
        let added = self.pod()?.spec.iter().flat_map(|spec| spec.ephemeral_containers.iter().flatten());
        let target = added.into_iter().find(|container| container.name == name);
        let Some(target) = target.and_then(|container| container.target_container_name.as_deref()) else {
            return Ok(None);
        };
        let running =
            sandbox.containers.iter().rev().find(|container| container.name == target && container.is_running());
        let gone = || Trouble::new("CreateContainerError")(format!("unable to find target container {target:?}"));
        running.map(|container| Some(container.key())).ok_or_else(gone)
    }

    fn place(&self, sandbox: &SandboxState) -> Place {
        Place {
            pod_ip: sandbox.ip.map_or_else(|| self.local.host_ip(), |ip| ip.to_string()),
            host_ip: self.local.host_ip(),
            api: self.local.api_address(),
        }
    }

    /// Brings the files of projected volumes up to date. What is missing meanwhile stays as it was.
    pub async fn refresh(self) {
        let Some(sandbox) = self.local.pods().and_then(|pods| pods.get(&self.uid)) else { return };
        let Some(pod) = &self.pod else { return };
        let _laying = self.volumes.lock().await;
        let dir = self.local.volume_dir(&self.uid);
        volumes::refresh(self.local.sources(), pod, &self.place(&sandbox), &dir).await;
    }

    fn container_id(&self, key: &str) -> String {
        format!("{}-{key}", self.uid)
    }

    async fn stop(&self, name: &str, attempt: u32, kill_at: Timestamp) -> Result<Outcome, Trouble> {
        let pods = self.pods()?;
        let key = container_key(name, attempt);
        let left = || Duration::try_from(kill_at.duration_since(Timestamp::now())).unwrap_or_default();
        let hook = self.container(name).ok().and_then(|container| container.lifecycle?.pre_stop);
        let mut outcome = Outcome::Done;
        if let Some(hook) = &hook
            && let Err(message) = self.run_hook(hook, name, &key, left()).await
        {
            debug!(uid = self.uid, container = name, message, "the preStop hook failed");
            outcome = Outcome::HookFailed;
        }
        let stopped = pods.stop_container(&self.uid, &key, left()).await;
        stopped.map(|()| outcome).map_err(|error| Trouble::new("FailedKillPod")(chain(&error)))
    }

    async fn run_hook(&self, hook: &LifecycleHandler, name: &str, key: &str, within: Duration) -> Result<(), String> {
        let pods = self.pods().map_err(|trouble| trouble.message)?;
        if let Some(exec) = &hook.exec {
            let spec = ExecSpec { args: exec.command.clone().unwrap_or_default(), ..ExecSpec::default() };
            let output = pods.exec_sync(&self.uid, key, &spec, within).await.map_err(|error| chain(&error))?;
            return if output.code == 0 { Ok(()) } else { Err(format!("exit code {}", output.code)) };
        }
        if let Some(sleep) = &hook.sleep {
            let asked = Duration::from_secs(sleep.seconds.try_into().unwrap_or_default());
            tokio::time::sleep(asked.min(within)).await;
            return Ok(());
        }
        if let Some(get) = &hook.http_get {
            let container = self.container(name).map_err(|trouble| trouble.message)?;
            let (ok, message) = probe::http(pods, &self.uid, &container, get, within).await;
            return if ok { Ok(()) } else { Err(message) };
        }
        Ok(())
    }

    async fn remove(&self, name: &str, attempt: u32) -> Result<(), Trouble> {
        let key = container_key(name, attempt);
        let trouble = Trouble::new("FailedRemoveContainer");
        self.pods()?.remove_container(&self.uid, &key).await.map_err(|error| trouble(chain(&error)))?;
        let (local, id) = (self.local.clone(), self.container_id(&key));
        let log = local.log_dir(&self.uid).join(name).join(format!("{attempt}.log"));
        let unmounted = tokio::task::spawn_blocking(move || {
            remove_log(&log);
            release_sub_paths(&local.sub_paths_dir().join(&id));
            local.images().unmount(&id)
        });
        unmounted.await.map_err(|error| trouble(error.to_string()))?.map_err(|error| trouble(error.to_string()))
    }

    async fn remove_sandbox(&self) -> Result<(), Trouble> {
        let trouble = Trouble::new("FailedKillPod");
        self.pods()?.remove_sandbox(&self.uid).await.map_err(|error| trouble(chain(&error)))?;
        let (local, uid) = (self.local.clone(), self.uid.clone());
        let unmounted = tokio::task::spawn_blocking(move || unmount_all(&local, &uid));
        unmounted.await.map_err(|error| trouble(error.to_string()))
    }
}

/// The containers of a pod, of whatever sort.
pub fn all_containers(pod: &Pod) -> Vec<Container> {
    let Some(spec) = &pod.spec else { return Vec::new() };
    let own = spec.containers.iter().chain(spec.init_containers.iter().flatten()).cloned();
    own.chain(flotilla_control::pod::ephemeral_containers(spec)).collect()
}

/// Removes a log with its rotated files.
fn remove_log(log: &std::path::Path) {
    let (Some(dir), Some(name)) = (log.parent(), log.file_name().and_then(|name| name.to_str())) else { return };
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let own =
            entry.file_name().to_str().is_some_and(|other| other == name || other.starts_with(&format!("{name}.")));
        if own && let Err(error) = std::fs::remove_file(entry.path()) {
            debug!(path = %entry.path().display(), %error, "a log stays");
        }
    }
}

fn release_sub_paths(dir: &std::path::Path) {
    if let Err(error) = subpath::release(dir) {
        warn!(dir = %dir.display(), %error, "parts of volumes stay mounted");
    }
}

fn unmount_all(local: &Local, uid: &str) {
    let prefix = format!("{uid}-");
    for entry in std::fs::read_dir(local.sub_paths_dir()).into_iter().flatten().flatten() {
        if entry.file_name().to_str().is_some_and(|id| id.starts_with(&prefix)) {
            release_sub_paths(&entry.path());
        }
    }
    for (id, _) in local.images().mounts().into_iter().filter(|(id, _)| id.starts_with(&prefix)) {
        if let Err(error) = local.images().unmount(&id) {
            warn!(id, %error, "a root file system stays mounted");
        }
    }
}

/// Removes all that is left of a pod whose sandbox and object are gone. Blocks.
pub fn remove_remains(local: &Local, uid: &str) {
    unmount_all(local, uid);
    if let Err(error) = volumes::remove(&local.volume_dir(uid)) {
        warn!(uid, %error, "the volumes of a pod stay");
    }
    match std::fs::remove_dir_all(local.log_dir(uid)) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => warn!(uid, %error, "the logs of a pod stay"),
        _ => {}
    }
}

/// What a `.dockerconfigjson`, or a `.dockercfg` of old, says for the registry of an image.
fn docker_credentials(json: &[u8], reference: &str) -> Option<Credentials> {
    use base64::Engine;
    let config: serde_json::Value = serde_json::from_slice(json).ok()?;
    let host = match reference.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => host,
        _ => "docker.io",
    };
    let names = match host {
        "docker.io" => vec!["docker.io", "index.docker.io", "https://index.docker.io/v1/"],
        host => vec![host],
    };
    let bare =
        |name: &str| name.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/').to_owned();
    let auths = config.get("auths").unwrap_or(&config).as_object()?;
    let (_, auth) = auths.iter().find(|(name, _)| names.iter().any(|known| bare(known) == bare(name)))?;
    let text = |field: &str| auth.get(field).and_then(|value| value.as_str()).map(str::to_owned);
    if let (Some(username), Some(password)) = (text("username"), text("password")) {
        return Some(Credentials::Basic { username, password });
    }
    let decoded = base64::engine::general_purpose::STANDARD.decode(text("auth")?).ok()?;
    let (username, password) = std::str::from_utf8(&decoded).ok()?.split_once(':')?;
    Some(Credentials::Basic { username: username.to_owned(), password: password.to_owned() })
}

/// An error with its causes, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    std::iter::successors(Some(error), |error| error.source()).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

fn leaving() -> Trouble {
    Trouble::new("NodeNotReady")("the node is no member any more".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_found_by_registry() {
        let json = br#"{"auths": {"https://r.example/": {"auth": "dTpwOnc="}, "index.docker.io": {"username": "a", "password": "b"}}}"#;
        let basic = |username: &str, password: &str| {
            Some(Credentials::Basic { username: username.into(), password: password.into() })
        };
        assert_eq!(docker_credentials(json, "r.example/x:1"), basic("u", "p:w"));
        assert_eq!(docker_credentials(br#"{"r.example": {"auth": "dTpwOnc="}}"#, "r.example/x:1"), basic("u", "p:w"));
        assert_eq!(docker_credentials(json, "nginx"), basic("a", "b"));
        assert_eq!(docker_credentials(json, "other.example/x"), None);
        assert_eq!(docker_credentials(b"not json", "nginx"), None);
    }
}
