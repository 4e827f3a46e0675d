//! Clients that write as fast as they are answered, each over a connection of its own.

use std::time::{Duration, Instant};

use anyhow::Context;
use tokio::task::JoinSet;

use crate::client::{Client, Door};
use crate::report::Spread;

pub const VALUE_BYTES: usize = 256;
const WARM_UP: Duration = Duration::from_millis(500);
const LASTING: Duration = Duration::from_secs(5);
/// A write that takes longer ends the measurement.
const PUT_LIMIT: Duration = Duration::from_secs(20);

/// What the clients got done together.
pub struct Done {
    pub per_second: f64,
    pub took: Spread,
}

/// So many clients create keys of their own at one node.
///
/// # Errors
/// If one of them cannot connect, or a write fails.
pub async fn load(door: &Door, clients: usize) -> anyhow::Result<Done> {
    let mut open = Vec::new();
    for _ in 0..clients {
        open.push(door.open().await.context("a client does not connect")?);
    }
    let begin = Instant::now() + WARM_UP;
    let mut tasks: JoinSet<_> = open
        .into_iter()
        .enumerate()
        .map(|(number, client)| puts(client, format!("load-{clients}-{number}"), begin))
        .collect();
    let mut times = Vec::new();
    while let Some(ended) = tasks.join_next().await {
        times.extend(ended??);
    }
    let took = Spread::of(times)?;
    Ok(Done { per_second: took.len() as f64 / LASTING.as_secs_f64(), took })
}

/// How long each write took that began after the warm-up and ended in time.
async fn puts(mut client: Client, prefix: String, begin: Instant) -> anyhow::Result<Vec<Duration>> {
    let (end, value) = (begin + LASTING, "x".repeat(VALUE_BYTES));
    let mut took = Vec::new();
    for number in 0_u64.. {
        let name = format!("{prefix}-{number}");
        let began = Instant::now();
        let put = tokio::time::timeout(PUT_LIMIT, client.put(&name, &value));
        put.await.context("a write has no answer")?.context("a write fails")?;
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
