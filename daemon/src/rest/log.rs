//! The log of a container, whole or as it grows.

use bytes::Bytes;
use flotilla_api::{Cause, Status};
use futures::{StreamExt, stream};
use http::{Method, Response, StatusCode, header};
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use jiff::Timestamp;
use serde_json::Value;

use super::query::Query;
use super::route::Target;
use super::{Answer, BoxError, Call, Rest, answer, at_namespace};
use crate::pods;
use crate::streams::{Connection, FromPod, Log, LogStream, Logs, StreamRequest};

impl Rest {
    pub(super) async fn log(&self, call: &Call, target: &Target, name: &str) -> Answer {
        let pod = self.gate().connect(&call.user, "log", at_namespace(target)?, name).await?;
        let log = wanted(&call.query, &pod, name)?;
        let Ok(host) = pods::host(&pod) else {
            let mut response = Response::new(answer::full(""));
            *response.status_mut() = StatusCode::NO_CONTENT;
            return Ok(response);
        };
        let (container, previous) = (log.logs.container.clone(), log.logs.previous);
        let mut connection = self.node.streams.connect(&host, StreamRequest::log(log)).await?;
        // The node's first message tells whether there is a log at all.
        let first = match connection.next().await? {
            Some(FromPod::Failed(status)) => return Err(trouble(&pod, &container, previous).unwrap_or(status)),
            Some(FromPod::Stdout(data) | FromPod::Stderr(data)) => Some(data),
            Some(FromPod::Exit(_)) => None,
            None => return Err(Status::internal("the node that runs the pod hung up")),
        };
        let mut response = Response::new(match (first, &call.head.method) {
            (Some(first), &Method::GET) => {
                let rest = stream::unfold(Some(connection), rest);
                let all = stream::once(async move { Ok(first) }).chain(rest);
                let frames = all.filter(|piece| {
                    let empty = piece.as_ref().is_ok_and(Bytes::is_empty);
                    std::future::ready(!empty)
                });
                StreamBody::new(frames.map(|piece| piece.map(Frame::data))).boxed_unsync()
            }
            _ => answer::full(""),
        });
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, header::HeaderValue::from_static("text/plain"));
        headers.insert(header::CACHE_CONTROL, header::HeaderValue::from_static("no-cache, private"));
        Ok(response)
    }
}

/// The next piece; a log that breaks off ends the answer in a way that the client notices.
async fn rest(connection: Option<Connection>) -> Option<(Result<Bytes, BoxError>, Option<Connection>)> {
    let mut connection = connection?;
    match connection.next().await {
        Ok(Some(FromPod::Stdout(data) | FromPod::Stderr(data))) => Some((Ok(data), Some(connection))),
        Ok(Some(FromPod::Exit(_))) => None,
        Ok(Some(FromPod::Failed(status))) | Err(status) => Some((Err(status.into()), None)),
        Ok(None) => Some((Err("the node that runs the pod hung up".into()), None)),
    }
}

/// What is asked for, after upstream's `PodLogOptions` and its rules.
fn wanted(query: &Query, pod: &Value, name: &str) -> Result<Log, Status> {
    let mut causes = Vec::new();
    let mut wrong = |field: &str, reason: &str, message: String| {
        causes.push(Cause { reason: reason.into(), message, field: field.into() });
    };
    let mut number = |field: &str, least: i64| -> Result<Option<u64>, Status> {
        let Some(number) = query.number(field)? else { return Ok(None) };
        if number < least {
            let words = if least == 0 { "must be greater than or equal to 0" } else { "must be greater than 0" };
            wrong(field, "FieldValueInvalid", format!("Invalid value: {number}: {words}"));
        }
        Ok(u64::try_from(number).ok())
    };
    let (tail_lines, limit_bytes) = (number("tailLines", 0)?, number("limitBytes", 1)?);
    let since_seconds = number("sinceSeconds", 1)?;
    let since_ms = match query.get("sinceTime") {
        "" => None,
        text => {
            let time: Timestamp = text
                .parse()
                .map_err(|error| Status::bad_request(format!("sinceTime: Invalid value: {text:?}: {error}")))?;
            Some(u64::try_from(time.as_millisecond()).unwrap_or(0))
        }
    };
    if since_ms.is_some() && since_seconds.is_some() {
        let words = "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified";
        wrong("", "FieldValueForbidden", words.into());
    }
    let stream = match query.get("stream") {
        "" | "All" => LogStream::All,
        "Stdout" => LogStream::Stdout,
        "Stderr" => LogStream::Stderr,
        other => {
            let words = format!("Unsupported value: \"{other}\": supported values: \"All\", \"Stderr\", \"Stdout\"");
            wrong("stream", "FieldValueNotSupported", words);
            LogStream::All
        }
    };
    if stream != LogStream::All && tail_lines.is_some() {
        let words = "Forbidden: `tailLines` and specific `stream` are mutually exclusive for now";
        wrong("", "FieldValueForbidden", words.into());
    }
    if !causes.is_empty() {
        return Err(Status::invalid("PodLogOptions", name, causes));
    }
    let logs = Logs {
        pod: pods::reference(pod),
        container: pods::container(pod, query.get("container"))?,
        follow: query.flag("follow"),
        previous: query.flag("previous"),
        tail_lines,
        since_seconds,
        timestamps: query.flag("timestamps"),
        limit_bytes,
    };
    Ok(Log { logs, since_ms, stream })
}

