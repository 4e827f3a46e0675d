//! Jobs: every success counted once, whatever happens around it.

use flotilla_api::k8s_openapi::api::core::v1::Pod;
use flotilla_control::{Liveness, keys};
use serde_json::{Value, json};

use crate::sim::{Sim, condition, template};

fn job(completions: i32, parallelism: i32) -> Value {
    let mut template = template("j", "task");
    template["spec"]["restartPolicy"] = "Never".into();
    json!({"metadata": {"name": "j"}, "spec": {"completions": completions, "parallelism": parallelism, "template": template}})
}

fn raw(sim: &Sim) -> Value {
    sim.get(&keys::job("default", "j"))
}

fn put(sim: &mut Sim, value: Value) {
    sim.put_json("batch", "jobs", value);
}

fn succeed(_: &Pod) -> Option<&'static str> {
    Some("Succeeded")
}

#[test]
fn a_hundred_tasks_ten_at_a_time() {
    let mut sim = Sim::with_nodes(1, 3);
    sim.check = |sim| assert!(sim.active().len() <= 10, "{} at once", sim.active().len());
    put(&mut sim, job(100, 10));
    sim.run_with(succeed);
    sim.assert_settled();
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(100), None, None));
    assert_eq!(sim.pods().len(), 100);
    assert!(status.completion_time.is_some() && status.start_time.is_some());
    assert_eq!(condition(&raw(&sim), "Complete")["reason"], "CompletionsReached");
    assert_eq!(sim.events("Completed").len(), 1);
    assert!(sim.pods().iter().all(|pod| pod.metadata.finalizers.is_none()));
}

#[test]
fn a_pod_lost_to_its_node_is_replaced_and_no_failure() {
    let mut sim = Sim::with_nodes(2, 3);
    let mut value = job(30, 12);
    value["spec"]["backoffLimit"] = 0.into();
    put(&mut sim, value);
    sim.run();
    assert_eq!(sim.active().len(), 12);
    sim.hear("n1", Liveness::Dead);
    sim.run();
    assert_eq!(sim.active().len(), 12, "replaced");
    sim.hear("n1", Liveness::Alive);
    sim.run_with(succeed);
    sim.assert_settled();
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.failed), (Some(30), None));
}

#[test]
fn a_job_is_over_although_a_dead_node_cannot_say_that_its_pods_have_ended() {
    let mut sim = Sim::with_nodes(12, 3);
    put(&mut sim, job(30, 12));
    sim.run();
    sim.hear("n1", Liveness::Dead);
    sim.run_with(|pod| (pod.spec.as_ref()?.node_name.as_deref() != Some("n1")).then_some("Succeeded"));
    sim.assert_settled();
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.failed), (Some(30), None));
    assert!(status.terminating > Some(0));
    assert_eq!(condition(&raw(&sim), "SuccessCriteriaMet")["status"], "True");
    let is_complete = |sim: &Sim| sim.job("j").status.unwrap().completion_time.is_some();
    assert!(!is_complete(&sim), "the node may come back and end them");
    sim.advance(16);
    sim.run();
    assert!(is_complete(&sim));
    assert_eq!(condition(&raw(&sim), "Complete")["status"], "True");
}

#[test]
fn a_pod_whose_node_is_removed_is_replaced_and_no_failure() {
    let mut sim = Sim::with_nodes(11, 2);
    let mut value = job(6, 6);
    value["spec"]["backoffLimit"] = 0.into();
    put(&mut sim, value);
    sim.run();
    sim.delete(&keys::node("n1"));
    sim.liveness.remove("n1");
    sim.run_with(succeed);
    sim.assert_settled();
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.failed), (Some(6), None));
    assert_eq!(sim.pods().len(), 6, "the lost ones are gone");
}

