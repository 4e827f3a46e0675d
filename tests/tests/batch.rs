//! A hundred tasks, ten at a time, are all done although the leader dies in the middle.

use std::time::{Duration, Instant};

use flotilla::proto::{Container, Job};
use flotilla_tests::{Cluster, eventually, figure, job};

const TASKS: i32 = 100;
const AT_A_TIME: i32 = 10;
const HELLO: &str = "flotilla.dev/hello:latest";
const LIMIT: Duration = Duration::from_secs(240);

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_tasks_succeed_through_a_leaders_death() {
    let cluster = Cluster::start(3).await;
    let began = Instant::now();
    job::submit(&cluster, "node-1", hundred_tasks()).await.unwrap();
    let leader = cluster.leader("node-1").await.unwrap();
    let survivors = cluster.nodes_but(&leader);
    let asked = &survivors[0];

    let halfway = || async {
        let status = job::status(&cluster, asked, "hundred").await?;
        assert!(job::running(&status).len() <= AT_A_TIME as usize, "{}", job::describe(&status));
        if status.succeeded >= TASKS / 3 { Ok(()) } else { Err(format!("{} succeeded", status.succeeded)) }
    };
    eventually(LIMIT, "a third of the tasks are done", halfway).await;
    cluster.dev.pull_plug(&leader).unwrap();

    let done = || async {
        let status = job::status(&cluster, asked, "hundred").await?;
        assert!(status.succeeded <= TASKS, "{} counted", status.succeeded);
        assert_ne!(status.phase, "Failed", "{}", job::describe(&status));
        if status.phase == "Complete" {
            Ok(status)
        } else {
            Err(format!("{} succeeded, {}", status.succeeded, status.phase))
        }
    };
    let status = eventually(LIMIT, "all tasks are done", done).await;
    assert_eq!(status.succeeded, TASKS);
    figure(
        "100 tasks, 10 at a time, through the leader's death",
        &format!("100 succeeded in {:.1} s", began.elapsed().as_secs_f64()),
    );
}

fn hundred_tasks() -> Job {
    let task = Container { image: HELLO.into(), args: vec!["sleep".into(), "1".into()], ..Container::default() };
    Job {
        name: "hundred".into(),
        r#type: "batch".into(),
        count: Some(TASKS),
        parallelism: Some(AT_A_TIME),
        containers: vec![task],
        ..Job::default()
    }
}
