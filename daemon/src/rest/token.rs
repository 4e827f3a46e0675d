//! Tokens of service accounts: asked for through the `token` subresource, and reviewed.
//!
//! Defined by the Kubernetes API reference, `TokenRequest` and `TokenReview` of `authentication.k8s.io/v1`.

use flotilla_api::k8s_openapi::api::authentication::v1::TokenRequest;
use flotilla_api::{Status, admit, questions};
use http::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};

use super::body::Sent;
use super::read::write;
use super::route::Target;
use super::{Answer, Call, Rest, answer, body, no_such_resource};

impl Rest {
    /// A token for a service account.
    pub(super) async fn request_token(&self, call: &Call, body: Sent, target: &Target, name: &str) -> Answer {
        let namespace = target.namespace.as_deref().ok_or_else(no_such_resource)?;
        let kind = questions::token_request();
        let options = body::write_options(call)?;
        let sent = body::value(&call.head.headers, &body::read(body).await?)?.value;
        let sent = body::object(kind, target, sent)?;
        let (object, warnings) = admit::prepare_question(kind, sent, options.unknown_fields)?;
        let request = TokenRequest::deserialize(&object).map_err(Status::bad_request)?;
        let issued = self.node.accounts.issue(&call.user, (namespace, name), &request, options.dry_run).await?;
        let mut response =
            write(call, StatusCode::CREATED, &serde_json::to_value(issued).map_err(Status::internal)?).await?;
        answer::warn(&mut response, &warnings);
        Ok(response)
    }

    /// The status of a TokenReview.
    pub(super) async fn review_token(&self, object: &Value) -> Result<Value, Status> {
        let token = object["spec"]["token"].as_str().unwrap_or_default();
        if token.is_empty() {
            return Err(Status::bad_request("token is required for TokenReview in authentication"));
        }
        let audiences = object["spec"]["audiences"].as_array().into_iter().flatten();
        let audiences: Vec<String> = audiences.filter_map(Value::as_str).map(str::to_owned).collect();
        Ok(match self.node.accounts.review(token, &audiences).await {
            Ok(shown) => json!({
                "authenticated": true,
                "user": shown.user.info(),
                "audiences": shown.audiences,
            }),
            Err(error) => json!({"user": {}, "error": error.to_string()}),
        })
    }
}
