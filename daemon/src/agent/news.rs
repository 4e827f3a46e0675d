//! What a change of a pod's status tells people, in kubelet's words.
//!
//! Invariant: only what the status before did not say is news, so that a daemon that starts again repeats nothing.

use std::time::Duration;

use flotilla_api::k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodStatus};
use flotilla_control::event::Severity;
use flotilla_control::pod::{ProbeKind, StopReason};

/// One thing to tell.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct News {
    /// The container that it is about; none for the pod.
    pub container: Option<String>,
    pub severity: Severity,
    /// In a word.
    pub reason: &'static str,
    pub message: String,
}

impl News {
    pub fn of_pod(severity: Severity, reason: &'static str, message: impl Into<String>) -> Self {
        Self { container: None, severity, reason, message: message.into() }
    }

    pub fn of(container: &str, severity: Severity, reason: &'static str, message: impl Into<String>) -> Self {
        Self { container: Some(container.to_owned()), ..Self::of_pod(severity, reason, message) }
    }

    pub fn pulling(container: &str, image: &str) -> Self {
        Self::of(container, Severity::Normal, "Pulling", format!("Pulling image \"{image}\""))
    }

    pub fn pulled(container: &str, image: &str, took: Duration, size_bytes: u64) -> Self {
        let took = go_duration(took);
        let words = format!(
            "Successfully pulled image \"{image}\" in {took} ({took} including waiting). Image size: {size_bytes} bytes."
        );
        Self::of(container, Severity::Normal, "Pulled", words)
    }

    pub fn present(container: &str, image: &str) -> Self {
        let words = format!("Container image \"{image}\" already present on machine");
        Self::of(container, Severity::Normal, "Pulled", words)
    }

    pub fn created(container: &str) -> Self {
        Self::of(container, Severity::Normal, "Created", format!("Created container: {container}"))
    }

    pub fn killing(container: &str, why: StopReason) -> Self {
        let probe = match why {
            StopReason::Unhealthy(ProbeKind::Startup) => "startup",
            StopReason::Unhealthy(_) => "liveness",
            _ => return Self::of(container, Severity::Normal, "Killing", format!("Stopping container {container}")),
        };
        let words = format!("Container {container} failed {probe} probe, will be restarted");
        Self::of(container, Severity::Normal, "Killing", words)
    }
}

/// As Go writes it, to the millisecond.
fn go_duration(duration: Duration) -> String {
    let ms = duration.as_millis();
    if ms < 1000 {
        return format!("{ms}ms");
    }
    let (minutes, ms) = (ms / 60_000, ms % 60_000);
    let seconds = format!("{}.{:03}", ms / 1000, ms % 1000);
    let seconds = seconds.trim_end_matches('0').trim_end_matches('.');
    if minutes == 0 { format!("{seconds}s") } else { format!("{minutes}m{seconds}s") }
}

/// What `after` says of a pod that `before` did not. `pod` is it in kubelet's form, `NAME_NAMESPACE(UID)`.
pub fn between(pod: &str, before: &PodStatus, after: &PodStatus) -> Vec<News> {
    let of_containers = containers(after).flat_map(|now| {
        let old = containers(before).find(|old| old.name == now.name);
        of_container(pod, old, now)
    });
    of_containers.chain(of_end(before, after)).collect()
}

/// Why this node ended a pod that would have gone on.
fn of_end(before: &PodStatus, after: &PodStatus) -> Option<News> {
    let (severity, reason) = match after.reason.as_deref()? {
        "DeadlineExceeded" => (Severity::Normal, "DeadlineExceeded"),
        "Evicted" => (Severity::Warning, "Evicted"),
        _ => return None,
    };
    let is_new = before.reason != after.reason;
    is_new.then(|| News::of_pod(severity, reason, after.message.clone().unwrap_or_default()))
}

fn containers(status: &PodStatus) -> impl Iterator<Item = &ContainerStatus> {
    status.init_container_statuses.iter().flatten().chain(status.container_statuses.iter().flatten())
}

