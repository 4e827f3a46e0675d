//! What a pod refers to: its own fields, ConfigMaps and Secrets.
//!
//! Defined by the Kubernetes API reference: `EnvVarSource`, `ObjectFieldSelector`, `ResourceFieldSelector`.

use std::collections::BTreeMap;

use flotilla_api::k8s_openapi::api::authentication::v1::{BoundObjectReference, TokenRequest, TokenRequestSpec};
use flotilla_api::k8s_openapi::api::core::v1::{
    ConfigMap, Container, ObjectFieldSelector, Pod, ResourceFieldSelector, Secret, ServiceAccountTokenProjection,
};
use flotilla_api::kinds::Builtin;
use flotilla_api::quantity;
use flotilla_api::{Reason, account};
use jiff::Timestamp;
use serde::de::DeserializeOwned;

use crate::accounts::{self, Accounts};
use crate::gate::{Gate, User};

/// Why a container's configuration cannot be put together, in kubelet's words.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct SourceError(pub String);

/// Reads what pods of this node refer to, as this node.
#[derive(Clone)]
pub struct Sources {
    pub gate: Gate,
    pub accounts: Accounts,
    pub user: User,
}

impl Sources {
    /// The ConfigMap's keys with their bytes; `None` if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn config_map(
        &self,
        namespace: &str,
        name: &str,
    ) -> Result<Option<BTreeMap<String, Vec<u8>>>, SourceError> {
        let map: Option<ConfigMap> = self.read(Builtin::ConfigMap, namespace, name).await?;
        Ok(map.map(|map| {
            let text = map.data.into_iter().flatten().map(|(key, value)| (key, value.into_bytes()));
            let binary = map.binary_data.into_iter().flatten().map(|(key, value)| (key, value.0));
            text.chain(binary).collect()
        }))
    }

    /// The Secret's keys with their bytes; `None` if it does not exist.
    ///
    /// # Errors
    /// If it cannot be read.
    pub async fn secret(&self, namespace: &str, name: &str) -> Result<Option<BTreeMap<String, Vec<u8>>>, SourceError> {
        let secret: Option<Secret> = self.read(Builtin::Secret, namespace, name).await?;
        Ok(secret.map(|secret| secret.data.into_iter().flatten().map(|(key, value)| (key, value.0)).collect()))
    }

    /// A token of the pod's account: the one that there is while it serves, or a new one.
    ///
    /// # Errors
    /// If there is none, and none is to be had.
    pub async fn token(
        &self,
        pod: &Pod,
        asked: &ServiceAccountTokenProjection,
        current: Option<String>,
    ) -> Result<String, SourceError> {
        let spec = pod.spec.clone().unwrap_or_default();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
        let audiences: Vec<String> = asked.audience.iter().filter(|audience| !audience.is_empty()).cloned().collect();
        let good = match &current {
            Some(token) => self.accounts.review(token, &audiences).await.is_ok(),
            None => false,
        };
        if let Some(token) = current.as_ref().filter(|token| good && accounts::is_young(token, Timestamp::now())) {
            return Ok(token.clone());
        }
        let request = TokenRequest {
            spec: Some(TokenRequestSpec {
                audiences: Some(audiences),
                expiration_seconds: asked.expiration_seconds,
                bound_object_ref: Some(BoundObjectReference {
                    api_version: Some("v1".into()),
                    kind: Some("Pod".into()),
                    name: pod.metadata.name.clone(),
                    uid: pod.metadata.uid.clone(),
                }),
                ..TokenRequestSpec::default()
            }),
            ..TokenRequest::default()
        };
        let account = account::name(&spec);
        match (self.accounts.issue(&self.user, (namespace, account), &request, false).await, current) {
            (Ok(issued), _) => Ok(issued.status.and_then(|status| status.token).unwrap_or_default()),
            // The old one is better than none.
            (Err(_), Some(token)) if good => Ok(token),
            (Err(status), _) => Err(SourceError(format!("failed to fetch token: {}", status.message))),
        }
    }

    async fn read<T: DeserializeOwned>(
        &self,
        kind: Builtin,
        namespace: &str,
        name: &str,
    ) -> Result<Option<T>, SourceError> {
        let fail = |error: String| {
            SourceError(format!("failed to read {} \"{namespace}/{name}\": {error}", kind.info().singular))
        };
        let kind_of = self.gate.built_in(kind).map_err(|status| fail(status.message))?;
        match self.gate.get(&self.user, &kind_of, namespace, name).await {
            Ok(object) => serde_json::from_value(object).map(Some).map_err(|error| fail(error.to_string())),
            Err(status) if status.reason == Reason::NotFound => Ok(None),
            Err(status) => Err(fail(status.message)),
        }
    }
}

/// What is known only on the node.
#[derive(Clone, Debug, Default)]
pub struct Place {
    pub pod_ip: String,
    pub host_ip: String,
    /// Where this node's API is; empty if it is nowhere yet.
    pub api: String,
}