#[test]
fn failures_are_retried_later_and_later_until_the_limit() {
    let mut sim = Sim::with_nodes(3, 1);
    let mut value = job(1, 1);
    value["spec"]["backoffLimit"] = 2.into();
    put(&mut sim, value);
    let fail = |_: &Pod| Some("Failed");
    sim.run_with(fail);
    assert_eq!((sim.pods().len(), sim.job("j").status.unwrap().failed), (1, Some(1)));
    sim.advance(9);
    sim.run_with(fail);
    assert_eq!(sim.pods().len(), 1, "waits 10 s");
    sim.advance(1);
    sim.run_with(fail);
    assert_eq!(sim.pods().len(), 2);
    sim.advance(19);
    sim.run_with(fail);
    assert_eq!(sim.pods().len(), 2, "waits 20 s");
    sim.advance(1);
    sim.run_with(fail);
    sim.assert_settled();
    assert_eq!(sim.pods().len(), 3);
    assert_eq!(condition(&raw(&sim), "Failed")["reason"], "BackoffLimitExceeded");
    assert_eq!(sim.job("j").status.unwrap().failed, Some(3));
    assert_eq!(sim.events("BackoffLimitExceeded").len(), 1);
}

#[test]
fn a_deadline_ends_a_job_with_its_pods() {
    let mut sim = Sim::with_nodes(4, 1);
    let mut value = job(2, 2);
    value["spec"]["activeDeadlineSeconds"] = 60.into();
    put(&mut sim, value);
    sim.run();
    sim.advance(60);
    sim.run();
    sim.assert_settled();
    assert_eq!(condition(&raw(&sim), "Failed")["reason"], "DeadlineExceeded");
    assert!(sim.active().is_empty());
}

#[test]
fn a_suspended_job_lets_its_pods_go_and_resumes() {
    let mut sim = Sim::with_nodes(5, 1);
    put(&mut sim, job(4, 2));
    sim.run();
    let mut suspended = job(4, 2);
    suspended["spec"]["suspend"] = true.into();
    put(&mut sim, suspended);
    sim.run();
    assert!(sim.pods().is_empty());
    assert_eq!(condition(&raw(&sim), "Suspended")["status"], "True");
    assert!(sim.job("j").status.unwrap().start_time.is_none());
    put(&mut sim, job(4, 2));
    sim.run_with(succeed);
    sim.assert_settled();
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.failed), (Some(4), None));
    assert_eq!(sim.events("Resumed").len(), 1);
}

#[test]
fn indexes_are_each_done_once() {
    let mut sim = Sim::with_nodes(6, 2);
    let mut value = job(5, 2);
    value["spec"]["completionMode"] = "Indexed".into();
    put(&mut sim, value);
    sim.settle();
    let pod = &sim.pods()[0];
    let spec = pod.spec.as_ref().unwrap();
    assert_eq!(spec.hostname.as_deref(), Some("j-0"));
    assert_eq!(spec.containers[0].env.as_ref().unwrap()[0].value.as_deref(), Some("0"));
    sim.run_with(succeed);
    sim.assert_settled();
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.completed_indexes.as_deref()), (Some(5), Some("0-4")));
    assert_eq!(sim.pods().len(), 5);
}

#[test]
fn a_work_queue_ends_with_its_first_success() {
    let mut sim = Sim::with_nodes(7, 1);
    let mut value = job(1, 3);
    value["spec"].as_object_mut().unwrap().remove("completions");
    put(&mut sim, value);
    sim.run();
    assert_eq!(sim.active().len(), 3);
    let first = keys::pod("default", sim.pods()[0].metadata.name.as_deref().unwrap());
    sim.set_phase(&first, "Succeeded");
    sim.run();
    assert_eq!(sim.active().len(), 2, "none is added");
    assert!(condition(&raw(&sim), "Complete").is_null());
    sim.run_with(succeed);
    sim.assert_settled();
    assert_eq!(condition(&raw(&sim), "Complete")["status"], "True");
    assert_eq!(sim.job("j").status.unwrap().succeeded, Some(3));
}