fn of_container(pod: &str, old: Option<&ContainerStatus>, now: &ContainerStatus) -> Vec<News> {
    let mut news = Vec::new();
    // A container that ended between two looks has its start in what ended.
    if let Some(id) = started(now).filter(|id| old.and_then(started) != Some(id)) {
        let known = old.and_then(|old| old.last_state.as_ref()?.terminated.as_ref()?.container_id.as_deref());
        if known != Some(id) {
            let words = format!("Started container {}", now.name);
            news.push(News::of(&now.name, Severity::Normal, "Started", words));
        }
    }
    let (was, is) = (old.and_then(|old| old.state.as_ref()), now.state.as_ref());
    news.extend(waiting(pod, now, was, is));
    if let Some(ended) = is.and_then(|state| state.terminated.as_ref()).filter(|ended| ended.exit_code != 0)
        && was.and_then(|was| was.terminated.as_ref()).is_none_or(|was| was.container_id != ended.container_id)
    {
        let reason = ended.reason.as_deref().unwrap_or("Error");
        // A container's own words may be anything, also what not everyone may read who may read Events.
        let ours = ended.message.as_deref().filter(|_| !matches!(reason, "Error" | "OOMKilled"));
        let said = ours.map_or_else(String::new, |message| format!(": {message}"));
        let words = format!("Container {} ended with exit code {} ({reason}){said}", now.name, ended.exit_code);
        let reason = if reason == "OOMKilled" { "OOMKilling" } else { "Exited" };
        news.push(News::of(&now.name, Severity::Warning, reason, words));
    }
    news
}

/// The attempt that runs, or that ran last; none if it could not be started.
fn started(status: &ContainerStatus) -> Option<&str> {
    let state = status.state.as_ref()?;
    match (&state.running, &state.terminated) {
        (Some(_), _) => status.container_id.as_deref(),
        (None, Some(ended)) if ended.reason.as_deref() != Some("StartError") => ended.container_id.as_deref(),
        _ => None,
    }
}