/// What tells programs in a pod where the API is, as upstream's service of the API does.
fn api_environment(api: &str) -> Vec<(String, String)> {
    let Ok(address) = api.parse::<std::net::SocketAddr>() else { return Vec::new() };
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let url = format!("tcp://{address}");
    [
        ("KUBERNETES_SERVICE_HOST".to_owned(), ip.clone()),
        ("KUBERNETES_SERVICE_PORT".to_owned(), port.clone()),
        ("KUBERNETES_SERVICE_PORT_HTTPS".to_owned(), port.clone()),
        ("KUBERNETES_PORT".to_owned(), url.clone()),
        (format!("KUBERNETES_PORT_{port}_TCP"), url),
        (format!("KUBERNETES_PORT_{port}_TCP_PROTO"), "tcp".to_owned()),
        (format!("KUBERNETES_PORT_{port}_TCP_PORT"), port.clone()),
        (format!("KUBERNETES_PORT_{port}_TCP_ADDR"), ip),
    ]
    .into()
}

/// The value of a `fieldRef`.
///
/// # Errors
/// If the field is not one that pods may refer to.
pub fn field(pod: &Pod, place: &Place, selector: &ObjectFieldSelector) -> Result<String, SourceError> {
    let path = selector.field_path.as_str();
    let metadata = &pod.metadata;
    let spec = pod.spec.clone().unwrap_or_default();
    if let Some((map, key)) = subscript(path) {
        let map = match map {
            "metadata.labels" => &metadata.labels,
            "metadata.annotations" => &metadata.annotations,
            _ => return Err(SourceError(format!("unsupported fieldPath: {path}"))),
        };
        return Ok(map.as_ref().and_then(|map| map.get(key)).cloned().unwrap_or_default());
    }
    Ok(match path {
        "metadata.name" => metadata.name.clone().unwrap_or_default(),
        "metadata.namespace" => metadata.namespace.clone().unwrap_or_default(),
        "metadata.uid" => metadata.uid.clone().unwrap_or_default(),
        "metadata.labels" => lines(metadata.labels.as_ref()),
        "metadata.annotations" => lines(metadata.annotations.as_ref()),
        "spec.nodeName" => spec.node_name.unwrap_or_default(),
        "spec.serviceAccountName" => spec.service_account_name.unwrap_or_default(),
        "status.podIP" | "status.podIPs" => place.pod_ip.clone(),
        "status.hostIP" | "status.hostIPs" => place.host_ip.clone(),
        _ => return Err(SourceError(format!("unsupported fieldPath: {path}"))),
    })
}

/// `metadata.labels['key']`
fn subscript(path: &str) -> Option<(&str, &str)> {
    let (map, rest) = path.split_once("['")?;
    Some((map, rest.strip_suffix("']")?))
}

/// `key="value"` a line, in upstream's escaping.
fn lines(map: Option<&BTreeMap<String, String>>) -> String {
    let lines: Vec<String> = map.into_iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    lines.join("\n")
}

/// The value of a `resourceFieldRef`, rounded up to its divisor as upstream does.
///
/// # Errors
/// If the resource or the container is not known.
pub fn resource(pod: &Pod, own: Option<&Container>, selector: &ResourceFieldSelector) -> Result<String, SourceError> {
    let containers =
        pod.spec.iter().flat_map(|spec| spec.containers.iter().chain(spec.init_containers.iter().flatten()));
    let container = match &selector.container_name {
        Some(name) => containers.into_iter().find(|container| container.name == *name),
        None => own,
    };
    let container = container.ok_or_else(|| SourceError(format!("no container for resource {}", selector.resource)))?;
    let (kind, name) = selector
        .resource
        .split_once('.')
        .ok_or_else(|| SourceError(format!("unsupported container resource: {}", selector.resource)))?;
    let resources = container.resources.clone().unwrap_or_default();
    let map = match kind {
        "limits" => resources.limits,
        "requests" => resources.requests,
        _ => return Err(SourceError(format!("unsupported container resource: {}", selector.resource))),
    };
    let (cores, memory) = crate::usage::capacity();
    let quantity = map.and_then(|map| map.get(name).cloned());
    let bad = |error: &dyn std::fmt::Display| SourceError(format!("{}: {error}", selector.resource));
    let divisor = selector.divisor.as_ref().filter(|divisor| !divisor.0.is_empty() && divisor.0 != "0");
    let (amount, unit) = match name {
        "cpu" => {
            let amount = quantity.map_or(Ok(cores as i64), |q| quantity::cpu_millis(&q)).map_err(|e| bad(&e))?;
            (amount, divisor.map_or(Ok(1_000), quantity::cpu_millis).map_err(|e| bad(&e))?)
        }
        _ => {
            let amount = quantity.map_or(Ok(memory as i64), |q| quantity::bytes(&q)).map_err(|e| bad(&e))?;
            (amount, divisor.map_or(Ok(1), quantity::bytes).map_err(|e| bad(&e))?)
        }
    };
    let unit = unit.max(1);
    Ok(((amount + unit - 1) / unit).to_string())
}

