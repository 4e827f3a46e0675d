//! What Kubernetes clients wait for: objects made, read and changed over REST, lists, and watches.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use anyhow::Context;
use flotilla::config::DEFAULT_PORT;
use flotilla_tests::api::{Papers, Rest};
use flotilla_tests::cli;
use futures::future::try_join_all;
use http::Method;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::flotilla_cluster::Flotilla;
use crate::idle::SETTLE;
use crate::load::{VALUE_BYTES, value};
use crate::machine::rss_mb;
use crate::report::{Report, Spread};

const CLIENTS: [usize; 3] = [1, 16, 100];
const LASTING: Duration = Duration::from_secs(5);
const LISTS: [(Listed, usize); 3] = [(Listed::ConfigMaps, 500), (Listed::ConfigMaps, 10_000), (Listed::Pods, 10_000)];
/// A thousand requests a second: as many clients, each of which sends one this often.
const PACED_CLIENTS: u32 = 20;
const PACE: Duration = Duration::from_millis(20);
const WATCHERS: [usize; 2] = [10, 1_000];
const WATCHERS_A_CONNECTION: usize = 50;
const WRITES: usize = 30;
const OBJECTS: usize = 17_000;
const MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// What kube-apiserver 1.20 with etcd 3.4 did on a machine of this size: creates a second at 1, 16 and 100 clients.
const APISERVER_CREATES: [f64; 3] = [513.0, 1_089.0, 1_031.0];

/// # Errors
/// If the node does not start, or a request fails.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    memory(report).await?;
    let flotilla = Flotilla::start(1).await?;
    let door = Door::of(&flotilla)?;
    for (clients, apiserver) in CLIENTS.into_iter().zip(APISERVER_CREATES) {
        for work in [Work::Create, Work::Get, Work::Update] {
            let took = load(&door, clients, work).await?;
            let what = format!("REST: {work:?} of ConfigMaps of {VALUE_BYTES} B, {clients} clients");
            let per_second = took.len() as f64 / LASTING.as_secs_f64();
            match work {
                Work::Create => report.beside(&what, per_second, "kube-apiserver, noted", apiserver, "/s"),
                _ => report.alone(&what, per_second, "/s"),
            }
            report.alone("… p99", took.percentile_ms(99), "ms");
        }
    }
    for work in [Work::Create, Work::Get, Work::Update] {
        let took = paced(&door, work).await?;
        report.aimed(&format!("REST: {work:?} at 1000 requests/s, p99"), took.percentile_ms(99), 10.0, "ms");
    }
    for (kind, count) in LISTS {
        let took = lists(&door, kind, count).await?;
        report.aimed(&format!("REST: list of {count} {kind:?}, p50 of 20"), took.percentile_ms(50), 50.0, "ms");
    }
    for watchers in WATCHERS {
        let took = events(&door, watchers).await?;
        let what = format!("REST: write → seen by all of {watchers} watchers, p50 of {WRITES}");
        report.alone(&what, took.percentile_ms(50), "ms");
        report.alone("… p99", took.percentile_ms(99), "ms");
    }
    Ok(())
}

/// What a node of its own takes, empty and full.
async fn memory(report: &mut Report) -> anyhow::Result<()> {
    let flotilla = Flotilla::start(1).await?;
    let pid = u32::try_from(flotilla.cluster.dev.daemon("node-1")?.pid)?;
    tokio::time::sleep(SETTLE).await;
    report.aimed("REST, 1 node, idle: resident memory", rss_mb(pid)?, 37.7, "MB");
    fill(&Door::of(&flotilla)?, Listed::ConfigMaps, "many", OBJECTS).await?;
    report.aimed(&format!("REST: resident memory after {OBJECTS} objects"), rss_mb(pid)?, 101.6, "MB");
    Ok(())
}

/// Where the API is, and as whom it is asked.
struct Door {
    at: SocketAddr,
    papers: Papers,
}

impl Door {
    fn of(flotilla: &Flotilla) -> anyhow::Result<Self> {
        let papers = Papers::parse(&cli::ok(&flotilla.cluster, "node-1", &["credentials", "bench"]))?;
        let address = flotilla.cluster.dev.address("node-1")?;
        Ok(Self { at: SocketAddr::new(address.into(), DEFAULT_PORT), papers })
    }

    async fn open(&self) -> anyhow::Result<Rest> {
        Rest::connect(self.at, &self.papers).await
    }
}

#[derive(Clone, Copy, Debug)]
enum Work {
    Create,
    Get,
    Update,
}

#[derive(Clone, Copy, Debug)]
enum Listed {
    ConfigMaps,
    Pods,
}

impl Listed {
    fn path(self, namespace: &str) -> String {
        format!("/api/v1/namespaces/{namespace}/{}", format!("{self:?}").to_lowercase())
    }

    fn object(self, name: &str) -> Value {
        match self {
            Self::ConfigMaps => map(name, &value()),
            Self::Pods => pod(name),
        }
    }
}

/// A pod that nobody schedules.
fn pod(name: &str) -> Value {
    let container = json!({"name": "main", "image": "nginx", "ports": [{"containerPort": 80}]});
    let spec = json!({"schedulerName": "nobody", "containers": [container]});
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec})
}

