//! `/metrics`: what this node counts, for Prometheus.

use http::StatusCode;
use http::request::Parts;

use super::{Answer, Rest, answer};
use crate::metrics::{CONTENT_TYPE, Standing};

impl Rest {
    pub(super) async fn metrics(&self, head: &Parts) -> Answer {
        let standing = Standing::of(&self.node).await;
        let text = self.node.metrics.text(&standing)?;
        Ok(answer::compressible(StatusCode::OK, &head.headers, CONTENT_TYPE, text).await)
    }
}
