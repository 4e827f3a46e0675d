//! What a node answers where a kubelet would: the few things that clients ask nodes for.

use flotilla_api::selector::Fields;
use flotilla_api::{Builtin, Status};
use http::StatusCode;
use serde_json::{Value, json};

use crate::gate::{ListQuery, User};
use crate::pods;
use crate::rest::{Answer, Call, Rest, answer};

impl Rest {
    pub(super) async fn kubelet(&self, call: &Call, node: &Value, path: &str) -> Answer {
        let name = pods::text(node, "/metadata/name");
        let parts: Vec<&str> = path.split('/').filter(|part| !part.is_empty()).collect();
        match parts.as_slice() {
            ["healthz"] => {
                let conditions = node["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
                let ready = conditions.iter().any(|c| c["type"] == "Ready" && c["status"] == "True");
                match ready {
                    true => Ok(answer::text(StatusCode::OK, "ok")),
                    false => Err(Status::new(flotilla_api::Reason::ServiceUnavailable, "the node is not ready")),
                }
            }
            ["pods" | "runningpods"] => {
                let kind = self.gate().built_in(Builtin::Pod)?;
                let fields = Fields::parse(&format!("spec.nodeName={name}")).map_err(Status::internal)?;
                let query = ListQuery { fields, ..ListQuery::default() };
                // Who may ask a node need not be one who may list pods.
                let listed = self.gate().list(&User::root(), &kind, &query).await?;
                let list = json!({"kind": "PodList", "apiVersion": "v1", "metadata": {}, "items": listed.items});
                Ok(answer::json(StatusCode::OK, &call.head.headers, list.to_string().into_bytes()).await)
            }
            _ => Ok(answer::text(StatusCode::NOT_FOUND, "404 page not found\n")),
        }
    }
}
