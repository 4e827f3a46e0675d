//! What the cluster consists of, in the words of ComponentStatus, which upstream has long given up.
//!
//! There are no such components here: each is as well as what does its work. Planners and the scheduler run beside the
//! leader, and the store stands for etcd.

use flotilla_api::Status;
use http::{Method, StatusCode};
use serde_json::{Value, json};

use super::read::write_json;
use super::shown::Shown;
use super::{Answer, Call, Rest, no_such_resource, not_allowed};

impl Rest {
    /// One component, or all of them.
    pub(super) async fn components(&self, call: &Call) -> Answer {
        let (kind, target) = (&call.kind, &call.target);
        if target.namespace.is_some() || target.subresource.is_some() {
            return Err(no_such_resource());
        }
        let watches = target.watch || call.query.flag("watch");
        if watches || !matches!(call.head.method, Method::GET | Method::HEAD) {
            return Err(not_allowed());
        }
        self.gate().require(&call.user, &call.asked.action(), None).await?;
        let all = self.component_health().await;
        if let Some(name) = &target.name {
            let found = all.into_iter().find(|one| one["metadata"]["name"] == name.as_str());
            let found = found.ok_or_else(|| Status::not_found(kind.collection(), name))?;
            return self.show(call, kind, StatusCode::OK, &found).await;
        }
        let items: Vec<Vec<u8>> = all.iter().map(|one| one.to_string().into_bytes()).collect();
        let list = Shown::of(call, kind)?.list(&items, &json!({"resourceVersion": ""}))?;
        write_json(call, StatusCode::OK, list).await
    }

    async fn component_health(&self) -> Vec<Value> {
        let store = self.gate().store();
        let fatal = store.status().borrow().fatal.clone();
        // Whoever leads answers, and has a quorum behind it.
        let led = store.barrier().await.map(drop).map_err(|error| error.to_string());
        let stored = fatal.map_or_else(|| led.clone(), Err);
        vec![component("controller-manager", &led), component("scheduler", &led), component("etcd-0", &stored)]
    }
}

fn component(name: &str, health: &Result<(), String>) -> Value {
    let condition = match health {
        Ok(()) => json!({"type": "Healthy", "status": "True", "message": "ok"}),
        Err(why) => json!({"type": "Healthy", "status": "False", "message": "", "error": why}),
    };
    json!({"kind": "ComponentStatus", "apiVersion": "v1", "metadata": {"name": name}, "conditions": [condition]})
}

#[cfg(test)]
mod tests {
    use flotilla_api::questions;
    use jiff::Timestamp;

    use super::*;

    #[test]
    fn a_component_is_shown_with_what_ails_it() {
        let kind = questions::find("", "v1", "componentstatuses").unwrap();
        let row = |health| kind.row(&component("scheduler", &health), Timestamp::UNIX_EPOCH);
        assert_eq!(row(Ok(())), ["scheduler", "Healthy", "ok", ""]);
        assert_eq!(row(Err("no leader".into())), ["scheduler", "Unhealthy", "", "no leader"]);
    }
}
