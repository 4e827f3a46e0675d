//! What Kubernetes clients wait for: objects made, read and changed over REST, lists, and watches.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use flotilla::config::DEFAULT_PORT;
use flotilla_tests::api::{Papers, Rest};
use flotilla_tests::cli;
use futures::future::try_join_all;
use http::{Method, StatusCode};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::task::JoinHandle;

use crate::apiserver::{self, Apiserver};
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

/// What is measured, in the order of the rows.
type Figures = Vec<Figure>;

struct Figure {
    what: String,
    value: f64,
    unit: &'static str,
    /// Beside which it stands if no kube-apiserver is there to be measured.
    instead: Instead,
}

#[derive(Clone, Copy)]
enum Instead {
    Nothing,
    Aim(f64),
    Noted(f64),
}

/// # Errors
/// If a node or the kube-apiserver does not start, or a request fails.
pub async fn measure(report: &mut Report) -> anyhow::Result<()> {
    let theirs = match apiserver::program() {
        Some(program) => Some(of_apiserver(&program).await.context("kube-apiserver")?),
        None => None,
    };
    for (row, figure) in of_flotilla().await?.into_iter().enumerate() {
        let Figure { what, value, unit, instead } = figure;
        match (theirs.as_ref().map(|theirs| theirs[row].value), instead) {
            (Some(theirs), _) => report.beside(&what, value, "kube-apiserver", theirs, unit),
            (None, Instead::Noted(noted)) => report.beside(&what, value, "kube-apiserver, noted", noted, unit),
            (None, Instead::Aim(aim)) => report.aimed(&what, value, aim, unit),
            (None, Instead::Nothing) => report.alone(&what, value, unit),
        }
    }
    Ok(())
}

async fn of_flotilla() -> anyhow::Result<Figures> {
    let mut figures = Figures::new();
    {
        let flotilla = Flotilla::start(1).await?;
        let pid = u32::try_from(flotilla.cluster.dev.daemon("node-1")?.pid)?;
        memory(&mut figures, &Door::of(&flotilla)?, &[pid]).await?;
    }
    let flotilla = Flotilla::start(1).await?;
    speed(&mut figures, &Door::of(&flotilla)?).await?;
    Ok(figures)
}

async fn of_apiserver(program: &Path) -> anyhow::Result<Figures> {
    let mut figures = Figures::new();
    {
        let apiserver = Apiserver::start(program).await?;
        memory(&mut figures, &Door::beside(&apiserver)?, &apiserver.pids()).await?;
    }
    let apiserver = Apiserver::start(program).await?;
    speed(&mut figures, &Door::beside(&apiserver)?).await?;
    Ok(figures)
}

/// What a node of its own takes, empty and full; a kube-apiserver takes what its etcd takes as well.
async fn memory(figures: &mut Figures, door: &Door, pids: &[u32]) -> anyhow::Result<()> {
    let resident = || pids.iter().map(|pid| rss_mb(*pid)).sum::<anyhow::Result<f64>>();
    let mut add = |what: &str, value: f64, aim: f64| {
        figures.push(Figure { what: what.to_owned(), value, unit: "MB", instead: Instead::Aim(aim) });
    };
    tokio::time::sleep(SETTLE).await;
    add("REST, 1 node, idle: resident memory", resident()?, 37.7);
    fill(door, Listed::ConfigMaps, "many", OBJECTS).await?;
    add(&format!("REST: resident memory after {OBJECTS} objects"), resident()?, 101.6);
    Ok(())
}

async fn speed(figures: &mut Figures, door: &Door) -> anyhow::Result<()> {
    let mut add = |what: String, value: f64, unit: &'static str, instead: Instead| {
        figures.push(Figure { what, value, unit, instead });
    };
    for (clients, noted) in CLIENTS.into_iter().zip(APISERVER_CREATES) {
        for work in [Work::Create, Work::Get, Work::Update] {
            let took = load(door, clients, work).await?;
            let what = format!("REST: {work:?} of ConfigMaps of {VALUE_BYTES} B, {clients} clients");
            let instead = if matches!(work, Work::Create) { Instead::Noted(noted) } else { Instead::Nothing };
            add(what, took.len() as f64 / LASTING.as_secs_f64(), "/s", instead);
            add("… p99".into(), took.percentile_ms(99), "ms", Instead::Nothing);
        }
    }
    for work in [Work::Create, Work::Get, Work::Update] {
        let took = paced(door, work).await?;
        add(format!("REST: {work:?} at 1000 requests/s, p99"), took.percentile_ms(99), "ms", Instead::Aim(10.0));
    }
    for (kind, count) in LISTS {
        let took = lists(door, kind, count).await?;
        let what = format!("REST: list of {count} {kind:?}, p50 of 20");
        add(what, took.percentile_ms(50), "ms", Instead::Aim(50.0));
    }
    for watchers in WATCHERS {
        let took = events(door, watchers).await?;
        let what = format!("REST: write → seen by all of {watchers} watchers, p50 of {WRITES}");
        add(what, took.percentile_ms(50), "ms", Instead::Nothing);
        add("… p99".into(), took.percentile_ms(99), "ms", Instead::Nothing);
    }
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

    fn beside(apiserver: &Apiserver) -> anyhow::Result<Self> {
        Ok(Self { at: apiserver.at(), papers: apiserver.papers()? })
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

/// Until the last byte is there, which nobody looks at.
async fn lists(door: &Door, kind: Listed, count: usize) -> anyhow::Result<Spread> {
    let namespace = format!("list-{kind:?}-{count}").to_lowercase();
    fill(door, kind, &namespace, count).await?;
    let mut rest = door.open().await?;
    let mut took = Vec::new();
    for _ in 0..20 {
        let began = Instant::now();
        let answer = rest.send(Method::GET, &kind.path(&namespace), None).await?;
        anyhow::ensure!(answer.status() == StatusCode::OK, "{}", answer.status());
        let (mut body, mut bytes) = (answer.into_body(), 0);
        while let Some(frame) = body.frame().await {
            bytes += frame?.into_data().map_or(0, |data| data.len());
        }
        took.push(began.elapsed());
        anyhow::ensure!(bytes > count * VALUE_BYTES, "the list is short: {bytes} bytes");
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