#[test]
fn a_finished_job_goes_when_its_time_has_come_and_takes_its_pods() {
    let mut sim = Sim::with_nodes(8, 1);
    let mut value = job(2, 2);
    value["spec"]["ttlSecondsAfterFinished"] = 100.into();
    put(&mut sim, value);
    sim.run_with(succeed);
    assert_eq!(sim.pods().len(), 2);
    sim.advance(101);
    sim.run();
    assert!(!sim.store.contains_key(&keys::job("default", "j")));
    assert!(sim.pods().is_empty());
}

#[test]
fn a_job_deleted_while_it_runs_leaves_no_pod_behind() {
    let mut sim = Sim::with_nodes(9, 2);
    put(&mut sim, job(10, 5));
    sim.run();
    sim.delete(&keys::job("default", "j"));
    sim.run();
    sim.assert_settled();
    assert!(sim.pods().is_empty());
}

#[test]
fn restarts_in_place_count_towards_the_limit() {
    let mut sim = Sim::with_nodes(10, 1);
    let mut value = job(1, 1);
    value["spec"]["template"]["spec"]["restartPolicy"] = "OnFailure".into();
    value["spec"]["backoffLimit"] = 3.into();
    put(&mut sim, value);
    sim.run();
    let key = keys::pod("default", sim.pods()[0].metadata.name.as_deref().unwrap());
    sim.edit(&key, |pod| {
        pod["status"]["containerStatuses"] =
            json!([{"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 3}]);
    });
    sim.run();
    assert_eq!(condition(&raw(&sim), "Failed")["reason"], "BackoffLimitExceeded");
    assert!(sim.active().is_empty());
}

fn indexed(completions: i32, parallelism: i32, fields: Value) -> Value {
    let mut value = job(completions, parallelism);
    value["spec"]["completionMode"] = "Indexed".into();
    value["spec"].as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    value
}

fn index(pod: &Pod) -> &str {
    &pod.metadata.annotations.as_ref().unwrap()["batch.kubernetes.io/job-completion-index"]
}

/// Lets the time pass that failed pods are not tried again in.
fn run_on(sim: &mut Sim, fate: fn(&Pod) -> Option<&'static str>) {
    for _ in 0..4 {
        sim.run_with(fate);
        sim.advance(60);
    }
    sim.run_with(fate);
    sim.assert_settled();
}

#[test]
fn an_index_that_fails_too_often_fails_the_job_when_the_others_are_done() {
    let mut sim = Sim::with_nodes(12, 2);
    put(&mut sim, indexed(4, 2, json!({"backoffLimitPerIndex": 1, "backoffLimit": i32::MAX})));
    run_on(&mut sim, |pod| Some(if index(pod) == "1" { "Failed" } else { "Succeeded" }));
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.failed_indexes.as_deref(), status.completed_indexes.as_deref()), (Some("1"), Some("0,2,3")));
    assert_eq!((status.succeeded, status.failed), (Some(3), Some(2)));
    assert_eq!(condition(&raw(&sim), "Failed")["reason"], "FailedIndexes");
}

#[test]
fn too_many_failed_indexes_end_the_job() {
    let mut sim = Sim::with_nodes(13, 2);
    put(&mut sim, indexed(9, 1, json!({"backoffLimitPerIndex": 0, "maxFailedIndexes": 1})));
    run_on(&mut sim, |_| Some("Failed"));
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.failed_indexes.as_deref(), status.failed), (Some("0,1"), Some(2)));
    assert_eq!(condition(&raw(&sim), "Failed")["reason"], "MaxFailedIndexesExceeded");
}

