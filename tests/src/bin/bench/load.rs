//! Clients that ask as fast as they are answered, each over a connection of its own.

use std::time::{Duration, Instant};

use anyhow::Context;
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::JoinSet;
use tonic::Status;

use crate::client::{Client, Door};
use crate::report::Spread;

pub const VALUE_BYTES: usize = 256;
const WARM_UP: Duration = Duration::from_millis(500);
const LASTING: Duration = Duration::from_secs(5);
/// A request that takes longer ends the measurement.
const REQUEST_LIMIT: Duration = Duration::from_secs(20);
/// Connections that are set up at once.
const DIALS: usize = 16;

/// What the clients ask for.
#[derive(Clone, Copy, Debug)]
pub enum Work {
    /// Create keys of their own.
    Put,
    /// Read a key of their own, linearizably.
    Get,
}

/// What the clients got done together.
pub struct Done {
    pub per_second: f64,
    pub took: Spread,
}

/// So many clients ask one node.
///
/// # Errors
/// If one of them cannot connect, or a request fails.
pub async fn load(door: &Door, clients: usize, work: Work) -> anyhow::Result<Done> {
    let open = connect(door, clients).await?;
    let mut open: Vec<_> =
        open.into_iter().enumerate().map(|(number, client)| (client, format!("load-{clients}-{number}"))).collect();
    if let Work::Get = work {
        for (client, name) in &mut open {
            client.put(name, &value()).await.context("a key cannot be written")?;
        }
    }
    let begin = Instant::now() + WARM_UP;
    let mut tasks: JoinSet<_> = open.into_iter().map(|(client, name)| requests(client, name, begin, work)).collect();
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    let took = Spread::of(times)?;
    Ok(Done { per_second: took.len() as f64 / LASTING.as_secs_f64(), took })
}

/// So many clients, each with a connection of its own.
///
/// # Errors
/// If one of them cannot connect.
pub async fn connect(door: &Door, clients: usize) -> anyhow::Result<Vec<Client>> {
    let dials = stream::iter(0..clients).map(|_| door.open()).buffer_unordered(DIALS);
    dials.try_collect().await.context("a client does not connect")
}

pub fn value() -> String {
    "x".repeat(VALUE_BYTES)
}

/// How long each request took that began after the warm-up and ended in time.
async fn requests(mut client: Client, name: String, begin: Instant, work: Work) -> anyhow::Result<Vec<Duration>> {
    let (end, value) = (begin + LASTING, value());
    let mut took = Vec::new();
    for number in 0_u64.. {
        let began = Instant::now();
        let asked = request(&mut client, &name, number, &value, work);
        let answered = tokio::time::timeout(REQUEST_LIMIT, asked).await;
        answered.context("a request has no answer")?.context("a request fails")?;
        let ended = Instant::now();
        if ended >= end {
            break;
        }
        if began >= begin {
            took.push(ended - began);
        }
    }
    Ok(took)
}

async fn request(client: &mut Client, name: &str, number: u64, value: &str, work: Work) -> Result<(), Status> {
    match work {
        Work::Put => client.put(&format!("{name}-{number}"), value).await,
        Work::Get => client.get(name).await,
    }
}
