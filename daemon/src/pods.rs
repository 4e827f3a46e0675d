//! Which container of which pod, and where it runs: what every stream to a pod has to know first.

use flotilla_api::Status;
use serde_json::Value;

use crate::streams::PodReference;

/// The container that a client means who names none.
const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

pub fn text(object: &Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(Value::as_str).unwrap_or_default().to_owned()
}

/// How nodes name a pod to each other.
pub fn reference(pod: &Value) -> PodReference {
    PodReference {
        namespace: text(pod, "/metadata/namespace"),
        name: text(pod, "/metadata/name"),
        uid: text(pod, "/metadata/uid"),
    }
}

/// The node that the pod is on.
///
/// # Errors
/// `BadRequest` if it is on none yet.
pub fn host(pod: &Value) -> Result<String, Status> {
    let host = text(pod, "/spec/nodeName");
    match host.is_empty() {
        true => Err(Status::bad_request(format!("pod {} does not have a host assigned", text(pod, "/metadata/name")))),
        false => Ok(host),
    }
}

/// The container that was named, the pod's default one, or its only one.
///
/// # Errors
/// `BadRequest`, in upstream's words.
pub fn container(pod: &Value, asked: &str) -> Result<String, Status> {
    let names = |field: &str| -> Vec<&str> {
        let list = pod.pointer(field).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
        list.iter().filter_map(|container| container["name"].as_str()).collect()
    };
    let (main, init) = (names("/spec/containers"), names("/spec/initContainers"));
    let ephemeral = names("/spec/ephemeralContainers");
    let known = |name: &str| main.iter().chain(&init).chain(&ephemeral).any(|known| *known == name);
    let name = text(pod, "/metadata/name");
    if !asked.is_empty() {
        return match known(asked) {
            true => Ok(asked.to_owned()),
            false => Err(Status::bad_request(format!("container {asked} is not valid for pod {name}"))),
        };
    }
    let default = pod["metadata"]["annotations"][DEFAULT_CONTAINER].as_str().filter(|name| known(name));
    let only = main.first().copied().filter(|_| main.len() == 1);
    if let Some(found) = default.or(only) {
        return Ok(found.to_owned());
    }
    let mut message = format!("a container name must be specified for pod {name}, choose one of: [{}]", main.join(" "));
    if !init.is_empty() {
        message.push_str(&format!(" or one of the init containers: [{}]", init.join(" ")));
    }
    if !ephemeral.is_empty() {
        message.push_str(&format!(" or one of the ephemeral containers: [{}]", ephemeral.join(" ")));
    }
    Err(Status::bad_request(message))
}

/// What is known of a container, of whatever sort.
pub fn container_status<'a>(pod: &'a Value, name: &str) -> Option<&'a Value> {
    ["containerStatuses", "initContainerStatuses", "ephemeralContainerStatuses"]
        .iter()
        .flat_map(|list| pod["status"][list].as_array().map(Vec::as_slice).unwrap_or_default())
        .find(|status| status["name"] == name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_container_is_the_one_named_the_default_or_the_only_one() {
        let mut pod = json!({
            "metadata": {"name": "p"},
            "spec": {"containers": [{"name": "a"}, {"name": "b"}], "initContainers": [{"name": "i"}],
                     "ephemeralContainers": [{"name": "e"}]},
        });
        for name in ["a", "b", "i", "e"] {
            assert_eq!(container(&pod, name).unwrap(), name);
        }
        assert_eq!(container(&pod, "x").unwrap_err().message, "container x is not valid for pod p");
        assert_eq!(
            container(&pod, "").unwrap_err().message,
            "a container name must be specified for pod p, choose one of: [a b] or one of the init containers: [i] or one \
             of the ephemeral containers: [e]"
        );
        pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "b"});
        assert_eq!(container(&pod, "").unwrap(), "b");
        pod["metadata"]["annotations"] = json!({DEFAULT_CONTAINER: "gone"});
        assert!(container(&pod, "").is_err());
        pod["spec"]["containers"] = json!([{"name": "only"}]);
        assert_eq!(container(&pod, "").unwrap(), "only");
        assert!(host(&pod).is_err());
    }
}