#[test]
fn a_failure_policy_ends_a_job_or_overlooks_a_failure() {
    let rule = |action: &str| {
        json!({"podReplacementPolicy": "Failed", "backoffLimit": 0,
            "podFailurePolicy": {"rules": [{"action": action, "onExitCodes": {"operator": "In", "values": [1]}}]}})
    };
    let mut sim = Sim::with_nodes(14, 1);
    put(&mut sim, indexed(3, 1, rule("FailJob")));
    run_on(&mut sim, |_| Some("Failed"));
    let failed = condition(&raw(&sim), "Failed").clone();
    assert_eq!(failed["reason"], "PodFailurePolicy");
    let words = failed["message"].as_str().unwrap();
    assert!(words.ends_with("failed with exit code 1 matching FailJob rule at index 0"), "{words}");
    assert_eq!(sim.pods().len(), 1);

    let mut sim = Sim::with_nodes(15, 1);
    put(&mut sim, indexed(1, 1, rule("Ignore")));
    sim.run_with(|_| Some("Failed"));
    assert_eq!(sim.job("j").status.unwrap().failed, None);
    sim.advance(60);
    sim.run_with(succeed);
    sim.assert_settled();
    assert_eq!(condition(&raw(&sim), "Complete")["status"], "True");
}

#[test]
fn a_success_policy_ends_a_job_early() {
    let mut sim = Sim::with_nodes(16, 2);
    put(&mut sim, indexed(9, 3, json!({"successPolicy": {"rules": [{"succeededIndexes": "0"}]}})));
    sim.run_with(|pod| (index(pod) == "0").then_some("Succeeded"));
    sim.assert_settled();
    assert_eq!(condition(&raw(&sim), "Complete")["reason"], "SuccessPolicy");
    assert_eq!(condition(&raw(&sim), "SuccessCriteriaMet")["message"], "Matched rules at index 0");
    let status = sim.job("j").status.unwrap();
    assert_eq!((status.succeeded, status.failed, status.active), (Some(1), None, None));
}

#[test]
fn a_pod_is_replaced_when_it_has_ended_if_the_job_says_so() {
    for (policy, beside) in [("Failed", 1), ("TerminatingOrFailed", 2)] {
        let mut sim = Sim::with_nodes(17, 1);
        put(&mut sim, indexed(1, 1, json!({"podReplacementPolicy": policy})));
        sim.run();
        let key = keys::pod("default", sim.pods()[0].metadata.name.as_deref().unwrap());
        let now = sim.now.to_string();
        sim.edit(&key, |pod| pod["metadata"]["deletionTimestamp"] = now.into());
        sim.settle();
        sim.advance(20);
        sim.settle();
        assert_eq!(sim.pods().len(), beside, "{policy}");
        sim.run();
        sim.advance(60);
        sim.run_with(succeed);
        sim.assert_settled();
        assert_eq!(condition(&raw(&sim), "Complete")["status"], "True", "{policy}");
    }
}

#[test]
fn a_job_has_failed_when_its_pods_have_ended_and_they_failed_with_it() {
    let mut sim = Sim::with_nodes(18, 1);
    let mut value = job(2, 2);
    value["spec"]["activeDeadlineSeconds"] = 60.into();
    put(&mut sim, value);
    sim.run();
    sim.advance(60);
    sim.settle();
    assert_eq!(condition(&raw(&sim), "FailureTarget")["reason"], "DeadlineExceeded");
    assert!(condition(&raw(&sim), "Failed").is_null(), "its pods still end");
    assert_eq!(sim.job("j").status.unwrap().terminating, Some(2));
    sim.run();
    sim.assert_settled();
    assert_eq!(condition(&raw(&sim), "Failed")["status"], "True");
    assert_eq!(sim.job("j").status.unwrap().failed, Some(2));
}

#[test]
fn a_smaller_job_keeps_the_pods_of_its_indexes() {
    let mut sim = Sim::with_nodes(19, 2);
    put(&mut sim, indexed(5, 5, json!({})));
    sim.run();
    put(&mut sim, indexed(2, 2, json!({})));
    sim.run();
    let mut left: Vec<String> = sim.active().iter().map(|pod| index(pod).to_owned()).collect();
    left.sort();
    assert_eq!(left, ["0", "1"]);
}