/// The environment of a container, in order, with `$(NAME)` expanded.
///
/// # Errors
/// If something that it refers to is missing and not optional.
pub async fn environment(
    sources: &Sources,
    pod: &Pod,
    container: &Container,
    place: &Place,
) -> Result<Vec<(String, String)>, SourceError> {
    let namespace = pod.metadata.namespace.as_deref().unwrap_or("default");
    let mut environment = api_environment(&place.api);
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        let values = if let Some(reference) = &from.config_map_ref {
            let found = sources.config_map(namespace, &reference.name).await?;
            required(found, "configmap", &reference.name, reference.optional)?
        } else if let Some(reference) = &from.secret_ref {
            let found = sources.secret(namespace, &reference.name).await?;
            required(found, "secret", &reference.name, reference.optional)?
        } else {
            continue;
        };
        for (key, value) in values {
            let name = format!("{prefix}{key}");
            if flotilla_api::names::env_name(&name).is_empty() {
                environment.push((name, String::from_utf8_lossy(&value).into_owned()));
            }
        }
    }
    for variable in container.env.iter().flatten() {
        let value = match (&variable.value, &variable.value_from) {
            (_, Some(from)) => {
                if let Some(selector) = &from.field_ref {
                    Some(field(pod, place, selector)?)
                } else if let Some(selector) = &from.resource_field_ref {
                    Some(resource(pod, Some(container), selector)?)
                } else if let Some(selector) = &from.config_map_key_ref {
                    let found = sources.config_map(namespace, &selector.name).await?;
                    key_of(found, "configmap", &selector.name, &selector.key, selector.optional)?
                } else if let Some(selector) = &from.secret_key_ref {
                    let found = sources.secret(namespace, &selector.name).await?;
                    key_of(found, "secret", &selector.name, &selector.key, selector.optional)?
                } else {
                    None
                }
            }
            (Some(value), None) => Some(expand(value, &environment)),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            environment.retain(|(name, _)| *name != variable.name);
            environment.push((variable.name.clone(), value));
        }
    }
    Ok(environment)
}

type Values = BTreeMap<String, Vec<u8>>;

fn required(found: Option<Values>, kind: &str, name: &str, optional: Option<bool>) -> Result<Values, SourceError> {
    match found {
        Some(values) => Ok(values),
        None if optional == Some(true) => Ok(Values::new()),
        None => Err(SourceError(format!("{kind} \"{name}\" not found"))),
    }
}

fn key_of(
    found: Option<Values>,
    kind: &str,
    name: &str,
    key: &str,
    optional: Option<bool>,
) -> Result<Option<String>, SourceError> {
    let values = required(found, kind, name, optional)?;
    match values.get(key) {
        Some(value) => Ok(Some(String::from_utf8_lossy(value).into_owned())),
        None if optional == Some(true) => Ok(None),
        None => Err(SourceError(format!("couldn't find key {key} in {kind} {name}"))),
    }
}

/// Expands `$(NAME)` for names that are set; `$$` is a `$`. What is not set stays as it is.
pub fn expand(text: &str, environment: &[(String, String)]) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        rest = &rest[at + 1..];
        if let Some(after) = rest.strip_prefix('$') {
            out.push('$');
            rest = after;
        } else if let Some((name, after)) = rest.strip_prefix('(').and_then(|inner| inner.split_once(')')) {
            match environment.iter().rev().find(|(known, _)| known == name) {
                Some((_, value)) => out.push_str(value),
                None => out.push_str(&format!("$({name})")),
            }
            rest = after;
        } else {
            out.push('$');
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn references_expand_as_upstream_documents() {
        let environment = [("A".to_owned(), "1".to_owned()), ("B".to_owned(), "$(A)".to_owned())];
        for (text, expected) in
            [("$(A)-$(B)", "1-$(A)"), ("$(C)", "$(C)"), ("$$(A)", "$(A)"), ("$A$", "$A$"), ("$(A", "$(A"), ("", "")]
        {
            assert_eq!(expand(text, &environment), expected, "{text}");
        }
    }

    #[test]
    fn a_pod_may_refer_to_its_fields() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "n", "labels": {"a": "x", "b": "y\"z"}},
            "spec": {"nodeName": "node", "containers": [{"name": "c", "resources": {"limits": {"cpu": "1500m", "memory": "3Mi"}}}]}
        }))
        .unwrap();
        let place = Place { pod_ip: "10.0.0.2".into(), host_ip: "192.0.2.1".into(), api: String::new() };
        let get =
            |path: &str| field(&pod, &place, &ObjectFieldSelector { field_path: path.into(), ..Default::default() });
        assert_eq!(get("metadata.labels['a']").unwrap(), "x");
        assert_eq!(get("metadata.labels").unwrap(), "a=\"x\"\nb=\"y\\\"z\"");
        assert_eq!(get("status.podIP").unwrap(), "10.0.0.2");
        assert!(get("status.phase").is_err());
        let amount = |resource_name: &str| {
            let selector = ResourceFieldSelector {
                container_name: Some("c".into()),
                resource: resource_name.into(),
                ..Default::default()
            };
            resource(&pod, None, &selector)
        };
        assert_eq!(amount("limits.cpu").unwrap(), "2");
        assert_eq!(amount("limits.memory").unwrap(), "3145728");
        assert!(amount("weight.cpu").is_err());
    }
}
