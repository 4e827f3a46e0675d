//! Prints what two nodes on this machine say to each other per second: `cargo run --release -p flotilla-net --example wire`.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use async_trait::async_trait;
use flotilla_net::*;

const CALL_BYTES: usize = 256;
const CALLS: usize = 20_000;
const BULK_BYTES: usize = 256 * 1024 * 1024;
const CHUNK_BYTES: usize = 64 * 1024;

/// Answers frames with themselves.
struct Echo;

#[async_trait]
impl Handler for Echo {
    async fn handle(&self, _peer: PeerInfo, mut send: SendStream, mut recv: RecvStream) {
        while let Ok(Some(frame)) = read_frame_or_end(&mut recv, CHUNK_BYTES).await {
            if write_frame(&mut send, &frame).await.is_err() {
                return;
            }
        }
    }
}

/// Swallows what comes and says how much it was.
struct Sink;

#[async_trait]
impl Handler for Sink {
    async fn handle(&self, _peer: PeerInfo, mut send: SendStream, mut recv: RecvStream) {
        let mut total = 0_u64;
        while let Ok(Some(chunk)) = recv.read_chunk(usize::MAX, true).await {
            total += chunk.bytes.len() as u64;
        }
        // The caller notices if this does not come.
        let _ = write_frame(&mut send, &total.to_be_bytes()).await;
    }
}

type Failure = Box<dyn std::error::Error>;

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let (one, two) = nodes().await?;
    two.register(Alpn::Rpc, Arc::new(Echo));
    two.register(Alpn::Blob, Arc::new(Sink));
    connect(&one).await?;
    for streams in [1, 16, 64] {
        calls(&one, streams).await?;
    }
    bulk(&one).await?;
    one.shutdown().await;
    two.shutdown().await;
    Ok(())
}

async fn nodes() -> Result<(Net, Net), Failure> {
    let now = SystemTime::now();
    let authority = Authority::create(ClusterId::generate(), now)?;
    let dir = std::env::temp_dir().join(format!("flotilla-wire-{}", std::process::id()));
    let listen: SocketAddr = "127.0.0.1:0".parse()?;
    let mut nets = Vec::new();
    for id in 1..=2 {
        let identity = Identity::issue(&authority, id, &format!("node-{id}"), &[], NODE_LIFETIME, now)?;
        let net = Net::start(Options::new(identity, listen, dir.join(id.to_string()))).await?;
        net.set_members(vec![(1, "node-1".into()), (2, "node-2".into())]);
        nets.push(net);
    }
    let (two, one) = (nets.remove(1), nets.remove(0));
    one.learn((*two.own_record().ok_or("no record")?).clone())?;
    std::fs::remove_dir_all(&dir)?;
    Ok((one, two))
}

async fn connect(one: &Net) -> Result<(), Failure> {
    let started = Instant::now();
    one.open(2, Alpn::Rpc).await?;
    println!("first connection          {:>10.2} ms", millis(started.elapsed()));
    Ok(())
}

/// Calls on `streams` streams at once, each of which waits for its answer.
async fn calls(one: &Net, streams: usize) -> Result<(), Failure> {
    let started = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for _ in 0..streams {
        let (mut send, mut recv) = one.open(2, Alpn::Rpc).await?;
        tasks.spawn(async move {
            let mut times = Vec::new();
            for _ in 0..CALLS / streams {
                let asked = Instant::now();
                write_frame(&mut send, &[7; CALL_BYTES]).await?;
                read_frame(&mut recv, CHUNK_BYTES).await?;
                times.push(asked.elapsed());
            }
            Ok::<_, FrameError>(times)
        });
    }
    let mut times = Vec::new();
    while let Some(done) = tasks.join_next().await {
        times.extend(done??);
    }
    let rate = times.len() as f64 / started.elapsed().as_secs_f64();
    times.sort();
    let at = |share: f64| millis(times[((times.len() - 1) as f64 * share) as usize]);
    println!(
        "{streams:>3} streams, {CALL_BYTES} B calls {rate:>10.0}/s    p50 {:.3} ms, p99 {:.3} ms",
        at(0.5),
        at(0.99)
    );
    Ok(())
}

async fn bulk(one: &Net) -> Result<(), Failure> {
    let (mut send, mut recv) = one.open(2, Alpn::Blob).await?;
    let chunk = vec![7; CHUNK_BYTES];
    let started = Instant::now();
    for _ in 0..BULK_BYTES / CHUNK_BYTES {
        send.write_all(&chunk).await?;
    }
    send.finish()?;
    let answer = read_frame(&mut recv, 8).await?;
    if *answer != (BULK_BYTES as u64).to_be_bytes() {
        return Err("bytes were lost".into());
    }
    let mib = (BULK_BYTES / (1024 * 1024)) as f64;
    println!("one stream, bulk          {:>10.0} MiB/s", mib / started.elapsed().as_secs_f64());
    Ok(())
}

fn millis(time: Duration) -> f64 {
    time.as_secs_f64() * 1000.0
}
