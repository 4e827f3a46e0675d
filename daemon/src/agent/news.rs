//! What a change of a pod's status tells people, in kubelet's words.
//!
//! Invariant: only what the status before did not say is news, so that a daemon that starts again repeats nothing.

use flotilla_api::k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, PodStatus};
use flotilla_control::event::Severity;

/// One thing to tell: how bad, the reason in a word, and the message.
pub type News = (Severity, &'static str, String);

/// What `after` says of the pod called `name` that `before` did not.
pub fn between(name: &str, before: &PodStatus, after: &PodStatus) -> Vec<News> {
    containers(after)
        .flat_map(|now| {
            let old = containers(before).find(|old| old.name == now.name);
            of_container(name, old, now)
        })
        .collect()
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
            news.push((Severity::Normal, "Started", format!("Started container {}", now.name)));
        }
    }
    let (was, is) = (old.and_then(|old| old.state.as_ref()), now.state.as_ref());
    news.extend(waiting(pod, &now.name, was, is));
    if let Some(ended) = is.and_then(|state| state.terminated.as_ref()).filter(|ended| ended.exit_code != 0)
        && was.and_then(|was| was.terminated.as_ref()).is_none_or(|was| was.container_id != ended.container_id)
    {
        let reason = ended.reason.as_deref().unwrap_or("Error");
        // A container's own words may be anything, also what not everyone may read who may read Events.
        let ours = ended.message.as_deref().filter(|_| !matches!(reason, "Error" | "OOMKilled"));
        let said = ours.map_or_else(String::new, |message| format!(": {message}"));
        let words = format!("Container {} ended with exit code {} ({reason}){said}", now.name, ended.exit_code);
        news.push((Severity::Warning, if reason == "OOMKilled" { "OOMKilling" } else { "Exited" }, words));
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

fn waiting(pod: &str, container: &str, was: Option<&ContainerState>, is: Option<&ContainerState>) -> Option<News> {
    let waiting = is?.waiting.as_ref()?;
    if was.and_then(|was| was.waiting.as_ref()) == Some(waiting) {
        return None;
    }
    let message = waiting.message.clone().unwrap_or_default();
    Some(match waiting.reason.as_deref().unwrap_or_default() {
        "" | "ContainerCreating" | "PodInitializing" => return None,
        "CrashLoopBackOff" => {
            let words = format!("Back-off restarting failed container {container} in pod {pod}");
            (Severity::Warning, "BackOff", words)
        }
        "ImagePullBackOff" => (Severity::Normal, "BackOff", message),
        _ => (Severity::Warning, "Failed", message),
    })
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
        between("p", before, after).into_iter().map(|(_, reason, _)| reason).collect()
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
    fn waiting_is_told_when_its_reason_changes() {
        let waiting = |reason: &str| status(&json!({"waiting": {"reason": reason, "message": "m"}}), 0);
        assert!(reasons(&PodStatus::default(), &waiting("ContainerCreating")).is_empty());
        assert_eq!(reasons(&waiting("ContainerCreating"), &waiting("ErrImagePull")), ["Failed"]);
        assert_eq!(reasons(&waiting("ErrImagePull"), &waiting("ImagePullBackOff")), ["BackOff"]);
        assert!(reasons(&waiting("ImagePullBackOff"), &waiting("ImagePullBackOff")).is_empty());
    }
}
