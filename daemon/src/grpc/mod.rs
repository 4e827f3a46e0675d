//! The gRPC face. Each service turns messages into calls of the gate and back, and decides nothing.
//!
//! Invariant: a method learns who asks from what the connection or its token showed, never from the message.

mod call;
mod cluster;
mod images;
mod jobs;
mod objects;
mod pods;
mod secrets;
mod watch;

pub use call::call;
use flotilla_api::{Reason, Status};
use tonic::metadata::{BinaryMetadataKey, BinaryMetadataValue};
use tonic::service::Routes;
use tonic::{Code, Request};

use crate::gate::{User, resource_action};
use crate::node::Node;
use crate::proto;

/// Carries the whole [`Status`] as JSON beside gRPC's code and message.
const STATUS_KEY: &str = "flotilla-status-bin";

/// The largest request: a manifest of 1.5 MiB with what surrounds it.
const MAX_REQUEST_BYTES: usize = 2 * 1024 * 1024;
/// The largest answer: a list of many objects.
const MAX_RESPONSE_BYTES: usize = 256 * 1024 * 1024;

/// All services of a node, with reflection and health.
///
/// # Errors
/// If the descriptors that were compiled in are broken.
pub async fn routes(node: &Node) -> anyhow::Result<Routes> {
    let (health, health_service) = tonic_health::server::health_reporter();
    health.set_service_status("", tonic_health::ServingStatus::Serving).await;
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let reflection_alpha = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1alpha()?;
    macro_rules! bounded {
        ($server:path, $service:expr) => {
            <$server>::new($service)
                .max_decoding_message_size(MAX_REQUEST_BYTES)
                .max_encoding_message_size(MAX_RESPONSE_BYTES)
        };
    }
    Ok(Routes::new(health_service)
        .add_service(reflection)
        .add_service(reflection_alpha)
        .add_service(bounded!(proto::jobs_server::JobsServer<_>, jobs::Service::new(node)))
        .add_service(bounded!(proto::objects_server::ObjectsServer<_>, objects::Service::new(node)))
        .add_service(bounded!(proto::pods_server::PodsServer<_>, pods::Service::new(node)))
        .add_service(bounded!(proto::cluster_server::ClusterServer<_>, cluster::Service::new(node)))
        .add_service(bounded!(proto::secrets_server::SecretsServer<_>, secrets::Service::new(node)))
        .add_service(bounded!(proto::images_server::ImagesServer<_>, images::Service::new(node))))
}

/// Who sent the request, as its connection or its token was authenticated.
fn user<T>(request: &Request<T>) -> Result<User, tonic::Status> {
    request
        .extensions()
        .get::<User>()
        .cloned()
        .ok_or_else(|| tonic::Status::unauthenticated("this connection carries no identity"))
}

/// The user, if roles let them do this to an object of ours.
async fn allowed<T>(
    node: &Node,
    request: &Request<T>,
    verb: &str,
    (group, resource): (&str, &str),
    name: &str,
) -> Result<User, tonic::Status> {
    let user = user(request)?;
    let action = resource_action(verb, (group, resource, ""), ("", name));
    node.gate.require(&user, &action, None).await.map_err(refuse)?;
    Ok(user)
}

/// Only those who may do everything: what is no object, such as a machine's images, a backup, or the authority's keys.
fn master<T>(request: &Request<T>, what: &str) -> Result<User, tonic::Status> {
    let user = user(request)?;
    match user.is_master() {
        true => Ok(user),
        false => Err(refuse(Status::new(
            Reason::Forbidden,
            format!("User \"{}\" cannot {what}: that takes the group {}", user.name, User::MASTERS),
        ))),
    }
}

/// The gRPC form of a refusal.
fn refuse(status: Status) -> tonic::Status {
    let code = match status.reason {
        Reason::BadRequest | Reason::Invalid | Reason::UnsupportedMediaType | Reason::NotAcceptable => {
            Code::InvalidArgument
        }
        Reason::Unauthorized => Code::Unauthenticated,
        Reason::Forbidden => Code::PermissionDenied,
        Reason::NotFound => Code::NotFound,
        Reason::AlreadyExists => Code::AlreadyExists,
        Reason::Conflict => Code::Aborted,
        Reason::Gone | Reason::Expired => Code::OutOfRange,
        Reason::RequestEntityTooLarge | Reason::TooManyRequests => Code::ResourceExhausted,
        Reason::MethodNotAllowed => Code::FailedPrecondition,
        Reason::ServerTimeout | Reason::ServiceUnavailable => Code::Unavailable,
        Reason::Timeout => Code::DeadlineExceeded,
        Reason::InternalError => Code::Internal,
    };
    let mut answer = tonic::Status::new(code, status.message.clone());
    if let Ok(json) = serde_json::to_vec(&status) {
        let key = BinaryMetadataKey::from_static(STATUS_KEY);
        answer.metadata_mut().insert_bin(key, BinaryMetadataValue::from_bytes(&json));
    }
    answer
}

/// An RFC 3339 time as objects carry it; empty if there is none.
fn text(object: &serde_json::Value, pointer: &str) -> String {
    object.pointer(pointer).and_then(serde_json::Value::as_str).unwrap_or_default().to_owned()
}
