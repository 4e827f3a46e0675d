//! Eviction: a pod is deleted unless a budget says that too few would be left.
//!
//! Defined by the Kubernetes API reference, `policy/v1 Eviction`, and by what an API server does with it. What a budget
//! allows is in its status, which its planner keeps.
//!
//! Invariant: the budget's count and the pod's mark are one Change, so that two evictions never spend the same allowance.

use flotilla_api::k8s_openapi::api::policy::v1::PodDisruptionBudget;
use flotilla_api::k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use flotilla_api::{Builtin, Cause, Change, Key, Reason, Status, object, selector};
use flotilla_raft::{KeyValue, Range};
use jiff::Timestamp;
use serde_json::Value;

use super::authorize::Attempt;
use super::delete::Deleted;
use super::settle::{Decision, Reads};
use super::write::{text, with_revision};
use super::{DeleteOptions, Gate, User, Verb, read_status};

/// Evicted pods that a budget still counts as on their way; upstream's bound.
const MAX_DISRUPTED_PODS: usize = 2_000;
/// When to ask again while a budget is not worked out yet. Nobody knows when one that is spent allows more: upstream says
/// nothing then, and `kubectl drain` tells why it waits.
const RETRY_SECONDS: u32 = 10;

impl Gate {
    /// Deletes a pod, or marks it, if its budget allows that.
    ///
    /// # Errors
    /// `TooManyRequests` if the budget does not allow it now, and those of [`Gate::delete`].
    pub async fn evict(
        &self,
        user: &User,
        (namespace, name): (&str, &str),
        options: &DeleteOptions,
    ) -> Result<Deleted, Status> {
        let kind = self.built_in(Builtin::Pod)?;
        let key = Self::key(&kind, namespace, name)?;
        self.permit(&Attempt {
            user,
            verb: Verb::Create,
            kind: &kind,
            subresource: Some("eviction"),
            namespace: key.namespace(),
            name,
            object: None,
        })
        .await?;
        let decide = || Ok(self.decide_eviction(user, &key, options).unwrap_or_else(Decision::Refuse));
        let (deleted, revision) = self.settle(&mut Reads::default(), &kind, decide).await?;
        // A budget that is counted down takes the revision before or after the pod's.
        let own = self.load(&key)?.map(|kv| kv.mod_revision).or(revision);
        Ok(Deleted { object: with_revision(deleted.object, own), ..deleted })
    }

    fn decide_eviction(&self, user: &User, key: &Key, options: &DeleteOptions) -> Result<Decision<Deleted>, Status> {
        let kind = self.built_in(Builtin::Pod)?;
        // A dry run asks the budget as well, and only then spends nothing.
        let earnest = DeleteOptions { dry_run: false, ..options.clone() };
        let decision = self.decide_delete(user, &kind, key, &earnest)?;
        let Decision::Write(change, deleted) = decision else { return Ok(decision) };
        let before = self.load(key)?.as_ref().map(super::object).transpose()?.unwrap_or_default();
        let budget = match needs_budget(&before) {
            true => self.budget_of(key, &deleted.object)?,
            false => None,
        };
        let change = match budget {
            Some((kv, budget)) if !is_let_go(&budget, &before) => spend(change, &kv, budget, key, Timestamp::now())?,
            _ => change,
        };
        Ok(match options.dry_run {
            true => Decision::Keep(deleted),
            false => Decision::Write(change, deleted),
        })
    }

    /// The budget that a pod counts in.
    fn budget_of(&self, key: &Key, pod: &Value) -> Result<Option<(KeyValue, PodDisruptionBudget)>, Status> {
        let prefix = Builtin::PodDisruptionBudget.collection().namespace_prefix(key.namespace());
        let budgets = self.store.range(Range::prefix(prefix)).map_err(read_status)?;
        let labels = serde_json::from_value(pod["metadata"]["labels"].clone()).unwrap_or_default();
        let mut found = Vec::new();
        for kv in budgets.items {
            let Ok(budget) = object::decode::<PodDisruptionBudget>(&kv.value, kv.mod_revision) else { continue };
            let selected = budget.spec.as_ref().and_then(|spec| spec.selector.as_ref());
            if selected.is_some_and(|wanted| selector::matches(wanted, Some(&labels))) {
                found.push((kv, budget));
            }
        }
        match found.len() {
            0 | 1 => Ok(found.pop()),
            _ => Err(Status::internal(
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
            )),
        }
    }
}

/// Whether a pod that goes could be missed: it runs, and was not told to go before.
fn needs_budget(pod: &Value) -> bool {
    pod.pointer("/metadata/deletionTimestamp").is_none()
        && !matches!(text(pod, "/status/phase"), "Succeeded" | "Failed" | "Pending" | "")
}

/// Whether a budget lets a pod go without spending anything: one that is not ready counts for nothing, and it may go if
/// enough others are healthy, or whatever they are under `AlwaysAllow`.
fn is_let_go(budget: &PodDisruptionBudget, pod: &Value) -> bool {
    let conditions = pod["status"]["conditions"].as_array().map(Vec::as_slice).unwrap_or_default();
    if conditions.iter().any(|condition| condition["type"] == "Ready" && condition["status"] == "True") {
        return false;
    }
    let policy = budget.spec.as_ref().and_then(|spec| spec.unhealthy_pod_eviction_policy.as_deref());
    let (healthy, desired) = budget.status.as_ref().map_or((0, 0), |status| {
        (status.current_healthy.unwrap_or_default(), status.desired_healthy.unwrap_or_default())
    });
    policy == Some("AlwaysAllow") || (desired > 0 && healthy >= desired)
}

