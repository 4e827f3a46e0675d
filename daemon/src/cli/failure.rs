//! What went wrong, where, and what to do, in one clear line and one more for each cause.

use std::error::Error;
use std::io;

use tonic::{Code, Status};

use super::output::plain;
use crate::data_dir::Refusal;

/// The exit code of a command that did not do what was asked.
pub const FAILED: u8 = 1;

/// The exit code of a daemon that is not to be started again before somebody has done something about it. The unit for
/// systemd knows it.
pub const REFUSED: u8 = 3;

/// The metadata key under which the daemon sends its whole answer, as JSON of [`flotilla_api::Status`].
pub const STATUS_KEY: &str = "flotilla-status-bin";

/// More than this many causes help nobody.
const MAX_CAUSES: usize = 100;

/// Tells the user, and returns the exit code.
pub fn report(error: &anyhow::Error) -> u8 {
    if !is_closed_pipe(error) {
        eprintln!("{}", words(error));
    }
    if error.is::<Refusal>() { REFUSED } else { FAILED }
}

/// Whoever read our output has had enough of it.
fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

/// `error: CONTEXT: MESSAGE`, and a line for each cause.
pub fn words(error: &anyhow::Error) -> String {
    let mut parts = Vec::new();
    let mut causes = Vec::new();
    for link in error.chain() {
        if let Some(status) = link.downcast_ref::<Status>() {
            let (message, lines) = status_words(status);
            parts.push(message);
            causes = lines;
            break;
        }
        parts.push(plain(&link.to_string()));
    }
    parts.dedup();
    causes.truncate(MAX_CAUSES);
    causes.insert(0, format!("error: {}", parts.join(": ")));
    causes.join("\n")
}

/// The message of a gRPC status, and its causes.
fn status_words(status: &Status) -> (String, Vec<String>) {
    if let Some(answer) = full_answer(status) {
        return answer_words(&answer);
    }
    if let Some(cause) = transport_cause(status) {
        return (transport_words(&cause), Vec::new());
    }
    let message = match (status.code(), status.message()) {
        (code, "") => code.description().to_owned(),
        (Code::Unimplemented, message) => format!("the daemon does not know this request: {message}"),
        (_, message) => message.to_owned(),
    };
    (plain(&message), Vec::new())
}

/// The daemon's own words, if it sent them.
fn full_answer(status: &Status) -> Option<flotilla_api::Status> {
    let bytes = status.metadata().get_bin(STATUS_KEY)?.to_bytes().ok()?;
    serde_json::from_slice(&bytes).ok()
}

fn answer_words(answer: &flotilla_api::Status) -> (String, Vec<String>) {
    const IS_INVALID: &str = " is invalid: ";
    let mut message = plain(&answer.message);
    if let Some(seconds) = answer.retry_after_seconds {
        message = format!("{message} (try again in {seconds} s)");
    }
    let lines: Vec<String> = answer.causes.iter().map(cause_words).collect();
    // The message lists the causes once more behind these words.
    if let Some(end) = message.find(IS_INVALID).filter(|_| !lines.is_empty()) {
        message.truncate(end + IS_INVALID.trim_end_matches(": ").len());
    }
    (message, lines)
}

fn cause_words(cause: &flotilla_api::Cause) -> String {
    match (cause.field.as_str(), cause.message.as_str()) {
        ("", message) => format!("  {}", plain(message)),
        (field, message) => format!("  {}: {}", plain(field), plain(message)),
    }
}

/// Set if the connection broke rather than the request.
fn transport_cause(status: &Status) -> Option<String> {
    let mut last: &dyn Error = status.source()?;
    while let Some(source) = last.source() {
        last = source;
    }
    Some(last.to_string())
}

fn transport_words(cause: &str) -> String {
    if is_cut(cause) {
        return "the daemon ended the connection: it has stopped, or these credentials are not good any more".into();
    }
    let what = if is_alert(cause) { "refused these credentials" } else { "does not answer any more" };
    format!("the daemon {what} ({})", plain(cause))
}

/// A daemon hangs up on whom it must not hear any more, without the courtesies of TLS.
fn is_cut(cause: &str) -> bool {
    cause.contains("close_notify")
}

/// Under TLS 1.3 a client learns only after its handshake that its certificate was refused.
fn is_alert(cause: &str) -> bool {
    cause.contains("received fatal alert")
}

/// Whether the connection broke, so that nobody knows how the request ends.
pub fn is_broken(status: &Status) -> bool {
    transport_cause(status).is_some_and(|cause| !is_alert(&cause))
}

/// Whether the same request may succeed in a moment: a daemon restarts, a leader is elected.
pub fn is_passing(status: &Status) -> bool {
    match transport_cause(status) {
        Some(cause) => !is_alert(&cause),
        None => matches!(status.code(), Code::Unavailable | Code::DeadlineExceeded | Code::Aborted),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flotilla_api::Cause;
    use tonic::metadata::{MetadataMap, MetadataValue};

    fn with_answer(answer: &flotilla_api::Status) -> Status {
        let mut metadata = MetadataMap::new();
        metadata.insert_bin(STATUS_KEY, MetadataValue::from_bytes(&serde_json::to_vec(answer).unwrap()));
        Status::with_metadata(Code::InvalidArgument, answer.message.clone(), metadata)
    }

    #[test]
    fn each_cause_has_its_line() {
        let cause = |field: &str, message: &str| Cause {
            reason: "FieldValueInvalid".into(),
            message: message.into(),
            field: field.into(),
        };
        let answer = flotilla_api::Status::invalid(
            "Job",
            "web",
            vec![cause("containers[0].image", "Required value"), cause("count", "must not be negative")],
        );
        assert_eq!(
            words(&anyhow::Error::new(with_answer(&answer)).context("web.yaml")),
            "error: web.yaml: Job \"web\" is invalid\n  containers[0].image: Required value\n  count: must not be negative"
        );
    }

    #[test]
    fn a_plain_status_says_its_message() {
        assert_eq!(words(&Status::not_found("jobs \"web\" not found").into()), "error: jobs \"web\" not found");
        assert_eq!(words(&Status::permission_denied("\x1b[2Jno").into()), "error: \\u{1b}[2Jno");
        assert_eq!(words(&Status::new(Code::Unavailable, "").into()), "error: The service is currently unavailable");
    }

    #[test]
    fn a_connection_that_is_cut_is_told_without_the_words_of_a_library() {
        let cut = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls";
        let words = transport_words(cut);
        assert!(words.starts_with("the daemon ended the connection") && !words.contains("docs.rs"), "{words}");
        assert!(is_broken(&Status::from_error(Box::new(io::Error::other("broken pipe")))));
        assert!(!is_broken(&Status::unavailable("no leader")), "the daemon has answered");
        assert_eq!(transport_words("broken pipe"), "the daemon does not answer any more (broken pipe)");
    }

    #[test]
    fn contexts_come_first() {
        let error = anyhow::Error::new(io::Error::other("bad disk")).context("cannot read web.yaml");
        assert_eq!(words(&error), "error: cannot read web.yaml: bad disk");
    }
}
