//! Nodes that are cut off from each other for a while.

mod support;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use flotilla_net::*;
use support::*;
use tokio::net::UdpSocket;
use tokio::task::JoinSet;

/// Passes packets on to one node, as a wire that can be cut.
struct Wire {
    address: SocketAddr,
    cut: Arc<AtomicBool>,
    _task: JoinSet<()>,
}

impl Wire {
    async fn to(node: SocketAddr) -> Wire {
        let front = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
        let address = front.local_addr().expect("bound");
        let cut = Arc::new(AtomicBool::new(false));
        let mut task = JoinSet::new();
        task.spawn(relay(Arc::new(front), node, cut.clone()));
        Wire { address, cut, _task: task }
    }
}

/// Gives each caller a socket of its own towards the node.
async fn relay(front: Arc<UdpSocket>, node: SocketAddr, cut: Arc<AtomicBool>) {
    let mut backs: HashMap<SocketAddr, Arc<UdpSocket>> = HashMap::new();
    let mut answers = JoinSet::new();
    let mut packet = vec![0; 65536];
    while let Ok((bytes, from)) = front.recv_from(&mut packet).await {
        if let std::collections::hash_map::Entry::Vacant(place) = backs.entry(from) {
            let back = UdpSocket::bind("127.0.0.1:0").await.expect("a socket");
            back.connect(node).await.expect("a destination");
            let back = place.insert(Arc::new(back)).clone();
            let (front, cut) = (front.clone(), cut.clone());
            answers.spawn(async move {
                let mut packet = vec![0; 65536];
                loop {
                    let Ok(bytes) = back.recv(&mut packet).await else { continue };
                    if !cut.load(Ordering::SeqCst) {
                        let _ = front.send_to(&packet[..bytes], from).await;
                    }
                }
            });
        }
        if !cut.load(Ordering::SeqCst) {
            let _ = backs[&from].send(&packet[..bytes]).await;
        }
    }
}

async fn cut_for(silence: Duration) {
    let authority = authority();
    let mut nodes = Vec::new();
    let mut wires = Vec::new();
    for id in 1..=2 {
        let node = Node::start(&authority, id).await;
        let wire = Wire::to(node.net.local_addr().expect("bound")).await;
        node.net.set_advertise(vec![wire.address]).expect("signs");
        node.net.register(Alpn::Rpc, echo());
        nodes.push(node);
        wires.push(wire);
    }
    introduce(&[&nodes[0], &nodes[1]]);
    await_state(&nodes[0], 2, Liveness::Alive).await;
    await_state(&nodes[1], 1, Liveness::Alive).await;
    call(&nodes[0], 2, Alpn::Rpc, "before").await.expect("answers");

    let cut_at = Instant::now();
    wires.iter().for_each(|wire| wire.cut.store(true, Ordering::SeqCst));
    await_state(&nodes[0], 2, Liveness::Dead).await;
    await_state(&nodes[1], 1, Liveness::Dead).await;
    // The state that is tested is a wire that has been silent for so long.
    tokio::time::sleep(silence.saturating_sub(cut_at.elapsed())).await;

    let healed_at = Instant::now();
    wires.iter().for_each(|wire| wire.cut.store(false, Ordering::SeqCst));
    await_state(&nodes[0], 2, Liveness::Alive).await;
    await_state(&nodes[1], 1, Liveness::Alive).await;
    let alive_after = healed_at.elapsed();
    until("calls are answered", || async {
        let asked = async {
            let (mut send, mut recv) = nodes[0].net.open(2, Alpn::Rpc).await.ok()?;
            write_frame(&mut send, b"after").await.ok()?;
            read_frame(&mut recv, 64).await.ok()
        };
        asked.await.is_some()
    })
    .await;
    let answered_after = healed_at.elapsed();
    println!("after {silence:?} of silence: alive in {alive_after:?}, answered in {answered_after:?}");
    assert!(answered_after < Duration::from_secs(4), "alive in {alive_after:?}, answered in {answered_after:?}");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_shorter_than_a_connections_patience_heals() {
    cut_for(Duration::from_secs(2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cut_that_ends_all_connections_heals() {
    cut_for(Duration::from_secs(7)).await;
}