/// Takes one disruption from a budget, in the Change that ends the pod.
fn spend(
    change: Change,
    kv: &KeyValue,
    mut budget: PodDisruptionBudget,
    pod: &Key,
    now: Timestamp,
) -> Result<Change, Status> {
    let name = budget.metadata.name.clone().unwrap_or_default();
    let generation = budget.metadata.generation.unwrap_or_default();
    let status = budget.status.get_or_insert_default();
    if status.observed_generation.unwrap_or_default() < generation {
        let unknown = refused(format!("The disruption budget {name} is still being processed by the server."));
        return Err(Status { retry_after_seconds: Some(RETRY_SECONDS), ..unknown });
    }
    if status.disruptions_allowed.unwrap_or_default() <= 0 {
        return Err(refused(format!(
            "The disruption budget {name} needs {} healthy pods and has {} currently",
            status.desired_healthy.unwrap_or_default(),
            status.current_healthy.unwrap_or_default()
        )));
    }
    let disrupted = status.disrupted_pods.get_or_insert_default();
    if disrupted.len() >= MAX_DISRUPTED_PODS {
        return Err(refused("DisruptedPods map too big - too many evictions not confirmed by PDB controller".into()));
    }
    disrupted.insert(pod.name().to_owned(), Time(now));
    status.disruptions_allowed = status.disruptions_allowed.map(|allowed| allowed - 1);
    let bytes = object::encode(&budget).map_err(Status::internal)?;
    Ok(change.update(kv.key.clone(), kv.mod_revision, bytes))
}

fn refused(why: String) -> Status {
    let cause = Cause { reason: "DisruptionBudget".into(), message: why, field: String::new() };
    Status {
        causes: vec![cause],
        ..Status::new(Reason::TooManyRequests, "Cannot evict pod as it would violate the pod's disruption budget.")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn budget(allowed: i32, observed: i64) -> PodDisruptionBudget {
        serde_json::from_value(json!({
            "metadata": {"name": "b", "generation": 2},
            "status": {"disruptionsAllowed": allowed, "observedGeneration": observed, "desiredHealthy": 2,
                       "currentHealthy": 2, "expectedPods": 2},
        }))
        .unwrap()
    }

    fn try_spend(budget: PodDisruptionBudget) -> Result<Change, Status> {
        let key = |kind: Builtin, name| Key::new(&kind.collection(), "default", name);
        let at = key(Builtin::PodDisruptionBudget, "b");
        let kv = KeyValue { key: at, value: Default::default(), create_revision: 1, mod_revision: 3 };
        spend(Change::new("u", "m"), &kv, budget, &key(Builtin::Pod, "p"), Timestamp::UNIX_EPOCH)
    }

    #[test]
    fn a_budget_is_spent_and_refuses_when_it_is() {
        let change = try_spend(budget(1, 2)).unwrap();
        assert_eq!(change.writes.len(), 1);
        let spent = try_spend(budget(0, 2)).unwrap_err();
        assert_eq!((spent.reason, spent.retry_after_seconds), (Reason::TooManyRequests, None));
        assert_eq!(spent.causes[0].message, "The disruption budget b needs 2 healthy pods and has 2 currently");
        assert_eq!(try_spend(budget(1, 1)).unwrap_err().retry_after_seconds, Some(RETRY_SECONDS));
    }

    #[test]
    fn a_pod_that_is_not_ready_goes_if_the_others_are_or_always() {
        let pod = |ready: &str| json!({"status": {"conditions": [{"type": "Ready", "status": ready}]}});
        let of = |policy: Option<&str>, healthy: i32| {
            let mut budget = budget(0, 2);
            budget.spec.get_or_insert_default().unhealthy_pod_eviction_policy = policy.map(str::to_owned);
            budget.status.as_mut().unwrap().current_healthy = Some(healthy);
            budget
        };
        let table = [
            (None, 2, "False", true),
            (None, 1, "False", false),
            (Some("IfHealthyBudget"), 2, "False", true),
            (Some("IfHealthyBudget"), 1, "False", false),
            (Some("AlwaysAllow"), 0, "False", true),
            (Some("AlwaysAllow"), 0, "True", false),
            (None, 2, "True", false),
        ];
        for (policy, healthy, ready, goes) in table {
            assert_eq!(is_let_go(&of(policy, healthy), &pod(ready)), goes, "{policy:?} {healthy} {ready}");
        }
        let mut none = budget(0, 2);
        none.status.as_mut().unwrap().desired_healthy = Some(0);
        assert!(!is_let_go(&none, &pod("False")));
    }

    #[test]
    fn only_a_pod_that_runs_is_missed() {
        for (phase, missed) in [("Running", true), ("Pending", false), ("Succeeded", false), ("Failed", false)] {
            assert_eq!(needs_budget(&json!({"status": {"phase": phase}})), missed, "{phase}");
        }
        // One that was told to go is counted already, though its time may be cut short.
        let going = json!({"metadata": {"deletionTimestamp": "2026-01-01T00:00:00Z"}, "status": {"phase": "Running"}});
        assert!(!needs_budget(&going));
    }
}