/// Why there is no log, in kubelet's words, where the pod's status says it.
fn trouble(pod: &Value, container: &str, previous: bool) -> Option<Status> {
    let name = pods::text(pod, "/metadata/name");
    let status = pods::container_status(pod, container);
    if previous {
        return Some(Status::bad_request(format!(
            "previous terminated container \"{container}\" in pod \"{name}\" not found"
        )));
    }
    let state = status.map_or(&Value::Null, |status| &status["state"]);
    let why = match state["waiting"]["reason"].as_str() {
        Some("ErrImagePull") => ": image can't be pulled".to_owned(),
        Some("ImagePullBackOff") => ": trying and failing to pull image".to_owned(),
        Some(reason) => format!(": {reason}"),
        None if state.get("running").is_some() || state.get("terminated").is_some() => return None,
        None => " - no logs yet".to_owned(),
    };
    Some(Status::bad_request(format!("container \"{container}\" in pod \"{name}\" is waiting to start{why}")))
}

#[cfg(test)]
mod tests {
    use flotilla_api::Reason;
    use serde_json::json;

    use super::*;

    fn pod() -> Value {
        json!({"metadata": {"name": "p", "namespace": "n", "uid": "u"}, "spec": {"containers": [{"name": "a"}]}})
    }

    #[test]
    fn options_are_read_and_refused_as_upstream_does() {
        let ask = |query: &str| wanted(&Query::parse(query), &pod(), "p");
        let log = ask("follow=true&tailLines=0&limitBytes=9&timestamps=1&sinceTime=2026-01-02T03:04:05.5Z").unwrap();
        assert!(log.logs.follow && log.logs.timestamps && !log.logs.previous);
        assert_eq!(
            (log.logs.tail_lines, log.logs.limit_bytes, log.since_ms),
            (Some(0), Some(9), Some(1_767_323_045_500))
        );
        assert!(matches!(StreamRequest::log(log), StreamRequest::Log(_)));
        assert!(matches!(StreamRequest::log(ask("sinceSeconds=5").unwrap()), StreamRequest::Logs(_)));
        for (query, message) in [
            ("tailLines=-1", "tailLines: Invalid value: -1: must be greater than or equal to 0"),
            ("limitBytes=0", "limitBytes: Invalid value: 0: must be greater than 0"),
            ("sinceSeconds=0", "sinceSeconds: Invalid value: 0: must be greater than 0"),
            ("stream=x", "stream: Unsupported value: \"x\": supported values: \"All\", \"Stderr\", \"Stdout\""),
        ] {
            let status = ask(query).unwrap_err();
            assert_eq!(
                (status.reason, status.message),
                (Reason::Invalid, format!("PodLogOptions \"p\" is invalid: {message}"))
            );
        }
        assert!(ask("sinceSeconds=1&sinceTime=2026-01-02T03:04:05Z").is_err());
        assert!(ask("stream=Stdout&tailLines=3").is_err() && ask("stream=Stdout").is_ok());
        assert_eq!(ask("tailLines=x").unwrap_err().reason, Reason::BadRequest);
        assert_eq!(ask("sinceTime=yesterday").unwrap_err().reason, Reason::BadRequest);
    }

    #[test]
    fn a_container_without_a_log_says_why() {
        let mut pod = pod();
        let said = |pod: &Value, previous| trouble(pod, "a", previous).map(|status| status.message);
        assert_eq!(said(&pod, false).unwrap(), "container \"a\" in pod \"p\" is waiting to start - no logs yet");
        pod["status"] = json!({"containerStatuses": [{"name": "a", "state": {"waiting": {"reason": "ErrImagePull"}}}]});
        assert_eq!(
            said(&pod, false).unwrap(),
            "container \"a\" in pod \"p\" is waiting to start: image can't be pulled"
        );
        assert_eq!(said(&pod, true).unwrap(), "previous terminated container \"a\" in pod \"p\" not found");
        pod["status"]["containerStatuses"][0]["state"] = json!({"running": {}});
        assert_eq!(said(&pod, false), None);
    }
}