fn map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"value": value}})
}

async fn load(door: &Door, clients: usize, work: Work) -> anyhow::Result<Spread> {
    let open = try_join_all((0..clients).map(|_| door.open())).await?;
    let until = Instant::now() + LASTING;
    let each = open.into_iter().enumerate().map(|(number, rest)| {
        let name = format!("rest-{clients}-{number}-{work:?}").to_lowercase();
        tokio::spawn(requests(rest, name, work, until, Duration::ZERO))
    });
    all(each).await
}

/// Each client's requests at its pace, the clients one after the other.
async fn paced(door: &Door, work: Work) -> anyhow::Result<Spread> {
    let open = try_join_all((0..PACED_CLIENTS).map(|_| door.open())).await?;
    let until = Instant::now() + LASTING;
    let each = open.into_iter().zip(0..PACED_CLIENTS).map(|(rest, number)| {
        tokio::spawn(async move {
            tokio::time::sleep(PACE / PACED_CLIENTS * number).await;
            requests(rest, format!("paced-{number}-{work:?}").to_lowercase(), work, until, PACE).await
        })
    });
    all(each).await
}

async fn all(each: impl Iterator<Item = JoinHandle<anyhow::Result<Vec<Duration>>>>) -> anyhow::Result<Spread> {
    let mut times = Vec::new();
    for one in try_join_all(each).await? {
        times.extend(one?);
    }
    Spread::of(times)
}

/// One request after the other, and no more than one in each `pace`.
async fn requests(
    mut rest: Rest,
    name: String,
    work: Work,
    until: Instant,
    pace: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let path = format!("{MAPS}/{name}");
    if !matches!(work, Work::Create) {
        rest.ok(Method::POST, MAPS, Some(&map(&name, &value()))).await?;
    }
    let mut took = Vec::new();
    for number in 0_u64.. {
        let began = Instant::now();
        if began >= until {
            break;
        }
        match work {
            Work::Create => rest.ok(Method::POST, MAPS, Some(&map(&format!("{name}-{number}"), &value()))).await?,
            Work::Get => rest.ok(Method::GET, &path, None).await?,
            Work::Update => {
                let value = format!("{number:0>width$}", width = VALUE_BYTES);
                rest.ok(Method::PUT, &path, Some(&map(&name, &value))).await?
            }
        };
        took.push(began.elapsed());
        // A timer counts in whole milliseconds, also one that is over.
        if !pace.is_zero() {
            tokio::time::sleep_until((began + pace).into()).await;
        }
    }
    Ok(took)
}

/// Makes so many objects in a namespace of their own.
async fn fill(door: &Door, kind: Listed, namespace: &str, count: usize) -> anyhow::Result<()> {
    let mut rest = door.open().await?;
    let space = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}});
    rest.ok(Method::POST, "/api/v1/namespaces", Some(&space)).await?;
    const WRITERS: usize = 50;
    let path = kind.path(namespace);
    let writers = (0..WRITERS).map(|writer| {
        let (mut rest, path) = (rest.clone(), path.clone());
        async move {
            for number in (writer..count).step_by(WRITERS) {
                rest.ok(Method::POST, &path, Some(&kind.object(&format!("m-{number}")))).await?;
            }
            anyhow::Ok(())
        }
    });
    try_join_all(writers).await.map(drop)
}

async fn lists(door: &Door, kind: Listed, count: usize) -> anyhow::Result<Spread> {
    let namespace = format!("list-{kind:?}-{count}").to_lowercase();
    fill(door, kind, &namespace, count).await?;
    let mut rest = door.open().await?;
    let mut took = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let body = rest.ok(Method::GET, &kind.path(&namespace), None).await?;
        took.push(began.elapsed());
        anyhow::ensure!(body.len() > count * VALUE_BYTES, "the list is short: {} bytes", body.len());
    }
    Spread::of(took)
}

/// From sending each write until the last of the watchers has its event.
async fn events(door: &Door, watchers: usize) -> anyhow::Result<Spread> {
    let name = format!("watched-{watchers}");
    let mut writer = door.open().await?;
    writer.ok(Method::POST, MAPS, Some(&map(&name, "0"))).await?;
    let path = format!("{MAPS}?watch=true&fieldSelector=metadata.name%3D{name}");
    let mut streams = Vec::new();
    let mut connection = door.open().await?;
    for number in 0..watchers {
        if number > 0 && number % WATCHERS_A_CONNECTION == 0 {
            connection = door.open().await?;
        }
        let mut stream = connection.watch(&path).await?;
        stream.next().await?.context("a watch ends")?;
        streams.push(stream);
    }
    let mut took = Vec::new();
    for number in 1..=WRITES {
        let began = Instant::now();
        let seen = try_join_all(streams.iter_mut().map(|stream| stream.next()));
        let body = map(&name, &number.to_string());
        let path = format!("{MAPS}/{name}");
        let written = writer.ok(Method::PUT, &path, Some(&body));
        let (seen, written) = tokio::join!(seen, written);
        written?;
        anyhow::ensure!(seen?.iter().all(Option::is_some), "a watch ends");
        took.push(began.elapsed());
    }
    Spread::of(took)
}
