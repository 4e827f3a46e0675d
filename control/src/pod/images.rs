//! Whether a container's image is there, and what is to be done if not.

use flotilla_api::k8s_openapi::api::core::v1::Container;
use jiff::Timestamp;

use super::backoff;
use super::effect::Effect;
use super::observed::{Image, Observed};
use crate::meta;

/// How long a fresh failure is shown as itself before it is shown as waiting.
const FRESH_FAILURE_SECONDS: i64 = 2;

/// What stands between a container and its image.
#[derive(Debug, PartialEq)]
pub(super) enum Need {
    Ready(String),
    Wait { reason: &'static str, message: Option<String>, effect: Option<Effect>, wake_at: Option<Timestamp> },
}

/// With the policy Always, a copy counts only if the registry was asked since `since`.
pub(super) fn need(container: &Container, observed: &Observed, since: Timestamp, now: Timestamp) -> Need {
    let reference = container.image.as_deref().unwrap_or_default();
    let policy = policy(container, reference);
    let pull = || Effect::PullImage { image: reference.to_owned(), container: container.name.clone() };
    let pulling = |effect| Need::Wait { reason: "ContainerCreating", message: None, effect, wake_at: None };
    match observed.images.get(reference).unwrap_or(&Image::Absent) {
        Image::Present { id, .. } if policy != Policy::Always => Need::Ready(id.clone()),
        Image::Present { id, pulled_at } if pulled_at.is_some_and(|at| at >= since) => Need::Ready(id.clone()),
        Image::Present { .. } => pulling(Some(pull())),
        Image::Pulling => pulling(None),
        Image::Absent | Image::Failed(_) if policy == Policy::Never => Need::Wait {
            reason: "ErrImageNeverPull",
            message: Some(format!("Container image \"{reference}\" is not present with pull policy of Never")),
            effect: None,
            wake_at: None,
        },
        Image::Absent => pulling(Some(pull())),
        Image::Failed(failure) => {
            let retry_at = backoff::retry_at(failure);
            let fresh_until = meta::plus_seconds(failure.at, FRESH_FAILURE_SECONDS);
            let fresh = now < fresh_until && failure.at <= now;
            let due = retry_at <= now;
            let (reason, message) = match fresh {
                // It will not be another one the next time.
                _ if failure.reason == "InvalidImageName" => ("InvalidImageName", failure.message.clone()),
                true => ("ErrImagePull", failure.message.clone()),
                false => ("ImagePullBackOff", format!("Back-off pulling image \"{reference}\": {}", failure.message)),
            };
            Need::Wait {
                reason,
                message: Some(message),
                effect: due.then(pull),
                wake_at: (!due).then_some(if fresh { fresh_until.min(retry_at) } else { retry_at }),
            }
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Policy {
    Always,
    IfNotPresent,
    Never,
}

/// Upstream's default: Always for `latest`, else IfNotPresent.
fn policy(container: &Container, reference: &str) -> Policy {
    match container.image_pull_policy.as_deref() {
        Some("Always") => Policy::Always,
        Some("Never") => Policy::Never,
        Some("IfNotPresent") => Policy::IfNotPresent,
        _ if is_latest(reference) => Policy::Always,
        _ => Policy::IfNotPresent,
    }
}

fn is_latest(reference: &str) -> bool {
    let name = reference.rsplit('/').next().unwrap_or_default();
    !name.contains('@') && name.rsplit_once(':').is_none_or(|(_, tag)| tag == "latest")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::observed::Failure;
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    fn container(image: &str, policy: Option<&str>) -> Container {
        serde_json::from_value(json!({"name": "a", "image": image, "imagePullPolicy": policy})).unwrap()
    }

    fn with(image: &str, state: Image) -> Observed {
        Observed { images: [(image.to_owned(), state)].into(), ..Observed::default() }
    }

    #[test]
    fn policies() {
        let present = |pulled_at| with("x:1", Image::Present { id: "id".into(), pulled_at });
        let ready =
            |image: &Container, observed: &Observed| matches!(need(image, observed, at(5), at(9)), Need::Ready(_));
        assert!(ready(&container("x:1", None), &present(None)));
        assert!(ready(&container("x:1", Some("Never")), &present(None)));
        assert!(!ready(&container("x:1", Some("Always")), &present(Some(at(4)))));
        assert!(ready(&container("x:1", Some("Always")), &present(Some(at(5)))));
        assert!(is_latest("x") && is_latest("r:5000/x") && is_latest("x:latest"));
        assert!(!is_latest("x:1") && !is_latest("x@sha256:00"));
    }

    #[test]
    fn failures_are_shown_then_waited_for() {
        let failure = Failure { at: at(100), tries: 1, reason: "ErrImagePull".into(), message: "no".into() };
        let observed = with("x:1", Image::Failed(failure));
        let ask = |second| need(&container("x:1", None), &observed, at(0), at(second));
        let Need::Wait { reason, wake_at, effect, .. } = ask(101) else { panic!("ready") };
        assert_eq!((reason, wake_at, effect), ("ErrImagePull", Some(at(102)), None));
        let Need::Wait { reason, wake_at, .. } = ask(103) else { panic!("ready") };
        assert_eq!((reason, wake_at), ("ImagePullBackOff", Some(at(110))));
        let Need::Wait { effect, .. } = ask(110) else { panic!("ready") };
        assert!(effect.is_some());
    }

    #[test]
    fn never_means_never() {
        let Need::Wait { reason, effect, .. } =
            need(&container("x:1", Some("Never")), &Observed::default(), at(0), at(0))
        else {
            panic!("ready")
        };
        assert_eq!((reason, effect), ("ErrImageNeverPull", None));
    }
}
