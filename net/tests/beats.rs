//! Heartbeats between running nodes.

#[path = "support/raw.rs"]
mod raw;
mod support;

use std::time::Duration;

use bytes::Bytes;
use flotilla_net::*;
use support::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_is_suspected_then_dead_and_alive_again_when_it_returns() {
    let authority = authority();
    let mut nodes = cluster(&authority, 3).await;
    for node in &nodes {
        for id in 1..=3 {
            await_state(node, id, Liveness::Alive).await;
        }
    }
    let gone = nodes.pop().expect("three nodes");
    gone.net.shutdown().await;
    await_state(&nodes[0], 3, Liveness::Suspect).await;
    await_state(&nodes[0], 3, Liveness::Dead).await;
    await_state(&nodes[1], 3, Liveness::Dead).await;
    let others = nodes[0].net.liveness().borrow().clone();
    assert_eq!(others[&2].state, Liveness::Alive, "the silence of one is no other's");

    let back = gone.restart().await;
    back.net.set_members((1..=3).map(|id| (id, name(id))));
    await_state(&nodes[0], 3, Liveness::Alive).await;
    // It kept the addresses of the others.
    await_state(&back, 2, Liveness::Alive).await;
    nodes.push(back);
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn beats_carry_a_payload_a_round_trip_and_an_address() {
    let authority = authority();
    let nodes = cluster(&authority, 2).await;
    nodes[0].net.set_beat_payload(Bytes::from(vec![9; MAX_PAYLOAD_BYTES])).expect("fits");
    assert!(matches!(
        nodes[0].net.set_beat_payload(Bytes::from(vec![9; MAX_PAYLOAD_BYTES + 1])),
        Err(NetError::PayloadTooLarge { .. })
    ));
    let mut seen = nodes[1].net.liveness();
    let came = seen.wait_for(|peers| peers.get(&1).is_some_and(|peer| peer.payload.len() == MAX_PAYLOAD_BYTES));
    let peers = tokio::time::timeout(PATIENCE, came).await.expect("in time").expect("runs").clone();
    assert_eq!(peers[&1].address, Some(nodes[0].net.local_addr().expect("bound")));
    assert_eq!(peers[&2].state, Liveness::Alive, "a node sees itself");
    until("a round trip is measured", || async { nodes[1].net.liveness().borrow()[&1].rtt.is_some() }).await;
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_that_was_met_and_never_beat_is_missed_like_any_other() {
    let authority = authority();
    let node = Node::start(&authority, 1).await;
    node.net.set_members(vec![(1, name(1)), (2, name(2))]);
    await_state(&node, 2, Liveness::Unknown).await;
    let silent = identity(&authority, 2);
    let shown = (silent.key().clone(), silent.certificate().clone());
    let raw = raw::Raw::new();
    let address = node.net.local_addr().expect("bound");
    let connection = raw.connect(address, Alpn::Beat.as_str(), Some(&shown)).await.expect("is let in");
    await_state(&node, 2, Liveness::Alive).await;
    await_state(&node, 2, Liveness::Dead).await;
    assert!(connection.close_reason().is_none(), "silence was judged, not the connection");
    raw.stop().await;
    node.net.shutdown().await;
}

/// The rest of the daemon may be as busy as it likes.
#[tokio::test(flavor = "current_thread")]
async fn a_daemon_whose_own_threads_are_blocked_is_still_heard() {
    let authority = authority();
    let nodes = cluster(&authority, 2).await;
    await_state(&nodes[0], 2, Liveness::Alive).await;
    let before = std::time::Instant::now();
    std::thread::sleep(Duration::from_secs(2));
    let peer = nodes[0].net.liveness().borrow()[&2].clone();
    assert_eq!(peer.state, Liveness::Alive);
    assert!(peer.last_heard.expect("was heard") > before + Duration::from_secs(1));
    stop(nodes).await;
}

/// One thread runs all, so that blocking it stops every clock and every packet, as SIGSTOP does.
#[tokio::test(flavor = "current_thread")]
async fn a_node_that_was_itself_paused_declares_nobody_dead() {
    let authority = authority();
    let mut nodes = Vec::new();
    for id in 1..=2 {
        nodes.push(Node::start_with(&authority, id, |options| options.threads = 0).await);
    }
    introduce(&[&nodes[0], &nodes[1]]);
    await_state(&nodes[0], 2, Liveness::Alive).await;
    await_state(&nodes[1], 1, Liveness::Alive).await;
    let mut worst = nodes[0].net.liveness();
    worst.mark_unchanged();
    std::thread::sleep(Duration::from_secs(3));
    // Until beats have come again, every state on the way is looked at.
    let since = std::time::Instant::now();
    let heard_again = async {
        loop {
            let peers = worst.borrow_and_update().clone();
            assert_ne!(peers[&2].state, Liveness::Dead);
            if peers[&2].last_heard.is_some_and(|heard| heard > since) {
                return;
            }
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, heard_again).await.expect("beats come again");
    stop(nodes).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_changed_address_spreads_to_those_who_were_not_told() {
    let authority = authority();
    let nodes = cluster(&authority, 3).await;
    for id in 2..=3 {
        await_state(&nodes[0], id, Liveness::Alive).await;
    }
    let elsewhere = "127.0.0.9:9".parse().expect("an address");
    let here = nodes[0].net.local_addr().expect("bound");
    nodes[0].net.set_advertise(vec![here, elsewhere]).expect("signs");
    let knows = |node: &Node| {
        let record = node.net.peers().into_iter().find(|record| record.id() == 1);
        record.is_some_and(|record| record.addresses() == [here, elsewhere])
    };
    for node in &nodes {
        until("the new address is known", || async { knows(node) }).await;
    }
    stop(nodes).await;
}

/// Two know each other, and the third knows one of them: the third hears of the other through it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn addresses_are_passed_on() {
    let authority = authority();
    let mut nodes = Vec::new();
    for id in 1..=3 {
        nodes.push(Node::start(&authority, id).await);
    }
    let members: Vec<_> = nodes.iter().map(|node| (node.id, node.name.clone())).collect();
    for (at, of) in [(0, 1), (2, 1)] {
        let record = nodes[of].net.own_record().expect("a record");
        nodes[at].net.learn((*record).clone()).expect("learns");
    }
    nodes.iter().for_each(|node| node.net.set_members(members.clone()));
    await_state(&nodes[2], 1, Liveness::Alive).await;
    await_state(&nodes[0], 3, Liveness::Alive).await;
    stop(nodes).await;
}

/// As behind NATs that keep ports.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_do_not_know_their_addresses_meet_where_a_third_sees_them() {
    let authority = authority();
    let public = Node::start(&authority, 1).await;
    let nowhere = "127.0.0.1:1".parse().expect("an address");
    let hidden = |id| Node::start_with(&authority, id, move |options| options.advertise = vec![nowhere]);
    let (one, two) = (hidden(2).await, hidden(3).await);
    two.net.register(Alpn::Rpc, std::sync::Arc::new(Echo));
    introduce(&[&public, &one, &two]);
    until("they meet", || async { call(&one, 3, Alpn::Rpc, "hello").await.is_ok() }).await;
    for node in [&one, &two] {
        let record = node.net.own_record().expect("a record");
        assert_eq!(record.addresses(), [nowhere, node.net.local_addr().expect("bound")]);
        assert_eq!(node.net.advertised(), [nowhere]);
    }
    let record = public.net.own_record().expect("a record");
    assert_eq!(record.addresses(), [public.net.local_addr().expect("bound")], "it is where it knows itself to be");
    stop(vec![public, one, two]).await;
}