fn waiting(pod: &str, now: &ContainerStatus, was: Option<&ContainerState>, is: Option<&ContainerState>) -> Vec<News> {
    let Some(waiting) = is.and_then(|is| is.waiting.as_ref()) else { return Vec::new() };
    if was.and_then(|was| was.waiting.as_ref()) == Some(waiting) {
        return Vec::new();
    }
    let (container, image) = (&now.name, &now.image);
    let message = waiting.message.clone().unwrap_or_default();
    let reason = waiting.reason.as_deref().unwrap_or_default();
    let told = |severity, reason, message| News::of(container, severity, reason, message);
    let failed = |message| told(Severity::Warning, "Failed", message);
    let as_error = || failed(format!("Error: {reason}"));
    match reason {
        "" | "ContainerCreating" | "PodInitializing" => Vec::new(),
        "CrashLoopBackOff" => {
            let words = format!("Back-off restarting failed container {container} in pod {pod}");
            vec![told(Severity::Warning, "BackOff", words)]
        }
        "ErrImagePull" => vec![failed(format!("Failed to pull image \"{image}\": {message}")), as_error()],
        "ImagePullBackOff" => vec![told(Severity::Normal, "BackOff", message), as_error()],
        "ErrImageNeverPull" => vec![told(Severity::Warning, "ErrImageNeverPull", message), as_error()],
        "InvalidImageName" => {
            let words = format!("Failed to apply default image tag \"{image}\": {message}");
            vec![told(Severity::Warning, "InspectFailed", words), as_error()]
        }
        _ => vec![failed(format!("Error: {message}"))],
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn status(state: &Value, attempt: u32) -> PodStatus {
        serde_json::from_value(json!({"containerStatuses": [{
            "name": "c", "image": "i", "imageID": "", "ready": false, "restartCount": attempt,
            "containerID": format!("x-{attempt}"), "state": state,
        }]}))
        .unwrap()
    }

    fn reasons(before: &PodStatus, after: &PodStatus) -> Vec<&'static str> {
        between("p_n(u)", before, after).into_iter().map(|news| news.reason).collect()
    }

    fn ended(code: i32, reason: &str, attempt: u32) -> Value {
        json!({"terminated": {"exitCode": code, "reason": reason, "containerID": format!("x-{attempt}")}})
    }

    #[test]
    fn each_start_is_told_once() {
        let running = |attempt| status(&json!({"running": {}}), attempt);
        assert_eq!(reasons(&PodStatus::default(), &running(0)), ["Started"]);
        assert!(reasons(&running(0), &running(0)).is_empty());
        assert_eq!(reasons(&running(0), &running(1)), ["Started"]);
        assert!(reasons(&running(0), &status(&ended(0, "Completed", 0), 0)).is_empty());
    }

    #[test]
    fn what_ran_unseen_is_told_with_its_end() {
        assert_eq!(reasons(&PodStatus::default(), &status(&ended(3, "Error", 0), 0)), ["Started", "Exited"]);
        assert_eq!(reasons(&PodStatus::default(), &status(&ended(128, "StartError", 0), 0)), ["Exited"]);
        assert_eq!(
            reasons(&status(&json!({"running": {}}), 0), &status(&ended(137, "OOMKilled", 0), 0)),
            ["OOMKilling"]
        );
    }

    #[test]
    fn an_end_by_the_node_is_told_once_and_of_the_pod() {
        let of = |reason: &str| PodStatus {
            reason: Some(reason.into()),
            message: Some("too much".into()),
            ..PodStatus::default()
        };
        for (reason, severity) in [("DeadlineExceeded", Severity::Normal), ("Evicted", Severity::Warning)] {
            let news = between("p_n(u)", &PodStatus::default(), &of(reason));
            assert_eq!(news, [News::of_pod(severity, reason, "too much")]);
            assert!(between("p_n(u)", &of(reason), &of(reason)).is_empty());
        }
    }

    #[test]
    fn words_are_those_of_a_kubelet() {
        let backoff = status(&json!({"waiting": {"reason": "CrashLoopBackOff", "message": "m"}}), 1);
        let news = between("p_n(u)", &PodStatus::default(), &backoff);
        assert_eq!(news[0].message, "Back-off restarting failed container c in pod p_n(u)");
        assert_eq!(news[0].container.as_deref(), Some("c"));
        let pulled = News::pulled("c", "i:1", Duration::from_millis(1_230), 77);
        let words = "Successfully pulled image \"i:1\" in 1.23s (1.23s including waiting). Image size: 77 bytes.";
        assert_eq!(pulled.message, words);
        assert_eq!(go_duration(Duration::from_millis(345)), "345ms");
        assert_eq!(go_duration(Duration::from_millis(62_500)), "1m2.5s");
        assert_eq!(News::killing("c", StopReason::Deleted).message, "Stopping container c");
        let killing = News::killing("c", StopReason::Unhealthy(ProbeKind::Liveness));
        assert_eq!(killing.message, "Container c failed liveness probe, will be restarted");
    }

    #[test]
    fn waiting_is_told_when_its_reason_changes() {
        let waiting = |reason: &str| status(&json!({"waiting": {"reason": reason, "message": "m"}}), 0);
        assert!(reasons(&PodStatus::default(), &waiting("ContainerCreating")).is_empty());
        assert_eq!(reasons(&waiting("ContainerCreating"), &waiting("ErrImagePull")), ["Failed", "Failed"]);
        assert_eq!(reasons(&waiting("ErrImagePull"), &waiting("ImagePullBackOff")), ["BackOff", "Failed"]);
        let words = |reason: &str| {
            let news = between("p_n(u)", &PodStatus::default(), &waiting(reason));
            news.into_iter().map(|news| (news.reason, news.message)).collect::<Vec<_>>()
        };
        let told = |reason, message: &str| (reason, message.to_owned());
        assert_eq!(
            words("ErrImagePull"),
            [told("Failed", "Failed to pull image \"i\": m"), told("Failed", "Error: ErrImagePull")]
        );
        assert_eq!(
            words("ErrImageNeverPull"),
            [told("ErrImageNeverPull", "m"), told("Failed", "Error: ErrImageNeverPull")]
        );
        assert_eq!(words("CreateContainerConfigError"), [told("Failed", "Error: m")]);
        assert!(reasons(&waiting("ImagePullBackOff"), &waiting("ImagePullBackOff")).is_empty());
    }
}
